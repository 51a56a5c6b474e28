"""Optimisers on quotients: any torch optimiser, attached to a gauge."""

from manifoldid.optim.attach import Handle, attach

__all__ = ["Handle", "attach"]
