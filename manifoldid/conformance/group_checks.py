"""Checks of a gauge group: its action, its vertical space, its representatives. One property each."""

import copy
from dataclasses import replace
from typing import Any

import torch

from manifoldid._linalg import pushforward
from manifoldid.conformance.case import (
    Case,
    as_float32,
    normal,
    normal_vector,
    require,
    require_close,
    velocity,
)
from manifoldid.conformance.runner import Finding, Skip, check
from manifoldid.groups.base import GaugeGroup, checked
from manifoldid.groups.orbit import flatten_basis, moved, velocities, zero_coordinates
from manifoldid.invariance import check_invariance
from manifoldid.points import Point, blocks_of, event_numel, flatten, map_blocks


@check("canonical")
def sample_has_a_representative(case: Case) -> None:
    """The sample itself is valid, regular and leaves something identifiable."""
    group = case.group
    if group is None:
        raise Skip("there is no group")
    x = group.validate(case.x, "sample")
    checked(group.canonical(x), group, x, "sample")
    require(
        group.dimension(x) < event_numel(x, group.batch_ndim(x)),
        f"the group has dimension {group.dimension(x)} and a point has {event_numel(x, group.batch_ndim(x))} numbers: give a "
        "larger sample",
    )


# ---------------------------------------------------------------------------------------------------------- the action


@check("act")
def act_returns_a_point(case: Case) -> None:
    """act(xi, x) is a point shaped like x, the same in a second call, differentiable, and does not write to xi or x."""
    group, x = case.group, case.x
    if group is None:
        raise Skip("there is no group")
    zero = zero_coordinates(group, x)
    xi = 0.1 * normal(zero, 40)
    before = xi.clone(), map_blocks(torch.clone, x)
    y = _first_call(group, xi, x)
    kind = "a dict of blocks" if isinstance(x, dict) else "a tensor"
    blocks = y if isinstance(y, dict) else {"": y}
    if isinstance(x, dict) != isinstance(y, dict) or not all(isinstance(t, torch.Tensor) for t in blocks.values()):
        raise Finding(f"act must return {kind} like `x`, got {type(y).__name__}; is there a `return`?")
    for name, t in blocks.items():
        label = f"block {name!r} of act" if name else "act"
        require(name in blocks_of(x), f"act returns the block {name!r}, which `x` does not have")
        wanted = blocks_of(x)[name]
        require(t.shape == wanted.shape, f"{label} turns shape {tuple(wanted.shape)} into {tuple(t.shape)}")
        require(t.dtype == wanted.dtype, f"{label} turns dtype {wanted.dtype} into {t.dtype}")
    unchanged = torch.equal(before[0], xi) and all(
        map(torch.equal, blocks_of(before[1]).values(), blocks_of(x).values())
    )
    if not unchanged:
        for t, old in zip(blocks_of(x).values(), blocks_of(before[1]).values(), strict=True):
            t.copy_(old)
        raise Finding(
            "act writes to its arguments: use x + xi instead of x += xi, and clone before assigning to entries"
        )
    require(
        all(bool(torch.isfinite(t.abs()).all()) for t in blocks.values()),
        "act gives nan or infinite entries; is the sample inside of the domain of the action?",
    )
    require_close(moved(group, xi, x), moved(group, *before), "act gives another result in a second call", 1e-12)
    if xi.shape[-1]:
        _has_derivatives(group, xi, x)


def _first_call(group: GaugeGroup, xi: torch.Tensor, x: Point) -> Any:
    try:
        return group.act(xi, x)
    except Exception as error:
        hint = "" if xi.shape[-1] else f"; `dim` of {type(group).__name__} is 0, set it to the number of coordinates"
        raise Finding(
            f"act(xi, x) raises {type(error).__name__}: {error} for xi of shape {tuple(xi.shape)}{hint}"
        ) from error


def _has_derivatives(group: GaugeGroup, xi: torch.Tensor, x: Point) -> None:
    """Every property of a group follows from derivatives of its action."""
    try:
        slope = pushforward(lambda t: moved(group, t, x), xi, torch.ones_like(xi))
    except Exception as error:
        raise Finding(
            f"act has no derivative by xi ({type(error).__name__}: {' '.join(str(error).split())[:120]}): write it with operations of "
            "torch, without .item(), .numpy(), .data or float()"
        ) from error
    finite = velocity(lambda t: moved(group, xi + t, x))
    hint = "is a part of it computed outside of torch, by .item(), float() or .data?"
    require_close(
        slope, finite, f"the derivative of act by xi, by autodiff, is not that of finite differences; {hint}", 1e-2
    )


