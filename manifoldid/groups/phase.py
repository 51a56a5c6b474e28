"""Phase: z -> exp(i phi) z."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldid.groups._euclidean import safe_root
from manifoldid.groups._isometric import IsometricGeometry
from manifoldid.groups._turning import TurningGeometry
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.geometry import Check, unchecked
from manifoldid.points import Point, Weights, item_weights


@dataclass(frozen=True, eq=False, repr=False)
class Phase(GaugeGroup):
    """z -> exp(i phi) z for complex vectors z (n,). Coordinates: phi.

    Quantum states, phase retrieval, Fourier coefficients up to a global phase. Canonical: the entry of largest modulus is real
    and positive; not continuous where two moduli are equal. The horizontal spaces are curved: no section is horizontal, so
    optimisers are attached by horizontal steps; the mean of an ensemble is its Frechet mean, and deviations and covariances are those
    of members aligned to it, which belong to this ensemble. Functions of z z* do not depend on that.
    """

    dim = 1
    defect = (
        "is a zero vector: every phase leaves it alone, so it has none to remove; start from a point that is not zero"
    )
    closest_defect = (
        "is orthogonal to `at`, so that all phases are at the same distance, or is zero; choose another `at`"
    )

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return x * _unit(xi)

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        return x * _unit(-xi)

    def vertical_basis(self, x: Tensor) -> Tensor:
        return (1j * x)[..., None, :]

    def canonical(self, x: Tensor, weights: Weights = None) -> Canonical:
        size = x.detach().abs()
        w = _weights(x, weights)
        size = size if w is None else torch.where(w > 0, size, torch.zeros_like(size))
        near = size >= (1 - torch.finfo(size.dtype).eps ** 0.75) * size.amax(-1, keepdim=True)
        first = near.to(torch.int8).argmax(-1, keepdim=True)  # of moduli that tie up to rounding the first one counts
        return _turned(x, x.gather(-1, first))

    def closest(self, x: Tensor, to: Tensor, weights: Weights = None) -> Canonical:
        w = _weights(x, weights)
        product = x * to.conj() if w is None else x * to.conj() * w
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * torch.linalg.vector_norm(to, dim=-1, keepdim=True)
        form = _turned(x, product.sum(-1, keepdim=True), torch.finfo(size.dtype).eps * size)
        return Canonical(x * _unit(-form.xi), form.xi, form.regular)  # where all are closest, `x` itself

    def validate(self, x: Any, name: str = "point") -> Point:
        """See `GaugeGroup.validate`; also that the point is a complex tensor.

        Raises:
            TypeError: It is no tensor of numbers.
            ValueError: It is a dict, or real.
        """
        x = super().validate(x, name)
        if not isinstance(x, Tensor):
            raise ValueError(
                f"`{name}` of {type(self).__name__} must be a tensor, got a dict with the blocks {sorted(x.keys())}; "
                f"say which block it acts on: mid.Product({next(iter(x.keys()))}={self})"
            )
        if not x.is_complex():
            raise TypeError(
                f"`{name}` of {type(self).__name__} must be complex, got {x.dtype}; torch.complex(re, im) makes one"
            )
        return x

    def geometry(self, weights: Weights = None) -> "PhaseGeometry":
        return PhaseGeometry(self, weights)

    def generator_names(self, x: Point) -> list[str]:
        return ["phase"]


class PhaseGeometry(TurningGeometry, IsometricGeometry):
    """Metric Re sum w conj(u) v: the quotient is a cone over complex projective space."""

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.horizontal`: u - i x Im <x, u> / |x|^2."""
        w = _weights(x, self.weights)
        product, square = x.conj() * u, (x * x.conj()).real
        if w is not None:
            product, square = product * w, square * w
        square = square.sum(-1, keepdim=True)
        along = product.imag.sum(-1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
        return u - 1j * x * along

    def matrices(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `TurningGeometry.matrices`: real and imaginary parts (*batch, n, 2), whose columns a phase turns."""
        w = _weights(x, self.weights)
        return torch.view_as_real(x), None if w is None else w[:, None]

    def follow(self, x: Tensor, y: Tensor, check: Check = unchecked) -> Tensor:
        """See `Geometry.follow`: y - i a x, a = Im <x, y> / |x|^2."""
        turning, parts = self.turning(x), torch.view_as_real(y)
        turning.meet(parts)
        check(spin := turning.spin())
        turning.subtract_product(parts, spin)
        return y

    def components(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.components`: the modulus of every entry, as a complex number so that it is shaped like the point."""
        weighted = self._weighted(u, x, 0.5)
        size = safe_root((weighted * weighted.conj()).real)
        return torch.complex(size, torch.zeros_like(size))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.transport`: the horizontal component at the representative of `y` closest to `x`, turned to `y`."""
        return self.horizontal(y, self.group.act(self.group.closest(y, x, self.weights).xi, v))


def _weights(x: Tensor, weights: Weights) -> Tensor | None:
    if isinstance(weights, dict):
        raise ValueError(f"`weights` of a tensor point must be a tensor (n,), got a dict with {sorted(weights)}")
    return None if weights is None else item_weights(weights, x.shape[-1:], x)


def _unit(phi: Tensor) -> Tensor:
    return torch.complex(phi.cos(), phi.sin())


def _turned(x: Tensor, direction: Tensor, floor: Tensor | float = 0.0) -> Canonical:
    """`x` turned so that `direction` (*batch, 1) becomes real and positive; zeroed where |direction| <= floor."""
    size = direction.abs()
    regular = size > floor
    safe = torch.where(regular, direction, torch.ones_like(direction))
    turn = safe.conj() / safe.abs()
    return Canonical(x * turn * regular, safe.angle(), regular)
