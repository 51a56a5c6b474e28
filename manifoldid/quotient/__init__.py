"""Quotients M/G: horizontal geometry in torch, and the geoopt manifold."""
