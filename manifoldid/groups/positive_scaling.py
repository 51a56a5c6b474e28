"""Positive scaling: x -> a x with a > 0, on x > 0, with the metric of log x."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.groups._euclidean import LogGeometry
from manifoldid.groups._items import ItemGroup
from manifoldid.groups._passes import is_far
from manifoldid.groups._settler import ItemSettler
from manifoldid.groups.base import Canonical, Settler
from manifoldid.groups.reference import reference_items
from manifoldid.groups.scaling import divided, per_block
from manifoldid.groups.translation import Translation
from manifoldid.points import Point, Weights


@dataclass(frozen=True, eq=False, repr=False)
class PositiveScaling(ItemGroup):
    """x -> a x, a > 0, every x > 0, one a per block. Canonical: weighted geometric mean 1. Coordinates: log a.

    Strengths, rates and abundances of which only ratios enter. The metric is that of log x, so a step is a relative change
    and nothing leaves the domain.

    Args:
        blocks: Integer labels (n,) of the items, one scale per label; None is one scale for all.
    """

    flat = True
    arithmetic = True
    positive = ("",)
    defect = (
        "has entries that are not positive: PositiveScaling lives on x > 0; "
        "use mid.Scaling() for entries of both signs, or emit log x and use mid.Translation()"
    )
    reference_defect = defect

    def dimension(self, x: Point) -> int:
        return self.block_count

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return x * self.at_items(xi.exp())

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        return x * self.at_items((-xi).exp())

    def vertical_basis(self, x: Tensor) -> Tensor:
        return per_block(self, x)

    def canonical(self, x: Tensor, weights: Weights = None) -> Canonical:
        return self._centred(x, torch.zeros_like(x), weights)

    def settler(self, weights: Weights = None) -> Settler:
        return _PositiveSettler(self, weights)

    def _centred(self, x: Tensor, origin: Tensor, weights: Weights) -> Canonical:
        """The representative whose logarithm has the mean of `origin`."""
        measure = self.measure(x, weights)
        positive = x > 0
        logarithm = torch.where(positive, x, torch.ones_like(x)).log()
        _, shift = measure.centre(logarithm - origin)
        regular = measure.largest((~positive).to(x.dtype)) == 0
        if measure.weights is not None:  # an item of weight 0 must be positive too
            regular = regular & measure.everywhere(positive)
        form = divided(x, shift.exp(), regular, measure.spread)
        return Canonical(form.point, torch.where(regular, shift, torch.zeros_like(shift)), regular)

    def closest(self, x: Tensor, to: Tensor, weights: Weights = None) -> Canonical:
        """The representative closest to `to` in the metric of log x; `to` > 0."""
        return self._centred(x, to.log(), weights)

    def reference_frame(self, x: Tensor, index: object) -> Canonical:
        size = x[..., reference_items(self, index, x.shape[-1], each=1)[0]]
        return divided(x, size, (size > 0) & (x > 0).all(-1, keepdim=True), self.at_items)

    def geometry(self, weights: Weights = None) -> LogGeometry:
        return LogGeometry(self, weights, Translation(self.blocks))

    def generator_names(self, x: Point) -> list[str]:
        return self.named("scaling")


_NEAR = 8.0  # logarithm of a geometric mean; powers of it neither overflow nor underflow


class _PositiveSettler(ItemSettler):
    """Takes geometric means out, in place; see `GaugeGroup.settler`."""

    def __call__(self, x: Tensor) -> Canonical | None:
        """The canonical form of `x` (*batch, n), in its memory; None, where it can be known, for points far from the section."""
        batch = x.shape[:-1]
        rows = x.view(batch.numel(), x.shape[-1])
        passes = self.passes(rows)
        mean = passes.mean(rows, torch.log)
        if is_far(mean.abs(), _NEAR):
            return None
        regular = torch.isfinite(mean)  # nor is it where an entry is not positive
        mean = torch.where(regular, mean, torch.zeros_like(mean))
        passes.multiply(rows, (-mean).exp())
        mean, regular = (t.view(*batch, t.shape[-1]) for t in (mean, regular))
        return Canonical(x, mean, regular)
