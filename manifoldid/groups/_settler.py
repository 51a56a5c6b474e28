"""What puts the points of groups on items back on their section, step after step."""

from collections.abc import Callable

import torch
from torch import Tensor

from manifoldid.groups._in_place import settled
from manifoldid.groups._items import ItemGroup, Measure
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
        self._known: tuple[tuple, Measure] | None = None

    def __call__(self, x: Tensor) -> Canonical:
        """The canonical form of `x` (*batch, n), in its memory."""
        if self._group.partition is None and self._weights is None:
            return settled(x, self._shift, self._scale, self._group.shards)
        measure, eps, tiny = self.measure(x), torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
        mean = measure.mean(x)
        if self._shift:
            x -= measure.spread(mean)
        if not self._scale:
            return Canonical(x, mean)
        square = measure.mean_over_all(x.square()) if self._together else measure.mean(x.square())
        size, rounding = square.sqrt(), mean.abs() * eps if self._shift else torch.zeros_like(mean)
        regular = size >= tiny + (rounding.amax(-1, keepdim=True) if self._together else rounding)
        size = size.clamp_min(tiny)
        x /= size if self._together else measure.spread(size)
        return Canonical(x, size.log() if self._join is None else self._join(size.log(), mean), regular)

    def measure(self, x: Tensor) -> Measure:
        """The means over the items of `x`; made and checked once for points of one kind: nobody looks at weights and labels again."""
        kind = (x.shape[-1], x.dtype, x.device)
        if self._known is None or self._known[0] != kind:
            self._known = kind, self._group.measure(x, self._weights)
        return self._known[1]
