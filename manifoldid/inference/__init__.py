"""Estimates with uncertainty: fit, infer, quasi-variances."""

from manifoldid.inference.quasi_variance import QuasiVariances, quasi_variances

__all__ = ["QuasiVariances", "quasi_variances"]
