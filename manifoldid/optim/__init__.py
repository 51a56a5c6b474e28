"""Optimisers on quotients: any torch optimiser, attached to a gauge."""

from manifoldid.optim.attach import Handle, attach
from manifoldid.optim.trust_region import TrustRegion

__all__ = ["Handle", "TrustRegion", "attach"]
