"""Centring and scaling in place: what an attached optimiser adds to its own step.

A step waits for memory: Adam reads four numbers an entry and writes three. Passes that follow each other are therefore made
over pieces that stay in a cache, where that saves more than the calls cost (measured by benchmarks/optim.py).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from manifoldid.groups.base import Canonical
from manifoldid.points import Shards

_PIECE = (
    1 << 20
)  # numbers of a piece: 4 MiB in float32, in the third-level cache; smaller ones take more calls than they save time
_NEAR = 8.0  # mean by size, from where on the size of a point is taken again: float32 has lost three bits there
_LONG, _STAGE = 1 << 17, 1 << 12  # a float32 sum of more squares loses digits, so that it is one of sums of so many


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Corresponding pieces of tensors of one shape, views that fit a cache; the tensors themselves where that saves nothing."""
    one = tensors[0]
    if one.device.type == "cpu" and one.numel() > _PIECE and all(t.is_contiguous() for t in tensors):
        yield from zip(*(t.view(-1).split(_PIECE) for t in tensors), strict=True)
    else:
        yield tensors


def settled(x: Tensor, shift: bool, scale: bool, shards: Shards | None = None) -> Canonical | None:
    """Takes means, sizes or both out of `x`, in place: no copy of `x`, and no look at values on an accelerator.

    Args:
        x: Points (*batch, n), contiguous; overwritten.
        shift: Whether to subtract the mean.
        scale: Whether to divide by the root mean square, about the mean if `shift`. What has size 0 stays 0.
        shards: Where the other items of the points are; None when all are here.

    Returns:
        `x`; of what was taken out (*batch, 1 or 2) the logarithm of the size and the mean; and with `scale` which points (*batch, 1)
        have a size, above the rounding of their mean. None, where it can be known, for points far from the section: one row as it was,
        several moved along their orbits at most.
    """
    batch = x.shape[:-1]
    if _is_one_row(
        x, shards
    ):  # in numbers: after megabytes have passed through the caches, each call takes microseconds
        if (taken := _one_row(x.view(-1), shift, scale)) is None:
            return None
        mean, size = taken
        return Canonical(x, x.new_tensor([math.log(size)] * scale + [mean] * shift).view(*batch, shift + scale))
    rows = x.view(batch.numel(), x.shape[-1])  # no -1: a shard may be empty
    planes = rows.new_empty(scale + shift, rows.shape[0], 1)  # one behind the other: a copy of 1e5 pairs takes long
    sizes, means = planes[0] if scale else None, planes[-1] if shift else None
    usable = rows.new_empty(rows.shape[0], 1, dtype=torch.bool) if scale else None
    for part, mean, size, has_size in _parts(rows, shards, rows, means, sizes, usable):
        _rows(part, mean, size, has_size, shards)
    if x.device.type == "cpu" and not is_near(means, sizes, usable):
        return None
    regular = None
    if sizes is not None and usable is not None:
        regular = usable.view(*batch, 1)
        sizes.log_()
    xi = planes.view(scale + shift, *batch).movedim(0, -1)
    return Canonical(x, xi, regular)


def _is_one_row(x: Tensor, shards: Shards | None) -> bool:
    return shards is None and x.device.type == "cpu" and x.numel() == x.shape[-1]


def is_near(means: Tensor | None, sizes: Tensor | None, usable: Tensor | None) -> bool:
    """Whether what was taken out is finite, and no mean was so large that its rounding is left. What has no size is not asked again."""
    if sizes is not None and sizes.numel() and float(sizes.amin()) < torch.finfo(sizes.dtype).tiny ** 0.5:
        return False  # their squares have lost digits, or all of them
    if means is None or sizes is None or usable is None or not means.numel():
        return all(t is None or math.isfinite(t.sum()) for t in (means, sizes))
    low, high = (float(t) for t in means.aminmax())
    if max(-low, high) <= _NEAR * float(sizes.amin()):
        return math.isfinite(sizes.sum())
    return math.isfinite(low + high) and math.isfinite(sizes.sum()) and not bool(usable.all())


