"""Estimates with uncertainty: fit, infer, contrasts, quasi-variances."""

from manifoldid.inference.contrast import Contrast, WaldTest
from manifoldid.inference.estimate import Estimate
from manifoldid.inference.fit import FitResult, fit
from manifoldid.inference.infer import infer
from manifoldid.inference.pairwise import PairwiseContrasts
from manifoldid.inference.quasi_variance import QuasiVariances, quasi_variances

__all__ = [
    "Contrast",
    "Estimate",
    "FitResult",
    "PairwiseContrasts",
    "QuasiVariances",
    "WaldTest",
    "fit",
    "infer",
    "quasi_variances",
]
