"""Motions of configurations of points: X -> X Q + t, and a X Q + t."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid._linalg import column_signs, widened
from manifoldid.groups._euclidean import safe_root
from manifoldid.groups._isometric import IsometricGeometry, by_rows
from manifoldid.groups._sphere import _angle_over_sine, _cosine_and_sinc, _squared_angle
from manifoldid.groups._turning import Turning, TurningGeometry, row_weights, trace
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.geometry import Check, Geometry, unchecked
from manifoldid.groups.orthogonal import (
    frame_of,
    planes,
    principal_rotation,
    procrustes,
    rotation,
    spin,
    weighted_rows,
)
from manifoldid.points import Point, Weights


class _Motion(GaugeGroup, ABC):
    """What both groups share: X -> a X Q + t, a = 1 for rigid motions. Coordinates: (log a,) rotation, t."""

    event_dim = 2
    scales: bool
    defect = (
        "lies in a subspace of dimension below k - 1 for its k columns: rotations around it do not move it (and a single point has "
        "no size), so it has no frame; start from points in general position, or use fewer columns"
    )
    closest_defect = (
        "has no single closest representative: two axes or more are orthogonal to those of `at`; choose another `at`"
    )

    def dimension(self, x: Point) -> int:
        size = x.shape[-1]
        return int(self.scales) + size * (size + 1) // 2

    def _parts(self, xi: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """a (*batch, 1, 1), Q (*batch, k, k), t (*batch, 1, k)."""
        start = int(self.scales)
        factor = xi[..., :1].exp() if self.scales else torch.ones_like(xi[..., :1])
        return (
            factor[..., None],
            rotation(xi[..., start : xi.shape[-1] - size], size),
            xi[..., None, xi.shape[-1] - size :],
        )

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        factor, turn, shift = self._parts(xi, x.shape[-1])
        return factor * (x @ turn) + shift

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        factor, turn, shift = self._parts(xi, x.shape[-1])
        return (x - shift) @ turn.mT / factor

    def vertical_basis(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        shifts = torch.eye(size, dtype=x.dtype, device=x.device)[:, None, :].expand(*x.shape[:-2], size, *x.shape[-2:])
        rows = [x[..., None, :, :] @ planes(x), shifts]
        return torch.cat([x[..., None, :, :], *rows] if self.scales else rows, dim=-3)

    def centred(self, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        """`x` less the weighted mean of its rows, in two passes for float32, and the mean (*batch, 1, k)."""
        w = row_weights(x, weights)

        def mean(t: Tensor) -> Tensor:
            return (t if w is None else t * w).mean(-2, keepdim=True)

        first = mean(x)
        rest = mean(x - first)
        return x - first - rest, first + rest

    def size(self, centred: Tensor, weights: Weights) -> Tensor:
        """Root mean square of the norms of the rows (*batch, 1, 1), 0 with derivative 0 at 0; 1 for rigid motions."""
        if not self.scales:
            return torch.ones_like(centred[..., :1, :1])
        largest = centred.detach().abs().amax((-2, -1), keepdim=True)
        scale = torch.where(largest > 0, largest, torch.ones_like(largest))
        square = weighted_rows(centred / scale, weights).square().sum(-1, keepdim=True).mean(-2, keepdim=True)
        return scale * safe_root(square)

    def canonical(self, x: Tensor, weights: Weights = None) -> Canonical:
        centred, mean = self.centred(x, weights)
        turn, regular = principal_rotation(weighted_rows(centred, weights))
        regular = regular & _is_spread(centred, x)
        size = self.size(centred, weights)
        safe = torch.where(regular[..., None], size, torch.ones_like(size))
        signs = column_signs(centred @ turn)
        turn = turn * signs if x.shape[-1] > 1 else torch.ones_like(turn)
        point = centred @ turn / safe
        return Canonical(point * regular[..., None], self._frame(safe, turn, mean, regular), regular)

    def _frame(self, size: Tensor, turn: Tensor, mean: Tensor, regular: Tensor) -> Tensor:
        """Coordinates of y -> size y turn' + mean."""
        rows = [frame_of(turn, regular), mean[..., 0, :]]
        return torch.cat([size[..., 0].log(), *rows] if self.scales else rows, dim=-1)

    def closest(self, x: Tensor, to: Tensor, weights: Weights = None) -> Canonical:
        centred, mean = self.centred(x, weights)
        goal, origin = self.centred(to, weights)
        turn, regular = procrustes(centred, goal, weights)
        regular = regular & _is_spread(centred, x)
        factor = self._closest_scale(centred @ turn, goal, weights)
        regular = regular & (factor > 0)[..., 0]
        factor = torch.where(regular[..., None], factor, torch.ones_like(factor))
        xi = self._frame(1 / factor, turn, mean - origin @ turn.mT / factor, torch.ones_like(regular))
        return Canonical(factor * (centred @ turn) + origin, xi, regular)

    def _closest_scale(self, x: Tensor, to: Tensor, weights: Weights) -> Tensor:
        """The factor (*batch, 1, 1) that brings `x` closest to `to`, both centred."""
        if not self.scales:
            return torch.ones_like(x[..., :1, :1])
        square = weighted_rows(x, weights).square().sum((-2, -1), keepdim=True)
        product = (weighted_rows(x, weights) * weighted_rows(to, weights)).sum((-2, -1), keepdim=True)
        return product / torch.where(square > 0, square, torch.ones_like(square))

    @abstractmethod
    def geometry(self, weights: Weights = None) -> Geometry:
        """See `GaugeGroup.geometry`."""

    def generator_names(self, x: Point) -> list[str]:
        size = x.shape[-1]
        turns = [f"rotation of columns {i} and {j}" for i in range(size) for j in range(i + 1, size)]
        return ["scaling"] * self.scales + turns + [f"translation of column {i}" for i in range(size)]


