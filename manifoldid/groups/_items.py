"""What groups on a vector of items share: ragged blocks, and weighted means over items.

`Measure` holds the only reductions over items in the closed forms of these groups. Items that are spread over ranks are
therefore a matter of `Measure` alone: it adds its sums over the `Shards` that the group was handed.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from manifoldid.groups.base import GaugeGroup, code_of
from manifoldid.points import Point, Shards, Weights, concrete, first, is_dict, is_wrapped, item_weights


class Partition:
    """A ragged partition of items into blocks, from integer labels (n,) in any order and with gaps."""

    def __init__(self, labels: Tensor, shards: Shards | None = None):
        """Makes the partition.

        Args:
            labels: Integer labels (n,), one per item. When values cannot be looked at (compile, export) there are as
                many blocks as items, most of them empty, so that shapes do not depend on values.
            shards: Where the other items are, which have blocks too.
        """
        self.blind = not concrete(labels)
        self.lengths: Tensor | None = None  # items of every block, where labels are in order
        if not self.blind:
            self.labels, self.index = torch.unique(labels, return_inverse=True)
            if shards is not None:
                self.labels = shards.union(self.labels)
                self.index = torch.searchsorted(self.labels, labels)
            self.count = self.labels.numel()
            if bool((self.index[1:] >= self.index[:-1]).all()):
                self.lengths = torch.bincount(self.index, minlength=self.count)
        else:
            ordered, order = torch.sort(labels, stable=True)
            step = torch.cat([torch.zeros_like(ordered[:1]), (ordered[1:] != ordered[:-1]).long()])
            self.labels, self.count = ordered, labels.shape[0]
            self.index = torch.zeros_like(order).scatter(0, order, step.cumsum(0))


def block_labels(labels: object, name: str = "blocks") -> Tensor | None:
    """`labels` as a long tensor (n,).

    Raises:
        TypeError: They are not integers.
        ValueError: They are not one-dimensional.
    """
    if labels is None:
        return None
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:  # strings, a Categorical
        raise TypeError(
            f"`{name}` must be integer labels, one per item, got {type(labels).__name__} of something else; "
            "pandas.factorize(labels)[0] makes integers of names"
        ) from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"`{name}` must be integer labels, one per item, got dtype {tensor.dtype}")
    if tensor.ndim != 1:
        raise ValueError(f"`{name}` must have shape (n,), one label per item, got {tuple(tensor.shape)}")
    return tensor.detach().long().clone()


class Measure:
    """Weighted means over the items of a point, per block.

    Sums over blocks of float32 numbers are accumulated in float64 where the device has it: a sequential float32 sum over
    1e6 items has no correct digit of the variance.
    """

    def __init__(
        self,
        x: Tensor,
        weights: Tensor | None,
        partition: Partition | None = None,
        shards: Shards | None = None,
        shares: Tensor | None = None,
    ):
        """Makes the measure on the last dimension of `x`.

        Args:
            x: Point (*batch, n), for dtype, device and n.
            weights: Item weights (n,), or None.
            partition: The blocks, or None.
            shards: Where the other items of the point are, or None.
            shares: What the items count in sums over ranks (n,), where they are not all spread; `weights` have mean 1 then.

        Raises:
            ValueError: The blocks do not fit the items, or a block has no positive weight.
        """
        items = x.shape[-1]
        self.shards = shards
        self.weights = weights
        if weights is not None and shares is None:
            self.weights = item_weights(weights, x.shape[-1:], x, shards)
        if shares is None:
            self.summed = self.weights  # what items count in sums
            self.items = (
                items if shards is None else shards.count(items, x)
            )  # weights have mean 1: this is their sum, too
        else:
            self.summed = shares if weights is None else weights * shares
            self.items = self._across(shares.sum())
        self.count = 1
        self.index = self.lengths = self.total = None
        if partition is None:
            return
        self.index = partition.index.to(x.device)
        self.count, self.lengths = partition.count, partition.lengths
        if self.index.shape[0] != items:
            raise ValueError(f"`blocks` must have one label per item, {items}, got {self.index.shape[0]}")
        ones = x.new_ones(items) if self.weights is None else self.weights
        self.total = self.sum(ones)
        if self.weights is not None and concrete(self.total) and not bool((self.total > 0).all()):
            empty = partition.labels[(self.total <= 0).nonzero()[:, 0].cpu()].tolist()
            raise ValueError(f"`weights` are all zero in block {empty[0]}: at least one item must define its origin")
        self.total = self.total.clamp_min(torch.finfo(x.dtype).tiny)

    def sum(self, x: Tensor) -> Tensor:
        """Sum of `x` (*batch, n) per block; shape (*batch, 1 or number of blocks)."""
        if self.index is None:
            return self._across(x.sum(-1, keepdim=True))
        wide = x.to(self.sum_dtype(x))
        if self.lengths is not None and x.shape[:-1].numel() == 1 and _is_plain(wide):
            # Items of a block that follow each other: less than half the time of sums at an index, each of which waits for the last.
            sums = torch.segment_reduce(wide.flatten(), "sum", lengths=self.lengths, unsafe=True, initial=0)
            return self._across(sums.view(*x.shape[:-1], self.count)).to(x.dtype)
        return self._across(wide.new_zeros(*x.shape[:-1], self.count).index_add(-1, self.index, wide)).to(x.dtype)

    def sum_dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of sums over items of `x`."""
        wide = self.index is not None and x.dtype == torch.float32 and x.device.type != "mps"
        return torch.float64 if wide else x.dtype

    def mean(self, x: Tensor) -> Tensor:
        """Weighted mean of `x` (*batch, n) per block; shape (*batch, 1 or number of blocks)."""
        if self.total is None:
            return self.mean_over_all(x)
        return self.sum(x if self.summed is None else x * self.summed) / self.total

    def mean_of_sums(self, sums: Tensor) -> Tensor:
        """The mean per block, of weighted sums over the items of this rank."""
        return self._across(sums) / (self.items if self.total is None else self.total)

    def mean_of_means(self, means: Tensor) -> Tensor:
        """The mean over all blocks (*batch, 1), of the means per block."""
        return means if self.total is None else (means * self.total).sum(-1, keepdim=True) / self.items

    def mean_over_all(self, x: Tensor) -> Tensor:
        """Weighted mean of `x` (*batch, n) over all blocks; shape (*batch, 1)."""
        weighted = x if self.summed is None else x * self.summed
        if self.shards is None:
            return weighted.mean(-1, keepdim=True)
        return self._across(weighted.sum(-1, keepdim=True)) / self.items

    def largest(self, x: Tensor) -> Tensor:
        """Largest modulus of the weighted items of `x` per block, without derivative; shape (*batch, 1 or blocks)."""
        size = x.detach().abs()
        if self.weights is not None:
            size = torch.where(self.weights > 0, size, torch.zeros_like(size))
        if self.index is not None:
            start = size.new_zeros(*size.shape[:-1], self.count)
            largest = start.scatter_reduce(-1, self.index.expand_as(size), size, "amax", include_self=True)
        elif size.shape[-1]:
            largest = size.amax(-1, keepdim=True)
        else:  # an empty shard
            largest = size.new_zeros(*size.shape[:-1], 1)
        return largest if self.shards is None else self.shards.largest(largest)

    def everywhere(self, condition: Tensor) -> Tensor:
        """Whether `condition` (*batch, n) holds at every item, of whatever weight; shape (*batch, 1)."""
        if self.shards is None:
            return condition.all(-1, keepdim=True)
        return self.shards.sum((~condition).double().sum(-1, keepdim=True)) == 0

    def _across(self, sums: Tensor) -> Tensor:
        return sums if self.shards is None else self.shards.sum(sums)

    def spread(self, value: Tensor) -> Tensor:
        """`value` (*batch, 1 or blocks) at every item; shape broadcastable to (*batch, n)."""
        return value if self.index is None else value.index_select(-1, self.index)

    def centre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` minus its mean per block, and the mean.

        Two passes: after the first the numbers are small, and the second removes the rounding of the first.
        """
        mean = self.mean(x)
        centred = x - self.spread(mean)
        rest = self.mean(centred)
        return centred - self.spread(rest), mean + rest

    def size(self, x: Tensor, together: bool = False) -> Tensor:
        """Root mean square of `x` per block, or over all blocks `together`; safe against overflow, 0 with derivative 0 at 0."""
        largest = self.largest(x)
        if together:
            largest = largest.amax(-1, keepdim=True)
        scale = torch.where(largest > 0, largest, torch.ones_like(largest))
        relative = (x / (scale if together else self.spread(scale))).square()
        square = self.mean_over_all(relative) if together else self.mean(relative)
        safe = torch.where(square > 0, square, torch.ones_like(square))
        return torch.where(square > 0, scale * safe.sqrt(), torch.zeros_like(safe))


def _is_plain(x: Tensor) -> bool:
    """Whether `x` is double precision on a CPU, without derivatives and outside of transforms."""
    if x.device.type != "cpu" or x.dtype != torch.float64 or x.requires_grad or is_wrapped(x):
        return False
    return forward_ad.unpack_dual(x).tangent is None


@dataclass(frozen=True, eq=False, repr=False)
class ItemGroup(GaugeGroup):
    """Groups on a tensor of items (*batch, n), with one group element per block of a ragged partition.

    Attributes:
        blocks: Integer labels (n,) of the ragged partition of the items; None is one block.
    """

    blocks: Tensor | None = None
    partition: Partition | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", block_labels(self.blocks))
        object.__setattr__(self, "partition", None if self.blocks is None else Partition(self.blocks))

    @property
    def block_labels(self) -> list[int] | None:
        """The labels of the blocks, sorted, as the coordinates xi are ordered; None without blocks."""
        return None if self.partition is None else self.partition.labels.tolist()

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return 1 if self.partition is None else self.partition.count

    def with_blocks(self, labels: Any) -> "ItemGroup":
        """The same group with another partition of the items."""
        group = replace(self, blocks=labels)
        return group if self.shards is None else group.on_shards(self.shards)

    def on_shards(self, shards: Shards) -> "ItemGroup":
        """See `GaugeGroup.on_shards`; `blocks` are the labels of the items here."""
        group = copy.copy(self)
        object.__setattr__(group, "shards", shards)
        if self.blocks is not None:
            object.__setattr__(group, "partition", Partition(self.blocks, shards))
        return group

    def on_items(self, rows: dict[str, Tensor]) -> "ItemGroup":
        """See `GaugeGroup.on_items`."""
        return self.with_items(lambda name, values: values[rows[name].to(values.device)])

    def with_items(self, of: Callable[[str, Tensor], Tensor]) -> "ItemGroup":
        """See `GaugeGroup.with_items`: labels of blocks."""
        return self if self.blocks is None else self.with_blocks(of("", self.blocks))

    def __str__(self) -> str:
        """See the base class; `Translation(417 items in 100 blocks)`."""
        if self.blocks is None or self.blocks.numel() <= 12:
            return super().__str__()
        others = replace(self, blocks=None)  # common_scale
        words = [f"{self.blocks.numel()} items in {self.block_count} blocks", code_of(others).partition("(")[2][:-1]]
        return f"{type(self).__name__}({', '.join(word for word in words if word)})"

    def measure(self, x: Point, weights: Weights = None) -> Measure:
        """The weighted means over the items of `x`.

        Raises:
            ValueError: Weights or blocks do not fit.
        """
        if isinstance(weights, dict):
            raise ValueError(f"`weights` of a tensor point must be a tensor (n,), got a dict with {sorted(weights)}")
        return Measure(first(x), weights, self.partition, self.shards)

    def at_items(self, value: Tensor) -> Tensor:
        """`value` (*batch, blocks), one number per block, at every item (*batch, n or 1)."""
        return value if self.partition is None else value.index_select(-1, self.partition.index.to(value.device))

    def validate(self, x: Any, name: str = "point") -> Point:
        """See `GaugeGroup.validate`; also that the blocks fit the items.

        Raises:
            ValueError: The number of labels is not the number of items.
        """
        if is_dict(x) and len(x):
            block = next(iter(x.keys()))
            raise ValueError(
                f"`{name}` of {type(self).__name__} must be a tensor, got a dict with the blocks {sorted(x.keys())}; say which "
                f"block it acts on: as a group mid.Product({block}={self}), as a section {{{block!r}: mid.Reference(...)}}"
            )
        x = cast(Tensor, super().validate(x, name))
        if self.blocks is not None and x.shape[-1] != self.blocks.shape[0]:
            raise ValueError(
                f"`blocks` has {self.blocks.shape[0]} labels and `{name}` has {x.shape[-1]} items (shape {tuple(x.shape)})"
            )
        return x

    def regular_columns(self) -> list[tuple[GaugeGroup, str]]:
        """See `GaugeGroup.regular_columns`: one column per block."""
        return [(self, "" if label is None else f"block {label}") for label in self.block_labels or [None]]

    def named(self, generator: str) -> list[str]:
        """Names of one generator per block."""
        labels = self.block_labels
        return [generator] if labels is None else [f"{generator} of block {label}" for label in labels]
