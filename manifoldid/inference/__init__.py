"""Estimates with uncertainty: fit, infer, quasi-variances."""

from manifoldid.inference.fit import FitResult, fit
from manifoldid.inference.quasi_variance import QuasiVariances, quasi_variances

__all__ = ["FitResult", "QuasiVariances", "fit", "quasi_variances"]
