"""Centring and scaling in place: what an attached optimiser adds to its own step.

A step waits for memory: Adam reads four numbers an entry and writes three. Passes that follow each other are therefore made
over pieces that stay in a cache, where that saves more than the calls cost (measured by benchmarks/optim.py).
"""

import torch
from torch import Tensor

from manifoldid.points import Shards

_ROW_PIECE = 1 << 17  # numbers of a piece of one long row: 512 KiB in float32, about a second-level cache
_PIECE = 1 << 19  # numbers of a piece of many rows: 2 MiB, in the third-level cache; a pass over rows is more work


def standardise(x: Tensor, shift: bool, scale: bool, shards: Shards | None = None) -> tuple[Tensor, Tensor]:
    """Takes means and sizes of `x` out, in place: no copy of `x`, and no look at values on an accelerator.

    Args:
        x: Points (*batch, n), contiguous; overwritten.
        shift: Whether to subtract the mean.
        scale: Whether to divide by the root mean square, about the mean if `shift`. What has size 0 stays 0.
        shards: Where the other items of the points are; None when all are here.

    Returns:
        The means and the root mean squares that were taken out, both (*batch, 1); 0 and 1 where there is nothing to take out.
    """
    items = x.shape[-1]
    rows = x.view(x.shape[:-1].numel(), items)  # no -1: a shard may be empty
    if shards is not None:
        mean, size = _rows(rows, shift, scale, shards)
        return mean.view(*x.shape[:-1], 1), size.view(*x.shape[:-1], 1)
    if rows.device.type != "cpu":
        parts = (rows,)
    elif items > _ROW_PIECE:
        parts = rows.split(1)
    else:
        parts = rows.split(max(1, _PIECE // items))
    done = [_standardise_long(p, items) if _is_long(p) and shift and scale else _rows(p, shift, scale) for p in parts]
    means, sizes = (torch.cat(values) if len(values) > 1 else values[0] for values in zip(*done, strict=True))
    return means.view(*x.shape[:-1], 1), sizes.view(*x.shape[:-1], 1)


def _is_long(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and rows.shape[-1] > _ROW_PIECE


def _rows(rows: Tensor, shift: bool, scale: bool, shards: Shards | None = None) -> tuple[Tensor, Tensor]:
    """One pass after the other over `rows` (m, n)."""
    items = rows.shape[-1] if shards is None else shards.count(rows.shape[-1], rows)
    mean, size = rows.new_zeros(rows.shape[0], 1), rows.new_ones(rows.shape[0], 1)
    if shift:
        mean = rows.sum(-1, keepdim=True)
        mean = (mean if shards is None else shards.sum(mean)) / items
        rows.sub_(mean)
    if scale:
        size = _norm(rows)
        size = (size if shards is None else shards.sum(size.square()).sqrt()) / items**0.5
        rows.mul_(size.clamp_min(torch.finfo(rows.dtype).tiny).reciprocal_())
    return mean, size


def _norm(rows: Tensor) -> Tensor:
    """Norms (m, 1) of `rows` (m, n); of long ones in two stages, since a float32 sum of 1e6 squares loses digits."""
    items, stage = rows.shape[-1], 1 << 12
    if items <= _ROW_PIECE:
        return torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    head = items - items % stage
    norms = [torch.linalg.vector_norm(rows[:, :head].unflatten(-1, (-1, stage)), dim=-1), rows[:, head:]]
    return torch.linalg.vector_norm(torch.cat(norms, dim=-1), dim=-1, keepdim=True)


def _standardise_long(row: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """One pass over `row` (1, n) for both sums, and one that shifts and scales: two in place of four."""
    parts = row.view(-1).split(_ROW_PIECE)
    sums = [(float(part.sum()), float(torch.linalg.vector_norm(part)) ** 2) for part in parts]
    mean, square = (sum(values) / items for values in zip(*sums, strict=True))
    if not mean**2 < square / 2:  # far from the section, where the difference would be rounding, or not finite
        return _rows(row, shift=True, scale=True)
    size = (square - mean**2) ** 0.5
    offset = row.new_tensor(-mean / size)
    for part in parts:
        torch.add(offset, part, alpha=1 / size, out=part)
    return row.new_tensor([[mean]]), row.new_tensor([[size]])
