"""Products of batches of thin matrices (*batch, n, r), r small: the factors that GL(r) acts on.

Libraries multiply matrices of 8 columns at half the speed of those of 16. Where memory allows it, a few rows are therefore read
as one: (n, r) is (n / k, k r) without a copy. The product a'b of folded matrices has k x k blocks, of which those on the
diagonal add up to the one that is asked for.
"""

import torch
from torch import Tensor

_WIDTH = 16  # columns of a folded matrix; 8 and 32 are slower (measured, as all of this, for benchmarks/optim.py)
_MOST = 4  # rows read as one


def gram(a: Tensor, b: Tensor) -> Tensor:
    """a'b (*batch, r, r) for a, b (*batch, n, r)."""
    fold, size = _fold(a, b), a.shape[-1]
    product = _folded(a, fold).mT @ _folded(b, fold)
    total = product[..., :size, :size]
    for k in range(size, fold * size, size):
        total = total + product[..., k : k + size, k : k + size]
    return total


def add_product_(y: Tensor, a: Tensor, m: Tensor) -> Tensor:
    """y + a m in the memory of `y` (*batch, n, r), for a (*batch, n, r) and m (*batch, r, r)."""
    fold = _fold(y, a)
    folded, factor, m = _folded(y, fold), _folded(a, fold), _diagonal(m, fold)
    if y.ndim == 3:
        folded.baddbmm_(factor, m)
    else:
        folded.add_(factor @ m)
    return y


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
    """The block diagonal matrix with `fold` times `m`; built by joining, which is the cheapest way for small ones."""
    if fold == 1:
        return m
    zero = torch.zeros_like(m)
    rows = [torch.cat([m if i == j else zero for j in range(fold)], dim=-1) for i in range(fold)]
    return torch.cat(rows, dim=-2)
