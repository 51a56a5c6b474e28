"""Sums over the ranks of torch.distributed, and what fails when a rank does not take part."""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from manifoldid.groups import GaugeGroup
from manifoldid.points import Point, blocks_of, first

Value = TypeVar("Value")
Map = Callable[[Tensor], Tensor]

_ABSENT = (
    "another rank failed, or did not make this call within the timeout of the process group: a point whose items are spread over "
    "ranks needs all of them (their own errors say more; torch.distributed says: {})"
)


def default_group() -> Any:
    """The default process group; None when `torch.distributed` is not initialised."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


@dataclass(frozen=True)
class Spread:
    """The `Shards` of items over the ranks of process groups, one per dimension of a mesh that they are spread over."""

    process_groups: tuple[Any, ...]
    items: tuple[int, ...] | None = None
    """Items of every rank, or of all of them together, once they are known to stay; else they are counted every time."""
    lacking: bool = False
    """Whether a rank has no items, once they are known to stay."""
    blocks: "Mapping[str, Spread | None]" = field(default_factory=dict, hash=False)
    """What is known of single blocks; None where all ranks have all items."""

    def sum(self, sums: Tensor) -> Tensor:
        """See `Shards.sum`."""
        for process_group in self.process_groups:
            # A loss is the sum of the losses of all ranks, so its derivative is a sum over ranks, too.
            add = functools.partial(_reduced, process_group=process_group, operation=dist.ReduceOp.SUM)
            sums = Linear.apply(sums, add, add)
        return sums

    def largest(self, values: Tensor) -> Tensor:
        """See `Shards.largest`."""
        for process_group in self.process_groups:
            values = _reduced(values.detach(), process_group, dist.ReduceOp.MAX)
        return values

    def count(self, items: int, like: Tensor) -> Tensor:
        """See `Shards.count`."""
        dtype = like.dtype.to_real() if like.is_complex() else like.dtype
        if self.items is not None:
            return like.new_full((), sum(self.items), dtype=dtype)  # no copy from the host, which might be waited for
        return self.sum(like.new_full((), items, dtype=torch.float64)).to(dtype)

    def union(self, labels: Tensor) -> Tensor:
        """See `Shards.union`."""
        found = labels.tolist()
        for process_group in self.process_groups:
            found = sorted(set().union(*gathered(found, process_group)))
        return torch.tensor(found, dtype=labels.dtype, device=labels.device)

    def rows(self, values: Tensor) -> Tensor:
        """See `Shards.rows`."""
        rows = values.detach()[None]
        for process_group in self.process_groups:
            rows = rows_of_all(rows.flatten(), process_group).view(-1, *values.shape)
        return rows

    def on(self, block: str) -> "Spread | None":
        """See `Shards.on`."""
        return self.blocks.get(block, self)

    def share(self, block: str) -> float:
        """See `Shards.share`."""
        return 1.0 if self.on(block) is not None else 1 / self.ranks

    @property
    def ranks(self) -> int:
        """How many ranks there are."""
        return math.prod(dist.get_world_size(process_group) for process_group in self.process_groups)

    def keeping(self, sizes: dict[str, int], single: Collection[str], device: torch.device) -> "Spread":
        """The same, for points that keep their items on this rank, so many in these blocks ('' of a tensor): counted once.

        Blocks of which an item is more than one number, all but the `single` ones, are counted by numbers where it matters.
        """
        known = {
            name: replace(self, items=counts if name in single else None, lacking=0 in counts)
            for name, counts in self._counted(sizes, device).items()
        }
        return known[""] if "" in known else replace(self, blocks={**self.blocks, **known})

    def _counted(self, sizes: dict[str, int], device: torch.device) -> dict[str, tuple[int, ...]]:
        """The sizes of blocks on all ranks."""
        counts = self.rows(torch.tensor(list(sizes.values()), dtype=torch.int64, device=device)).T.tolist()
        return {name: tuple(column) for name, column in zip(sizes, counts, strict=True)}


class Linear(torch.autograd.Function):
    """A linear map of one tensor, given with its adjoint: `Linear.apply(t, map, adjoint)`. Derivatives of any order."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, there: Map, back: Map) -> Tensor:
        ctx.maps = there, back
        return there(t)

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.maps
        return Linear.apply(derivatives[0], back, there), None, None


def _reduced(values: Tensor, process_group: Any, operation: Any) -> Tensor:
    """`values` reduced over the ranks, a new tensor.

    Raises:
        RuntimeError: Another rank failed or did not take part.
    """
    result = values.clone(memory_format=torch.contiguous_format)
    try:
        dist.all_reduce(result, op=operation, group=process_group)
    except RuntimeError as error:
        raise RuntimeError(_ABSENT.format(error)) from error
    return result


def rows_of_all(row: Tensor, process_group: Any) -> Tensor:
    """`row` (k,) of every rank, in the order of the ranks: (ranks, k) on its device, by one sum over the ranks.

    Raises:
        RuntimeError: Another rank failed or did not take part.
    """
    rows = row.new_zeros(dist.get_world_size(process_group), row.shape[0])
    rows[dist.get_rank(process_group)] = row
    return _reduced(rows, process_group, dist.ReduceOp.SUM)


def gathered(value: Value, process_group: Any) -> list[Value]:
    """`value` (any object) of every rank, in the order of the ranks.

    Raises:
        RuntimeError: Another rank failed or did not take part.
    """
    values: list[Any] = [None] * dist.get_world_size(process_group)
    try:
        dist.all_gather_object(values, value, group=process_group)
    except RuntimeError as error:
        raise RuntimeError(_ABSENT.format(error)) from error
    return values


def kept(group: GaugeGroup, x: Point) -> GaugeGroup:
    """`group`, of one factor, for points that keep their items on this rank, as parameters do: they are counted once."""
    shards, ndim = group.shards, group.batch_ndim(x)
    if not isinstance(shards, Spread):
        return group
    blocks = {name: t for name, t in blocks_of(x).items() if t.ndim > ndim}
    spread = {name: of for name in blocks if (of := shards.on(name)) is not None and of.items is None}
    sizes = {name: blocks[name].shape[ndim] for name in spread}
    single = [name for name in spread if blocks[name].ndim == ndim + 1]
    return group.on_shards(shards.keeping(sizes, single, first(x).device)) if sizes else group


def has_empty_shard(group: GaugeGroup, block: str) -> bool:
    """Whether a rank has no items of a block ('' of a tensor), where all of them have been counted (`kept`)."""
    shards = group.shards.on(block) if isinstance(group.shards, Spread) else None
    return shards is not None and shards.lacking


def require_same(group: GaugeGroup, x: Point, name: str) -> None:
    """Refuses blocks that all ranks are said to have, and have with different values.

    Raises:
        ValueError: There is one, on all ranks.
    """
    if group.shards is None:
        return
    for block, t in blocks_of(x).items():
        if group.shards.on(block) is not None:
            continue
        both = torch.stack([torch.view_as_real(t) if t.is_complex() else t] * 2)
        both[1].neg_()
        if not bool((group.shards.largest(both) == both).all()):
            raise ValueError(
                f"`{name}[{block!r}]` is said to be the same on all ranks, and is not: broadcast it from one of them first"
            )
