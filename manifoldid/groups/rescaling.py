"""Rescaling: hidden units of positively homogeneous networks (ReLU), incoming weights times c, outgoing ones divided by c."""

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldid._linalg import widened
from manifoldid._memory import Memory
from manifoldid.groups._euclidean import safe_root
from manifoldid.groups._named_blocks import NamedBlocksGeometry, block_names
from manifoldid.groups._sphere import _angle_over_sine, _cosine_and_sinc, _squared_angle
from manifoldid.groups.base import Canonical, GaugeGroup, Settler
from manifoldid.groups.geometry import Geometry
from manifoldid.points import Point, Weights, cast_like, concrete, flat_weights, part_of_weights, unflatten


@dataclass(frozen=True, eq=False, repr=False)
class Rescaling(GaugeGroup):
    """Per hidden unit k: incoming[k] -> c_k incoming[k], outgoing[..., k] -> outgoing[..., k] / c_k, c_k > 0. Coordinates: log c.

    Hidden units of ReLU networks, channels of convolutions. Canonical: incoming and outgoing weights of every unit have the same
    norm (over all incoming, and all outgoing, blocks together). A dead unit, all of whose incoming or outgoing weights are zero,
    is left alone, with one warning per group object. The balanced section is horizontal in the invariant metric: the gauge is
    flat.

    Args:
        incoming: Names of the blocks whose rows are the weights into a unit: weight (K, in), bias (K,), kernel (K, in, h, w).
        outgoing: Names of the blocks whose last dimension counts the units: weight (out, K), vector (K,).
        dims: Dimension of one point that counts the units, for blocks where it is not the first (incoming) or last (outgoing):
            `{"kernel2": 1}` for a kernel (out, K, h, w).
        event_dims: How many trailing dimensions of a block make one point, for at least one block. Only needed where the shapes
            leave it open; without it, a block of smaller dimension than the others is taken for a bias (K,), and blocks of equal
            dimensions for matrices.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A block is named twice, or `incoming` or `outgoing` is empty.
    """

    incoming: Sequence[str]
    outgoing: Sequence[str]
    dims: Mapping[str, int] | None = None
    event_dims: Mapping[str, int] | None = None
    flat = True
    _warned: list[bool] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        for role in ("incoming", "outgoing"):
            object.__setattr__(self, role, block_names(getattr(self, role), role))
            if not getattr(self, role):
                raise ValueError(f"`{role}` must name at least one block")
        names = (*self.incoming, *self.outgoing)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`incoming` and `outgoing` name the block(s) {twice} twice")
        for role in ("dims", "event_dims"):
            given = getattr(self, role)
            if given is None:
                continue
            if not isinstance(given, Mapping) or not all(type(d) is int for d in given.values()):
                raise TypeError(f"`{role}` must be a dict from names of blocks to integers, got {given!r}")
            if set(given) - set(names):
                raise ValueError(
                    f"`{role}` names the blocks {sorted(set(given) - set(names))}, but the group acts on {names}"
                )
            object.__setattr__(self, role, dict(given))
        object.__setattr__(self, "block_names", names)

    # ------------------------------------------------------------------------------------------------ shapes

    def dimension(self, x: Point) -> int:
        return self._units(x, self.batch_ndim(x))

    def batch_ndim(self, x: Point) -> int:
        """How many leading dimensions are batch: such that all blocks have the same batch and as many units.

        Raises:
            ValueError: No number fits.
        """
        if self.event_dims:
            given = {x[name].ndim - d for name, d in self.event_dims.items()}
            possible = [d for d in given if len(given) == 1 and self._fits(x, d)]
        else:
            possible = [d for d in range(min(x[name].ndim for name in self.block_names)) if self._fits(x, d)]
        if not possible:
            shapes = {name: tuple(x[name].shape) for name in self.block_names}
            raise ValueError(
                f"`point` has blocks of shapes {shapes}, which do not have the same number of units for {self}: units are counted "
                "by the first dimension of incoming and the last of outgoing blocks; say otherwise with dims= and event_dims="
            )
        sizes = {x[name].ndim for name in self.block_names}
        usual = min(sizes) - 1 if len(sizes) > 1 else max(0, min(sizes) - 2)
        return usual if usual in possible else possible[0]

    def _fits(self, x: Point, ndim: int) -> bool:
        shapes = [x[name].shape for name in self.block_names]
        if ndim < 0 or any(len(shape) <= ndim or shape[:ndim] != shapes[0][:ndim] for shape in shapes):
            return False
        places = [self.place(name, x[name], ndim) for name in self.block_names]
        inside = all(ndim <= place < len(shape) for place, shape in zip(places, shapes, strict=True))
        return inside and len({shape[place] for place, shape in zip(places, shapes, strict=True)}) == 1

    def place(self, name: str, t: Tensor, ndim: int) -> int:
        """The dimension of the block that counts the units."""
        d = (self.dims or {}).get(name, 0 if name in self.incoming else -1)
        return d + (ndim if d >= 0 else t.ndim)

    def _units(self, x: Point, ndim: int) -> int:
        name = self.incoming[0]
        return x[name].shape[self.place(name, x[name], ndim)]

    def validate(self, x: Any, name: str = "point") -> Point:
        """See `GaugeGroup.validate`; also that the blocks have the same units. Warns once of units that are dead.

        Raises:
            ValueError: They have not.
        """
        x = super().validate(x, name)
        try:
            ndim = self.batch_ndim(x)
        except ValueError as error:
            raise ValueError(str(error).replace("`point`", f"`{name}`")) from None
        if not self._warned and all(concrete(x[block]) for block in self.block_names):
            sizes = self._sizes(x, ndim, None)
            dead = (
                ((sizes[0] == 0) | (sizes[1] == 0)).flatten(0, -2)
                if ndim
                else ((sizes[0] == 0) | (sizes[1] == 0))[None]
            )
            if bool(dead.any()):
                self._warned.append(True)
                units = dead.any(0).nonzero()[:, 0].tolist()
                warnings.warn(
                    f"`{name}` has {len(units)} dead hidden unit(s), the first is {units[0]}: their incoming or outgoing weights are "
                    f"all zero and have no scale to remove; {type(self).__name__} leaves them alone (said once)",
                    stacklevel=3,
                )
        return x

    # ------------------------------------------------------------------------------------------------ the action

    def act(self, xi: Tensor, x: Point) -> Point:
        ndim, y = self.batch_ndim(x), dict(x.items())
        for name in self.block_names:
            factor = xi if name in self.incoming else -xi
            y[name] = x[name] * self.beside(factor.exp(), name, x[name], ndim)
        return y

    def undo(self, xi: Tensor, x: Point) -> Point:
        return self.act(-xi, x)

    def beside(self, value: Tensor, name: str, t: Tensor, ndim: int) -> Tensor:
        """`value` (*batch, K) shaped to multiply a block."""
        place = self.place(name, t, ndim)
        before, after = place - ndim, t.ndim - place - 1
        return value[(..., *(None,) * before, slice(None), *(None,) * after)]

    def vertical_basis(self, x: Point) -> Point:
        ndim, basis = self.batch_ndim(x), {}
        one = torch.eye(self._units(x, ndim), dtype=x[self.incoming[0]].dtype, device=x[self.incoming[0]].device)
        for name, t in x.items():
            if name not in self.block_names:
                basis[name] = t.new_zeros(*t.shape[:ndim], len(one), *t.shape[ndim:])
                continue
            row = t if name in self.incoming else -t
            basis[name] = row.unsqueeze(ndim) * self.beside(one, name, t[(0,) * ndim], 0)
        return basis

    # -------------------------------------------------------------------------------------------- representatives

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        incoming, outgoing = self._sizes(x, self.batch_ndim(x), weights)
        alive = (incoming != 0) & (outgoing != 0)  # also where they are nan, so that the frame says so
        p, q = (torch.where(alive, size, torch.ones_like(size)) for size in (incoming, outgoing))
        xi = 0.5 * (p.log() - q.log())
        return Canonical(self.act(-xi, x), xi)

    def settler(self, weights: Weights = None) -> Settler:
        return _RescalingSettler(self, weights)

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """The representative closest to `to` in the invariant metric: with the balance of `to` in every unit."""
        goal = self.canonical(to, weights).xi
        form = self.canonical(x, weights)
        return Canonical(self.act(goal, form.point), form.xi - goal)

    def _sizes(self, x: Point, ndim: int, weights: Weights) -> tuple[Tensor, Tensor]:
        """Norms (*batch, K) of incoming and outgoing weights of every unit."""
        incoming, outgoing = self.rows(x, ndim)
        w, v = self.row_weights(x, ndim, weights)
        return _norm(incoming if w is None else incoming * w.sqrt()), _norm(
            outgoing if v is None else outgoing * v.sqrt()
        )

    def rows(self, x: Point, ndim: int) -> tuple[Tensor, Tensor]:
        """Incoming (*batch, K, m) and outgoing (*batch, K, n) weights of every unit."""

        def of(names: Sequence[str]) -> Tensor:
            parts = []
            for name in names:
                moved = x[name].movedim(self.place(name, x[name], ndim), ndim)
                parts.append(moved.flatten(ndim + 1) if moved.ndim > ndim + 1 else moved[..., None])
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

        return of(self.incoming), of(self.outgoing)

    def point_of(self, incoming: Tensor, outgoing: Tensor, x: Point, ndim: int) -> Point:
        """The inverse of `rows`, with blocks shaped like those of `x`."""
        y = {}
        for names, rows in ((self.incoming, incoming), (self.outgoing, outgoing)):
            start = 0
            for name in names:
                place = self.place(name, x[name], ndim)
                shape = x[name].movedim(place, ndim).shape[ndim + 1 :]
                piece = rows[..., start : start + shape.numel()]
                y[name] = piece.unflatten(-1, shape).movedim(ndim, place) if len(shape) else piece[..., 0]
                start += shape.numel()
        return y

    def row_weights(self, x: Point, ndim: int, weights: Weights) -> tuple[Tensor | None, Tensor | None]:
        """Item weights beside `rows`."""
        w = flat_weights(weights, x, ndim)
        if w is None:
            return None, None
        return self.rows(unflatten(w, {name: t[(0,) * ndim] for name, t in x.items()}), 0)

    def geometry(self, weights: Weights = None) -> NamedBlocksGeometry:
        return NamedBlocksGeometry(RescalingGeometry(self, part_of_weights(weights, self.block_names)), weights)

    def generator_names(self, x: Point) -> list[str]:
        return [f"rescaling of hidden unit {k}" for k in range(self.dimension(x))]