@dataclass(frozen=True, eq=False, repr=False)
class RigidMotion(_Motion):
    """X -> X Q + t for configurations X (n, k) of n points, Q orthogonal (reflections too).

    Distance geometry, latent spaces, multidimensional scaling: everything in which only distances enter. Canonical: centred, on
    its principal axes (variance decreasing), the entry of largest modulus in each column positive. Coordinates: those of
    `Orthogonal`, then t. The horizontal spaces are curved and no section is horizontal: for what that means for means and
    covariances see `Orthogonal`; distances between points do not depend on it.

    For one column the reflection has no coordinate: the section keeps the side it is given, distances and alignment do not tell the
    sides apart.
    """

    scales = False

    def geometry(self, weights: Weights = None) -> "RigidMotionGeometry":
        return RigidMotionGeometry(self, weights)


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(_Motion):
    """X -> a X Q + t for configurations X (n, k) of n points, a > 0, Q orthogonal (reflections too): Kendall's shapes.

    Canonical: centred, root mean square distance to the centre 1, on its principal axes (variance decreasing), the entry of largest
    modulus in each column positive. Coordinates: log a, those of `Orthogonal`, then t. Distances are sqrt(W) times Kendall's
    Riemannian distance, W = n for equal weights: divide by it to compare. Shapes and their mirror images are the same.
    The horizontal spaces are curved and no section is horizontal: for what that means for means and covariances see `Orthogonal`;
    ratios of distances do not depend on it.

    For one column the reflection has no coordinate: the section keeps the side it is given, distances and alignment do not tell the
    sides apart.
    """

    scales = True

    def geometry(self, weights: Weights = None) -> "SimilarityGeometry":
        return SimilarityGeometry(self, weights)