@check("act")
def identity_does_nothing(case: Case) -> None:
    """act(0, x) = x."""
    require_close(
        moved(case.gauge, zero_coordinates(case.gauge, case.x), case.x), case.x, "act(0, x) is not x", tolerance=1e-12
    )


@check("act")
def action_keeps_shape_and_dtype(case: Case) -> None:
    """act(xi, x) has the shapes and dtypes of x, in float64 and float32."""
    for x in (case.x, as_float32(case.x)):
        xi = case.xi(1).to(torch.float32 if x is not case.x else torch.float64)
        y = case.gauge.act(xi, x)
        for name, t in blocks_of(y).items():
            wanted = blocks_of(x)[name]
            require(t.shape == wanted.shape, f"act turns shape {tuple(wanted.shape)} into {tuple(t.shape)}")
            require(t.dtype == wanted.dtype, f"act turns dtype {wanted.dtype} into {t.dtype}")


@check("act")
def moves_compose(case: Case) -> None:
    """act(a, act(b, .)) is act(c, .) for one c, the same at two points."""
    group = case.gauge
    a, b = case.xi(2, size=0.2), case.xi(3, size=0.2)

    def twice(x: Point) -> Point:
        return moved(group, a, moved(group, b, x))

    c = _coordinates(case, case.x, twice(case.x), a + b)
    require_close(
        moved(group, c, case.x),
        twice(case.x),
        "two moves one after the other are no move: no xi makes the same point",
        1e-7,
    )
    if _unused_directions(case, case.x):
        return  # coordinates are not unique where there is a stabiliser
    require_close(
        moved(group, c, case.y),
        twice(case.y),
        "two moves make another move at another point: act is no group action",
        1e-7,
    )


def _coordinates(case: Case, x: Point, target: Point, guess: torch.Tensor) -> torch.Tensor:
    """xi with act(xi, x) = target, by Gauss-Newton with derivatives of the action at xi."""
    group, ndim, xi = case.gauge, case.ndim, guess
    for _ in range(12):
        base = flatten(moved(group, xi, x), ndim)
        columns = []
        for k in range(xi.shape[-1]):
            unit = torch.zeros_like(xi)
            unit[..., k] = 1
            columns.append(flatten(velocity(lambda t, unit=unit: moved(group, xi + t * unit, x)), ndim))  # noqa: B023
        jacobian = torch.stack(columns, dim=-1)
        step = torch.linalg.pinv(jacobian, rtol=1e-9) @ (flatten(target, ndim) - base)[..., None]
        xi = xi + step[..., 0]
    return xi


def _unused_directions(case: Case, x: Point) -> int:
    """Dimension of the group less the dimension of the orbit through x: that of the moves that leave x where it is."""
    rows = flatten_basis(case.gauge.vertical_basis(x), x, case.ndim)
    rank = int(torch.linalg.matrix_rank(rows, rtol=1e-10).min())
    return rows.shape[-2] - rank


@check("undo")
def undo_is_the_inverse(case: Case) -> None:
    """undo(xi, act(xi, x)) = x."""
    xi = case.xi(4)
    back = case.gauge.undo(xi, moved(case.gauge, xi, case.x))
    require_close(back, case.x, "undo(xi, act(xi, x)) is not x")


@check("act")
def points_of_a_batch_move_alone(case: Case) -> None:
    """act on a batch is act on each of its points."""
    batch = batch_of(case)
    xi = case.xi(5, batch)
    whole = moved(case.gauge, xi, batch)
    for i, j in ((0, 0), (1, 2)):
        single = moved(case.gauge, xi[i, j], entry(batch, i, j))
        require_close(entry(whole, i, j), single, "act on a batch is not act on each of its points", 1e-12)


# ------------------------------------------------------------------------------------------------------ vertical space


@check("dimension")
def dimension_is_that_of_the_orbit(case: Case) -> None:
    """dimension(x) is the number of names and of independent velocities, less the moves that leave a generic point alone."""
    group, x = case.gauge, case.x
    dim = group.dimension(x)
    basis = flatten_basis(group.vertical_basis(x), x, case.ndim)
    require(
        basis.shape[-2] == dim,
        f"vertical_basis has {basis.shape[-2]} rows and dimension says {dim}: they must be equal",
    )
    names = group.generator_names(x)
    require(len(names) == dim, f"generator_names has {len(names)} names for dimension {dim}")
    lost = _unused_directions(case, x)
    if not lost:
        return
    near = map_blocks(lambda t, u: t + 1e-2 * u, x, normal_vector(x, 41))
    require(
        _unused_directions(case, near) == lost,
        f"{dim} coordinates move the sample in {dim - lost} directions only, and points near it in more: the sample is not generic",
    )
    everywhere = [flatten_basis(group.vertical_basis(p), p, case.ndim) for p in (x, near, case.y, case.z)]
    repeated = dim - int(torch.linalg.matrix_rank(torch.cat(everywhere, dim=-1), rtol=1e-10).min())
    require(
        repeated == 0,
        f"{dim} coordinates move all points in {dim - repeated} ways only: `dim` is too large, or coordinates repeat each other",
    )


