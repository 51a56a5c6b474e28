"""What is least at the representative of an orbit of a generated group, and where to begin to look for it."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manifoldid.groups.orbit import Objective, moved, newton_path
from manifoldid.points import Point, Weights, first, flatten, is_dict, map_blocks

if TYPE_CHECKING:
    from manifoldid.diagnose.generated import GeneratedGroup

_TURN = 0.1  # how much the direction of a point counts beside its length
# Times of moves to begin with, in the time in which a field moves a point by its own size.
_TIMES = (0.1, 0.3, 1.0, 3.0, 10.0)
_FIRST_STEPS = 8  # of Newton's method from each of them
_MOST_DIRECTIONS = 8
_MOST_NUMBERS = 20_000_000  # of second derivatives at all moves together
_FAR = 1e12  # a start whose value is so many times larger is out of reach
_BETTER = 1e-9  # a relative decrease that is more than rounding


class Modelled(Objective):
    """A function of flat points, less a character of the move, with derivatives along the orbit from the fields.

    Attributes:
        growth: What the character adds per coordinate of a move (dim,); None for no character.
    """

    group: "GeneratedGroup"
    growth: Tensor | None = None

    def __init__(self, group: "GeneratedGroup", weights: Weights, like: Point):
        mine = group.own_blocks(like)
        if is_dict(weights) and is_dict(mine):
            weights = {name: w for name, w in weights.items() if name in mine}
        super().__init__(group, weights, mine)

    def value(self, xi: Tensor, x: Point) -> Tensor:
        value = self.at(self.scaled(moved(self.group, xi, x)))
        return value if self.growth is None else value - xi @ self.growth.to(xi)

    def extent(self, x: Point) -> Tensor:
        return self.scaled(x).norm(dim=-1)

    def scaled(self, x: Point) -> Tensor:
        """A point as a flat vector, in coordinates in which the norm is Euclidean."""
        return self.rooted(flatten(self.group.own_blocks(x), self.ndim))

    def rooted(self, flat: Tensor) -> Tensor:
        """A flat vector times the roots of the weights."""
        return flat if self.weights is None else flat * self.weights.sqrt()

    def constant(self) -> "Modelled":
        return self

    def at(self, z: Tensor) -> Tensor:
        """The function at scaled points (*batch, N)."""
        raise NotImplementedError

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Its gradient (*batch, N), and its Hessian between rows (*batch, dim, N), shape (*batch, dim, dim)."""
        raise NotImplementedError

    def derivatives(self, x: Point, zero: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective.derivatives`."""
        flat = flatten(self.group.own_blocks(x), self.ndim)
        velocities = self.group.velocities(flat)
        rows = self.rooted(velocities)
        gradient, curvature = self.model(self.rooted(flat), rows)
        slope = (rows @ gradient[..., None])[..., 0]
        bent = self.rooted(self.group.accelerations(flat, velocities))
        return (
            slope if self.growth is None else slope - self.growth.to(slope),
            curvature + (bent @ gradient[..., None, :, None])[..., 0],
        )


class Near(Modelled):
    """Half the weighted squared distance from a point."""

    def __init__(self, group: "GeneratedGroup", to: Point, weights: Weights, like: Point):
        super().__init__(group, weights, like)
        self.to = self.rooted(flatten(group.own_blocks(to), group.batch_ndim(to)))

    def at(self, z: Tensor) -> Tensor:
        return 0.5 * (z - self.to).square().sum(-1)

    def extent(self, x: Point) -> Tensor:
        return (self.scaled(x).abs() + self.to.abs()).norm(dim=-1)

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return z - self.to, rows @ rows.mT

    def constant(self) -> "Near":
        other = copy.copy(self)
        other.to = self.to.detach()
        return other


class Small(Modelled):
    """|y|^2 / 2, less a share of |y| times the component towards a direction, less the logarithm of the volume."""

    def __init__(self, group: "GeneratedGroup", weights: Weights, like: Point):
        super().__init__(group, weights, like)
        self.growth = group.growth
        self.aim = None if group.towards is None else group.towards.to(first(like))

    def at(self, z: Tensor) -> Tensor:
        square = z.square().sum(-1)
        return 0.5 * square if self.aim is None else 0.5 * square - _TURN * square.sqrt() * (z @ self.rooted(self.aim))

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.aim is None:
            return z, rows @ rows.mT
        aim, length = self.rooted(self.aim), z.norm(dim=-1, keepdim=True)
        unit, share = z / length, (z @ aim)[..., None] / length
        gradient = z - _TURN * (length * aim + share * z)
        along, towards = rows @ unit[..., None], (rows @ aim)[..., None]
        bent = share[..., None] * (rows @ rows.mT - along @ along.mT) + along @ towards.mT + towards @ along.mT
        return gradient, rows @ rows.mT - _TURN * bent


def best_start(objective: Modelled, x: Point) -> Tensor:
    """Coordinates (*batch, dim) of a move of `x`, constants, towards the lowest of several minima.

    Newton's method takes a few steps from `x` and from moves of it along every field; the move that ends lowest wins.

    Args:
        objective: What becomes least, without derivatives of its own.
        x: A point without derivatives.
    """
    group, wide = objective.group, copy.copy(objective)
    wide.ndim = objective.ndim + 1
    moves = _moves(objective, x)  # (J, *batch, dim), the first one is none
    none = torch.zeros_like(moves)
    many = map_blocks(lambda t: t.expand(len(moves), *t.shape), x)
    inside = wide.value(moves, many) < _FAR * (1 + wide.value(none, many).abs())  # false for nan
    moves = torch.where(inside[..., None], moves, none)
    total, ends = moves, moved(group, moves, many)
    for step in newton_path(wide, ends, none, most=_FIRST_STEPS):
        total, ends = total + step, moved(group, step, ends)
    value = wide.value(none, ends)
    value = value if wide.growth is None else value - total @ wide.growth.to(total)
    lower = value < value[:1] - _BETTER * wide.extent(ends)[:1].square()
    best = torch.where(lower, value, torch.full_like(value, torch.inf)).argmin(0)  # the first one if none is lower
    return torch.take_along_dim(moves, best[None, ..., None], dim=0)[0]


def _moves(objective: Modelled, x: Point) -> Tensor:
    """Moves (J, *batch, dim) along the fields, or along combinations of many, back and forth; the first one is none."""
    group, flat = objective.group, objective.scaled(x)
    directions = torch.eye(group.dim, dtype=flat.dtype, device=flat.device)
    if group.dim > _MOST_DIRECTIONS:
        draw = torch.randn(_MOST_DIRECTIONS, group.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        directions = (draw / draw.norm(dim=1, keepdim=True)).to(directions)
    speed = (directions @ objective.rooted(group.velocities(flatten(group.own_blocks(x), objective.ndim)))).norm(dim=-1)
    time = torch.where(speed > 0, flat.norm(dim=-1, keepdim=True) / speed, torch.zeros_like(speed))  # (*batch, D)
    times = torch.tensor([sign * t for t in _TIMES for sign in (1.0, -1.0)], dtype=flat.dtype, device=flat.device)
    rows = (time[..., None] * directions).movedim(-2, 0)  # (D, *batch, dim)
    most = max(1, _MOST_NUMBERS // (group.dim**2 * flat.numel()))  # short times of all directions come first
    rows = (times.reshape(-1, *(1,) * rows.ndim) * rows).flatten(0, 1)[:most]
    return torch.cat([torch.zeros_like(rows[:1]), rows])