class RigidMotionGeometry(TurningGeometry, IsometricGeometry):
    """Metric tr(U'WV) on configurations less their mean."""

    group: RigidMotion

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.horizontal`: `u` less its mean and its component along rotations."""
        centred, velocity = self.group.centred(x, self.weights)[0], self.group.centred(u, self.weights)[0]
        return velocity - centred @ spin(centred, velocity, self.weights)

    def follow(self, x: Tensor, y: Tensor, check: Check = unchecked) -> Tensor:
        """See `Geometry.follow`: y less the mean of y - x and c S, c the centred `x`, S as for y - x."""
        turning = self.turning(x)
        with _about_the_mean(turning, y) as mean:
            spin, shift = turning.spin(), turning.mean(y)
            check(spin.sum((-2, -1)) + shift.sum((-2, -1)))
        turning.subtract_product(y, spin)
        return y.add_(mean - shift)

    def components(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.components`: the norm of every row."""
        return by_rows(weighted_rows(u, self.weights))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.transport`: the horizontal component at the representative of `y` closest to `x`, rotated to `y`."""
        start, end = self.group.centred(x, self.weights)[0], self.group.centred(y, self.weights)[0]
        turn, _ = procrustes(end, start, self.weights)
        return self.horizontal(y, v @ turn.mT)


