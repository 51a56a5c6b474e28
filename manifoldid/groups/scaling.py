"""Scaling: x -> a x with a > 0, on x != 0."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.groups._items import ItemGroup
from manifoldid.groups._settler import ItemSettler
from manifoldid.groups._sphere import SphereGeometry
from manifoldid.groups.base import Canonical, Settler
from manifoldid.groups.reference import reference_items
from manifoldid.points import Point, Weights


@dataclass(frozen=True, eq=False, repr=False)
class Scaling(ItemGroup):
    """x -> a x, a > 0, one a per block. Canonical: weighted root mean square 1. Coordinates: log a.

    Everything in which only ratios or directions enter, x of any sign.

    Args:
        blocks: Integer labels (n,) of the items, one scale per label; None is one scale for all.
    """

    flat = True
    defect = "is a zero vector: every a x is the same point, so it has no scale to remove; start from a point that is not zero"
    reference_defect = (
        "has a reference item that is not positive: dividing would leave the orbit; choose a positive one"
    )

    def dimension(self, x: Point) -> int:
        return self.block_count

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return x * self.at_items(xi.exp())

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        return x * self.at_items((-xi).exp())

    def vertical_basis(self, x: Tensor) -> Tensor:
        return per_block(self, x)

    def canonical(self, x: Tensor, weights: Weights = None) -> Canonical:
        measure = self.measure(x, weights)
        size = measure.size(x)
        regular = size > 0
        return divided(x, size, regular, measure.spread)

    def settler(self, weights: Weights = None) -> Settler:
        return ItemSettler(self, weights, scale=True)

    def closest(self, x: Tensor, to: Tensor, weights: Weights = None) -> Canonical:
        measure = self.measure(x, weights)
        form = self.canonical(x, weights)
        factor = measure.mean(form.point * to)
        regular = (factor > 0) & (form.regular if form.regular is not None else True)
        safe = torch.where(regular, factor, torch.ones_like(factor))
        point = form.point * measure.spread(torch.where(regular, factor, torch.zeros_like(factor)))
        return Canonical(point, form.xi - safe.log(), regular)

    def reference_frame(self, x: Tensor, index: object) -> Canonical:
        size = x[..., reference_items(self, index, x.shape[-1], each=1)[0]]
        return divided(x, size, size > 0, self.at_items)

    def geometry(self, weights: Weights = None) -> SphereGeometry:
        return SphereGeometry(self, weights, shifts=False)

    def generator_names(self, x: Point) -> list[str]:
        return self.named("scaling")


def divided(x: Tensor, size: Tensor, regular: Tensor, spread) -> Canonical:
    """x / size with frame log size; zeros and frame 0 where not `regular`. `spread` takes one number per block to the items."""
    safe = torch.where(regular, size, torch.ones_like(size))
    quotient = x / spread(safe)
    return Canonical(torch.where(spread(regular), quotient, torch.zeros_like(quotient)), safe.log(), regular)


def per_block(group: ItemGroup, velocity: Tensor) -> Tensor:
    """`velocity` (*batch, n) of all items, as one row per block that is zero outside of it; shape (*batch, blocks, n)."""
    if group.partition is None:
        return velocity.unsqueeze(-2)
    blocks = torch.arange(group.block_count, device=velocity.device)[:, None]
    member = blocks == group.partition.index.to(velocity.device)
    return torch.where(member, velocity.unsqueeze(-2), torch.zeros((), dtype=velocity.dtype, device=velocity.device))
