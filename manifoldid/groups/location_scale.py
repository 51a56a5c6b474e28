"""LocationScale: one shift and one scale for all tensors of a model of locations, scales and slopes."""

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from manifoldid._linalg import widened
from manifoldid.groups._euclidean import safe_root
from manifoldid.groups._in_place import finite_shift, is_near, standardise
from manifoldid.groups._items import Measure
from manifoldid.groups._named_blocks import NamedBlocksGeometry, block_names
from manifoldid.groups._passes import Passes
from manifoldid.groups._sphere import _angle_over_sine, _cosine_and_sinc, _squared_angle
from manifoldid.groups.base import Canonical, GaugeGroup, Settler
from manifoldid.groups.geometry import Geometry
from manifoldid.points import (
    Point,
    Shards,
    Weights,
    cast_like,
    flat_shares,
    flat_weights,
    flatten,
    is_wrapped,
    map_blocks,
    part_of_weights,
    unflatten,
)


@dataclass(frozen=True, eq=False, repr=False)
class LocationScale(GaugeGroup):
    """Locations -> a x + b, scales -> a x, slopes -> x / a, with a > 0. Coordinates: (log a, b).

    Item response theory (2PL: locations theta and beta, slopes alpha), Thurstone's model (locations mu, scales sigma), Gaussian
    rewards. Canonical: weighted mean 0 and standard deviation 1 (ddof 0) of the first location block. Scales and slopes are
    positive and live in their logarithm.

    The connection is flat. The section that is horizontal in the invariant metric differs from the canonical one by an element
    of the group, so optimising on the canonical section is optimising on the quotient.

    Args:
        locations: Names of the blocks of locations, at least one.
        scales: Names of the blocks that are multiplied by a.
        slopes: Names of the blocks that are divided by a.

    Raises:
        TypeError: An argument is no sequence of names.
        ValueError: There is no location, or a block is named twice.
    """

    locations: Sequence[str]
    scales: Sequence[str] = ()
    slopes: Sequence[str] = ()
    flat = True
    defect = (
        "is not in the domain of LocationScale: the first block of locations must not be constant (it would have no unit), and "
        "all scales and slopes must be positive"
    )
    closest_defect = f"{defect}; so must those of `at`"

    def __post_init__(self) -> None:
        for role in ("locations", "scales", "slopes"):
            object.__setattr__(self, role, block_names(getattr(self, role), role))
        if not self.locations:
            raise ValueError("`locations` must name at least one block: without locations only a scale is free")
        names = (*self.locations, *self.scales, *self.slopes)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`locations`, `scales` and `slopes` name the block(s) {twice} twice")
        object.__setattr__(self, "block_names", names)
        object.__setattr__(self, "positive", (*self.scales, *self.slopes))

    def dimension(self, x: Point) -> int:
        return 2

    def act(self, xi: Tensor, x: Point) -> Point:
        return self._moved(xi[..., 0].exp(), xi[..., 1], x)

    def undo(self, xi: Tensor, x: Point) -> Point:
        factor = (-xi[..., 0]).exp()
        return self._moved(factor, -factor * xi[..., 1], x)

    def _moved(self, factor: Tensor, shift: Tensor, x: Point) -> Point:
        """Locations times `factor` plus `shift` (*batch), and the rest accordingly."""
        ndim, y = self.batch_ndim(x), dict(x.items())
        for name in self.locations:
            y[name] = x[name] * _over(factor, x[name], ndim) + _over(shift, x[name], ndim)
        for name in self.scales:
            y[name] = x[name] * _over(factor, x[name], ndim)
        for name in self.slopes:
            y[name] = x[name] / _over(factor, x[name], ndim)
        return y

    def vertical_basis(self, x: Point) -> Point:
        ndim, basis = self.batch_ndim(x), {}
        for name, t in x.items():
            zero = torch.zeros_like(t)
            if name in self.locations:
                rows = [t, torch.ones_like(t)]
            else:
                rows = [t if name in self.scales else -t if name in self.slopes else zero, zero]
            basis[name] = torch.stack(rows, dim=min(ndim, t.ndim))
        return basis

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        ndim, name = self.batch_ndim(x), self.locations[0]
        flat = flatten(x[name], ndim)
        measure = self.measure(x, weights)
        centred, mean = measure.centre(flat)
        size = measure.size(centred)
        # A spread below half a unit in the last place of the entries is the rounding of a constant.
        varies = size > 0.5 * torch.finfo(flat.dtype).eps * measure.largest(flat)
        positive = [
            self.everywhere((t > 0) & (t < math.inf)) for t in (flatten(x[name], ndim) for name in self.positive)
        ]
        for other in self.locations[1:]:  # which have no part in the frame
            mean = torch.where(self.everywhere(torch.isfinite(flatten(x[other], ndim))), mean, math.nan)
        regular = torch.cat([varies, *positive], dim=-1)
        size = torch.where(varies, size, torch.ones_like(size))
        point = self._moved(1 / size[..., 0], -(mean / size)[..., 0], x)
        point[name] = unflatten(centred / size, x[name], ndim)  # not x / s - m / s: float32 keeps its digits this way
        return Canonical(self._zeroed(point, regular), torch.cat([size.log(), mean], dim=-1), regular)

    def settler(self, weights: Weights = None) -> Settler:
        return _LocationScaleSettler(self, weights)

    def measure(self, x: Point, weights: Weights) -> Measure:
        """The weighted means over the items of the first block of locations, flat."""
        name = self.locations[0]
        flat = flatten(x[name], self.batch_ndim(x))
        return Measure(flat, self._weights_of(name, x, weights), None, self.shards_of(name))

    def everywhere(self, condition: Tensor) -> Tensor:
        """Whether `condition` (*batch, n) holds at all items, on all ranks; (*batch, 1)."""
        if self.shards is None:
            return condition.all(-1, keepdim=True)
        return self.across((~condition).double().sum(-1, keepdim=True)) == 0

    def shards_of(self, name: str) -> Shards | None:
        """Where the other items of a block are; None when all are here."""
        return None if self.shards is None else self.shards.on(name)

    def on_shards(self, shards: Shards) -> "LocationScale":
        """See `GaugeGroup.on_shards`: every block that is spread has numbers of items of its own."""
        group = copy.copy(self)
        object.__setattr__(group, "shards", shards)
        return group

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """The representative closest to `to` in the invariant metric (scales and slopes count by their logarithms)."""
        start, goal = self.canonical(x, weights), self.canonical(to, weights)
        regular = start.verdict & goal.verdict
        point = LocationScaleGeometry(self, part_of_weights(weights, self.block_names)).align(x, to)
        form = self.canonical(point, part_of_weights(weights, self.block_names))
        log_scale = start.xi[..., 0] - form.xi[..., 0]
        xi = torch.stack([log_scale, start.xi[..., 1] - log_scale.exp() * form.xi[..., 1]], dim=-1)
        xi = torch.where(regular.all(-1, keepdim=True), xi, torch.zeros_like(xi))
        return Canonical(self._zeroed({**x, **point}, regular), xi, regular)

    def _weights_of(self, name: str, x: Point, weights: Weights) -> Tensor | None:
        """The weights of one block, flat; None when they are equal."""
        if weights is None:
            return None
        flat_weights(weights, x, self.batch_ndim(x), self.shards)  # names and shapes of all of them
        return (
            flat_weights(weights[name], x[name], self.batch_ndim(x), self.shards_of(name)) if name in weights else None
        )

    def _zeroed(self, point: Point, regular: Tensor) -> Point:
        """`point` with its own blocks zeroed where it is not regular."""
        ndim, keep = self.batch_ndim(point), regular.all(-1)
        return {n: t * _over(keep, t, ndim) if n in self.block_names else t for n, t in point.items()}

    def regular_columns(self) -> list[tuple[GaugeGroup, str]]:
        """See `GaugeGroup.regular_columns`: the first block of locations, and every block of scales or slopes."""
        return [(self, f"block {name!r}") for name in (self.locations[0], *self.positive)]

    def geometry(self, weights: Weights = None) -> NamedBlocksGeometry:
        return NamedBlocksGeometry(LocationScaleGeometry(self, weights), weights)

    def generator_names(self, x: Point) -> list[str]:
        names = ", ".join(self.block_names)
        return [f"scaling of {names}", f"translation of {', '.join(self.locations)}"]