def standardise(
    x: Tensor, shards: Shards | None = None, veto: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Takes means and sizes out of `x`, as `settled` does.

    Args:
        x: Points (*batch, n), contiguous; overwritten.
        shards: Where the other items of the points are; None when all are here.
        veto: Which points (*batch, 1) have something else wrong with them on this rank: they are left as they are on all ranks.

    Returns:
        Means and sizes (*batch, 1), not finite where that was not taken out; and whether there is a size, which else was not divided by.
        None, with nothing written, for one row far from the section.
    """
    batch = x.shape[:-1]
    if _is_one_row(x, shards):
        taken = _one_row(x.view(-1), shift=True, scale=True)
        if taken is None:
            return None
        mean, size = (x.new_full((*batch, 1), value) for value in taken)
        return mean, size, torch.ones_like(mean, dtype=torch.bool)
    rows = x.view(batch.numel(), x.shape[-1])
    means, sizes = rows.new_empty(2, rows.shape[0], 1)
    usable = rows.new_empty(rows.shape[0], 1, dtype=torch.bool)
    for part, mean, size, has_size in _parts(rows, shards, rows, means, sizes, usable):
        _rows(part, mean, size, has_size, shards, None if veto is None else veto.reshape(-1, 1))
    return means.view(*batch, 1), sizes.view(*batch, 1), usable.view(*batch, 1)


def finite_shift(mean: Tensor) -> Tensor:
    """What `standardise` has subtracted, of the mean that it returns."""
    return torch.nan_to_num(mean, nan=0.0, posinf=0.0, neginf=0.0)


def _parts(rows: Tensor, shards: Shards | None, *of: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The pieces of tensors that have as many rows as `rows` (m, n), where these fit a cache in pieces; None for None."""
    count = (
        rows.shape[0] if shards is not None or rows.device.type != "cpu" else max(1, _PIECE // max(1, rows.shape[1]))
    )
    for k in range(0, max(1, rows.shape[0]), max(1, count)):
        yield tuple(None if t is None else t[k : k + count] for t in of)


def _rows(
    rows: Tensor,
    mean: Tensor | None,
    size: Tensor | None,
    usable: Tensor | None,
    shards: Shards | None,
    veto: Tensor | None = None,
) -> None:
    """One pass after the other over `rows` (m, n); writes what was taken out to `mean` and `size` (m, 1), the smallest size for none.

    What is not finite, of rows that are not, or are so on another rank, or are too large to be squared, is not taken out, nor is a size
    that is the rounding of its mean: `usable` is false there.
    """
    info, largest = torch.finfo(rows.dtype), 0.0
    items = rows.shape[-1] if shards is None else shards.count(rows.shape[-1], rows)
    if mean is not None:
        if shards is None:
            torch.mean(rows, -1, keepdim=True, out=mean)
        else:
            sums = rows.sum(-1, keepdim=True)
            sums = (
                sums if veto is None else sums.masked_fill(veto, math.nan)
            )  # which needs no number of its own to travel
            torch.div(shards.sum(sums), items, out=mean)
        largest = _largest(mean)
        rows.sub_(mean if largest < math.inf else finite_shift(mean))
    if size is not None and usable is not None:
        _norms(rows, size)
        if shards is not None:
            size.copy_(shards.sum(size.square()).sqrt())
        size.div_(items**0.5)
        if _largest(size) < math.inf and float(size.amin()) > largest * info.eps + info.tiny:  # as nearly always
            usable.fill_(True)
            rows.mul_(size.reciprocal())  # half the time of a division
            return
        size.clamp_min_(info.tiny)
        size.add_((size if mean is None else size + mean) * 0)  # no number where one of them is infinite
        torch.gt(size, info.tiny if mean is None else mean.abs().mul_(info.eps).add_(info.tiny), out=usable)
        rows.mul_(torch.where(usable, size, 1.0).reciprocal_())


def _largest(values: Tensor) -> float:
    """The largest modulus; infinite or no number on an accelerator, which would have to be waited for, as for what is not finite."""
    if values.device.type != "cpu" or not values.numel():
        return math.inf
    low, high = values.aminmax()
    return max(-float(low), float(high)) if math.isfinite(low + high) else math.inf


def _norms(rows: Tensor, out: Tensor) -> None:
    """Norms (m, 1) of `rows` (m, n); of long ones in two stages."""
    items = rows.shape[-1]
    if items > _LONG:
        head = items - items % _STAGE
        norms = [torch.linalg.vector_norm(rows[:, :head].unflatten(-1, (-1, _STAGE)), dim=-1), rows[:, head:]]
        rows = torch.cat(norms, dim=-1)
    torch.linalg.vector_norm(rows, dim=-1, keepdim=True, out=out)


def _square(row: Tensor) -> float:
    """The sum of squares of `row` (n,); of a long one in two stages."""
    head = row.shape[0] - row.shape[0] % _STAGE if row.shape[0] > _LONG else 0
    rest = row[head:] if head else row
    square = float(torch.dot(rest, rest))
    if head:
        norms = torch.linalg.vector_norm(row[:head].view(-1, _STAGE), dim=-1)
        square += float(torch.dot(norms, norms))
    return square


def _one_row(row: Tensor, shift: bool, scale: bool) -> tuple[float, float] | None:
    """The same for one row (n,) on a CPU: one pass for the sums, which go to Python, and one that shifts and scales.

    The sums begin at the end, which the optimiser has written last, and the second pass at the beginning, which they read last.
    Far from the section (where the square of the size is the rounding of a difference, overflows or underflows) nothing is written.
    """
    items, tiny = row.shape[0], torch.finfo(row.dtype).tiny
    parts = row.split(_PIECE) if items > _PIECE else (row,)
    mean = square = 0.0
    for part in reversed(parts):
        if shift:
            mean += float(part.sum())
        if scale:
            square += _square(part)
    mean, square = mean / items, square / items
    near = tiny < square < math.inf and (not shift or mean * mean < square / 2) if scale else math.isfinite(mean)
    if not near:
        return None
    if not scale:
        for part in parts:
            part.sub_(mean)
        return mean, 1.0
    size = math.sqrt(square - mean * mean)
    factor = 1 / max(size, tiny)
    offset = row.new_tensor(-mean * factor) if shift else None
    for part in parts:
        if offset is None:
            part.mul_(factor)
        else:
            torch.add(offset, part, alpha=factor, out=part)
    return mean, size
