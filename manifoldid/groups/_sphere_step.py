"""The formulas of `_sphere.py` as an optimiser's step needs them: without derivatives, with few kernels and few new tensors.

At a million items fresh memory costs more than arithmetic, at a thousand small points every call of a kernel counts, and an optimiser
of geoopt asks three times a step: for a gradient, for squares, for a move.
"""

import math

import torch
from torch import Tensor

_LONG = 4096  # from here on `vector_norm`, the fastest for short rows, loses digits in float32


class SphereStep:
    """Gradient, squares and moves at one point (or batch) of a quotient by one scale, or by a shift and a scale.

    c = x - m (or x), s its root mean square. Make one by `SphereStep.at`.
    """

    def __init__(self, x: Tensor, mean: Tensor | None, size: Tensor, weights: Tensor | None, on_section: bool):
        self.x = x
        self.mean = mean
        self.size = size
        self.inverse = size.reciprocal()
        self.weights = weights
        self.on_section = on_section

    @classmethod
    def at(cls, x: Tensor, weights: Tensor | None, shifts: bool) -> "SphereStep | None":
        """The step geometry at `x`.

        Args:
            x: A point (*batch, n), not written to.
            weights: Item weights (n,) of mean 1, or None.
            shifts: Whether the group shifts.

        Returns:
            None where a mean is larger than a size, which takes more care with rounding, where sizes are so large or small that
            their cubes are no numbers, and for nan. A point with a step has a quotient.
        """
        mean, size = _mean(x, weights) if shifts else None, _size(x, weights)
        kind = torch.finfo(x.dtype)
        share = 0.0 if mean is None else float((mean.abs() / size).max())
        least, most = torch.aminmax(size)
        if not (share < 0.7 and least > kind.tiny ** (1 / 3) and most < kind.max ** (1 / 3)):
            return None
        on_section = share <= 8 * kind.eps  # then products with the mean are rounding
        if mean is not None and not on_section:
            size = (size.square() - mean.square()).sqrt_()
        return cls(x, mean, size, weights, on_section)

    def gradient(self, derivative: Tensor) -> Tensor:
        """s^2 P(g / w) for a Euclidean derivative g."""
        u = derivative if self.weights is None else derivative / self.weights
        return self._horizontal(self.x, u).mul_(self.size**3)

    def squares(self, u: Tensor) -> Tensor:
        """w u^2 / s^2."""
        squares = (u * self.inverse).square_()
        return squares if self.weights is None else squares.mul_(self.weights)

    def retract(self, u: Tensor) -> Tensor:
        """The end of the geodesic along the horizontal part of `u`."""
        return self._increment(u)[0].add_(self.x)

    def retract_and_carry(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retract(u)`, and `v` carried there in parallel.

        With unit representatives a and b, th their angle, v goes to P_b (v - <v, a + b> / (1 + cos(th)) (a + b)): the reflection at
        a + b, without its part along b.
        """
        y, less = self._increment(u)
        middle = torch.add(self.x, y, alpha=0.5)  # (a + b) s / 2, and the mean
        y.add_(self.x)
        along = _dot(v, middle, self.weights)
        if not self.on_section and self.mean is not None:
            along.sub_(_mean(v, self.weights) * self.mean)
        scale = less.add_(2).mul_(self.size.square()).mul_(-0.25).clamp_max_(-torch.finfo(y.dtype).tiny)
        reflected = middle.mul_(along.div_(scale)).add_(v)
        return y, self._horizontal(y, reflected).mul_(self.size)

    def _increment(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(cos(th) - 1) c + sinc(th) P u, and cos(th) - 1.

        The increment is summed before it is added to `x`: then items round at random, and mean and size do not drift.
        """
        step = self._horizontal(self.x, u)
        angle = _size(step, self.weights)
        less = (angle * 0.5).sin_().square_().mul_(-2)
        step.mul_(angle.mul_(1 / math.pi).sinc_().mul_(self.size)).addcmul_(self.x, less)
        if not self.on_section and self.mean is not None:
            step.sub_(less * self.mean)
        return step, less

    def _horizontal(self, at: Tensor, u: Tensor) -> Tensor:
        """P u / s at a point with the mean and size of `x`; a new tensor."""
        if self.mean is None:
            return torch.addcmul(u, at, _dot(u, at, self.weights).div_(-self.size.square())).mul_(self.inverse)
        if self.weights is None:
            # The affine section is a layer norm, and the derivative of a layer norm is this projection, in one kernel.
            kernel, wanted = torch.ops.aten.native_layer_norm_backward, (True, False, False)
            return kernel(u, at, at.shape[-1:], self.mean, self.inverse, None, None, wanted)[0]
        u = u - _mean(u, self.weights)
        along = _dot(u, at, self.weights).div_(-self.size.square())
        return u.addcmul_(at, along).sub_(along * self.mean).mul_(self.inverse)


def _mean(a: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over items of w a; shape (*batch, 1)."""
    if weights is None:
        return a.mean(-1, keepdim=True)
    return torch.linalg.vecdot(a, weights)[..., None].div_(a.shape[-1])


def _dot(a: Tensor, b: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over items of w a b; shape (*batch, 1)."""
    return torch.linalg.vecdot(a if weights is None else a * weights, b)[..., None].div_(a.shape[-1])


def _size(a: Tensor, weights: Tensor | None) -> Tensor:
    """Root of the mean over items of w a^2; shape (*batch, 1)."""
    if weights is None and a.shape[-1] < _LONG:
        return torch.linalg.vector_norm(a, dim=-1, keepdim=True).div_(math.sqrt(a.shape[-1]))
    return _dot(a, a, weights).sqrt_()
