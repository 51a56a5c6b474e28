"""Nonlinear least squares from many starts at once: the method of Levenberg and Marquardt as More's trust region.

All starts take their steps together, so that a model is called a few times with many points instead of very often with one: that is
what scipy's `leastsq`, whose algorithm this is, cannot do, and a diagnosis then takes ten times as long.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDING = 1e-13  # of a decrease, and of a step
_SOLVED = 1e-15  # residuals of size 1 that are zero
_FIRST_RADIUS = 100.0  # in units of the start
_HALVINGS = 30  # of the logarithm of the damping: a radius is met to some digits

Residual = Callable[[Tensor, Tensor], Tensor]


def least_squares(residual: Residual, start: Tensor, unit: Tensor, steps: int) -> Tensor:
    """Where sums of squares are least, by at most so many steps from every start.

    Args:
        residual: r(u, of): residuals (m, p), finite, at points u (m, k) of the problems `of` (m,), indices of starts.
        start: Where each problem begins, (s, k).
        unit: Typical size (s,) of a coordinate of each problem, for steps of differences.
        steps: The most steps.

    Returns:
        The points (s, k) that were reached, converged or not.

    Source:
        More (1978), The Levenberg-Marquardt algorithm: implementation and theory; derivatives by forward differences as in MINPACK.
    """
    u, everyone = start.clone(), torch.arange(len(start))
    rest = residual(u, everyone)
    active = everyone[rest.abs().amax(1) > _SOLVED]
    if not len(active):
        return u
    slopes = _slopes(residual, u, rest, unit, everyone)
    scale = slopes.norm(dim=1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    radius = _FIRST_RADIUS * (scale * u).norm(dim=1)
    radius = torch.where(radius > 0, radius, torch.full_like(radius, _FIRST_RADIUS))
    for k in range(steps):
        scale[active] = torch.maximum(scale[active], slopes[active].norm(dim=1))
        step, length, damping, predicted = _step(slopes[active], rest[active], scale[active], radius[active])
        radius[active] = torch.minimum(radius[active], length) if k == 0 else radius[active]
        before = rest[active].norm(dim=1)
        new = u[active] + step
        there = residual(new, active)
        after = there.norm(dim=1)
        gain = torch.where(0.1 * after < before, 1 - (after / before).square(), -torch.ones_like(after))
        share = damping.sqrt() * length / before
        expected = (predicted / before).square() + 2 * share.square()
        ratio = gain / expected.clamp_min(1e-300)
        radius[active] = _radius(radius[active], length, gain, ratio, expected - share.square(), damping)
        taken = ratio >= 1e-4
        moved = active[taken]
        u[moved], rest[moved] = new[taken], there[taken]
        small = (gain.abs() <= _ROUNDING) & (expected <= _ROUNDING) & (ratio <= 2)
        short = radius[active] <= _ROUNDING * (scale[active] * u[active]).norm(dim=1)
        solved = rest[active].abs().amax(1) <= _SOLVED
        active = active[~(small | short | solved)]
        if not len(active):
            break
        again = moved[torch.isin(moved, active)]
        slopes[again] = _slopes(residual, u[again], rest[again], unit[again], again)
    return u


def _slopes(residual: Residual, u: Tensor, rest: Tensor, unit: Tensor, of: Tensor) -> Tensor:
    """Jacobians (m, p, k) by forward differences."""
    m, k = u.shape
    if not m:
        return rest.new_zeros(0, rest.shape[1], k)
    size = torch.maximum(u.abs(), unit[:, None]) * torch.finfo(u.dtype).eps ** 0.5
    near = u[:, None] + torch.diag_embed(size)
    size = (near - u[:, None]).diagonal(dim1=1, dim2=2)  # the step that was taken, after rounding
    there = residual(near.reshape(m * k, k), of.repeat_interleave(k)).reshape(m, k, -1)
    return ((there - rest[:, None]) / size[..., None]).mT


def _step(slopes: Tensor, rest: Tensor, scale: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The least of |J d + r| with |scale d| <= radius: d, its scaled length, the damping, and |J d|."""
    if slopes.shape[1] > 2 * slopes.shape[2]:  # a QR first: only the triangle has information about columns
        q, slopes = torch.linalg.qr(slopes)
        rest = (q.mT @ rest[..., None])[..., 0]
    left, s, right = torch.linalg.svd(slopes / scale[:, None], full_matrices=False)
    b = (left.mT @ rest[..., None])[..., 0]
    s = torch.where(s > 1e-15 * s[:, :1], s, torch.zeros_like(s))
    newton = torch.where(s > 0, b / torch.where(s > 0, s, torch.ones_like(s)), torch.zeros_like(s))
    inside = newton.norm(dim=1) <= 1.1 * radius
    most = (s * b).norm(dim=1) / radius
    low, high = torch.log(1e-20 * most.clamp_min(1e-280)), torch.log(most.clamp_min(1e-280))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        d = s * b / (s.square() + torch.exp(middle)[:, None])
        long = d.norm(dim=1) > radius
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    damping = torch.exp(high)
    d = torch.where(inside[:, None], newton, s * b / (s.square() + damping[:, None]).clamp_min(1e-300))
    step = -(right.mT @ d[..., None])[..., 0] / scale
    return step, d.norm(dim=1), torch.where(inside, torch.zeros_like(damping), damping), (s * d).norm(dim=1)


def _radius(radius: Tensor, length: Tensor, gain: Tensor, ratio: Tensor, slope: Tensor, damping: Tensor) -> Tensor:
    """The next radius, by how much of the expected decrease there was; `slope` is minus the directional derivative."""
    shrink = torch.where(gain >= 0, torch.full_like(gain, 0.5), 0.5 * slope / (slope - 0.5 * gain))
    shrink = torch.where(gain > -1, shrink.clamp_min(0.1), torch.full_like(gain, 0.1))
    smaller = shrink * torch.minimum(radius, 10 * length)
    larger = torch.where((damping == 0) | (ratio >= 0.75), 2 * length, radius)
    return torch.where(ratio <= 0.25, smaller, larger)