class SimilarityGeometry(TurningGeometry):
    """Metric tr(U'WV) / s^2: great circles of the sphere of centred configurations of size 1, rotated to one another.

    Source: Kendall (1984), Bull. London Math. Soc. 16, 81-121; here of radius sqrt(W).
    """

    group: Similarity

    # ------------------------------------------------------------------------------------------------ at one point

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.inner`."""
        size = self._unit(x)[1]
        product = (u / size) * (v / size)
        w = row_weights(x, self.weights)
        return (product if w is None else product * w).sum((-2, -1))

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.horizontal`: `u` less its mean and its components along the point and along rotations."""
        return self._project(self._unit(x)[0], u)

    def gradient(self, x: Tensor, derivative: Tensor) -> Tensor:
        """See `Geometry.gradient`: s^2 P(g / w)."""
        unit, size, _ = self._unit(x)
        w = row_weights(x, self.weights)
        return size.square() * self._project(unit, derivative if w is None else derivative / w)

    def components(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.components`: the norm of every row in units of s."""
        return by_rows(weighted_rows(u, self.weights)) / self._unit(x)[1]

    # ------------------------------------------------------------------------------------------------ motions

    def retract(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.retract`: the geodesic."""
        return self.exp(x, u)

    def follow(self, x: Tensor, y: Tensor, check: Check = unchecked) -> Tensor:
        """See `Geometry.follow`: `exp` of u = y less its mean and c (S + a), c the centred `x`, a = <c, y> / <c, c>."""
        turning = self.turning(x)
        with _about_the_mean(turning, y) as mean:
            size = turning.norm(turning.x)  # as that of y below: a Gram matrix rounds otherwise, and sizes would drift
            size = torch.where(size > 0, size, x.shape[-2] ** 0.5)
            total = trace(turning.square)
            along = 1 + trace(turning.product) / torch.where(total > 0, total, torch.ones_like(total))
            change = turning.spin() + along * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            check(change.sum((-2, -1)) + (turning.norm(y) / size).square()[..., 0, 0])  # u is no longer than y
        y.sub_(turning.mean(y))
        turning.subtract_product(y, change)
        cosine, sinc = _cosine_and_sinc((turning.norm(y) / size).square())
        y.mul_(sinc).add_(turning.x.mul_(cosine))
        y.sub_(turning.mean(y))
        reached = turning.norm(y)
        return y.mul_(size / torch.where(reached > 0, reached, torch.ones_like(reached))).add_(mean)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.exp`: mean + cos(th) c + sinc(th) u, put back to the mean and size of `x` against rounding."""
        unit, size, mean = self._unit(x)
        velocity = u / size
        cosine, sinc = _cosine_and_sinc(self._average(velocity.square()))
        turned = cosine * unit + sinc * velocity
        return mean + size * self._unit(turned)[0]

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.log`: that of the sphere, to the representative of `y` rotated to `x`."""
        unit, size, _ = self._unit(widened(x))
        goal = self._rotated(self._unit(widened(y))[0], unit)
        near, far = goal - unit, goal + unit
        q, p = self._average(near.square()) / 4, self._average(far.square()) / 4
        direction = self._project(unit, torch.where(q < p, near, far))
        return (size * _angle_over_sine(q, p) * direction).to(x.dtype)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.dist`: sqrt(W) times the angle."""
        return safe_root(self.squared_dist(x, y))

    def squared_dist(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Geometry.squared_dist`."""
        unit = self._unit(widened(x))[0]
        goal = self._rotated(self._unit(widened(y))[0], unit)
        q, p = self._average((goal - unit).square()) / 4, self._average((goal + unit).square()) / 4
        return (x.shape[-2] * _squared_angle(q, p))[..., 0, 0].to(x.dtype)  # weights have mean 1: W = n

    def align(self, x: Tensor, to: Tensor) -> Tensor:
        """See `Geometry.align`: with mean and size of `to`, rotated to it; the closest one in the invariant metric."""
        unit, size, mean = self._unit(to)
        return mean + size * self._rotated(self._unit(x)[0], unit)

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.transport`: along the great circle to the representative of `y` rotated to `x`, horizontal component there."""
        unit, size, _ = self._unit(x)
        end, end_size, _ = self._unit(y)
        turn, _ = procrustes(end, unit, self.weights)
        middle = unit + end @ turn
        square = self._average(middle.square())
        safe = torch.where(square > 0, square, torch.ones_like(square))
        velocity = self._project(unit, v) / size
        carried = velocity - middle * (2 * self._average(velocity * middle) / safe)
        return end_size * self._project(end, carried @ turn.mT)

    # ------------------------------------------------------------------------------------------------ private

    def _unit(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The centred configuration of size 1, the size and the mean."""
        centred, mean = self.group.centred(x, self.weights)
        size = self.group.size(centred, self.weights)
        safe = torch.where(size > 0, size, torch.ones_like(size))
        return centred / safe, safe, mean

    def _average(self, x: Tensor) -> Tensor:
        """Mean over the rows of the sums of their entries (*batch, 1, 1)."""
        w = row_weights(x, self.weights)
        return (x if w is None else x * w).sum(-1, keepdim=True).mean(-2, keepdim=True)

    def _project(self, unit: Tensor, u: Tensor) -> Tensor:
        velocity = self.group.centred(u, self.weights)[0]
        velocity = velocity - unit * self._average(unit * velocity)
        return velocity - unit @ spin(unit, velocity, self.weights)

    def _rotated(self, x: Tensor, to: Tensor) -> Tensor:
        return x @ procrustes(x, to, self.weights)[0]


@contextmanager
def _about_the_mean(turning: Turning, y: Tensor) -> Iterator[Tensor]:
    """Moves the mean of the rows of x, in two passes for float32, to the origin, `y` with it, and takes note of the step.

    Gram matrices of points far from the origin would have fewer digits. `y` goes back where it was when what is done here raises.

    Yields:
        The mean (*batch, 1, k).
    """
    first = turning.mean(turning.x)
    rest = turning.mean(turning.x.sub_(first))
    turning.x.sub_(rest)
    mean = first + rest
    turning.meet(y.sub_(mean))
    try:
        yield mean
    except BaseException:
        y.add_(mean)
        raise


def _is_spread(centred: Tensor, x: Tensor) -> Tensor:
    """Whether the points differ by more than the rounding of their coordinates (*batch, 1)."""
    spread, size = centred.detach().abs().amax((-2, -1)), x.detach().abs().amax((-2, -1))
    return (spread > 0.5 * torch.finfo(x.dtype).eps * size)[..., None]
