"""Whether a gauge group or a manifold of your own is right, and if not, where to look."""

from manifoldid.conformance.checks import check_group, check_manifold, parametrize_with_checks
from manifoldid.conformance.runner import Outcome, Report

__all__ = ["Outcome", "Report", "check_group", "check_manifold", "parametrize_with_checks"]
