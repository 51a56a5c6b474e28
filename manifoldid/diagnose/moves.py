"""Finite moves along a field: whether predictions stay, and whether the flow exists for long."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldid._linalg import derivative_along
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.probe import Probe

_SHORT = (0.2, -0.2, 0.5)  # in units of the time in which the field moves a point by its own size
_LONG = (4.0, -4.0)  # in units of the time in which the velocity changes by its own size
_INTEGRATED = 300  # coordinates beyond which fields without a formula are not integrated
_STRAIGHT = 1e-5  # of the size of a point: the cube of it and rounding over it are both below 1e-9
_CHANGED = 1e-3  # relative change of predictions after a move that is no rounding
_STILL = 1e-6  # the same of one that is
_HALVINGS = 40  # of the time in which predictions change: what changes by so much in no time jumps
_MOST_DERIVATIVES = 4_000_000
_NEARBY = 1e-9  # relative
_FAR = 1e8  # how many times its size a point may grow before overflow is nobody's fault


def relative_change(before: Tensor, after: Tensor) -> float:
    """Largest change of an output relative to the largest modulus of the outputs; inf if it is not finite."""
    if before.shape != after.shape or not bool(torch.isfinite(after).all()):
        return math.inf
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-300))


def natural_time(field: Field, x: Tensor) -> float:
    """The time in which the field moves the point by about its own size; at least of order 1 for small points."""
    velocity = field(x)
    rounding = (field(x * (1 + _NEARBY)) - velocity).abs() if field.closed_form else 0.0
    moved = velocity.abs() > rounding  # where the field vanishes there is only rounding
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


class Moves(NamedTuple):
    """What finite moves along a field showed."""

    error: float
    """The largest relative change of predictions over short moves, jumps left out."""
    complete: bool
    """Whether long moves exist and change nothing either."""
    jump: float = 0.0
    """The largest relative jump of predictions across a branch cut on the way; 0 if there is none."""


def finite_moves(probe: Probe, field: Field, points: list[Tensor]) -> Moves:
    """Moves points along the flow of a field.

    Args:
        probe: The model.
        field: The field.
        points: Flat points.

    Returns:
        What they show. Long moves are not tried where there is neither formula nor table, nor is a second point: every step takes
        null spaces, and there is no group anyway.
    """
    if not field.has_flow and probe.size > _INTEGRATED:
        return Moves(straight_move(probe, field, points[-1]), False)
    error, complete, jump = 0.0, field.has_flow, 0.0
    points = points if field.has_flow else points[:1]
    alone = isinstance(field, ClosedField) and field.lone_coordinate() is not None
    for x in points:
        before, unit = probe.values(x), natural_time(field, x)
        for time in _SHORT:
            change, jumped = _shortened_move(probe, field, x, before, unit * time)
            if (
                change == math.inf and not field.has_flow
            ):  # rounding of null spaces stops the integration, whatever the model
                change = straight_move(probe, field, x)
            error, jump = max(error, change), max(jump, jumped)
        long = turning_time(field, x) if complete else 0.0
        for time in _LONG if complete else ():
            change = _long_move(probe, field, x, before, long * time)
            if _CHANGED <= change < math.inf and jumps(probe, field, x, before, long * time):
                jump = max(jump, change)
                continue
            complete = complete and change < _CHANGED
            if alone and math.isfinite(change):  # such a flow cannot leave a domain: a threshold in `predict`
                error = max(error, change)
    return Moves(error, complete, jump)


def jumps(probe: Probe, field: Field, x: Tensor, before: Tensor, time: float) -> bool:
    """Whether predictions change along a flow by jumps alone, as across a branch cut of an angle or the sign of a root.

    The outputs that change depend on what moves, and their derivatives along the field cancel. A threshold or rounding jumps,
    too, but has no derivatives to cancel.
    """

    def change(t: float) -> Tensor:
        return (probe.values(field.flow(x, torch.tensor(t, dtype=x.dtype))) - before).abs() / before.abs().max()

    start, end = 0.0, time
    for _ in range(_HALVINGS):
        middle = 0.5 * (start + end)
        start, end = (middle, end) if float(change(middle).max()) < _CHANGED else (start, middle)
    changed = change(end) > _CHANGED
    if not bool(changed.any()) or float(change(start).max()) > _STILL:
        return False
    jacobian = probe.full_jacobian(x, _MOST_DERIVATIVES)  # last, since it costs more than all moves together
    if jacobian is None or len(jacobian) != len(before):  # too large, or constant
        return False
    depends = jacobian.abs() @ field(x).abs()
    return bool((depends[changed] > _STILL * depends.max()).all())


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


def _shortened_move(probe: Probe, field: Field, x: Tensor, before: Tensor, time: float) -> tuple[float, float]:
    """The change after a move, halved until it stays in the domain and crosses no branch cut, and the jump across that."""
    jump = 0.0
    for _ in range(12):
        moved = field.flow(x, torch.tensor(time, dtype=x.dtype))
        if bool(torch.isfinite(moved).all()):
            change = relative_change(before, probe.values(moved))
            if _CHANGED <= change < math.inf and jumps(probe, field, x, before, time):
                jump = max(jump, change)
            elif math.isfinite(change):
                return change, jump
        time /= 2
    return math.inf, jump
