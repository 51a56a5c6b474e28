"""Estimates with uncertainty: fit, infer, quasi-variances."""

from manifoldid.inference.fit import FitResult, fit
from manifoldid.inference.infer import Estimate, EstimatedContrast, infer
from manifoldid.inference.quasi_variance import QuasiVariances, quasi_variances

__all__ = ["Estimate", "EstimatedContrast", "FitResult", "QuasiVariances", "fit", "infer", "quasi_variances"]
