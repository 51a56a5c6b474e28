"""Gauge freedom in torch models: find it, take it out with quotient geometry, report what does not depend on it."""

from typing import TYPE_CHECKING, Any

from manifoldid import nn
from manifoldid.diagnose import Diagnosis, Direction, DiscreteSymmetry, Generator, NetworkDiagnosis, diagnose
from manifoldid.ensemble import Ensemble, TrainedEnsemble, train_ensemble
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
from manifoldid.groups import (
    Affine,
    Finite,
    GaugeGroup,
    GeneralLinear,
    LocationScale,
    MatrixGroup,
    Orthogonal,
    Parts,
    Permutation,
    Phase,
    Pointwise,
    PositiveScaling,
    Product,
    Rescaling,
    RigidMotion,
    Scaling,
    Shift,
    SignFlip,
    Similarity,
    Translation,
)
from manifoldid.inference import (
    Contrast,
    Estimate,
    FitResult,
    PairwiseContrasts,
    QuasiVariances,
    WaldTest,
    fit,
    infer,
    quasi_variances,
)
from manifoldid.invariance import check_invariance
from manifoldid.optim import Handle, TrustRegion, attach
from manifoldid.sections import Reference, Section

if TYPE_CHECKING:
    from manifoldid import conformance
    from manifoldid.quotient.manifold import QuotientManifold, parameter

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Contrast",
    "DegeneratePointError",
    "DetachedWarning",
    "Diagnosis",
    "Direction",
    "DiscreteSymmetry",
    "Ensemble",
    "Estimate",
    "Finite",
    "FitResult",
    "GaugeGroup",
    "GeneralLinear",
    "Generator",
    "Handle",
    "LocationScale",
    "MatrixGroup",
    "NetworkDiagnosis",
    "NotConvergedError",
    "NotEstimableError",
    "NotIdentifiableError",
    "NotInvariantError",
    "NotInvariantWarning",
    "Orthogonal",
    "PairwiseContrasts",
    "Parts",
    "Permutation",
    "Phase",
    "Pointwise",
    "PositiveScaling",
    "Product",
    "QuasiVariances",
    "QuotientManifold",
    "Reference",
    "Rescaling",
    "RigidMotion",
    "Scaling",
    "Section",
    "Shift",
    "SignFlip",
    "Similarity",
    "TrainedEnsemble",
    "Translation",
    "TrustRegion",
    "UnboundedEstimateError",
    "UncalibratedWarning",
    "WaldTest",
    "attach",
    "check_invariance",
    "conformance",
    "diagnose",
    "fit",
    "infer",
    "nn",
    "parameter",
    "quasi_variances",
    "train_ensemble",
]


def __getattr__(name: str) -> Any:
    """Loads on first use what needs geoopt or is used in tests only."""
    if name in ("QuotientManifold", "parameter"):
        from manifoldid.quotient import manifold

        return getattr(manifold, name)
    if name == "conformance":
        import importlib

        return importlib.import_module("manifoldid.conformance")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING"})
