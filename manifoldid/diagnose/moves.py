"""Finite moves along a field: whether predictions stay, and whether the flow exists for long."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manifoldid._linalg import derivative_along
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.probe import Probe

_SHORT = (0.2, -0.2, 0.5)  # in units of the time in which the field moves a point by its own size
_LONG = (4.0, -4.0)  # in units of the time in which the velocity changes by its own size
_INTEGRATED = 300  # coordinates beyond which fields without a formula are not integrated
_STRAIGHT = 1e-5  # of the size of a point: the cube of it and rounding over it are both below 1e-9
_FAR = 1e8  # how many times its size a point may grow before overflow is nobody's fault


def relative_change(before: Tensor, after: Tensor) -> float:
    """Largest change of an output relative to the largest modulus of the outputs; inf if it is not finite."""
    if before.shape != after.shape or not bool(torch.isfinite(after).all()):
        return math.inf
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-300))


def natural_time(field: Field, x: Tensor) -> float:
    """The time in which the field moves the point by about its own size; at least of order 1 for small points."""
    velocity = field(x)
    moved = velocity != 0
    if not bool(moved.any()):
        return 1.0
    return float((x[moved].abs() + 1e-3).median() / velocity[moved].abs().median())


def turning_time(field: Field, x: Tensor) -> float:
    """The time in which the velocity along the flow changes by its own size; the natural time where it is constant."""
    velocity = field(x)
    if not field.closed_form:
        return natural_time(field, x)
    change = derivative_along(field, x, velocity)
    if float(change.norm()) <= 1e-9 * float(velocity.norm()):
        return natural_time(field, x)
    return float(velocity.norm() / change.norm())


def held_coordinates(fields: Sequence[Field], x: Tensor) -> list[int]:
    """Coordinates that fix the gauge when they are held: where the fields have an invertible block, one for each dimension."""
    velocities = torch.stack([f(x) for f in fields]) if fields else x.new_zeros(0, len(x))
    held: list[int] = []
    while len(held) < len(fields):
        size = velocities.abs() / (x.abs() + 1e-3)
        k, i = divmod(int(size.argmax()), len(x))
        if not float(size[k, i]) > 1e-9:
            break
        held.append(i)
        velocities = velocities - velocities[:, i : i + 1] / velocities[k, i] * velocities[k]
    return held


def finite_moves(probe: Probe, field: Field, points: list[Tensor]) -> tuple[float, bool]:
    """Moves points along the flow of a field.

    Args:
        probe: The model.
        field: The field.
        points: Flat points.

    Returns:
        The largest relative change of predictions over short moves, and whether long moves exist and change nothing either; they
        are not tried where there is no formula, nor is a second point: every step takes null spaces, and there is no group anyway.
    """
    if not field.has_flow and probe.size > _INTEGRATED:
        return straight_move(probe, field, points[-1]), False
    error, complete = 0.0, field.closed_form
    points = points if field.closed_form else points[:1]
    alone = isinstance(field, ClosedField) and field.lone_coordinate() is not None
    for x in points:
        before, unit = probe.values(x), natural_time(field, x)
        for time in _SHORT:
            error = max(error, _shortened_move(probe, field, x, before, unit * time))
        long = turning_time(field, x) if complete else 0.0
        for time in _LONG if complete else ():
            change = _long_move(probe, field, x, before, long * time)
            complete = complete and change < 1e-3
            if alone and math.isfinite(change):  # such a flow cannot leave a domain: a threshold in `predict`
                error = max(error, change)
    return error, complete


def straight_move(probe: Probe, field: Field, x: Tensor) -> float:
    """The relative change of predictions along a small straight step, beyond what its curvature explains."""
    reach = _STRAIGHT if probe.exact else 1e-2  # in single precision rounding would be 1e-3 of shorter steps
    velocity = field(x)
    step = reach * float(x.norm() + 1e-3) / float(velocity.norm().clamp_min(1e-300)) * velocity
    ahead, behind = probe.values(x + step), probe.values(x - step)
    return float((ahead - behind).abs().max() / (2 * reach) / probe.values(x).abs().max().clamp_min(1e-300))


def _long_move(probe: Probe, field: Field, x: Tensor, before: Tensor, time: float) -> float:
    """The change after a long move, inf if the flow does not exist that long; times that overflow are shortened."""
    size = x.abs().max().clamp_min(1e-3)
    for _ in range(8):
        far = field.flow(x, torch.tensor(time, dtype=x.dtype))
        if bool(torch.isnan(far).any()):
            return math.inf
        if bool((far.abs() < _FAR * size).all()):
            return relative_change(before, probe.values(far))
        time /= 2
    return 0.0


def _shortened_move(probe: Probe, field: Field, x: Tensor, before: Tensor, time: float) -> float:
    """The change after a move, halved until the move stays in the domain."""
    for _ in range(12):
        moved = field.flow(x, torch.tensor(time, dtype=x.dtype))
        if bool(torch.isfinite(moved).all()):
            change = relative_change(before, probe.values(moved))
            if math.isfinite(change):
                return change
        time /= 2
    return math.inf
