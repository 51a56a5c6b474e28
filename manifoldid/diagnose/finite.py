"""The finite part of a gauge: moves that no flow reaches. Signs, exchanges, reflections, inversions, and second solutions.

Coordinates that play the same part in a model have equal derivatives at points where all coordinates are equal; that gives
the units (hidden units, components, columns) whose exchanges and signs are tried without a list of all permutations.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from manifoldid.diagnose.axes import views_of
from manifoldid.diagnose.diagnosis import DiscreteSymmetry
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.finder import Finder, Move
from manifoldid.diagnose.labels import Labels
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.second import second_solutions

_LONGEST_AXIS, _MOST_AXES = 12, 6  # of which members are exchanged


def find_discrete(
    probe: Probe, fields: list[Field], points: list[Tensor], labels: Labels, bases: list[Tensor]
) -> tuple[tuple[DiscreteSymmetry, ...], int]:
    """Finite symmetries of a model.

    Args:
        probe: The model.
        fields: The generators of its gauge.
        points: Flat generic points at which moves are tried.
        labels: Names of the coordinates.
        bases: Flat regular points y at which further solutions of predict(y') = predict(y) are looked for, if unknowns are few.

    Returns:
        Generators of the finite part, as far as they were found, and from how many starts second solutions were looked for.
    """
    drawn = torch.stack([*points, *(probe.draw() for _ in range(3))])
    positive = (drawn > 0).all(0) if probe.sampled else torch.zeros(probe.size, dtype=torch.bool)
    finder = Finder(probe, fields, points[:2], labels, positive)
    units = _units(probe, points[0], labels)
    finder.offer_all(
        itertools.chain(
            _signs(probe, units, labels),
            _exchanges(probe, units, labels),
            _elementwise(probe),
            () if any(_mixes(f) for f in fields) else _members(probe, labels),
        )
    )
    _offer_turns(finder)
    starts = second_solutions(finder, bases) if bases else 0
    return tuple(finder.found), starts


# ---------------------------------------------------------------------------------------------------- candidates


def _units(probe: Probe, x: Tensor, labels: Labels) -> list[list[int]]:
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
        if home is None or labels.block_of(i) != labels.block_of(home[0]):
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
        text = labels.listed_by_block(chosen)
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
            text = f"({labels.listed_by_block(a)}) <-> ({labels.listed_by_block(b)})"
            yield "exchange of units", text, _permute(n, list(zip(a, b, strict=True)))
    for rows, columns in _matrix_shapes(probe):
        place = torch.arange(n).reshape(rows, columns)
        for table, kind in ((place, "rows"), (place.mT, "columns")):
            for a, b in itertools.pairwise(table.tolist()):
                text = f"({labels.listed_by_block(a)}) <-> ({labels.listed_by_block(b)})"
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
    return _taken(index)


def _mixes(field: Field) -> bool:
    """Whether a field moves coordinates by others; then what exchanges and turns members of an axis is most likely of its kind."""
    return isinstance(field, ClosedField) and not field.is_diagonal


def _members(probe: Probe, labels: Labels) -> Iterator[tuple[str, str, Move]]:
    """Signs, and exchanges of neighbours, along several axes of one length, of which a tensor may have two: recurrent units."""
    lengths = {r: views for (heads, r), views in views_of(probe.like).items() if heads == 1 and r > 1}
    for r, views in lengths.items():
        sets = [s for k in range(len(views), 1, -1) for s in itertools.combinations(views, k)]
        if r > _LONGEST_AXIS or len(views) > _MOST_AXES:
            continue
        for chosen, i in itertools.product(sets, range(r)):
            signs = torch.ones(probe.size, dtype=torch.float64)
            for view in chosen:
                signs[view.places[0, :, i]] *= -1
            names = [f"{labels.of(v.block)}[{':, ' * v.axis}{i}]" for v in chosen]
            yield "sign", f"({', '.join(names)}) -> -({', '.join(names)})", _multiply(signs)
            if i + 1 == r:
                continue
            place, texts = torch.arange(probe.size), []
            for view in chosen:
                left, right = view.places[0, :, i], view.places[0, :, i + 1]
                place[left], place[right] = place[right], place[left]
                before = f"{labels.of(view.block)}[{':, ' * view.axis}"
                texts.append(f"{before}{i}] <-> {before}{i + 1}]")
            yield "exchange of units", ", ".join(texts), _taken(place)


def _taken(place: Tensor) -> Move:
    return lambda x: x[..., place]


def _elementwise(probe: Probe) -> Iterator[tuple[str, str, Move]]:
    spans = probe.spans()
    for k in range(1, min(len(spans), 3) + 1):
        for names in itertools.combinations(spans, k) if len(spans) <= 6 else ():
            inside = torch.zeros(probe.size, dtype=torch.bool)
            for name in names:
                inside[slice(*spans[name])] = True
            written = [name or "x" for name in names]
            yield "inversion", ", ".join(f"{n} -> 1/{n}" for n in written), _where(inside, torch.reciprocal)
            yield "complement", ", ".join(f"{n} -> 1 - {n}" for n in written), _where(inside, lambda x: 1 - x)


def _offer_turns(finder: Finder) -> None:
    """Half and whole turns of single angles."""
    n = finder.probe.size
    for i, (period, text) in itertools.product(range(n) if n <= 12 else (), ((math.pi, "pi"), (2 * math.pi, "2 pi"))):
        turn = torch.zeros(n, dtype=torch.float64)
        turn[i] = period
        name = finder.labels.name(i)
        if finder.offer("turn", f"{name} -> {name} + {text}", _add(turn)):
            finder.periods[i] = period


def _add(shift: Tensor) -> Move:
    return lambda x: x + shift.to(x)


def _where(inside: Tensor, function: Move) -> Move:
    return lambda x: torch.where(inside, function(x), x)