@check("vertical_basis")
def vertical_basis_is_the_velocity_of_the_action(case: Case) -> None:
    """vertical_basis(x) is d act(xi, x) / d xi at 0, by finite differences."""
    group, x = case.gauge, case.x
    zero = zero_coordinates(group, x)
    basis = flatten_basis(group.vertical_basis(x), x, case.ndim)
    for k in range(zero.shape[-1]):
        unit = torch.zeros_like(zero)
        unit[..., k] = 1
        finite = flatten(velocity(lambda t, unit=unit: moved(group, t * unit, x)), case.ndim)
        require_close(basis[..., k, :], finite, f"row {k} of vertical_basis is not d act / d xi_{k} at 0", 1e-7)


@check("vertical_basis")
def vertical_basis_agrees_with_autodiff(case: Case) -> None:
    """vertical_basis(x) is d act(xi, x) / d xi at 0, by autodiff."""
    own, default = case.gauge.vertical_basis(case.x), velocities(case.gauge, case.x)
    both = [flatten_basis(basis, case.x, case.ndim) for basis in (own, default)]
    require_close(both[0], both[1], "vertical_basis is not the derivative of act", 1e-10)


# ----------------------------------------------------------------------------------------------------- representatives


@check("canonical")
def section_is_constant_on_orbits(case: Case) -> None:
    """section(g.x) = section(x)."""
    require_close(
        case.gauge.canonical(case.move(6)).point,
        case.gauge.canonical(case.x).point,
        "section(g.x) is not section(x)",
        1e-7,
    )


@check("canonical")
def section_is_idempotent(case: Case) -> None:
    """section(section(x)) = section(x)."""
    point = case.gauge.canonical(case.x).point
    require_close(case.gauge.canonical(point).point, point, "section(section(x)) is not section(x)", 1e-7)


@check("canonical")
def frame_leads_back(case: Case) -> None:
    """act(frame(x), section(x)) = x."""
    form = case.gauge.canonical(case.x)
    require_close(moved(case.gauge, form.xi, form.point), case.x, "act(frame(x), section(x)) is not x", 1e-7)


@check("canonical")
def section_does_not_change_along_the_orbit(case: Case) -> None:
    """The derivative of the section along vertical vectors is 0: what training through the section needs."""
    x, group = case.x, case.gauge
    slope = flatten(replace(case, invariant=None).derivative(x), case.ndim)
    rows = flatten_basis(group.vertical_basis(x), x, case.ndim)
    along = (rows @ slope[..., None])[..., 0]
    scale = float((rows.abs() @ slope.abs()[..., None]).max())
    require_close(along, torch.zeros_like(along), "the derivative of section(x) along the orbit is not 0", 1e-7, scale)


@check("canonical")
def section_treats_points_of_a_batch_alone(case: Case) -> None:
    """section and frame of a batch are those of each of its points."""
    batch = batch_of(case)
    whole = case.gauge.canonical(batch)
    for i, j in ((0, 1), (1, 0)):
        single = case.gauge.canonical(entry(batch, i, j))
        require_close(entry(whole.point, i, j), single.point, "section of a batch is not section of each of its points")
        require_close(whole.xi[i, j], single.xi, "frame of a batch is not the frame of each of its points", scale=1.0)


@check("canonical")
def section_works_in_float32(case: Case) -> None:
    """section of a float32 point is a float32 point near the one in float64."""
    narrow, wide = case.gauge.canonical(as_float32(case.x)).point, case.gauge.canonical(case.x).point
    for name, t in blocks_of(narrow).items():
        wanted = as_float32(wide) if isinstance(wide, torch.Tensor) else as_float32(wide[name])
        require(t.dtype == wanted.dtype, f"section of a float32 point has dtype {t.dtype}")
    require_close(as_float64_like(narrow, wide), wide, "section in float32 is far from section in float64", 2e-4)


@check("canonical")
def only_ratios_of_weights_matter(case: Case) -> None:
    """The section with weights w is the section with weights c w."""
    weights = weights_for(case)
    one = _with_weights(case, weights)
    other = _with_weights(
        case, {k: 3.5 * w for k, w in weights.items()} if isinstance(weights, dict) else 3.5 * weights
    )
    require_close(one, other, "section with weights w is not section with weights 3.5 w", 1e-9)


