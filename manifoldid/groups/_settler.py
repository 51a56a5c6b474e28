"""What puts the points of groups on items back on their section, step after step."""

import math
from collections.abc import Callable

from torch import Tensor

from manifoldid.groups._in_place import settled
from manifoldid.groups._items import ItemGroup
from manifoldid.groups._passes import Passes, is_far
from manifoldid.groups.base import Canonical
from manifoldid.points import Weights


class ItemSettler:
    """Takes means, sizes or both of the items of every block out, in place; see `GaugeGroup.settler`."""

    def __init__(
        self,
        group: ItemGroup,
        weights: Weights,
        shift: bool = False,
        scale: bool = False,
        join: Callable[[Tensor, Tensor], Tensor] | None = None,
        together: bool = False,
    ):
        """For the points of a group.

        Args:
            group: Says which blocks and shards there are.
            weights: Item weights, or None.
            shift: Whether the group moves the means.
            scale: Whether it moves the sizes.
            join: Makes its coordinates of log sizes and means, where it moves both.
            together: Whether it moves the sizes of all blocks by one factor.
        """
        self._group, self._weights, self._join = group, weights, join
        self._shift, self._scale, self._together = shift, scale, together
        self._known: tuple[tuple, Passes] | None = None

    def __call__(self, x: Tensor) -> Canonical | None:
        """The canonical form of `x` (*batch, n), in its memory; None, where it can be known, for points far from the section."""
        if self._group.partition is None and self._weights is None:
            return settled(x, self._shift, self._scale, self._group.shards)
        batch = x.shape[:-1]
        rows = x.view(batch.numel(), x.shape[-1])
        passes = self.passes(rows)
        if not self._scale:
            mean = passes.mean(rows)
            if is_far(mean, math.inf):
                return None
            passes.subtract(rows, mean)
            return Canonical(x, mean.view(*batch, mean.shape[-1]))
        taken = passes.standardise(rows, self._shift, self._together)
        if taken is None or is_far(taken[1], math.inf):
            return None
        mean, size, regular = (t.view(*batch, t.shape[-1]) for t in taken)
        return Canonical(x, size.log() if self._join is None else self._join(size.log(), mean), regular)

    def passes(self, rows: Tensor) -> Passes:
        """Passes over points (m, n); made once for items of one kind: nobody looks at weights and labels again."""
        kind = (rows.shape[1], rows.dtype, rows.device)
        if self._known is None or self._known[0] != kind:
            self._known = kind, Passes(self._group.measure(rows, self._weights), rows)
        return self._known[1]
