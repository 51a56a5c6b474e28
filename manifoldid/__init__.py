"""Gauge freedom in torch models: find it, take it out with quotient geometry, report what does not depend on it."""

from manifoldid import nn
from manifoldid.ensemble import Contrast, Ensemble
from manifoldid.errors import (
    DegeneratePointError,
    DetachedWarning,
    NotConvergedError,
    NotEstimableError,
    NotIdentifiableError,
    NotInvariantError,
    NotInvariantWarning,
    UnboundedEstimateError,
    UncalibratedWarning,
)
from manifoldid.groups import Affine, GaugeGroup, PositiveScaling, Product, Scaling, Shift, Translation
from manifoldid.invariance import check_invariance
from manifoldid.optim import Handle, attach
from manifoldid.sections import Reference, Section

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Contrast",
    "DegeneratePointError",
    "DetachedWarning",
    "Ensemble",
    "GaugeGroup",
    "Handle",
    "NotConvergedError",
    "NotEstimableError",
    "NotIdentifiableError",
    "NotInvariantError",
    "NotInvariantWarning",
    "PositiveScaling",
    "Product",
    "Reference",
    "Scaling",
    "Section",
    "Shift",
    "Translation",
    "UnboundedEstimateError",
    "UncalibratedWarning",
    "attach",
    "check_invariance",
    "nn",
]