class _RescalingSettler:
    """Makes the norms of incoming and outgoing weights equal, in place; see `GaugeGroup.settler`."""

    def __init__(self, group: Rescaling, weights: Weights):
        self._group, self._weights, self._memory = group, weights, Memory()
        self._known: tuple[list, Point] | None = None

    def __call__(self, x: Point) -> Canonical | None:
        """The canonical form of `x`, in its memory; None where a norm, or its square, is no number, where that can be known."""
        group, ndim = self._group, self._group.batch_ndim(x)
        squares = self._of_units(x, ndim, lambda t, over: t.square_().sum(over), torch.add)
        if squares.device.type == "cpu":
            right = (squares > self._least_squares(x, ndim).to(squares.dtype)) & (squares < math.inf)
            if not bool(right.all()):  # dead units, or squares that are none
                largest = self._of_units(x, ndim, lambda t, over: t.abs_().amax(over), torch.maximum)
                if not bool((right | (largest == 0)).all()):
                    return None
        p, q = torch.where((squares == 0).any(0), 1.0, squares)  # dead units are left alone
        xi = 0.25 * (p.log() - q.log())
        for name in group.block_names:
            factor = (-xi if name in group.incoming else xi).exp()
            x[name].mul_(group.beside(factor, name, x[name], ndim).to(x[name].dtype))
        return Canonical(x, xi)

    def _of_units(
        self,
        x: Point,
        ndim: int,
        of: Callable[[Tensor, list[int]], Tensor],
        join: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """A value (2, *batch, K) of the weights into and out of every unit; `of` may write to the copies of them that it is handed."""
        roots, sides = self._roots(x, ndim), []
        for names in (self._group.incoming, self._group.outgoing):
            values = []
            for name in names:
                t, place = x[name], self._group.place(name, x[name], ndim)
                if not t.numel():
                    values.append(t.new_zeros(*t.shape[:ndim], t.shape[place]))
                    continue
                over = [d for d in range(ndim, t.ndim) if d != place]
                room = self._memory.room(name, t.shape, t)
                copied = torch.mul(t, roots[name], out=room) if name in roots else room.copy_(t)
                value = of(copied.unsqueeze(-1), [*over, t.ndim])  # a vector of biases has nothing else to reduce
                values.append(value)
            sides.append(functools.reduce(join, values))
        return torch.stack(sides)

    def _least_squares(self, x: Point, ndim: int) -> Tensor:
        """Sums of squares, (2, 1, ...) into and out of a unit, above which those that underflow are rounding."""
        least = []
        for names in (self._group.incoming, self._group.outgoing):
            kinds = [(torch.finfo(x[name].dtype), x[name].shape[ndim:].numel()) for name in names]
            least.append(max(kind.tiny / kind.eps * numbers for kind, numbers in kinds) / self._group.dimension(x))
        return torch.tensor(least, dtype=torch.float64).view(2, *(1,) * (ndim + 1))

    def _roots(self, x: Point, ndim: int) -> Point:
        """Roots of the weights, shaped like the blocks of one point; found and checked once for points of one kind."""
        if self._weights is None:
            return {}
        kind = [(name, t.shape[ndim:], t.dtype, t.device) for name, t in x.items()]
        if self._known is None or self._known[0] != kind:
            w = flat_weights(self._weights, x, ndim)
            one = {name: t[(0,) * ndim] for name, t in x.items()}
            self._known = kind, {} if w is None else unflatten(w.sqrt(), one, 0)
        return self._known[1]


class _Units(NamedTuple):
    """All hidden units of one point: directions and size at balance, and how far they are from it. Shapes (*batch, K, m or n or 1)."""

    into: Tensor
    """Incoming weights, divided by their norm."""
    out: Tensor
    """Outgoing weights, divided by their norm."""
    size: Tensor
    """Norm of either at balance."""
    balance: Tensor
    """c: incoming weights are c times those at balance."""


class RescalingGeometry(Geometry):
    """Metric |d incoming|^2 / c^2 + c^2 |d outgoing|^2 per unit, c^2 = |incoming| / |outgoing|: Euclidean at the balanced point.

    The quotient of one unit is a cone over a product of two spheres: of the radius sqrt(2) h, h the norm at balance, over the
    directions, whose angles count (th_in^2 + th_out^2) / 2. Geodesics are straight lines of the cone unrolled into a plane; from
    an angle of pi on they pass through the dead unit at its tip.
    """

    group: Rescaling

    # ------------------------------------------------------------------------------------------------ at one point

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """See `Geometry.inner`."""
        units = self._at(x)
        (du, do), (ev, eo) = self._pulled(x, units, u), self._pulled(x, units, v)
        return (du * ev).sum((-2, -1)) + (do * eo).sum((-2, -1))

    def horizontal(self, x: Point, u: Point) -> Point:
        """See `Geometry.horizontal`: equal growth of incoming and outgoing norms at balance."""
        units = self._at(x)
        return self._pushed(x, units, *self._project(units, *self._pulled(x, units, u)))

    def gradient(self, x: Point, derivative: Point) -> Point:
        """See `Geometry.gradient`: P(c^2 g / w, g / (c^2 w))."""
        units, ndim = self._at(x), self.group.batch_ndim(x)
        into, out = self.group.rows(derivative, ndim)
        w, v = self.group.row_weights(x, ndim, self.weights)
        into, out = (into, out) if w is None or v is None else (into / w.sqrt(), out / v.sqrt())
        return self._pushed(x, units, *self._project(units, into * units.balance, out / units.balance))

    def components(self, x: Point, u: Point) -> Point:
        """See `Geometry.components`: entries at balance."""
        return self.group.point_of(*self._pulled(x, self._at(x), u), x, self.group.batch_ndim(x))

    # ------------------------------------------------------------------------------------------------ motions

    def retract(self, x: Point, u: Point) -> Point:
        """See `Geometry.retract`: the geodesic."""
        return self.exp(x, u)

    def exp(self, x: Point, u: Point) -> Point:
        """See `Geometry.exp`."""
        units = self._at(x)
        into, out = self._pulled(x, units, u)
        live = units.size > 0
        h = torch.where(live, units.size, torch.ones_like(units.size))
        growth = (into * units.into).sum(-1, keepdim=True) / h
        spin, turn = into / h - growth * units.into, out / h - (out * units.out).sum(-1, keepdim=True) / h * units.out
        square = 0.5 * (spin.square().sum(-1, keepdim=True) + turn.square().sum(-1, keepdim=True))
        ahead = 1 + growth
        time = _angle_over_rate(square, ahead)
        size = h * safe_root(ahead.square() + square)
        new_into, new_out = size * _circle(units.into, spin * time), size * _circle(units.out, turn * time)
        return self._pushed(
            x, units, torch.where(live, new_into, into), torch.where(live, new_out, out), from_dead=(x, ~live)
        )

    def log(self, x: Point, y: Point) -> Point:
        """See `Geometry.log`."""
        wide = widened(self._own(x))
        start, end = self._at(wide), self._at(widened(self._own(y)))
        angle, spin, turn = self._angles(start, end)
        growth = end.size * angle.cos() - start.size
        factor = end.size * torch.sinc(angle / torch.pi)
        into, out = growth * start.into + factor * spin, growth * start.out + factor * turn
        return cast_like(self._pushed(wide, start, into, out), self._own(x))

    def dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.dist`."""
        return safe_root(self.squared_dist(x, y))

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.squared_dist`: sum over units of 2 (h - h')^2 + 8 h h' sin^2(angle / 2)."""
        start, end = self._at(widened(self._own(x))), self._at(widened(self._own(y)))
        angle, _, _ = self._angles(start, end)
        chord = 2 * start.size * end.size * (angle * torch.sinc(angle / (2 * torch.pi))).square()
        total = (2 * (start.size - end.size).square() + chord).sum((-2, -1))
        return total.to(x[self.group.incoming[0]].dtype)

    def align(self, x: Point, to: Point) -> Point:
        """See `Geometry.align`: the representative of `x` with the balance of `to`."""
        return self.group.closest(x, to, self.weights).point

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """See `Geometry.transport`: the horizontal component at balance."""
        start, end = self._at(x), self._at(y)
        return self._pushed(y, end, *self._project(end, *self._pulled(x, start, v)))

    # ------------------------------------------------------------------------------------------------ private

    def _own(self, x: Point) -> Point:
        return {name: x[name] for name in self.group.block_names}

    def _at(self, x: Point) -> _Units:
        ndim = self.group.batch_ndim(x)
        incoming, outgoing = self._scaled(x, ndim, x)
        p, q = _norm(incoming)[..., None], _norm(outgoing)[..., None]
        alive = (p > 0) & (q > 0)
        safe_p, safe_q = (torch.where(alive, size, torch.ones_like(size)) for size in (p, q))
        size = torch.where(alive, safe_p.sqrt() * safe_q.sqrt(), torch.zeros_like(p))
        return _Units(
            torch.where(alive, incoming / safe_p, torch.zeros_like(incoming)),
            torch.where(alive, outgoing / safe_q, torch.zeros_like(outgoing)),
            size,
            safe_p.sqrt() / safe_q.sqrt(),
        )

    def _scaled(self, u: Point, ndim: int, x: Point) -> tuple[Tensor, Tensor]:
        into, out = self.group.rows(u, ndim)
        w, v = self.group.row_weights(x, ndim, self.weights)
        return (into, out) if w is None or v is None else (into * w.sqrt(), out * v.sqrt())

    def _pulled(self, x: Point, units: _Units, u: Point) -> tuple[Tensor, Tensor]:
        """`u` carried to the balanced point, times the root of the weights."""
        into, out = self._scaled(u, self.group.batch_ndim(x), x)
        return into / units.balance, out * units.balance

    def _pushed(
        self, x: Point, units: _Units, into: Tensor, out: Tensor, from_dead: tuple[Point, Tensor] | None = None
    ) -> Point:
        """The inverse of `_pulled`; dead units of a motion add their displacement to `x`."""
        ndim = self.group.batch_ndim(x)
        into, out = into * units.balance, out / units.balance
        w, v = self.group.row_weights(x, ndim, self.weights)
        into, out = (into, out) if w is None or v is None else (into / w.sqrt(), out / v.sqrt())
        if from_dead is not None:
            old, dead = self.group.rows(from_dead[0], ndim), from_dead[1]
            into, out = torch.where(dead, old[0] + into, into), torch.where(dead, old[1] + out, out)
        return self.group.point_of(into, out, x, ndim)

    def _project(self, units: _Units, into: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        excess = 0.5 * ((into * units.into).sum(-1, keepdim=True) - (out * units.out).sum(-1, keepdim=True))
        return into - excess * units.into, out + excess * units.out

    def _angles(self, start: _Units, end: _Units) -> tuple[Tensor, Tensor, Tensor]:
        """The angle of the cone, at most pi, and the initial velocities of the two great circles."""
        angle_in, spin = _great_circle(start.into, end.into)
        angle_out, turn = _great_circle(start.out, end.out)
        return safe_root(0.5 * (angle_in + angle_out)).clamp_max(torch.pi), spin, turn


def _norm(rows: Tensor) -> Tensor:
    """Norm over the last dimension, with derivative 0 at 0, nan where an entry is; (*batch, K, m) -> (*batch, K)."""
    largest = rows.detach().abs().amax(-1, keepdim=True)
    scale = torch.where(largest == 0, torch.ones_like(largest), largest)  # nan stays: `safe_root` takes it for 0
    return scale[..., 0] * safe_root((rows / scale).square().sum(-1))


def _angle_over_rate(square: Tensor, ahead: Tensor) -> Tensor:
    """atan2(rate, ahead) / rate as a function of rate^2: smooth at 0, where second-order methods differentiate `exp` twice."""
    near = (ahead > 0) & (square < 1e-3 * ahead.square())
    # through the tip of the cone there is no direction
    slope = 1 / torch.where(ahead.abs() > 0, ahead, torch.ones_like(ahead))
    ratio = torch.where(near, square * slope.square(), torch.zeros_like(square))
    series = 1 - ratio * (1 / 3 - ratio * (1 / 5 - ratio * (1 / 7 - ratio * (1 / 9 - ratio / 11))))
    away = ~near & (square > 0)
    rate = torch.where(away, square, torch.ones_like(square)).sqrt()
    return torch.where(away, torch.atan2(rate, ahead) / rate, slope * series)


def _circle(start: Tensor, velocity: Tensor) -> Tensor:
    """The end of a great circle of the unit sphere, put back on it against rounding."""
    cosine, sinc = _cosine_and_sinc(velocity.square().sum(-1, keepdim=True))
    end = cosine * start + sinc * velocity
    return end / _norm(end)[..., None].clamp_min(torch.finfo(end.dtype).tiny)


def _great_circle(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Squared angle and initial velocity of the shortest great circle from `a` to `b`; opposite single numbers are 2 pi^2 apart.

    The sphere of single numbers is two points, so that every path between them leaves it.
    """
    near, far = b - a, b + a
    q, p = near.square().sum(-1, keepdim=True) / 4, far.square().sum(-1, keepdim=True) / 4
    if a.shape[-1] == 1:
        return 2 * torch.pi**2 * (q > p).to(a.dtype), torch.zeros_like(a)
    direction = torch.where(q < p, near, far)
    direction = direction - a * (a * direction).sum(-1, keepdim=True)
    return _squared_angle(q, p), _angle_over_sine(q, p) * direction
