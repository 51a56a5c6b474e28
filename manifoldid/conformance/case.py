"""The points, vectors and moves on which checks run, and the comparison that they share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldid.conformance.runner import Finding, Skip
from manifoldid.groups.base import GaugeGroup
from manifoldid.groups.orbit import moved, zero_coordinates
from manifoldid.points import Point, blocks_of, detached, flatten, like_point, map_blocks

TOLERANCE = 1e-8  # float64: far above the rounding of a closed form, far below any mistake
_MOVE = 0.3
_ALIGNED = 1e-4  # relative error of `align` at the end of a vector: a jump to another image is of the order of 1


@dataclass
class Case:
    """What a check works on.

    Attributes:
        group: The gauge group; None for a manifold that is no quotient.
        space: Metric and motions: a `Geometry`, or a geoopt manifold dressed as one.
        x: A generic point in float64.
        y: Another one.
        z: A third one.
        invariant: A function of points that is constant on orbits, or None.
        subject: The group or manifold as the caller gave it.
        perturb: Makes another point of the same kind; takes a point and a seed.
        tangent: Makes a vector at a point; takes the point and a seed.
    """

    group: GaugeGroup | None
    space: Any
    x: Point
    y: Point
    z: Point
    invariant: Callable[[Point], Any] | None
    subject: Any
    perturb: Callable[[Point, int], Point]
    tangent: Callable[[Point, int], Point]

    @property
    def gauge(self) -> GaugeGroup:
        """The group; checks of the gauge are skipped where there is none."""
        if self.group is None:
            raise Skip("the manifold is no quotient by a gauge group")
        if self.group.dimension(self.x) == 0:
            raise Skip("the group has dimension 0")
        return self.group

    @property
    def ndim(self) -> int:
        """Batch dimensions of the points."""
        return self.space.batch_ndim(self.x)

    def xi(self, seed: int, x: Point | None = None, size: float = _MOVE) -> Tensor:
        """Coordinates of a group element, different for every point of a batch."""
        zero = zero_coordinates(self.gauge, self.x if x is None else x)
        return size * normal(zero, seed).clamp(-2, 2)

    def move(self, seed: int, x: Point | None = None) -> Point:
        """g.x for a random g of the same seed."""
        x = self.x if x is None else x
        return moved(self.gauge, self.xi(seed, x), x)

    def carry(self, seed: int, u: Point, x: Point | None = None) -> Point:
        """dg u at g.x, by central differences of fourth order along the action."""
        x = self.x if x is None else x
        xi = self.xi(seed, x)
        return velocity(lambda t: moved(self.gauge, xi, map_blocks(lambda a, b: a + t * b, x, u)))

    def horizontal(self, x: Point, seed: int) -> Point:
        """A horizontal (tangent) vector at `x`."""
        return self.space.horizontal(x, self.tangent(x, seed))

    def short(self, x: Point, seed: int) -> Point:
        """A horizontal vector at `x` as long as geodesics are shortest: a finite part of the group may bring another image near."""
        v = map_blocks(lambda t: 0.1 * t, self.horizontal(x, seed))
        if self.group is None:
            return v
        for factor in (1.0, 1 / 4, 1 / 16, 1 / 64):
            u = map_blocks(lambda t, factor=factor: factor * t, v)
            end = self.space.exp(x, u)
            if size(map_blocks(torch.sub, self.space.align(end, x), end)) <= _ALIGNED * size(u):
                return u
        return v  # as no length helps, it is the group that is wrong

    def function(self, x: Point) -> Tensor:
        """A smooth function of one point that is constant on orbits; shape (*batch)."""
        ndim = self.space.batch_ndim(x)
        if self.invariant is not None and ndim == 0:
            value = self.invariant(x)
            value = value if isinstance(value, Tensor) else flatten(value)
            vector = (torch.view_as_real(value.resolve_conj()) if value.is_complex() else value).reshape(-1)
        else:
            vector = flatten(x if self.group is None else self.group.canonical(x).point, ndim)
        k = torch.arange(1, vector.shape[-1] + 1, dtype=vector.dtype, device=vector.device)
        return (vector * (1.3 * k).cos() + 0.3 * vector.square() * (0.7 * k).sin()).sum(-1)

    def derivative(self, x: Point) -> Point:
        """The Euclidean derivative of `function` at `x`."""
        names = list(blocks_of(x))
        leaves = [t.detach().clone().requires_grad_() for t in blocks_of(x).values()]
        point = like_point(dict(zip(names, leaves, strict=True)), x)
        grads = torch.autograd.grad(self.function(point).sum(), leaves, allow_unused=True)
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)]
        return like_point(dict(zip(names, filled, strict=True)), x)


def normal(like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers shaped like `like`, from a generator of their own; the same for every dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    shape = like.shape + ((2,) if like.is_complex() else ())
    draw = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (torch.view_as_complex(draw) if like.is_complex() else draw).to(dtype=like.dtype, device=like.device)


def normal_vector(x: Point, seed: int) -> Point:
    """A vector at `x` whose entries are of the size of the block."""
    return like_point(
        {
            name: normal(t, seed + 100 * k) * t.abs().mean().clamp_min(1e-3)
            for k, (name, t) in enumerate(blocks_of(x).items())
        },
        x,
    )


def as_float64(sample: Any) -> Point:
    """`sample` in double precision, as a private copy."""
    wide = {torch.complex64: torch.complex128, torch.complex128: torch.complex128}
    return map_blocks(lambda t: t.to(wide.get(t.dtype, torch.float64)).clone(), detached(sample))


def as_float32(x: Point) -> Point:
    """`x` in single precision."""
    return map_blocks(lambda t: t.to(torch.complex64 if t.is_complex() else torch.float32), x)


def velocity(curve: Callable[[float], Point], step: float = 2e-3) -> Point:
    """The derivative of `curve` at 0, by central differences of fourth order."""
    near, far = (map_blocks(torch.sub, curve(h), curve(-h)) for h in (step, 2 * step))
    return map_blocks(lambda a, b: (8 * a - b) / (12 * step), near, far)


def size(x: Point) -> float:
    """Largest modulus of all entries."""
    return max([float(t.abs().max()) if t.numel() else 0.0 for t in blocks_of(x).values()], default=0.0)


def require_close(
    got: Point, wanted: Point, message: str, tolerance: float = TOLERANCE, scale: Point | float | None = None
) -> None:
    """Compares two points, vectors or tensors, relative to `scale` (default: the larger one).

    Raises:
        Finding: Shapes differ, entries are not finite, or the largest difference exceeds tolerance * scale.
    """
    for name, a in blocks_of(got).items():
        b = blocks_of(wanted)[name]
        if a.shape != b.shape:
            raise Finding(f"{message}: the shape is {tuple(a.shape)}, expected {tuple(b.shape)}")
        if not bool(torch.isfinite(torch.view_as_real(a.resolve_conj()) if a.is_complex() else a).all()):
            raise Finding(f"{message}: there are nan or infinite entries")
    reference = max(size(got), size(wanted)) if scale is None else scale if isinstance(scale, float) else size(scale)
    error = size(map_blocks(torch.sub, got, wanted))
    if not error <= tolerance * max(reference, 1e-6):
        raise Finding(f"{message}: off by {error:.1e} where entries are of size {reference:.1e}")


def require(condition: bool, message: str) -> None:
    """Raises `Finding` unless `condition`.

    Raises:
        Finding: The condition does not hold.
    """
    if not condition:
        raise Finding(message)
