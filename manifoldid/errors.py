"""Exceptions and warnings.

Every exception is a `ValueError` (the input cannot be right) or a `RuntimeError` (the computation cannot go on), so that
callers who catch the built-in classes keep working. Messages name the argument in backticks, say what was expected, what
came, and what to do.
"""

from collections.abc import Sequence


class NotInvariantError(ValueError):
    """The function or loss changes under a gauge that was declared for it."""


class NotIdentifiableError(ValueError):
    """The likelihood has null directions beyond the declared gauge."""


class NotEstimableError(ValueError):
    """A contrast or section was asked for that is not constant on the orbits of the gauge."""


class UnboundedEstimateError(RuntimeError):
    """The likelihood has no maximum: some parameters run away to infinity (separation)."""


class NotConvergedError(RuntimeError):
    """An iteration stopped before its result can be trusted."""


class DegeneratePointError(ValueError):
    """The point has a stabiliser or lies outside the domain of the action, so that its orbit has no representative."""


class NotInvariantWarning(UserWarning):
    """The gradient of an attached loss has a component along the gauge orbit: the loss seems to see the gauge."""


class UncalibratedWarning(UserWarning):
    """A `GaugeFix(over="batch")` head is evaluated before `calibrate` has stored its frame."""


class DetachedWarning(UserWarning):
    """An attachment to an optimiser was lost, or the tensor that an attachment speaks of has been replaced."""


def listed(indices: Sequence[object]) -> str:
    """`indices` as text: the first three and how many there are, `0, 4, 7 (3 more)`."""
    shown = ", ".join(str(index) for index in indices[:3])
    return shown if len(indices) <= 3 else f"{shown} ({len(indices) - 3} more)"
