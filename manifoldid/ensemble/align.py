"""Bringing the members of an ensemble to one gauge."""

from manifoldid.distributed.dtensors import localised
from manifoldid.groups.base import GaugeGroup, canonicalise
from manifoldid.points import Point, Weights, map_blocks, part_of, part_of_weights, with_part
from manifoldid.quotient.frechet import frechet_mean


def align_members(members: Point, group: GaugeGroup, weights: Weights) -> Point:
    """Members (M, *event), each moved along its own orbit to where they can be compared, factor by factor of the group.

    Flat groups: every member on the canonical section. Others (rotations, permutations, custom groups): every member at the
    representative closest to the Frechet mean (generalised Procrustes alignment).

    Raises:
        DegeneratePointError: A member has no representative; it is named by its index.
        NotConvergedError: The alignment does not settle.
    """
    aligned = members
    for factor, of in group.factors():
        part = _aligned(part_of(members, of), factor, part_of_weights(weights, of))
        aligned = with_part(aligned, of, part)
    return aligned


def _aligned(members: Point, group: GaugeGroup, weights: Weights) -> Point:
    here = localised(group, members, weights)
    form, _ = canonicalise(here.group, here.point, here.weights, "members")
    if group.flat:
        return here.restore(form.point)
    mean = _first_dimension(frechet_mean(here.group, here.point, here.weights))
    return here.restore(here.group.closest(form.point, mean, here.weights).point)


def _first_dimension(x: Point) -> Point:
    return map_blocks(lambda t: t[None], x)
