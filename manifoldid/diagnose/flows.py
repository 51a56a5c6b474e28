"""Flows of vector fields: exact for affine and separable fields, extrapolated integration for the rest."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from manifoldid.points import concrete

_STAGES = (
    2,
    4,
    6,
    8,
    10,
    12,
)  # steps of the modified midpoint rule before extrapolation in 1/steps^2 (Gragg, Bulirsch, Stoer)
_BLIND_STEPS = 8  # where values cannot be looked at
_TERMS = 24  # of the exponential series at norm <= 1: 1/24! is below rounding


def exponential_action(
    apply: Callable[[Tensor], Tensor], shift: Tensor | None, x: Tensor, t: Tensor, bound: float
) -> Tensor:
    """x(t) of dx/dt = B x + b by Taylor series in steps; B is given by its action `apply`, `bound` bounds its norm."""
    steps = max(1, int(float(t.detach().abs().max()) * bound + 0.999)) if concrete(t) else _BLIND_STEPS
    step = t / steps
    for _ in range(steps):
        term = step * (apply(x) if shift is None else apply(x) + shift)
        total = x + term
        for k in range(2, _TERMS + 1):
            term = step / k * apply(term)
            total = total + term
        x = total
    return x


def integrate(
    field: Callable[[Tensor], Tensor], x: Tensor, t: Tensor, tolerance: float = 1e-12, most: int = 400
) -> Tensor:
    """x(t) of dx/dt = field(x), to a relative tolerance; nan where the solution does not exist that long.

    Args:
        field: Velocity at points (..., n).
        x: Start (..., n); all of a batch share the steps.
        t: Time, a scalar or (..., 1).
        tolerance: Relative error of one step.
        most: Steps before it gives up.

    Returns:
        The point (..., n) at time t.
    """
    tolerance = max(tolerance, 16 * torch.finfo(x.dtype).eps)
    if not (concrete(x) and concrete(t)):
        for _ in range(_BLIND_STEPS):
            x = _extrapolated(field, x, t / _BLIND_STEPS)[0]
        return x
    done, step, taken = 0.0, 1.0, 0  # also for t = 0: derivatives by t are asked for there
    while done < 1.0:
        taken += 1
        if taken > most or step < 1e-7:
            return torch.full_like(x, float("nan"))
        step = min(step, 1.0 - done)
        new, error = _extrapolated(field, x, step * t, tolerance)
        worst = _worst(error, new, x)
        if worst <= tolerance:
            x, done = new, done + step
            if float(x.detach().abs().max()) > 1e12:
                return torch.full_like(x, float("nan"))
        step *= min(3.0, max(0.1, 0.8 * (tolerance / max(worst, 1e-300)) ** (1 / 11)))
    return x


def _extrapolated(
    field: Callable[[Tensor], Tensor], x: Tensor, t: Tensor, tolerance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """x(t) and its error, by as many rows of the table as it takes until the error is below the tolerance."""
    table: list[Tensor] = []
    slope = field(x)
    for k, count in enumerate(_STAGES):
        row = _midpoint(field, x, slope, t, count)
        new = [row]
        for j in range(1, k + 1):
            ratio = (count / _STAGES[k - j]) ** 2
            row = row + (row - table[j - 1]) / (ratio - 1)
            new.append(row)
        table = new
        if k and tolerance and _worst(table[-1] - table[-2], table[-1], x) <= tolerance:
            break
    return table[-1], (table[-1] - table[-2]).detach()


def _worst(error: Tensor, new: Tensor, x: Tensor) -> float:
    """The error relative to the size of the points; inf if it is not finite."""
    size = 1e-12 + new.detach().abs() + x.detach().abs().amax()
    worst = float((error.detach().abs() / size).max())
    return worst if math.isfinite(worst) else math.inf


def _midpoint(field: Callable[[Tensor], Tensor], x: Tensor, slope: Tensor, t: Tensor, count: int) -> Tensor:
    h = t / count
    before, now = x, x + h * slope
    for _ in range(count - 1):
        before, now = now, before + 2 * h * field(now)
    return 0.5 * (before + now + h * field(now))
