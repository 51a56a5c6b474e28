"""Weighted sums over the items of points, and changes of every item, in memory that is kept.

What `_in_place.py` does for equal items of one block. A pass is made over pieces that stay in a cache, each with room for its products
and for what is spread over its items, so that a step asks for no memory of the size of a point.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldid._memory import Memory
from manifoldid.groups._in_place import finite_shift
from manifoldid.groups._items import Measure

_PIECE = 1 << 18  # numbers of a piece, with 8 bytes of products each
_ELSEWHERE = 1 << 24  # the same where calls cost more than passes
_NEAR = 64.0  # square of a mean by that of a size; there a difference loses three bits


class _Piece(NamedTuple):
    """Some rows and items of points (m, n); all items, or those of one row."""

    rows: slice
    items: slice
    weights: Tensor | None
    """What the items count, in the dtype of products (k,); None for 1."""
    index: Tensor | None
    """Where the blocks of all its numbers are in the rows of sums (rows * items,); None for one block."""
    lengths: Tensor | None
    """How many numbers belong to every block of its rows, from `first` on, where items are in order."""
    first: int


class Passes:
    """Passes over points (m, n) of as many items, of one dtype and device."""

    def __init__(self, measure: Measure, like: Tensor):
        """Looks at no value, so that nobody waits for it when there are other points.

        Args:
            measure: Weights, blocks and shards of the items.
            like: For dtype and device of points.
        """
        self.measure, self._memory = measure, Memory()
        # Over many items of a block a sequential float32 sum has no correct digit of the variance.
        self._dtype = measure.sum_dtype(like)
        self._weights = None if measure.summed is None else measure.summed.to(self._dtype)
        self._index, self._shape = measure.index, torch.Size()
        self._pieces: list[_Piece] = []

    def mean(
        self,
        rows: Tensor,
        of: Callable[..., Tensor] | None = None,
        less: Tensor | None = None,
        veto: Tensor | None = None,
    ) -> Tensor:
        """Weighted means per block of points, or of a function of them.

        Args:
            rows: Points (m, n).
            of: An element-wise function with `out=`.
            less: Is subtracted from every item of a block before, in the memory of `rows`; (m, blocks).
            veto: Which points (m, 1) have something wrong with them on this rank: their means are no numbers, on all ranks.

        Returns:
            Means (m, blocks).
        """
        sums = rows.new_zeros(rows.shape[0], self.measure.count, dtype=self._dtype)
        for piece in self._cut(rows):
            part = rows[piece.rows, piece.items]
            if less is not None:
                part.sub_(self._spread(less, part, piece))
            self._add(part, of, piece, sums[piece.rows])
        sums = sums if veto is None else sums.masked_fill_(veto, math.nan)
        return self.measure.mean_of_sums(sums).to(rows.dtype)

    def standardise(
        self, rows: Tensor, shift: bool = True, together: bool = False, veto: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Takes means and sizes out of points, in place.

        Args:
            rows: Points (m, n), overwritten.
            shift: Whether to subtract means, about which sizes are then.
            together: Whether all blocks have one size.
            veto: See `mean`.

        Returns:
            Means (m, blocks), 0 without `shift`; sizes (m, blocks), or (m, 1) `together`; and which sizes are more than rounding. Where
            it can be known, sizes of points far from the section are no numbers, and only means have been taken out; None, with nothing
            written, where means are no numbers.
        """
        eps, tiny = torch.finfo(rows.dtype).eps, torch.finfo(rows.dtype).tiny
        mean = self.mean(rows, veto=veto) if shift else rows.new_zeros(rows.shape[0], self.measure.count)
        if is_far(mean, math.inf):
            return None
        # Where nobody can say so, what is not finite is left alone.
        square = self.mean(rows, torch.square, less=finite_shift(mean) if shift else None, veto=veto)
        square = self.measure.mean_of_means(square) if together else square
        if is_far(square, math.inf) or is_far(square.reciprocal(), 1 / tiny) or is_far(mean.square(), _NEAR * square):
            return mean, torch.full_like(square, math.nan), torch.zeros_like(square, dtype=torch.bool)
        size, rounding = square.sqrt(), mean.abs() * eps
        regular = size >= tiny + (rounding.amax(-1, keepdim=True) if together else rounding)
        self.multiply(rows, torch.where(regular, size, 1.0).reciprocal())
        return mean, size.clamp_min(tiny), regular

    def subtract(self, rows: Tensor, value: Tensor) -> None:
        """Subtracts `value` (m, blocks) from every item of a block."""
        for piece in self._cut(rows):
            part = rows[piece.rows, piece.items]
            part.sub_(self._spread(value, part, piece))

    def multiply(self, rows: Tensor, value: Tensor) -> None:
        """Multiplies every item of a block by `value` (m, blocks or 1)."""
        for piece in self._cut(rows):
            part = rows[piece.rows, piece.items]
            part.mul_(self._spread(value, part, piece))

    # ------------------------------------------------------------------------------------------------ private

    def _cut(self, rows: Tensor) -> list[_Piece]:
        """The pieces of points (m, n); those of the last call where their number has not changed."""
        if self._shape != rows.shape:
            self._shape, self._pieces = rows.shape, list(self._new_pieces(rows))
        return self._pieces

    def _new_pieces(self, rows: Tensor) -> Iterator[_Piece]:
        (count, items), measure = rows.shape, self.measure
        most = _PIECE if rows.device.type == "cpu" else _ELSEWHERE
        wide, high = max(1, min(items, most)), max(1, min(count, most // max(1, items)))
        weights, ends = self._weights, None
        if measure.index is not None and self._index is not None:
            if self._index.shape[0] < high * items:
                first = torch.arange(high, device=rows.device)[:, None] * measure.count
                self._index = (first + measure.index).flatten()
            if measure.lengths is not None and rows.device.type == "cpu" and self._dtype == torch.float64:
                ends = measure.lengths.repeat(high).cumsum(0)
        for row in range(0, count, high):
            for start in range(0, items, wide):
                here, first = slice(start, min(start + wide, items)), 0
                lengths, numbers = None, slice(start, start + min(high, count - row) * (here.stop - start))
                own = None if self._index is None else self._index[numbers]
                if own is not None and ends is not None:
                    first, last = int(own[0]), int(own[-1])
                    inside = ends.clamp(numbers.start, numbers.stop).diff(prepend=ends.new_tensor([numbers.start]))
                    lengths = inside[first : last + 1].contiguous()
                own_weights = None if weights is None else weights[here]
                yield _Piece(slice(row, row + high), here, own_weights, own, lengths, first)

    def _add(self, part: Tensor, of: Callable[..., Tensor] | None, piece: _Piece, sums: Tensor) -> None:
        """Adds the products of one piece to `sums` (rows of the piece, blocks)."""
        if of is not None:
            part = of(part, out=self._room("values", part))
        if part.dtype != self._dtype:
            part = self._room("products", part, self._dtype).copy_(part)
        if piece.weights is not None:
            part = torch.mul(part, piece.weights, out=self._room("products", part))
        if piece.index is None:
            sums += part.sum(-1, keepdim=True)
        elif piece.lengths is None:
            sums.view(-1).scatter_add_(0, piece.index, part.reshape(-1))
        else:  # one at a time they would wait for each other
            own = torch.segment_reduce(part.reshape(-1), "sum", lengths=piece.lengths, unsafe=True, initial=0)
            sums.view(-1)[piece.first : piece.first + own.shape[0]] += own

    def _spread(self, value: Tensor, part: Tensor, piece: _Piece) -> Tensor:
        """What of `value` (m, blocks or 1) belongs to every item of a piece, broadcastable to it."""
        value = value[piece.rows]
        if piece.index is None or value.shape[-1] < self.measure.count:
            return value
        room = self._room("values", part)
        torch.index_select(value.reshape(-1), 0, piece.index, out=room.view(-1))
        return room

    def _room(self, name: str, part: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Room for as many numbers as a piece has."""
        largest = self._pieces[0]
        size = (largest.items.stop - largest.items.start) * (largest.rows.stop - largest.rows.start)
        room = self._memory.room(name, (size,), part, dtype)
        return room[: part.numel()].view(part.shape)


def is_far(values: Tensor, limit: Tensor | float) -> bool:
    """Whether a value is not finite, or not below its limit; on an accelerator, which would have to be waited for, nobody says so."""
    return values.device.type == "cpu" and not bool((values < limit).all())
