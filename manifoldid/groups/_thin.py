"""Products of batches of thin matrices (*batch, n, r), r small: the factors that GL(r) acts on.

Libraries multiply matrices of 8 columns at half the speed of those of 16, and this is what a step attached to GL(r) consists of.
Measured, as all of this, by benchmarks/optim.py.
"""

import torch
from torch import Tensor

_WIDTH = 16  # columns of a folded matrix; 8 and 32 are slower
_MOST = 4  # rows read as one
_PIECE = 1 << 17  # numbers of a piece that is copied to be multiplied: 512 KiB in float32, about a second-level cache


def grams(a: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """a'a and a'c, both (*batch, r, r), for a, c (*batch, n, r).

    By one product with a and c side by side where that is a copy that stays in the cache.
    """
    (rows, size), batch = a.shape[-2:], a.shape[:-2]
    if a.device.type != "cpu" or rows * size > _PIECE:
        return a.mT @ a, a.mT @ c
    count = _PIECE // max(1, rows * size)
    pairs = zip(*(t.reshape(-1, rows, size).split(count) for t in (a, c)), strict=True)
    if _transposed(a):
        products = [x.mT @ torch.cat([x.mT, y.mT], dim=-2).mT for x, y in pairs]
    else:
        products = [x.mT @ torch.cat([x, y], dim=-1) for x, y in pairs]
    both = torch.cat(products).view(*batch, size, 2 * size)
    return both[..., :size], both[..., size:]


def add_product_(y: Tensor, a: Tensor, m: Tensor) -> Tensor:
    """y + a m in the memory of `y` (*batch, n, r), for a (*batch, n, r) and m (*batch, r, r).

    Where memory allows it, a few rows are read as one: (n, r) is (n / k, k r) without a copy, and m is k times on a diagonal.
    """
    if _transposed(y) and _transposed(a):
        _add(y.mT, m.mT, a.mT)
    else:
        fold = _fold(y, a)
        _add(_folded(y, fold), _folded(a, fold), _diagonal(m, fold))
    return y


def _add(y: Tensor, a: Tensor, b: Tensor) -> None:
    if y.ndim == 3:
        y.baddbmm_(a, b)
    else:
        y.add_(a @ b)


def _transposed(x: Tensor) -> bool:
    """Whether the rank comes first in memory, as in PEFT's lora_A."""
    return x.mT.is_contiguous() and not x.is_contiguous()


def _fold(a: Tensor, b: Tensor) -> int:
    """How many rows of two matrices, of equal shape, are read as one."""
    (rows, columns), fold = a.shape[-2:], 1
    if not (a.is_contiguous() and b.is_contiguous()):
        return 1
    while 2 * fold <= _MOST and rows % (2 * fold) == 0 and 2 * fold * columns <= _WIDTH:
        fold *= 2
    return fold


def _folded(x: Tensor, fold: int) -> Tensor:
    return x if fold == 1 else x.view(*x.shape[:-2], x.shape[-2] // fold, fold * x.shape[-1])


def _diagonal(m: Tensor, fold: int) -> Tensor:
    """The block diagonal matrix with `fold` times `m`."""
    if fold == 1:
        return m
    size = m.shape[-1]
    blocks = m.new_zeros(*m.shape[:-2], fold * size, fold * size)
    for k in range(0, fold * size, size):
        blocks[..., k : k + size, k : k + size] = m
    return blocks