def _with_weights(case: Case, weights) -> Point:
    try:
        return case.gauge.canonical(case.x, weights).point
    except (TypeError, ValueError, NotImplementedError) as error:
        raise Skip(f"the section takes no weights here: {error}") from None


@check("settler")
def settling_is_the_section_in_place(case: Case) -> None:
    """The settler makes section(x) of points near the section, in their memory, at every call."""
    found = [_settled(case, weights) for weights in (None, weights_for(case))]
    if not any(found):
        raise Skip("the group has no settler")


def _settled(case: Case, weights) -> bool:
    """Whether there is a settler for these weights, which then is right."""
    group = case.gauge
    if (settle := group.settler(weights)) is None:
        return False
    try:
        section = group.canonical(case.x, weights).point
    except (TypeError, ValueError, NotImplementedError):
        return False  # no weights, here
    for k in range(2):
        near = case.perturb(section, 50 + k)
        form = settle(map_blocks(lambda t: t.clone(memory_format=torch.contiguous_format), near))
        if form is None:
            return False
        wanted = group.canonical(near, weights)
        require_close(form.point, wanted.point, "settler(x) is not section(x)", 1e-9)
        require_close(form.xi, wanted.xi, "the frame of settler(x) is not that of section(x)", 1e-9, scale=1.0)
    return True


@check("closest")
def closest_stays_on_the_orbit(case: Case) -> None:
    """The representative of g.x closest to x is x."""
    group = case.gauge
    form = group.closest(case.move(7), case.x)
    require_close(form.point, case.x, "the representative of g.x closest to x is not x", 1e-6)


@check("invariant")
def declared_invariant_is_invariant(case: Case) -> None:
    """invariant(g.x) = invariant(x)."""
    if case.invariant is None:
        raise Skip("no `invariant` was given")
    if case.ndim:
        raise Skip("`invariant` is tested on a sample without batch dimensions")
    check_invariance(case.invariant, case.x, case.gauge)


@check("__eq__")
def copies_are_equal(case: Case) -> None:
    """A deep copy equals the group, which has a hash and a repr."""
    require(copy.deepcopy(case.group) == case.group, "a deep copy of the group is not equal to it")
    hash(case.group)
    require(isinstance(repr(case.group), str), "repr(group) is no text")


# -------------------------------------------------------------------------------------------------------------- helpers


def batch_of(case: Case) -> Point:
    """A (2, 3) batch of perturbed points on top of the sample's own batch."""
    rows = [[case.perturb(case.x, 20 + 3 * i + j) for j in range(3)] for i in range(2)]
    batch = map_blocks(lambda *ts: torch.stack(ts).unflatten(0, (2, 3)), *(point for row in rows for point in row))
    if case.space.batch_ndim(batch) != case.ndim + 2:
        raise Skip("all dimensions of a tensor are one point here: there are no batches")
    return batch


def entry(x: Point, i: int, j: int) -> Point:
    """One entry of a (2, 3) batch."""
    return map_blocks(lambda t: t[i, j], x)


def as_float64_like(x: Point, like: Point) -> Point:
    """`x` in the dtypes of `like`."""
    return map_blocks(lambda t, s: t.to(s.dtype), x, like)


def weights_for(case: Case):
    """Positive weights of the sample, by block for dict points."""
    weights = {}
    for k, (name, t) in enumerate(blocks_of(case.x).items()):
        ndim = min(case.ndim, t.ndim)
        items = t.shape[ndim] if t.ndim > ndim else 1
        weights[name] = 0.5 + normal(torch.zeros(items, dtype=torch.float64), 30 + k).abs()
    return weights[""] if isinstance(case.x, torch.Tensor) else weights


GROUP_CHECKS = (
    act_returns_a_point,
    identity_does_nothing,
    action_keeps_shape_and_dtype,
    moves_compose,
    undo_is_the_inverse,
    points_of_a_batch_move_alone,
    dimension_is_that_of_the_orbit,
    vertical_basis_is_the_velocity_of_the_action,
    vertical_basis_agrees_with_autodiff,
    sample_has_a_representative,
    section_is_constant_on_orbits,
    section_is_idempotent,
    frame_leads_back,
    section_does_not_change_along_the_orbit,
    section_treats_points_of_a_batch_alone,
    section_works_in_float32,
    only_ratios_of_weights_matter,
    settling_is_the_section_in_place,
    closest_stays_on_the_orbit,
    declared_invariant_is_invariant,
    copies_are_equal,
)
