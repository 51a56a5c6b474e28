"""Products of batches of thin matrices (*batch, n, r), r small: the factors that GL(r) acts on.

Libraries multiply matrices of 8 columns at half the speed of those of 16, and this is what a step attached to GL(r) consists of.
Measured, as all of this, by benchmarks/optim.py.
"""

from functools import cached_property

import torch
from torch import Tensor

from manifoldid._memory import Memory

_WIDTH = 16  # columns of a folded matrix; 8 and 32 are slower
_MOST = 4  # rows read as one


class ThinMatrices:
    """Thin matrices a (*batch, n, r), and what they are multiplied with.

    Where it lies so that this takes no copy, a few rows are read as one: (n, r) is (n / k, k r). What it is multiplied with from
    the right then stands k times on a diagonal, and of a Gram matrix the k blocks on the diagonal count.

    Views, and memory for what comes out, are made once, for those who multiply at every step: after megabytes have passed through
    the caches, a call takes microseconds, whatever it does.
    """

    def __init__(self, a: Tensor, turned: bool = False, weights: Tensor | None = None, memory: Memory | None = None):
        """Makes the views.

        Args:
            a: (*batch, n, r). What is written to it later is seen, if it is contiguous, or its transpose and `turned`.
            turned: Whether the rank comes first in memory, as in PEFT's lora_A; with one row or column strides do not tell.
            weights: Of the rows, in Gram matrices (n, 1).
            memory: For W a, under the name "weighted".
        """
        (rows, size), count = a.shape[-2:], a.shape[:-2].numel()
        self._turned = turned and a.mT.is_contiguous()
        fold = _fold(rows, size) if a.is_contiguous() and not self._turned else 1
        self._batch, self._size, self._memory = a.shape[:-2], size, memory or Memory()
        self._folded = (count, rows // fold, fold * size)
        self._rows = a.mT.view(count, size, rows).mT if self._turned else a.reshape(count, rows, size)
        self._a = self._rows if self._turned else self._rows.view(self._folded)
        self._transpose = self._a.mT
        self._blocks = [slice(k, k + size) for k in range(0, fold * size, size)]
        self._weights = weights

    def grams(self, c: Tensor, out: Tensor) -> None:
        """Writes a'Wa and a'W(c - a) to `out` (2, *batch, r, r), for c (*batch, n, r)."""
        squares, crosses, (first, *others) = self._grams
        left = self._transpose
        if self._weights is not None:
            weighted, left = self._weighted
            torch.mul(self._rows, self._weights, out=weighted)
        torch.bmm(left, self._a, out=squares)
        torch.baddbmm(squares, left, self._flat(c), beta=-1, out=crosses)
        if not others:
            out.copy_(first)
        for k, block in enumerate(others):
            torch.add(out if k else first, block, out=out)

    def add_product_(self, y: Tensor, m: Tensor, alpha: float = 1.0) -> None:
        """Adds alpha a m to `y` (*batch, n, r), in place, for m (*batch, r, r)."""
        m = m.reshape(-1, self._size, self._size)
        if self._turned and y.mT.is_contiguous():
            y.mT.view(self._transpose.shape).baddbmm_(m.mT, self._transpose, alpha=alpha)
        elif not self._turned and y.is_contiguous():
            y.view(self._folded).baddbmm_(self._a, self._on_diagonal(m), alpha=alpha)
        else:
            y.add_(torch.bmm(self._a, self._on_diagonal(m)).reshape(y.shape), alpha=alpha)

    def _flat(self, c: Tensor) -> Tensor:
        return c.mT.reshape(self._transpose.shape).mT if self._turned else c.reshape(self._folded)

    def _on_diagonal(self, m: Tensor) -> Tensor:
        """m (k, r, r), as often as rows are read as one."""
        if len(self._blocks) == 1:
            return m
        whole, blocks = self._diagonal
        for block in blocks:
            block.copy_(m)
        return whole

    # ------------------------------------------------------------------------------------------------ memory

    @cached_property
    def _grams(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Memory for Gram matrices, and the blocks on their diagonals (2, *batch, r, r)."""
        both = self._memory.room("grams", (2, self._folded[0], self._folded[2], self._folded[2]), self._a)
        blocks = [both[:, :, k, k].view(2, *self._batch, self._size, self._size) for k in self._blocks]
        return both[0], both[1], blocks

    @cached_property
    def _diagonal(self) -> tuple[Tensor, list[Tensor]]:
        """Memory for matrices that are zero but for the blocks on their diagonals."""
        whole = self._memory.room("diagonal", (self._folded[0], self._folded[2], self._folded[2]), self._a).zero_()
        return whole, [whole[:, k, k] for k in self._blocks]

    @cached_property
    def _weighted(self) -> tuple[Tensor, Tensor]:
        """Memory for W a, as rows (k, n, r) and as what `_transpose` is for a."""
        if self._turned:
            transpose = self._memory.room("weighted", tuple(self._transpose.shape), self._a)
            return transpose.mT, transpose
        room = self._memory.room("weighted", tuple(self._rows.shape), self._a)
        return room, room.view(self._folded).mT


def _fold(rows: int, columns: int) -> int:
    """How many rows of a matrix (rows, columns) are read as one."""
    fold = 1
    while 2 * fold <= _MOST and rows % (2 * fold) == 0 and 2 * fold * columns <= _WIDTH:
        fold *= 2
    return fold