class _LocationScaleSettler:
    """Takes mean and size of the first block of locations out of all blocks, in place; see `GaugeGroup.settler`."""

    def __init__(self, group: LocationScale, weights: Weights):
        self._group, self._weights = group, weights
        self._known: tuple[tuple, Passes] | None = None

    def __call__(self, x: Point) -> Canonical | None:
        """The canonical form of `x`, in its memory; None for points far from the section, where it can be known."""
        group, ndim = self._group, self._group.batch_ndim(x)
        own = {name: x[name] for name in group.block_names}
        rows = {name: t.view(*t.shape[:ndim], t.shape[ndim:].numel()) for name, t in own.items()}
        rest = [*group.locations[1:], *group.positive]

        def is_right(name: str) -> Tensor:
            """Whether all numbers of a block are finite, and positive where they have to be; (*batch, 1)."""
            t = rows[name]
            if not t.shape[-1]:
                return t.new_ones((*t.shape[:-1], 1), dtype=torch.bool)
            low, high = t.amin(-1, keepdim=True), t.amax(-1, keepdim=True)  # at once they take fifty times as long
            return (low > (0 if name in group.positive else -math.inf)) & (high < math.inf)

        veto = None
        if group.shards_of(group.locations[0]) is not None and rest:  # nobody else sees what is wrong on this rank
            veto = ~torch.stack([is_right(name) for name in rest]).all(0)
        taken = self._standardised(x, rows[group.locations[0]], veto)
        if taken is None:
            return None
        mean, size, varies = taken
        shift, scale = finite_shift(mean), torch.where(varies, size, 1.0)
        inverse = scale.reciprocal()
        for name in group.locations[1:]:
            rows[name].sub_(shift.to(x[name].dtype)).mul_(inverse.to(x[name].dtype))
        for name in group.positive:
            rows[name].mul_((inverse if name in group.scales else scale).to(x[name].dtype))
        if size.device.type == "cpu" and not is_near(mean, size, varies):
            return None  # all blocks are on their orbit, and the closed form says what is wrong
        fine = torch.ones_like(varies)  # what a veto has not spoilt
        right = [fine if veto is not None else group.everywhere(is_right(name)) for name in rest]
        count = len(group.locations) - 1
        mean = functools.reduce(lambda mean, right: torch.where(right, mean, math.nan), right[:count], mean)
        return Canonical(x, torch.cat([scale.log(), mean], dim=-1), torch.cat([varies, *right[count:]], dim=-1))

    def _standardised(self, x: Point, locations: Tensor, veto: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """Takes mean and size out of `locations` (*batch, n); both, and whether there is a size, (*batch, 1)."""
        group = self._group
        if self._weights is None:
            return standardise(locations, group.shards_of(group.locations[0]), veto)
        batch, ndim = locations.shape[:-1], group.batch_ndim(x)
        rows = locations.view(batch.numel(), locations.shape[-1])
        kind = tuple(
            (t.shape[ndim:], t.dtype, t.device) for t in x.values()
        )  # of all blocks: all weights are looked at
        if self._known is None or self._known[0] != kind:
            self._known = kind, Passes(group.measure(x, self._weights), rows)
        taken = self._known[1].standardise(rows, veto=None if veto is None else veto.reshape(-1, 1))
        if taken is None:
            return None
        mean, size, varies = (t.view(*batch, 1) for t in taken)
        return mean, size, varies


class _Frame(NamedTuple):
    """What all operations at one point share; vectors are flat (*batch, N)."""

    mean: Tensor
    size: Tensor
    centre: Tensor
    """Locations less their mean, divided by their root mean square."""
    logs: Tensor
    """Logarithms of scales and slopes."""


class _Positive(NamedTuple):
    """Of scales and slopes, flat (*batch, N)."""

    weights: Tensor
    summed: Tensor
    """Weights in sums over ranks."""
    signs: Tensor
    """1 for scales and -1 for slopes."""


class LocationScaleGeometry(Geometry):
    """Metric sum W dz^2 / s^2 + sum w (d log q)^2 over locations z and scales and slopes q, s^2 the mean square of z.

    The quotient is the product of a sphere (standardised locations) and a Euclidean space (log q -+ log s, made orthogonal to
    the scaling). `signs` is 1 for scales and -1 for slopes, T the sum of all weights.
    """

    isometric = True
    group: LocationScale
    _known: dict[tuple, tuple[Measure, "_Positive"]] | None = None

    def remembering(self) -> "LocationScaleGeometry":
        """See `Geometry.remembering`; also weights, and how many items there are."""
        other = cast(LocationScaleGeometry, super().remembering())
        other._known = {}
        return other

    # ------------------------------------------------------------------------------------------------ at one point

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """See `Geometry.inner`."""
        measure, others = self._measures(x)
        (du, dp), (dv, dq) = self._relative(x, u), self._relative(x, v)
        locations = measure.mean(du * dv)[..., 0] * measure.items
        return locations + self.group.across((dp * dq * others.summed).sum(-1))

    def horizontal(self, x: Point, u: Point) -> Point:
        """See `Geometry.horizontal`."""
        frame = self._frame(x)
        return self._absolute(x, frame, *self._project(x, frame, *self._relative(x, u, frame)))

    def gradient(self, x: Point, derivative: Point) -> Point:
        """See `Geometry.gradient`: P(s^2 g / W, q^2 g / w)."""
        measure, positive = self._measures(x)
        frame, ndim = self._frame(x), self.group.batch_ndim(x)
        locations, others = self._split(derivative, ndim)
        locations = frame.size * (locations if measure.weights is None else locations / measure.weights)
        others = frame.logs.exp() * others / positive.weights
        return self._absolute(x, frame, *self._project(x, frame, locations, others))

    def components(self, x: Point, u: Point) -> Point:
        """See `Geometry.components`: sqrt(W) u / s and sqrt(w) u / q."""
        measure, positive = self._measures(x)
        locations, others = self._relative(x, u)
        locations = locations if measure.weights is None else locations * measure.weights.sqrt()
        return self._join(x, locations, others * positive.weights.sqrt())

    # ------------------------------------------------------------------------------------------------ motions

    def retract(self, x: Point, u: Point) -> Point:
        """See `Geometry.retract`: the geodesic."""
        return self.exp(x, u)

    def exp(self, x: Point, u: Point) -> Point:
        """See `Geometry.exp`.

        Locations become m + s e^rho (cos(th) c / s + sinc(th) t), rho the part of u along c and t the rest, others q exp(u / q).
        """
        measure, _ = self._measures(x)
        frame = self._frame(x)
        velocity, others = self._relative(x, u, frame)
        along = measure.mean(velocity * frame.centre)
        across = velocity - along * frame.centre
        cosine, sinc = _cosine_and_sinc(measure.mean(across.square()))
        turned = cosine * frame.centre + sinc * across
        centred = measure.centre(turned)[0]
        turned = centred / measure.size(centred)
        shift = measure.mean(velocity) * frame.size  # 0 for horizontal u
        return self._join(x, frame.mean + shift + frame.size * along.exp() * turned, (frame.logs + others).exp())

    def log(self, x: Point, y: Point) -> Point:
        """See `Geometry.log`."""
        wide, other = widened(self._own(x)), widened(self._own(y))
        start = self._frame(wide)
        direction, difference, _ = self._difference(wide, start, self._frame(other))
        return cast_like(self._absolute(wide, start, *self._project(wide, start, direction, difference)), self._own(x))

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.squared_dist`: T th^2 + sum w e^2 - (sum signs w e)^2 / (T + sum w)."""
        wide, other = widened(self._own(x)), widened(self._own(y))
        measure, positive = self._measures(wide)
        start = self._frame(wide)
        _, e, square = self._difference(wide, start, self._frame(other))
        total = measure.items
        (along, others), (squares, _) = self._sums(positive, positive.signs * e), self._sums(positive, e.square())
        value = (total * square + squares - along.square() / (total + others))[..., 0]
        return value.clamp_min(0).to(self._split(x, 0)[0].dtype)

    def dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.dist`."""
        return safe_root(self.squared_dist(x, y))

    def align(self, x: Point, to: Point) -> Point:
        """See `Geometry.align`: where the horizontal geodesic from `to` meets the orbit of `x`."""
        measure, positive = self._measures(to)
        start, end = self._frame(to), self._frame(x)
        e = self._invariant_logs(to, end) - self._invariant_logs(to, start)
        along, others = self._sums(positive, positive.signs * e)
        log_size = start.size.log() - along / (measure.items + others)
        logs = self._invariant_logs(to, end) + positive.signs * log_size
        return self._join(x, start.mean + log_size.exp() * end.centre, logs.exp())

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """See `Geometry.transport`: parallel, along the great circle of the locations; relative changes of the rest are kept."""
        measure, positive = self._measures(x)
        start, end = self._frame(x), self._frame(y)
        velocity, others = self._project(x, start, *self._relative(x, v, start))
        along = measure.mean(velocity * start.centre)
        velocity = velocity - along * start.centre
        middle = start.centre + end.centre
        square = measure.mean(middle.square())
        safe = torch.where(square > 0, square, torch.ones_like(square))
        velocity = velocity - middle * (2 * measure.mean(velocity * middle) / safe)
        return self._absolute(y, end, *self._project(y, end, velocity, others - positive.signs * along))

    # ------------------------------------------------------------------------------------------------ private

    def _own(self, x: Point) -> Point:
        return {name: x[name] for name in self.group.block_names}

    def _split(self, x: Point, ndim: int) -> tuple[Tensor, Tensor]:
        """Locations, and scales and slopes, as flat vectors (*batch, N)."""
        group = self.group
        locations = flatten({name: x[name] for name in group.locations}, ndim)
        if not group.positive:
            return locations, locations[..., :0]
        return locations, flatten({name: x[name] for name in group.positive}, ndim)

    def _join(self, x: Point, locations: Tensor, others: Tensor) -> Point:
        """The inverse of `_split`; blocks in the order of the group."""
        ndim, group = self.group.batch_ndim(x), self.group
        y = dict(unflatten(locations, {name: x[name] for name in group.locations}, ndim))
        if group.positive:
            y.update(unflatten(others, {name: x[name] for name in group.positive}, ndim))
        return y

    def _measures(self, x: Point) -> tuple[Measure, _Positive]:
        """The measure of the locations; what counts of scales and slopes.

        A geometry that remembers makes it once for points of one kind: nobody looks at weights again, or counts items.
        """
        own = self._own(x).values()
        if self._known is None or any(is_wrapped(t) for t in own):
            return self._new_measures(x)
        kind = tuple((t.shape, t.dtype, t.device) for t in own)
        if kind not in self._known:
            with torch.inference_mode(False):
                self._known[kind] = self._new_measures(map_blocks(torch.empty_like, self._own(x)))
        return self._known[kind]

    def _new_measures(self, x: Point) -> tuple[Measure, _Positive]:
        group, ndim, own = self.group, self.group.batch_ndim(x), self._own(x)
        locations, others = self._split(x, ndim)
        count, ones = locations.shape[-1], torch.ones_like(others)
        signs = [torch.full_like(flatten(x[n], ndim), 1.0 if n in group.scales else -1.0) for n in group.positive]
        sign = torch.cat(signs, dim=-1) if signs else others
        w = None if self.weights is None else flat_weights(self.weights, own, ndim, group.shards)
        shares = flat_shares(own, ndim, group.shards)
        here, heavy = (None if t is None else t[:count] for t in (shares, w))
        weights, summed = (ones if t is None else t[count:].expand_as(others) for t in (w, shares))
        return Measure(locations, heavy, None, group.shards, here), _Positive(weights, weights * summed, sign)

    def _sums(self, positive: _Positive, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of `values` of scales and slopes with their weights, and of the weights; (*batch, 1)."""
        w, values = torch.broadcast_tensors(positive.summed, values)
        sums = self.group.across(torch.stack([(w * values).sum(-1, keepdim=True), w.sum(-1, keepdim=True)]))
        return sums[0], sums[1]

    def _frame(self, x: Point) -> _Frame:
        locations, others = self._split(x, self.group.batch_ndim(x))
        measure, _ = self._measures(x)
        centred, mean = measure.centre(locations)
        size = measure.size(centred)
        size = torch.where(size > 0, size, torch.ones_like(size))
        positive = others > 0
        return _Frame(mean, size, centred / size, torch.where(positive, others, torch.ones_like(others)).log())

    def _relative(self, x: Point, u: Point, frame: _Frame | None = None) -> tuple[Tensor, Tensor]:
        """`u` in units of s, and of the entry for scales and slopes: what does not change with the group."""
        frame = self._frame(x) if frame is None else frame
        locations, others = self._split(u, self.group.batch_ndim(x))
        return locations / frame.size, others * (-frame.logs).exp()

    def _absolute(self, x: Point, frame: _Frame, locations: Tensor, others: Tensor) -> Point:
        return self._join(x, locations * frame.size, others * frame.logs.exp())

    def _project(self, x: Point, frame: _Frame, locations: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Relative vectors less their parts along translation and scaling."""
        measure, positive = self._measures(x)
        locations = measure.centre(locations)[0]
        total = measure.items
        along, count = self._sums(positive, positive.signs * others)
        along = (total * measure.mean(locations * frame.centre) + along) / (total + count)
        return locations - along * frame.centre, others - along * positive.signs

    def _invariant_logs(self, x: Point, frame: _Frame) -> Tensor:
        return frame.logs - self._measures(x)[1].signs * frame.size.log()

    def _difference(self, x: Point, start: _Frame, end: _Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Between two orbits: the tangent vector of the great circle, the change of the invariant logarithms, the angle squared."""
        measure, _ = self._measures(x)
        near, far = end.centre - start.centre, end.centre + start.centre
        q, p = measure.mean(near.square()) / 4, measure.mean(far.square()) / 4
        direction = torch.where(q < p, near, far)
        direction = direction - start.centre * measure.mean(start.centre * direction)
        e = self._invariant_logs(x, end) - self._invariant_logs(x, start)
        return _angle_over_sine(q, p) * direction, e, _squared_angle(q, p)


def _over(value: Tensor, t: Tensor, ndim: int) -> Tensor:
    """`value` (*batch) shaped to multiply the block `t`."""
    return value[(..., *(None,) * (t.ndim - ndim))]
