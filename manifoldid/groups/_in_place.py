"""Centring and scaling in place: what an attached optimiser adds to its own step.

A step waits for memory: Adam reads four numbers an entry and writes three. Passes that follow each other are therefore made
over pieces that stay in a cache, where that saves more than the calls cost (measured by benchmarks/optim.py).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from manifoldid.points import Shards

_ROW_PIECE = 1 << 17  # numbers of a piece of one long row: 512 KiB in float32, about a second-level cache
_PIECE = 1 << 19  # numbers of a piece of many rows: 2 MiB, in the third-level cache; there the calls are what counts


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Corresponding pieces of tensors of one shape, views that fit a cache; the tensors themselves where that saves nothing."""
    one = tensors[0]
    if one.device.type == "cpu" and one.numel() > _ROW_PIECE and all(t.is_contiguous() for t in tensors):
        yield from zip(*(t.view(-1).split(_ROW_PIECE) for t in tensors), strict=True)
    else:
        yield tensors


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
    batch, items = x.shape[:-1], x.shape[-1]
    if shards is None and x.device.type == "cpu" and x.numel() == items:
        mean, size = _one_row(x.view(-1), shift, scale)
        return x.new_full((*batch, 1), mean), x.new_full((*batch, 1), size)
    rows = x.view(batch.numel(), items)  # no -1: a shard may be empty
    mean, size = rows.new_zeros(rows.shape[0], 1), rows.new_ones(rows.shape[0], 1)
    count = rows.shape[0] if shards is not None or rows.device.type != "cpu" else max(1, _PIECE // max(1, items))
    for part, means, sizes in zip(rows.split(count), mean.split(count), size.split(count), strict=True):
        _rows(part, means if shift else None, sizes if scale else None, shards)
    return mean.view(*batch, 1), size.view(*batch, 1)


def _rows(rows: Tensor, mean: Tensor | None, size: Tensor | None, shards: Shards | None) -> None:
    """One pass after the other over `rows` (m, n); writes what was taken out to `mean` and `size` (m, 1)."""
    items = rows.shape[-1] if shards is None else shards.count(rows.shape[-1], rows)
    if mean is not None:
        torch.sum(rows, -1, keepdim=True, out=mean)
        if shards is not None:
            mean.copy_(shards.sum(mean))
        rows.sub_(mean.div_(items))
    if size is not None:
        _norms(rows, size)
        if shards is not None:
            size.copy_(shards.sum(size.square()).sqrt())
        rows.div_(size.div_(items**0.5).clamp_min(torch.finfo(rows.dtype).tiny))


def _norms(rows: Tensor, out: Tensor) -> None:
    """Norms (m, 1) of `rows` (m, n); of long ones in two stages, since a float32 sum of 1e6 squares loses digits."""
    items, stage = rows.shape[-1], 1 << 12
    if items > _ROW_PIECE:
        head = items - items % stage
        norms = [torch.linalg.vector_norm(rows[:, :head].unflatten(-1, (-1, stage)), dim=-1), rows[:, head:]]
        rows = torch.cat(norms, dim=-1)
    torch.linalg.vector_norm(rows, dim=-1, keepdim=True, out=out)


def _one_row(row: Tensor, shift: bool, scale: bool) -> tuple[float, float]:
    """The same for one row (n,) on a CPU: one pass for the sums, which go to Python, and one that shifts and scales.

    The sums begin at the end, which the optimiser has written last, and the second pass at the beginning, which they read last.
    """
    items, tiny = row.shape[0], torch.finfo(row.dtype).tiny
    piece = _ROW_PIECE if shift and scale else _PIECE  # two sums of a piece, or one
    parts = row.split(piece) if items > piece else (row,)
    mean = square = 0.0
    for part in reversed(parts):
        if shift:
            mean += float(part.sum())
        if scale:
            square += float(torch.dot(part, part))
    mean, square = mean / items, square / items
    if not scale:
        for part in parts:
            part.sub_(mean)
        return mean, 1.0
    if (
        shift and not mean * mean < square / 2
    ):  # far from the section, where the difference would be rounding, or not finite
        mean, _ = _one_row(row, shift=True, scale=False)
        return mean, _one_row(row, shift=False, scale=True)[1]
    size = math.sqrt(square - mean * mean)
    factor = 1 / max(size, tiny)
    offset = row.new_tensor(-mean * factor) if shift else None
    for part in parts:
        if offset is None:
            part.mul_(factor)
        else:
            torch.add(offset, part, alpha=factor, out=part)
    return mean, size
