"""Flows of vector fields: exact for affine and separable fields, extrapolated integration for the rest."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from manifoldid.points import concrete

_STAGES = (2, 4, 6, 8, 10, 12)  # steps of the midpoint rule before extrapolation in 1/steps^2 (Gragg, Bulirsch, Stoer)
_BLIND_STEPS = 8  # where values cannot be looked at
_BALANCINGS = 30
_FAR = 1e8  # 1/25!, the first term that the series leaves out, is below rounding even times this
_TERMS = 24  # of the exponential series at norm <= 1: 1/24! is below rounding


def exponential_action(
    apply: Callable[[Tensor], Tensor], shift: Tensor | None, x: Tensor, t: Tensor, steps: int
) -> Tensor:
    """x(t) of dx/dt = B x + b by Taylor series in steps; B is given by its action `apply`."""
    step = t / steps
    for _ in range(steps):
        term = step * (apply(x) if shift is None else apply(x) + shift)
        total = x + term
        for k in range(2, _TERMS + 1):
            term = step / k * apply(term)
            total = total + term
        x = total
    return x


def steps_of_series(rows: Tensor, columns: Tensor, entries: Tensor, x: Tensor, t: Tensor) -> int:
    """In how many steps a sparse matrix B moves `x` for time `t` by Taylor series: a norm of t B.

    Coordinates in very different units give rotations large and small entries, and turn no faster for it. So the norm is
    max_i sum_j |B_ij| d_j / d_i with units d that make it small (Osborne's balancing, 1960), as far as the error of the series in
    these units is rounding beside where the points go.
    """
    if not (concrete(x) and concrete(t)):
        return _BLIND_STEPS
    size = x.detach().abs().reshape(-1, x.shape[-1]).amax(0).double()
    time, d = float(t.detach().abs().max()), torch.ones_like(size)

    def along(index: Tensor, values: Tensor) -> Tensor:
        return torch.zeros_like(size).index_add(0, index, values)

    sizes = entries.abs().to(size)
    best = time * float(along(rows, sizes).max())
    reach = size + time * along(rows, sizes * size[columns])
    for _ in range(_BALANCINGS if best > _TERMS else 0):
        scaled = sizes * d[columns] / d[rows]
        row, column = along(rows, scaled), along(columns, scaled)
        floor = 1e-6 * row.max()
        d = d * ((row + floor) / (column + floor)) ** 0.25  # all at once: the square root would overshoot
        if float((d / reach.clamp_min(1e-300)).max() * (size / d).max()) < _FAR:
            best = min(best, time * float((along(rows, sizes * d[columns]) / d).max()))
    return max(1, math.ceil(best))


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
    x = x.expand(torch.broadcast_shapes(x.shape, t.shape)) if t.ndim else x
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
        new, error = _extrapolated(field, x, step * t)
        worst = _worst(error, new, x)
        if worst <= tolerance:
            x, done = new, done + step
            if float(x.detach().abs().max()) > 1e12:
                return torch.full_like(x, float("nan"))
        step *= min(3.0, max(0.1, 0.8 * (tolerance / max(worst, 1e-300)) ** (1 / 11)))
    return x


def _extrapolated(field: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x(t) and its error, by the modified midpoint rule with all numbers of steps side by side."""
    counts = torch.tensor(_STAGES, dtype=x.dtype, device=x.device).reshape(-1, *(1,) * x.ndim)
    h = t / counts
    before, now = x.expand(len(_STAGES), *x.shape), x + h * field(x)
    ends: list[Tensor] = []
    for k in range(1, _STAGES[-1] + 1):
        velocity = field(now)
        if k == _STAGES[len(ends)]:
            ends.append(0.5 * (before[0] + now[0] + h[0] * velocity[0]))
            before, now, h, velocity = before[1:], now[1:], h[1:], velocity[1:]
        before, now = now, before + 2 * h * velocity
    table = ends[:1]
    for k, row in enumerate(ends[1:], 1):
        new = [row]
        for j in range(1, k + 1):
            ratio = (_STAGES[k] / _STAGES[k - j]) ** 2
            row = row + (row - table[j - 1]) / (ratio - 1)
            new.append(row)
        table = new
    return table[-1], (table[-1] - table[-2]).detach()


def _worst(error: Tensor, new: Tensor, x: Tensor) -> float:
    """The error relative to the size of the points; inf if it is not finite."""
    size = 1e-12 + new.detach().abs() + x.detach().abs().amax()
    worst = float((error.detach().abs() / size).max())
    return worst if math.isfinite(worst) else math.inf
