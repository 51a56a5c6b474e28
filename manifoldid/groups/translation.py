"""Translation: x -> x + b."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.groups._euclidean import EuclideanGeometry
from manifoldid.groups._items import ItemGroup
from manifoldid.groups._settler import ItemSettler
from manifoldid.groups.base import Canonical, Settler
from manifoldid.groups.reference import reference_items
from manifoldid.points import Point, Weights


@dataclass(frozen=True, eq=False, repr=False)
class Translation(ItemGroup):
    """x -> x + b, one b per block. Canonical: weighted mean 0 (per block). Coordinates: b.

    Paired comparisons, logits, utilities, rewards of responses to one prompt: everything in which only differences enter.

    Args:
        blocks: Integer labels (n,) of the items, one shift per label; None is one shift for all.
    """

    flat = True
    arithmetic = True

    def dimension(self, x: Point) -> int:
        return self.block_count

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return x + self.at_items(xi)

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        return x - self.at_items(xi)

    def vertical_basis(self, x: Tensor) -> Tensor:
        if self.partition is None:
            return torch.ones_like(x).unsqueeze(-2)
        index = self.partition.index.to(x.device)
        rows = torch.arange(self.block_count, device=x.device)[:, None] == index
        return rows.to(x.dtype).expand(*x.shape[:-1], *rows.shape)

    def canonical(self, x: Tensor, weights: Weights = None) -> Canonical:
        centred, mean = self.measure(x, weights).centre(x)
        return Canonical(centred, mean)

    def settler(self, weights: Weights = None) -> Settler:
        return ItemSettler(self, weights, shift=True)

    def closest(self, x: Tensor, to: Tensor, weights: Weights = None) -> Canonical:
        measure = self.measure(x, weights)
        _, shift = measure.centre(x - to)
        return Canonical(x - measure.spread(shift), shift)

    def reference_frame(self, x: Tensor, index: object) -> Canonical:
        items = reference_items(self, index, x.shape[-1], each=1)[0]
        shift = x[..., items]
        return Canonical(x - self.at_items(shift), shift)

    def geometry(self, weights: Weights = None) -> EuclideanGeometry:
        return EuclideanGeometry(self, weights, one_mean=self.partition is None and self.shards is None)

    def generator_names(self, x: Point) -> list[str]:
        return self.named("translation")
