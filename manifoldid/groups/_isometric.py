"""Geometry of groups of isometries of a flat space: rotations, phases, permutations, signs.

The metric is Euclidean, weighted by items, and the same at all points; straight lines that start horizontally stay horizontal and
are the geodesics of the quotient; the shortest one to another orbit ends at its closest representative.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from manifoldid.groups._euclidean import safe_root
from manifoldid.groups.geometry import Geometry
from manifoldid.points import Point, flat_weights, flatten, map_blocks, unflatten


class IsometricGeometry(Geometry, ABC):
    """Metric sum w u v. A group says what is horizontal, and by which isometry one orbit is aligned to another."""

    @abstractmethod
    def horizontal(self, x: Point, u: Point) -> Point:
        """See `Geometry.horizontal`."""

    @abstractmethod
    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """See `Geometry.transport`."""

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """See `Geometry.inner`."""
        ndim = self.group.batch_ndim(x)
        product, w = flatten(u, ndim) * flatten(v, ndim), flat_weights(self.weights, x, ndim)
        return (product if w is None else product * w).sum(-1)

    def gradient(self, x: Point, derivative: Point) -> Point:
        """See `Geometry.gradient`."""
        return self.horizontal(x, self._weighted(derivative, x, -1.0))

    def retract(self, x: Point, u: Point) -> Point:
        """See `Geometry.retract`: the geodesic."""
        return map_blocks(torch.add, x, u)

    def exp(self, x: Point, u: Point) -> Point:
        """See `Geometry.exp`: x + u."""
        return map_blocks(torch.add, x, u)

    def log(self, x: Point, y: Point) -> Point:
        """See `Geometry.log`: the closest representative of y, minus x."""
        return map_blocks(torch.sub, self.align(y, x), x)

    def dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.dist`."""
        return safe_root(self.squared_dist(x, y))

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.squared_dist`."""
        step = self.log(x, y)
        return self.inner(x, step, step)

    def align(self, x: Point, to: Point) -> Point:
        """See `Geometry.align`."""
        return self.group.closest(x, to, self.weights).point

    def _weighted(self, u: Point, x: Point, power: float) -> Point:
        ndim = self.group.batch_ndim(x)
        w = flat_weights(self.weights, x, ndim)
        return u if w is None else unflatten(flatten(u, ndim) * w**power, x, ndim)


def by_rows(u: Tensor) -> Tensor:
    """Every row (..., r) of `u` replaced by r equal entries of the same norm: what all rotations of the columns leave alone."""
    size = torch.linalg.vector_norm(u, dim=-1, keepdim=True) / max(u.shape[-1], 1) ** 0.5
    return size.expand_as(u)
