"""Frechet means on the quotient."""

import functools

import torch
from torch import Tensor

from manifoldid.distributed.dtensors import is_spread, localised
from manifoldid.distributed.spread import kept
from manifoldid.errors import NotConvergedError, listed
from manifoldid.groups.base import GaugeGroup, canonicalise
from manifoldid.groups.geometry import Geometry
from manifoldid.points import Point, Shards, Weights, flat_weights, flatten, map_blocks, unflatten

_MOST_STEPS = 1000


def frechet_mean(group: GaugeGroup, points: Point, weights: Weights = None) -> Point:
    """The point whose orbit minimises the sum of squared distances to the orbits of `points`.

    By the fixed-point iteration m <- exp_m(mean of log_m(x_k)), started at the first point. Groups without a closed form of the
    logarithm use m <- mean of the representatives closest to m (generalised Procrustes analysis).

    Args:
        group: The gauge group.
        points: Points (M, *event), or a dict of such blocks.
        weights: Item weights of the metric.

    Returns:
        The mean (*event) on the canonical section.

    Raises:
        NotConvergedError: The points are too far apart for the iteration to settle, or some lie opposite to the others.
    """
    if is_spread(points):
        here = localised(group, group.validate(points, "points"), weights)
        return here.restore(frechet_mean(here.group, here.point, here.weights))
    form, points = canonicalise(group, points, weights, "points")
    group = kept(group, points)
    members = form.point
    geometry, mean = group.geometry(weights).remembering(), map_blocks(lambda t: t[:1], members)
    ndim = group.batch_ndim(members)
    w = flat_weights(group.entry_weights(weights, members), members, ndim, group.shards)
    spread = [factor.shards for factor, _ in group.factors() if factor.shards is not None]

    def displacement(mean: Point) -> Tensor:
        try:
            steps = geometry.log(map_blocks(lambda m, t: m.expand_as(t), mean, members), members)
        except NotImplementedError:
            aligned = map_blocks(lambda t: t.mean(0, keepdim=True), geometry.align(members, mean))
            # Along the orbit the mean must not move: only then is the step zero where it ends, for any action.
            return flatten(geometry.horizontal(mean, map_blocks(torch.sub, aligned, mean)), ndim)
        return flatten(map_blocks(lambda t: t.mean(0, keepdim=True), steps), ndim)

    def size(vector: Tensor) -> float:
        return float(_largest((vector if w is None else vector * w.sqrt()).square().sum().sqrt(), spread))

    eps = torch.finfo(form.xi.dtype).eps
    last = moved = float("inf")
    for _ in range(_MOST_STEPS):
        step = displacement(mean)
        moved = size(step)
        if moved <= 16 * eps * max(size(flatten(mean, ndim)), eps) or (moved >= last and moved <= eps**0.5):
            break
        last = moved
        velocity = unflatten(step, mean, ndim)
        try:
            mean = geometry.exp(mean, velocity)
        except NotImplementedError:
            mean = geometry.retract(mean, velocity)
        mean = group.canonical(mean, weights).point
    else:
        raise NotConvergedError(
            f"the Frechet mean has not settled after {_MOST_STEPS} steps (last step {moved:.1e}): the members are too far apart "
            "to have a mean (they do not fit into half of the quotient space)"
        )
    _refuse_opposite(geometry, mean, members, spread)
    return map_blocks(lambda t: t[0], mean)


def _largest(values: Tensor, spread: list[Shards]) -> Tensor:
    """The largest of `values` on all ranks, which have to come to one verdict."""
    return functools.reduce(lambda v, shards: shards.largest(v), spread, values)


def _refuse_opposite(geometry: Geometry, mean: Point, members: Point, spread: list[Shards]) -> None:
    """At a point opposite to the mean no direction is the shortest, so it has not pulled at the mean.

    Raises:
        NotConvergedError: The logarithm of a member is shorter than its distance.
    """
    centre = map_blocks(lambda m, t: m.expand_as(t), mean, members)
    try:
        steps, distance = geometry.log(centre, members), geometry.dist(centre, members)
    except NotImplementedError:
        return
    short = geometry.inner(centre, steps, steps).sqrt() < 0.999 * distance
    opposite = short & (distance > 1e-3)  # below, both are rounding
    opposite = _largest(opposite.double(), spread).nonzero()[:, 0].tolist()
    if opposite:
        raise NotConvergedError(
            f"the Frechet mean is not defined: points {listed(opposite)} lie opposite to the others, where all directions are "
            "equally short; is their sign part of the gauge?"
        )
