"""Whether a function sees a gauge that was declared for it: finite moves along the group, and derivatives."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldid._linalg import pushforward
from manifoldid.errors import NotEstimableError, NotInvariantError
from manifoldid.groups.base import GaugeGroup
from manifoldid.groups.finite import Finite
from manifoldid.groups.orbit import flatten_basis, moved, zero_coordinates
from manifoldid.points import (
    HALF,
    OUT_OF_DOMAIN,
    Point,
    blocks_of,
    detached,
    first,
    flat_shares,
    flatten,
    like_point,
    part_of,
    with_part,
)

_STEP = 0.5  # a shift of half a unit, a scale of 1.65, a rotation by 29 degrees
_MOST_GENERATORS = 64  # tried one by one; beyond it, random combinations and then the steepest coordinate
_COMBINATIONS = 3
_COMBINATION = "random combination of generators"
TAKE_DIFFERENCES = "; take differences (ratios, distances), or fix a gauge first: mid.Section(group)(x)"


class Change(NamedTuple):
    """How much a function changed at most under a gauge, and what changed it."""

    relative: float
    """Largest change of an output, relative to the largest modulus of the outputs."""
    generator: str
    """Name of the generator."""


def check_invariance(
    fn: Callable[[Point], Any],
    point: Point,
    group: GaugeGroup,
    *,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Checks that `fn(group.act(xi, x)) == fn(x)`: by finite moves of every generator, by random combinations, and by derivatives.

    Derivatives are taken at the point and at a moved one, because a function such as mean(x)^2 has none at mean 0. Up to 64
    generators are tried one by one; larger groups by random combinations. Of `Finite` groups the maps are tried.

    Args:
        fn: A function of one point (all of its batch at once); returns a tensor, a number, or a nest of them.
        point: Where to look.
        group: The declared gauge.
        tolerance: Largest relative change that is rounding; default the square root of the precision of the point.
        generator: Source of the random combinations; default a private one seeded with 0.

    Returns:
        The largest relative change that was found, below the tolerance.

    Raises:
        NotInvariantError: The function changes; the message names the generator and the size of the change.
        ValueError: The function is not finite at the point, or returns different values for the same point.
        TypeError: It returns no floating numbers.
    """
    point = group.validate(detached(group.validate(point)))
    tolerance = default_tolerance(point) if tolerance is None else tolerance
    change = max(
        largest_change(fn, point, group, generator=generator),
        largest_change_of_maps(fn, point, group),
        key=lambda c: c.relative,
    )
    if not change.relative <= tolerance:
        raise NotInvariantError(not_invariant("`fn`", change, tolerance, group))
    return change.relative


def not_invariant(who: str, change: Change, tolerance: float, group: GaugeGroup) -> str:
    """The message of a `NotInvariantError`."""
    size = "is no longer finite" if change.relative == float("inf") else f"changes by {change.relative:.1e} relative"
    return (
        f"{who} is not invariant under {group}: it {size} under the {change.generator} (tolerance {tolerance:.0e}). Declare a "
        "smaller gauge, or look for the term that sees it (a prior or penalty on the raw point does: put it on "
        "mid.Section(group)(x), or declare no gauge with mid.Product()); mid.diagnose(fn, point) finds the gauge there is"
    )


def require_estimable(change: Change, point: Point, group: GaugeGroup, who: str, remedy: str) -> None:
    """Refuses a function of which a value would be reported, but depends on the gauge.

    Args:
        change: The largest one that was found at `point`.
        point: Where it was looked for.
        group: The gauge.
        who: What the message calls the function.
        remedy: How the message goes on: what to do.

    Raises:
        NotEstimableError: The change is no rounding.
    """
    if not change.relative <= default_tolerance(point):
        raise NotEstimableError(
            f"{who} is not constant on the orbits of {group}: it changes by {change.relative:.1e} relative under the "
            f"{change.generator}{remedy}"
        )


def default_tolerance(point: Point) -> float:
    """Relative change that rounding explains: the square root of the precision (f64 1e-8, f32 3e-4, half 3e-2)."""
    return max(torch.finfo(t.dtype).eps for t in blocks_of(point).values()) ** 0.5


