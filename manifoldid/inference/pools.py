"""Pools: numbers of a point with an origin (or unit) of their own, between which no difference means anything."""

import torch
from torch import Tensor

from manifoldid.groups._items import ItemGroup
from manifoldid.groups.base import GaugeGroup
from manifoldid.points import Point, blocks_of, flatten


def pools_of(group: GaugeGroup, x: Point, block: str) -> Tensor | None:
    """The pool (n,) of every number of a block ('' for a tensor point): labels of `blocks=`, rows of a batch; None where all are one."""
    for factor, of in group.factors():
        if of not in ((), block) or not isinstance(factor, ItemGroup):
            continue
        t = blocks_of(x)[block]
        inside = (
            torch.zeros(t.shape[-1:], dtype=torch.long) if factor.partition is None else factor.partition.index.cpu()
        )
        rows = torch.arange(t.shape[:-1].numel())
        pools = (rows[:, None] * factor.block_count + inside).flatten()
        return pools if len(pools) and bool((pools != pools[0]).any()) else None
    return None


def require_pairs(pools: Tensor | None, size: int) -> None:
    """Refuses numbers between which there is no difference.

    Raises:
        ValueError: There is one number, or every pool has one.
    """
    if not len(pairs(pools, size)[0]):
        what = f"every pool of the {size} items has one item" if size > 1 else f"got {size} number(s)"
        raise ValueError(f"`pairwise` needs two numbers that have a difference, {what}: report it as it is, by table()")


def members(pools: Tensor | None, size: int) -> list[Tensor]:
    """The items of every pool."""
    return [torch.arange(size)] if pools is None else [(pools == k).nonzero()[:, 0] for k in pools.unique()]


def pairs(pools: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """All pairs i < j of one pool."""
    i, j = torch.triu_indices(size, size, offset=1)
    same = slice(None) if pools is None else pools[i] == pools[j]
    return i[same], j[same]


def differences(t: Tensor, pools: Tensor | None) -> Tensor:
    """All numbers of a block minus the first one of their pool: all differences within a pool are differences of these."""
    real = flatten(t)
    return torch.cat([real[items[1:]] - real[items[0]] for items in members(pools, len(real))])
