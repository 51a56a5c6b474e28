"""What puts the points of groups on items back on their section, step after step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from manifoldid.groups._in_place import settled
from manifoldid.groups._items import ItemGroup, Measure
from manifoldid.groups.base import Canonical
from manifoldid.points import Weights

_NEAR = 64.0  # square of a mean by that of a size; there a difference loses three bits


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

    def __call__(self, x: Tensor) -> Canonical | None:
        """The canonical form of `x` (*batch, n), in its memory; None, where it can be known, for points far from the section."""
        if self._group.partition is None and self._weights is None:
            return settled(x, self._shift, self._scale, self._group.shards)
        measure, eps, tiny = self.measure(x), torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
        mean = measure.mean(x)
        if not self._scale:
            if is_far(mean, math.inf):
                return None
            x -= measure.spread(mean)
            return Canonical(x, mean)
        centred = x - measure.spread(mean) if self._shift else x
        square = measure.mean_over_all(centred.square()) if self._together else measure.mean(centred.square())
        offset = mean.square() if self._shift else torch.zeros_like(square)
        if is_far(square, math.inf) or is_far(square.reciprocal(), 1 / tiny) or is_far(offset, _NEAR * square):
            return None
        size, rounding = square.sqrt(), mean.abs() * eps if self._shift else torch.zeros_like(mean)
        regular = size >= tiny + (rounding.amax(-1, keepdim=True) if self._together else rounding)
        size = size.clamp_min(tiny)
        torch.div(centred, size if self._together else measure.spread(size), out=x)
        return Canonical(x, size.log() if self._join is None else self._join(size.log(), mean), regular)

    def measure(self, x: Tensor) -> Measure:
        """The means over the items of `x`; made and checked once for points of one kind: nobody looks at weights and labels again."""
        kind = (x.shape[-1], x.dtype, x.device)
        if self._known is None or self._known[0] != kind:
            self._known = kind, self._group.measure(x, self._weights)
        return self._known[1]


def is_far(values: Tensor, limit: Tensor | float) -> bool:
    """Whether a value is not finite, or not below its limit; on an accelerator, which would have to be waited for, nobody says so."""
    return values.device.type == "cpu" and not bool((values < limit).all())