def largest_change(
    fn: Callable[[Point], Any],
    point: Point,
    group: GaugeGroup,
    *,
    derivatives: bool = True,
    generator: torch.Generator | None = None,
    who: str = "`fn`",
) -> Change:
    """The largest relative change of `fn`, called `who` in errors, over moves of the group; otherwise as in `check_invariance`."""
    names = group.generator_names(point)
    if not names:
        return Change(0.0, "nothing")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        base = _finite_outputs(fn(point), who)
        again = _outputs(fn(point))
    if not torch.equal(base, again):
        raise ValueError(
            f"{who} returns different values for the same point: make it deterministic (model.eval(), a fixed seed, no dropout)"
        )
    scale = _natural_scale(fn, point, base)
    worst = Change(0.0, names[0])
    for xi, name in _moves(group, point, names, generator):
        with torch.no_grad():
            change = _relative(base, _outputs(fn(moved(group, xi, point))), scale)
        if change > worst.relative:
            culprit = name or _steepest(fn, point, group, xi, names)
            if culprit == _COMBINATION and worst.relative > change / 100:
                culprit = (
                    worst.generator
                )  # a name says more than that a combination of all of them moves a little further
            worst = Change(change, culprit)
    if derivatives:
        worst = max([worst, *_derivative_changes(fn, point, group, names, scale, generator)], key=lambda c: c.relative)
    return worst


def largest_change_of_maps(fn: Callable[[Point], Any], point: Point, group: GaugeGroup) -> Change:
    """The largest relative change of `fn` over the maps of `Finite` factors; those that lead out of the domain are passed over.

    Args:
        fn: A function of one point.
        point: One point, as a member of an ensemble is one.
        group: Any group.
    """
    worst, finite = Change(0.0, "nothing"), [(f, of) for f, of in group.factors() if isinstance(f, Finite)]
    if not finite:
        return worst
    with torch.no_grad():
        base = _outputs(fn(point))
        scale = _natural_scale(fn, point, base)
        for factor, of in finite:
            for words, image in factor.images_by_map(part_of(point, of)):
                if bool(torch.isfinite(flatten(image)).all()):
                    change = _relative(base, _outputs(fn(with_part(point, of, image))), scale)
                    worst = max(worst, Change(change, f"map {words}"), key=lambda c: c.relative)
    return worst


def _moves(
    group: GaugeGroup, point: Point, names: list[str], generator: torch.Generator
) -> Iterator[tuple[Tensor, str]]:
    zero = zero_coordinates(group, point)
    if len(names) <= _MOST_GENERATORS:
        for k, name in enumerate(names):
            for step in (_STEP, -_STEP):
                xi = zero.clone()
                xi[..., k] = step
                yield xi, name
    for _ in range(_COMBINATIONS if zero.numel() > 1 else 0):
        yield _random(zero, generator), "" if len(names) > 1 else names[0]


