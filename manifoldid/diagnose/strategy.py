"""Which families of candidates are tried, in which order."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from manifoldid.diagnose.fields import ClosedField
from manifoldid.diagnose.functions import CONSTANT, IDENTITY, LIBRARY, ScalarFunction
from manifoldid.diagnose.generators import Search
from manifoldid.diagnose.libraries import (
    AffineMaps,
    Family,
    LogLinear,
    Operators,
    Pointwise,
    Polynomials,
    Waves,
    row_maps,
)
from manifoldid.points import Point, blocks_of

_MOST_CANDIDATES = 1100  # of one dense family: a second of linear algebra
_PAIRS = 40  # coordinates up to which pairs of functions are tried
_SCREEN = 1e-8  # eigenvalues are squares of singular values; rounding is at 1e-12
_AXIS = 32  # matrices along longer axes are not searched


def search_closed_forms(search: Search, like: Point) -> None:
    """Fills `search` with the simplest fields that span the null space, as far as closed forms are found."""
    if search.dim == 0:
        return
    search.add_constants()
    if not search.complete:
        search.add_along_axes(like)
    for family in _families(search, like):
        if search.complete:
            return
        found = list(search.fields)
        search.add_from(family)
        if isinstance(family, Operators) and family.all_or_nothing and not search.complete:
            search.fields[:] = found  # a guess at the layout that explains only a part is no layout


def _families(search: Search, like: Point) -> Iterator[Family]:
    n = search.nulls.probe.size
    points = torch.stack([p.x for p in search.nulls.regular(4)])
    yield Pointwise(n, (IDENTITY,))
    if 2 * n <= _MOST_CANDIDATES:
        yield Pointwise(n, (CONSTANT, IDENTITY))
    yield from structured_families(like, n)
    if n + n * n <= _MOST_CANDIDATES:
        yield AffineMaps(n)
    usable = [f for f in LIBRARY if f.level > 1 and f.defined(points)]
    if n <= _MOST_CANDIDATES:
        for function in usable:
            yield Pointwise(n, (function,))
    yield from _small(n, points)
    if n <= _PAIRS:
        yield from promising_pairs(search, [CONSTANT, IDENTITY, *usable])


def _small(n: int, points: Tensor) -> Iterator[Family]:
    """Polynomials, of few coordinates."""
    positive = not bool((points == 0).any())
    if n <= 10:
        yield Polynomials(n, 2)
    if n <= 10 and positive:
        yield LogLinear(n)
    if n <= 10:
        yield Waves(n)
    if n <= 4 and positive:
        yield Polynomials(n, 2, logs=True)
    if n <= 6:
        yield Polynomials(n, 3)


def promising_pairs(search: Search, functions: list[ScalarFunction]) -> Iterator[Family]:
    """Pairs of scalar functions, each with its own coefficient per coordinate, that pass a cheap look at all pairs at once.

    The look squares condition numbers (Gram matrices), so that it only screens; the search itself does not.

    Yields:
        One family per pair that is left.
    """
    n = search.nulls.probe.size
    points = search.nulls.regular(-(-2 * n // max(search.nulls.rank, 1)) + 4)
    values = torch.stack([torch.stack([f.value(p.x) for f in functions]) for p in points])  # (K, functions, n)
    finite = torch.isfinite(values).all(0).all(1)
    functions = [f for f, ok in zip(functions, finite.tolist(), strict=True) if ok]
    values = values[:, finite] / values[:, finite].square().mean(0).sqrt()
    seen = torch.stack([p.seen for p in points])  # (K, r, n)
    blocks = (seen[:, :, None, :] * values[:, None]).flatten(0, 1).flatten(1)  # (K r, functions * n)
    gram = (blocks.mT @ blocks).reshape(len(functions), n, len(functions), n)
    inner = torch.einsum("kfn,kgn->fgn", values, values)
    pairs = [p for p in itertools.combinations(range(len(functions)), 2) if p != (0, 1)]
    for chunk in torch.tensor(pairs).split(64):
        screened = _smallest(gram, inner, chunk)
        for (f, g), value in zip(chunk.tolist(), screened.tolist(), strict=True):
            if value < _SCREEN:
                yield Pointwise(n, (functions[f], functions[g]))


def _smallest(gram: Tensor, inner: Tensor, pairs: Tensor) -> Tensor:
    """Smallest generalised eigenvalue of what is seen against the fields themselves, for each pair of functions."""
    n = gram.shape[1]
    a = torch.stack(
        [
            torch.cat([torch.cat([gram[f, :, f], gram[f, :, g]], 1), torch.cat([gram[g, :, f], gram[g, :, g]], 1)])
            for f, g in pairs.tolist()
        ]
    )
    # Gram-Schmidt of the two functions, coordinate by coordinate
    own = inner[pairs[:, 0], pairs[:, 0]]
    slope = inner[pairs[:, 0], pairs[:, 1]] / own
    rest = (inner[pairs[:, 1], pairs[:, 1]] - slope * inner[pairs[:, 0], pairs[:, 1]]).clamp_min(1e-12 * own)
    whiten = torch.zeros_like(a)
    index = torch.arange(n)
    whiten[:, index, index] = own.rsqrt()
    whiten[:, index, n + index] = -slope * rest.rsqrt()
    whiten[:, n + index, n + index] = rest.rsqrt()
    return torch.linalg.eigvalsh(whiten.mT @ a @ whiten)[:, 0]


def structured_families(like: Point, n: int) -> Iterator[Operators]:
    """Maps of rows and columns: of the blocks of a dict, and of every matrix that a flat vector of length n may be."""
    yield from block_families(like, n)
    yield from layout_guesses(like, n)


def block_families(like: Point, n: int) -> Iterator[Operators]:
    """Constants, scalings, and maps of rows and columns of the blocks of a point."""
    blocks, members, start = blocks_of(like), [], 0
    axes = {size for t in blocks.values() if t.ndim > 1 for size in (t.shape[0], t.shape[-1])}
    for t in blocks.values():
        shape = tuple(t.shape) if not t.is_complex() else (*t.shape, 2)
        members += _block_maps(shape, start, n, axes)
        start += t.numel() * (2 if t.is_complex() else 1)
    if members and len(members) <= _MOST_CANDIDATES:
        yield Operators(n, tuple(members), "maps of rows and columns of the blocks")


def layout_guesses(like: Point, n: int) -> Iterator[Operators]:
    """Maps of rows of every matrix that a flat vector may be, of one matrix or of two one after the other."""
    blocks = blocks_of(like)
    if len(blocks) != 1 or next(iter(blocks.values())).ndim > 1:
        return
    guess = n + n * n <= _MOST_CANDIDATES  # all linear maps come next
    for k in range(2, min(n // 2, 8) + 1):
        if n % k == 0:
            yield Operators(n, tuple(row_maps(n, n // k, k)), f"maps of rows of length {k}", guess)
            if n % (2 * k) == 0 and not guess:
                halves = row_maps(n, n // 2 // k, k, 0, n) + row_maps(n, n // 2 // k, k, n // 2, n)
                yield Operators(n, tuple(halves), f"maps of rows of length {k} in either half")
            if k != n // k and n // k <= 4 * _AXIS:
                yield Operators(n, tuple(row_maps(n, k, n // k, along="rows")), f"maps of {k} rows", guess)


def _block_maps(shape: tuple[int, ...], start: int, total: int, axes: set[int]) -> list[ClosedField]:
    numel = int(torch.tensor(shape).prod()) if shape else 1
    if len(shape) == 1 and numel in axes and numel <= _AXIS:
        return row_maps(total, 1, numel, start, total)  # the bias of a layer goes with the rows of its weight
    if len(shape) < 2:
        place = start + torch.arange(numel)
        constant = torch.zeros(total, dtype=torch.float64)
        constant[place] = 1.0
        return [
            ClosedField(total, constant),
            ClosedField(total, None, place, place, torch.ones(numel, dtype=torch.float64)),
        ]
    found: list[ClosedField] = []
    last, head = shape[-1], numel // shape[-1]
    if last <= _AXIS:
        found += row_maps(total, head, last, start, total)
    first, tail = shape[0], numel // shape[0]
    if first <= _AXIS:
        found += row_maps(total, first, tail, start, total, along="rows")
    return found
