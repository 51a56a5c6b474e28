"""Affine: x -> a x + b with a > 0."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.groups._items import ItemGroup
from manifoldid.groups._settler import ItemSettler
from manifoldid.groups._sphere import SphereGeometry
from manifoldid.groups.base import Canonical, GaugeGroup, Settler
from manifoldid.groups.reference import reference_items
from manifoldid.groups.scaling import divided, per_block
from manifoldid.points import Point, Weights


@dataclass(frozen=True, eq=False, repr=False)
class Affine(ItemGroup):
    """x -> a x + b, a > 0, one pair per block. Canonical: weighted mean 0 and standard deviation 1 (ddof 0).

    Coordinates: (log a, b), block after block; with `common_scale` (log a, b of the first block, b of the second, ...).

    Args:
        blocks: Integer labels (n,) of the items, one pair per label; None is one pair for all.
        common_scale: One shift per block and a single scale for all of them.
    """

    common_scale: bool = False
    flat = True
    defect = (
        "is constant up to rounding: every a x + b of it is constant too, so it has no unit to remove; "
        "start from a point whose items differ, or use mid.Translation() if the scale is identified"
    )
    reference_defect = (
        "has reference items (i, j) with x[j] <= x[i]: they cannot become 0 and 1 with a positive scale; "
        "exchange them or choose others"
    )

    def dimension(self, x: Point) -> int:
        return 1 + self.block_count if self.common_scale else 2 * self.block_count

    def _split(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        """(log a, b) at every item."""
        if self.common_scale:
            return xi[..., :1], self.at_items(xi[..., 1:])
        pairs = xi.unflatten(-1, (-1, 2))
        return self.at_items(pairs[..., 0]), self.at_items(pairs[..., 1])

    def _join(self, log_scale: Tensor, shift: Tensor) -> Tensor:
        if self.common_scale:
            return torch.cat([log_scale, shift], dim=-1)
        return torch.stack([log_scale, shift], dim=-1).flatten(-2)

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        log_scale, shift = self._split(xi)
        return x * log_scale.exp() + shift

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        log_scale, shift = self._split(xi)
        return (x - shift) * (-log_scale).exp()

    def vertical_basis(self, x: Tensor) -> Tensor:
        shifts = per_block(self, torch.ones_like(x))
        if self.common_scale:
            return torch.cat([x.unsqueeze(-2), shifts], dim=-2)
        return torch.stack([per_block(self, x), shifts], dim=-2).flatten(-3, -2)

    def canonical(self, x: Tensor, weights: Weights = None) -> Canonical:
        measure = self.measure(x, weights)
        centred, mean = measure.centre(x)
        size = measure.size(centred, together=self.common_scale)
        # A spread below half a unit in the last place of the entries is the rounding of a constant.
        rounding = 0.5 * torch.finfo(x.dtype).eps * measure.largest(x)
        regular = size > (rounding.amax(-1, keepdim=True) if self.common_scale else rounding)
        form = divided(centred, size, regular, self._scale_spread(measure))
        return Canonical(form.point, self._join(form.xi, mean), regular)

    def settler(self, weights: Weights = None) -> Settler:
        return ItemSettler(self, weights, shift=True, scale=True, join=self._join, together=self.common_scale)

    def _scale_spread(self, measure):
        return (lambda value: value) if self.common_scale else measure.spread

    def closest(self, x: Tensor, to: Tensor, weights: Weights = None) -> Canonical:
        measure = self.measure(x, weights)
        form = self.canonical(x, weights)
        wanted, origin = measure.centre(to)
        product = form.point * wanted
        factor = measure.mean_over_all(product) if self.common_scale else measure.mean(product)
        regular = (factor > 0) & (form.regular if form.regular is not None else True)
        spread = self._scale_spread(measure)
        log_scale, shift = self._unjoin(form.xi)
        safe = torch.where(regular, factor, torch.ones_like(factor))
        log_scale = log_scale - safe.log()
        point = form.point * spread(torch.where(regular, factor, torch.zeros_like(factor))) + measure.spread(origin)
        return Canonical(point, self._join(log_scale, shift - log_scale.exp() * origin), regular)

    def _unjoin(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        """(log a, b) per block."""
        if self.common_scale:
            return xi[..., :1], xi[..., 1:]
        pairs = xi.unflatten(-1, (-1, 2))
        return pairs[..., 0], pairs[..., 1]

    def reference_frame(self, x: Tensor, index: object) -> Canonical:
        """Reference items (i, j) of every block get the values 0 and 1."""
        if self.common_scale and self.block_count > 1:
            raise TypeError(
                "Reference of Affine(common_scale=True) with several blocks is not defined; use mid.Section(group)"
            )
        origin, unit = reference_items(self, index, x.shape[-1], each=2)
        shift = x[..., origin]
        size = x[..., unit] - shift
        form = divided(x - self.at_items(shift), size, size > 0, self.at_items)
        return Canonical(form.point, self._join(form.xi, shift), form.regular)

    def regular_columns(self) -> list[tuple[GaugeGroup, str]]:
        return [(self, "")] if self.common_scale else super().regular_columns()

    def geometry(self, weights: Weights = None) -> SphereGeometry:
        return SphereGeometry(self, weights, shifts=True, together=self.common_scale)

    def generator_names(self, x: Point) -> list[str]:
        if self.common_scale:
            return ["scaling", *self.named("translation")]
        return [name for pair in zip(self.named("scaling"), self.named("translation"), strict=True) for name in pair]
