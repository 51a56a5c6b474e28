"""The finite part of a gauge: moves that no flow reaches. Signs, exchanges, reflections, inversions, and second solutions.

Coordinates that play the same part in a model have equal derivatives at points where all coordinates are equal; that gives
the units (hidden units, components, columns) whose exchanges and signs are tried without a list of all permutations.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import scipy  # its submodules load on first use
import torch
from torch import Tensor

from manifoldid.diagnose.diagnosis import DiscreteSymmetry
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.generated import affine_matrices
from manifoldid.diagnose.labels import Labels
from manifoldid.diagnose.moves import relative_change
from manifoldid.diagnose.probe import Probe
from manifoldid.points import Point, blocks_of, flatten, unflatten

_SAME = 1e-9
_MOST_TRIES = 700
_MOST_FOUND = 24
_STARTS = 24
_STALLED = 10  # steps along an orbit without getting nearer to the target

Move = Callable[[Tensor], Tensor]


@dataclass
class _Finder:
    """Collects finite symmetries that are independent of the flows and of each other."""

    probe: Probe
    fields: list[Field]
    points: list[Tensor]
    labels: Labels
    positive: Tensor  # (n,) coordinates that `sample` only draws positive
    found: list[DiscreteSymmetry] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    tries: int = 0

    def __post_init__(self) -> None:
        self.before = [self.probe.values(x) for x in self.points]
        self._matrices = affine_matrices(self.fields)

    def error(self, move: Move) -> float:
        """Largest relative change of predictions under a move."""
        self.tries += 1
        worst = 0.0
        for x, before in zip(self.points, self.before, strict=True):
            y = move(x)
            if not bool(torch.isfinite(y).all()):
                return float("inf")
            worst = max(worst, relative_change(before, self.probe.values(y)))
            if worst > _SAME:
                return worst
        return worst

    def offer(self, name: str, text: str, move: Move) -> bool:
        """Adds a move if predictions do not see it and neither flows nor known moves make it."""
        if self.tries > _MOST_TRIES or len(self.found) >= _MOST_FOUND:
            return False
        if not self.allows(self.points[0], move(self.points[0])):
            return False
        error = self.error(move)
        if not error <= _SAME or self._known(move):
            return False

        first_block = next(iter(blocks_of(self.probe.like)))
        event_ndim = blocks_of(self.probe.like)[first_block].ndim

        def on_points(x: Point) -> Point:
            ndim = blocks_of(x)[first_block].ndim - event_ndim
            return unflatten(move(flatten(x, ndim)), x, ndim)

        self.found.append(DiscreteSymmetry(name, text, on_points, error))
        self.moves.append(move)
        return True

    def allows(self, x: Tensor, y: Tensor) -> bool:
        """Whether y stays in the domain: it does not when all that changes sign are numbers that `sample` only draws positive."""
        turned = torch.sign(y) != torch.sign(x)
        return not bool((turned & self.positive).any()) or bool((turned & ~self.positive).any())

    def _known(self, move: Move) -> bool:
        x = self.points[0]
        words: list[Move] = [lambda v: v, *self.moves]
        target = move(x)
        starts = [word(x) for word in words]
        if self._signs_of(move) is not None and self._product_of_signs(move):
            return True
        pairs = itertools.product(self.moves, repeat=2) if len(self.moves) <= 10 else ()
        if any(_close(start, target) for start in starts) or any(_close(b(a(x)), target) for a, b in pairs):
            return True
        if not self.fields:
            return False
        return any(self._reaches(word, move) for word in words[:4])

    def _signs_of(self, move: Move) -> np.ndarray | None:
        """Which coordinates a change of signs turns; None for other moves."""
        x = self.points[0]
        y = move(x)
        return (y != x).numpy() if bool((y.abs() == x.abs()).all()) else None

    def _product_of_signs(self, move: Move) -> bool:
        """Whether known changes of signs combine to this one: elimination over two elements."""
        known = [s for s in map(self._signs_of, self.moves) if s is not None]
        return _rank_mod_2([*known, self._signs_of(move)]) == _rank_mod_2(known)

    def _reaches(self, word: Move, move: Move) -> bool:
        """Whether flows carry word(x) to move(x): Gauss-Newton steps along the orbit, from a few places on it.

        The same flows have to do it at a second point; where fields are constant (a parameter that nothing sees) or have
        stabilisers, reaching the first is enough.
        """
        if len(self.fields) > 40 or not all(f.closed_form for f in self.fields):
            return False
        start, target = (m(self.points[0]) for m in (word, move))
        scale = target.abs().clamp_min(1e-6)
        velocities = self._velocities(start)
        if bool(((start - target).abs() > 1e-9 * scale)[velocities.abs().sum(0) == 0].any()):
            return False
        steps = self._path(start, target, scale)
        if steps is None:
            return False
        constant = all(isinstance(f, ClosedField) and f.is_affine and not len(f.rows) for f in self.fields)
        if constant or int(torch.linalg.matrix_rank(velocities)) < len(self.fields) or len(self.points) < 2:
            return True
        y, end = (m(self.points[1]) for m in (word, move))
        for step in steps:
            y = self._flow(y, step)
        return bool(((y - end).abs() < 1e-6 * end.abs().clamp_min(1e-6)).all())

    def _path(self, start: Tensor, target: Tensor, scale: Tensor) -> list[Tensor] | None:
        """Times of flows that carry one point to another; None if none are found."""
        generator = torch.Generator().manual_seed(0)
        for attempt in range(4):
            y, steps, rest = start, [], []
            if attempt:
                steps.append(torch.randn(len(self.fields), generator=generator, dtype=torch.float64))
                y = self._flow(y, steps[-1])
            for _ in range(40):
                velocities = self._velocities(y).mT
                if not bool(torch.isfinite(velocities).all()):
                    break
                step = torch.linalg.pinv(velocities / scale[:, None], rtol=1e-10) @ ((target - y) / scale)
                steps.append(step * min(1.0, 0.7 / max(float(step.abs().max()), 1e-300)))
                y = self._flow(y, steps[-1])
                rest.append(float(((y - target) / scale).abs().max()))
                if rest[-1] < 1e-8:
                    return steps
                if float(step.abs().max()) < 1e-10 or (len(rest) > _STALLED and rest[-1] > 0.5 * rest[-1 - _STALLED]):
                    break
        return None

    def _velocities(self, x: Tensor) -> Tensor:
        """Values (k, n) of the fields at a flat point."""
        if self._matrices is not None:
            return (self._matrices @ torch.cat([x, x.new_ones(1)]))[:, :-1]
        return torch.stack([f(x) for f in self.fields])

    def _flow(self, x: Tensor, times: Tensor) -> Tensor:
        if self._matrices is not None:
            matrix = torch.einsum("k,kab->ab", times, self._matrices)
            return (torch.linalg.matrix_exp(matrix) @ torch.cat([x, x.new_ones(1)]))[:-1]
        for f, t in zip(self.fields, times, strict=True):
            x = f.flow(x, t)
        return x


def _rank_mod_2(rows: list[np.ndarray]) -> int:
    rank, rows = 0, [row.copy() for row in rows]
    while rows:
        pivot = rows.pop()
        if pivot.any():
            rank += 1
            lead = int(pivot.argmax())
            rows = [row ^ pivot if row[lead] else row for row in rows]
    return rank


def find_discrete(
    probe: Probe, fields: list[Field], points: list[Tensor], labels: Labels, solve: bool
) -> tuple[DiscreteSymmetry, ...]:
    """Finite symmetries of a model.

    Args:
        probe: The model.
        fields: The generators of its gauge.
        points: Flat generic points at which moves are tried.
        labels: Names of the coordinates.
        solve: Whether to look for further solutions of predict(y) = predict(x), for up to five parameters.

    Returns:
        Generators of the finite part, as far as they were found.
    """
    drawn = torch.stack([*points, *(probe.draw() for _ in range(3))])
    positive = (drawn > 0).all(0) if probe.sampled else torch.zeros(probe.size, dtype=torch.bool)
    finder = _Finder(probe, fields, points[:2], labels, positive)
    units = _units(probe, points[0])
    for name, text, move in itertools.chain(
        _signs(probe, units, labels), _exchanges(probe, units, labels), _elementwise(probe)
    ):
        finder.offer(name, text, move)
    if solve and not fields and probe.size <= 5:
        _second_solutions(finder)
    return tuple(finder.found)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-9 * (a.abs() + b.abs() + 1e-12)).all())


# ---------------------------------------------------------------------------------------------------- candidates


def _units(probe: Probe, x: Tensor) -> list[list[int]]:
    """Sets of coordinates that may be exchanged as wholes: the r-th members of all classes of alike coordinates."""
    if probe.size > 400:
        return []
    equal = torch.full_like(x, float(x.abs().median()))
    for start, stop in probe.spans().values():
        equal[start:stop] = float(x[start:stop].abs().median())
    try:
        _, jacobian = probe.jacobian(equal)
    except (ValueError, RuntimeError):
        return []
    if not bool(torch.isfinite(jacobian).all()):
        return []
    size = jacobian.norm()
    classes: list[list[int]] = []
    for i in range(probe.size):
        home = next(
            (c for c in classes if float((jacobian[:, i] - jacobian[:, c[0]]).norm()) <= 1e-10 * float(size)), None
        )
        if home is None or probe_block(probe, i) != probe_block(probe, home[0]):
            classes.append([i])
        else:
            home.append(i)
    counts = [len(c) for c in classes if len(c) > 1]
    found = []
    for count in sorted(set(counts)):
        alike = [c for c in classes if len(c) == count]
        found += [[c[r] for c in alike] for r in range(count)]
        if len(alike) > 1 and len(alike) <= 6:
            found += [[c[r]] for c in alike for r in range(count)]
    return found


def probe_block(probe: Probe, index: int) -> str:
    """The block of a coordinate."""
    return next(name for name, (start, stop) in probe.spans().items() if start <= index < stop)


def _signs(probe: Probe, units: list[list[int]], labels: Labels) -> Iterator[tuple[str, str, Move]]:
    n = probe.size
    sets: list[tuple[int, ...]] = [(i,) for i in range(n)] if n <= 60 else []
    if n <= 7:
        sets += [s for k in range(2, n + 1) for s in itertools.combinations(range(n), k)]
    sets += [tuple(unit) for unit in units]
    for unit in units:
        if 2 < len(unit) <= 5:
            sets += [s for k in range(2, len(unit)) for s in itertools.combinations(unit, k)]
    spans = list(probe.spans().values())
    for k in range(1, min(len(spans), 4) + 1):
        for chosen in itertools.combinations(spans, k) if len(spans) <= 6 else ():
            sets.append(tuple(i for start, stop in chosen for i in range(start, stop)))
    sets.append(tuple(range(n)))
    for shape in _matrix_shapes(probe):
        place = torch.arange(n).reshape(shape) if shape[0] * shape[1] == n else None
        if place is not None:
            sets += [tuple(column.tolist()) for column in place.mT] + [tuple(row.tolist()) for row in place]
    for chosen in dict.fromkeys(tuple(sorted(s)) for s in sets):
        signs = torch.ones(n, dtype=torch.float64)
        signs[list(chosen)] = -1.0
        text = _named(chosen, labels)
        yield "sign", f"{text} -> -{text}" if "," not in text else f"({text}) -> -({text})", _multiply(signs)


def _multiply(signs: Tensor) -> Move:
    return lambda x: x * signs.to(x)


def _matrix_shapes(probe: Probe) -> list[tuple[int, int]]:
    n = probe.size
    return [(n // k, k) for k in range(2, min(n // 2, 6) + 1) if n % k == 0]


def _exchanges(probe: Probe, units: list[list[int]], labels: Labels) -> Iterator[tuple[str, str, Move]]:
    n = probe.size
    for i, j in itertools.combinations(range(n), 2) if n <= 12 else ():
        yield "exchange", f"{labels.name(i)} <-> {labels.name(j)}", _permute(n, [(i, j)])
    long = [unit for unit in units if len(unit) > 1]
    for a, b in itertools.pairwise(long):
        if len(a) == len(b):
            text = f"({_named(a, labels)}) <-> ({_named(b, labels)})"
            yield "exchange of units", text, _permute(n, list(zip(a, b, strict=True)))
    for rows, columns in _matrix_shapes(probe):
        place = torch.arange(n).reshape(rows, columns)
        for table, kind in ((place, "rows"), (place.mT, "columns")):
            for a, b in itertools.pairwise(table.tolist()):
                text = f"({_named(a, labels)}) <-> ({_named(b, labels)})"
                yield f"exchange of {kind}", text, _permute(n, list(zip(a, b, strict=True)))
    if 2 <= n <= 4:
        for order in itertools.permutations(range(n)):
            for signs in itertools.product((1.0, -1.0), repeat=n):
                if min(signs) < 0 and list(order) != list(range(n)):
                    text = ", ".join(("-" if s < 0 else "") + labels.name(o) for o, s in zip(order, signs, strict=True))
                    yield "signed exchange", f"x -> ({text})", _signed(order, signs)


def _signed(order: tuple[int, ...], signs: tuple[float, ...]) -> Move:
    index, factors = torch.tensor(order), torch.tensor(signs, dtype=torch.float64)
    return lambda x: x[..., index] * factors.to(x)


def _permute(n: int, swaps: list[tuple[int, int]]) -> Move:
    index = torch.arange(n)
    for i, j in swaps:
        index[i], index[j] = j, i
    return lambda x: x[..., index]


def _elementwise(probe: Probe) -> Iterator[tuple[str, str, Move]]:
    for name, (start, stop) in probe.spans().items():
        inside = torch.zeros(probe.size, dtype=torch.bool)
        inside[start:stop] = True
        label = name or "x"
        yield "inversion", f"{label} -> 1/{label}", _where(inside, torch.reciprocal)
        yield "complement", f"{label} -> 1 - {label}", _where(inside, lambda x: 1 - x)


def _where(inside: Tensor, function: Move) -> Move:
    return lambda x: torch.where(inside, function(x), x)


def _named(chosen: list[int] | tuple[int, ...], labels: Labels) -> str:
    by_block: dict[str, list[int]] = {}
    for i in sorted(chosen):
        by_block.setdefault(labels.block_of(i), []).append(i)
    return ", ".join(labels.listed(indices) for indices in by_block.values())


# ---------------------------------------------------------------------------------------------------- second solutions


def _second_solutions(finder: _Finder) -> None:
    """Solutions y != x of predict(y) = predict(x) that known moves do not make, by least squares from many starts."""
    probe, x = finder.probe, finder.points[0]
    starts = [probe.draw() for _ in range(_STARTS // 2)] + [_mutated(probe, x) for _ in range(_STARTS)]
    starts += _wide(probe, x)
    known = [x, *(move(x) for move in finder.moves)]
    for y in solutions(probe, x, starts, finder.allows):
        if any(_alike(y, k) for k in known):
            continue
        known.append(y)
        affine = _affine_exchange(finder, x, y)
        if affine is not None and finder.offer(*affine):
            continue
        before, after = (", ".join(f"{float(v):.4g}" for v in p) for p in (x, y))
        finder.offer(
            "second solution", f"not an exchange: ({before}) -> ({after})", _solver(probe, starts, finder.allows)
        )


def _mutated(probe: Probe, x: Tensor) -> Tensor:
    """Two coordinates exchanged at random, twice, with random complements 1 - x of those in (0, 1)."""
    y = x.clone()
    for i, j in torch.randint(len(x), (2, 2), generator=probe.generator).tolist():
        y[[i, j]] = y[[j, i]]
    coins = torch.rand(len(x), generator=probe.generator)
    y = torch.where((coins < 0.5) & (y > 0) & (y < 1), 1 - y, y)
    return y * torch.exp(0.05 * torch.randn(len(x), generator=probe.generator, dtype=torch.float64))


def _wide(probe: Probe, x: Tensor) -> list[Tensor]:
    """Each number times a factor between 1/e^2 and e^2 or so."""
    draws = torch.randn(_STARTS // 2, len(x), generator=probe.generator, dtype=torch.float64)
    return list(x * torch.exp(draws))


def solutions(probe: Probe, x: Tensor, starts: list[Tensor], allowed: Callable[[Tensor, Tensor], bool]) -> list[Tensor]:
    """Distinct solutions y of predict(y) = predict(x) that the domain allows."""
    target = probe.values(x)
    scale = float(target.abs().max().clamp_min(1e-300))

    def residual(u: np.ndarray) -> np.ndarray:
        rest = (probe.values(torch.from_numpy(u)) - target) / scale
        return torch.nan_to_num(rest, nan=1e3, posinf=1e3, neginf=-1e3).numpy()

    def slope(u: np.ndarray) -> np.ndarray:
        jacobian = probe.full_jacobian(torch.from_numpy(u), 10**7)
        return torch.nan_to_num(jacobian / scale, nan=0.0, posinf=0.0, neginf=0.0).numpy()

    found: list[Tensor] = []
    for start in starts:
        fit = scipy.optimize.least_squares(
            residual, start.numpy(), jac=slope, max_nfev=30, xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        y = torch.from_numpy(fit.x)
        if np.abs(fit.fun).max() < 1e-10 and allowed(x, y) and not any(_alike(y, k) for k in found):
            found.append(y)
    return found


def _alike(y: Tensor, k: Tensor) -> bool:
    return float((y - k).abs().max()) < 1e-5 * float(k.abs().max())


def _solver(probe: Probe, starts: list[Tensor], allowed: Callable[[Tensor, Tensor], bool]) -> Move:
    """x -> the solution farthest from x."""

    def move(x: Tensor) -> Tensor:
        if x.ndim > 1:
            return torch.stack([move(row) for row in x.flatten(0, -2)]).reshape(x.shape)
        found = [y for y in solutions(probe, x, [*starts, *_wide(probe, x)], allowed) if not _alike(y, x)]
        return max(found, key=lambda y: float((y - x).norm())) if found else x

    return move


def _affine_exchange(finder: _Finder, x: Tensor, y: Tensor) -> tuple[str, str, Move] | None:
    """y as an exchange of x in which some coordinates become 1 - x or -x."""
    index, factors, shifts, words = [], [], [], []
    for value in y.tolist():
        for j, other in enumerate(x.tolist()):
            name = finder.labels.name(j)
            options = ((1.0, 0.0, name), (-1.0, 1.0, f"1 - {name}"), (-1.0, 0.0, f"-{name}"))
            match = next((o for o in options if abs(o[0] * other + o[1] - value) < 1e-6 * (abs(value) + 1e-3)), None)
            if match is not None and j not in index:
                index.append(j), factors.append(match[0]), shifts.append(match[1]), words.append(match[2])
                break
        else:
            return None
    place, f, s = (
        torch.tensor(index),
        torch.tensor(factors, dtype=torch.float64),
        torch.tensor(shifts, dtype=torch.float64),
    )
    return "exchange", f"x -> ({', '.join(words)})", lambda v: v[..., place] * f.to(v) + s.to(v)