def _random(zero: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.randn(zero.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return _STEP * draw.to(dtype=zero.dtype, device=zero.device)


def _natural_scale(fn: Callable[[Point], Any], point: Point, base: Tensor) -> float:
    """Largest modulus of the outputs at the point and near it: at a symmetric point all of them may be zero.

    Numbers are drawn for every block alone: on several ranks, what all of them have gets the same ones, and so do the moves after it.
    """
    near = like_point(
        {name: _near(t, torch.Generator().manual_seed(k + 1)) for k, (name, t) in enumerate(blocks_of(point).items())},
        point,
    )
    size = float(base.abs().max())
    try:
        with torch.no_grad():
            other = _outputs(fn(near))
    except OUT_OF_DOMAIN:
        return size
    other = other[torch.isfinite(other)]  # outside of the domain, too
    return max(size, float(other.abs().max()) if other.numel() else 0.0)


def _near(x: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor near `x`; positive where `x` is positive, since functions may be defined there only."""
    draw = _random(x.real if x.is_complex() else x, generator)
    if not x.is_complex() and bool((x > 0).all()):
        return x * draw.exp()
    return x + draw


def _relative(base: Tensor, other: Tensor, scale: float) -> float:
    if other.shape != base.shape or not bool(torch.isfinite(other).all()):
        return float("inf")
    scale = max(scale, float(other.abs().max()))
    return float((other - base).abs().max()) / scale if scale > 0 else 0.0


def _derivative_changes(
    fn: Callable[[Point], Any],
    point: Point,
    group: GaugeGroup,
    names: list[str],
    scale: float,
    generator: torch.Generator,
) -> Iterator[Change]:
    """Derivatives at the point and at a moved one: of one number by all generators, else along a random combination of them."""
    zero = zero_coordinates(group, point)
    for start in (point, moved(group, _random(zero, generator), point)):
        direction = _random(zero, generator) / _STEP
        with torch.enable_grad():
            xi = zero.clone().requires_grad_()
            probe = _outputs(fn(moved(group, xi, start)))
        if not probe.requires_grad:
            return  # no derivative information: comparisons, counts
        if probe.numel() == 1:
            (slope,) = torch.autograd.grad(probe, xi, torch.ones_like(probe), allow_unused=True)
            size = 0.0 if slope is None else float(slope.norm())
        else:
            slope = pushforward(lambda xi: _outputs(fn(moved(group, xi, start))), zero, direction)  # noqa: B023
            size = float(slope.detach().abs().max())
        if size > 0:
            largest = max(scale, float(probe.detach().abs().max()))
            relative = size / largest if largest > 0 else float("inf")
            yield Change(relative, _steepest(fn, start, group, direction, names))


def _steepest(fn: Callable[[Point], Any], point: Point, group: GaugeGroup, xi: Tensor, names: list[str]) -> str:
    """The generator along which the squared change of `fn` grows fastest at the move `xi`."""
    if len(names) == 1:
        return names[0]
    with torch.no_grad():
        base = _outputs(fn(point))
    with torch.enable_grad():
        move = xi.detach().clone().requires_grad_()
        try:
            change = (_outputs(fn(moved(group, move, point))) - base).square().sum()
        except RuntimeError as error:
            if not leaves_torch(error):
                raise
            return _COMBINATION
        if not change.requires_grad or not bool(torch.isfinite(change)):
            return _COMBINATION
        slope = torch.autograd.grad(change, move)[0].abs()
    return names[int(slope.reshape(-1, len(names)).amax(0).argmax())]


def leaves_torch(error: RuntimeError) -> bool:
    """Whether torch complains of a function that hands a tensor with derivatives to numpy."""
    return "numpy()" in str(error)


def _finite_outputs(value: Any, who: str) -> Tensor:
    outputs = _outputs(value)
    if outputs.numel() == 0:
        raise ValueError(f"{who} returns nothing to compare: an empty tensor")
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError(f"{who} must be finite at `point`: it returns nan or infinite values there")
    return outputs


def _outputs(value: Any) -> Tensor:
    """All floating numbers of a nest of tensors as one vector."""
    leaves = list(_leaves(value))
    if not leaves:
        raise TypeError(f"`fn` must return floating tensors, got {type(value).__name__}")
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_complex():
            value = torch.view_as_real(value.resolve_conj())
        yield value.float() if value.dtype in HALF or not value.is_floating_point() else value
    elif isinstance(value, (bool, int, float)):
        yield torch.tensor(float(value), dtype=torch.float64)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)


def vertical_share(point: Point, derivative: Point, group: GaugeGroup) -> Change:
    """The largest |<df, V>| / (|df| |V|) over vertical directions V: the share of a derivative that sees the gauge.

    Up to 64 generators are tried one by one; larger groups by random combinations, and then the steepest one is named.

    Args:
        point: A point (*batch, *event) or dict of blocks.
        derivative: The Euclidean derivative there, shaped like the point.
        group: The declared gauge.

    Returns:
        The share, between 0 and 1, and the name of the generator.
    """
    names, zero, ndim = group.generator_names(point), zero_coordinates(group, point), group.batch_ndim(point)
    if not first(point).shape[:ndim].numel():
        return Change(0.0, names[0])
    slope, shares = flatten(derivative, ndim), flat_shares(point, ndim, group.shards)
    if len(names) <= _MOST_GENERATORS:
        rows = flatten_basis(group.vertical_basis(point), point, ndim)
        worst = _cosine(rows, slope[..., None, :], group, shares).reshape(-1, len(names)).amax(0)
        return Change(float(worst.max()), names[int(worst.argmax())])
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(_COMBINATIONS):
        velocity = pushforward(lambda xi: moved(group, xi, point), zero, _random(zero, generator))
        worst = max(worst, float(_cosine(flatten(velocity, ndim), slope, group, shares).max()))
    _, pull = torch.func.vjp(lambda xi: flatten(moved(group, xi, point), ndim), zero)[:2]
    return Change(worst, names[int(pull(slope)[0].abs().reshape(-1, len(names)).amax(0).argmax())])


def _cosine(u: Tensor, v: Tensor, group: GaugeGroup, shares: Tensor | None) -> Tensor:
    if group.shards is None:
        size, product = u.norm(dim=-1) * v.norm(dim=-1), (u * v).sum(-1).abs()
    else:
        left, right = (u, v) if shares is None else (u * shares, v * shares)
        sums = torch.broadcast_tensors((left * u).sum(-1), (right * v).sum(-1), (left * v).sum(-1))
        mine, other, product = group.across(torch.stack(sums))
        size, product = (mine * other).sqrt(), product.abs()
    return torch.where(size > 0, product / torch.where(size > 0, size, torch.ones_like(size)), torch.zeros_like(size))
