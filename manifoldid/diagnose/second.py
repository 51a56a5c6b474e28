"""Second solutions: points elsewhere at which predictions are the same, found by least squares from many starts.

With a gauge they are looked for on a slice across the orbits: as many coordinates as the gauge has dimensions are held. A
solution is followed to further points, and from pairs (x, y) the map between them is read off: y or log y an affine function of
x or log x, with short fractions for exponents.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from manifoldid.diagnose.finder import Finder, Move
from manifoldid.diagnose.labels import Labels
from manifoldid.diagnose.least_squares import least_squares
from manifoldid.diagnose.moves import held_coordinates, relative_change
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.terms import expression_of, number

MOST_UNKNOWN = 5
_MOST_COORDINATES = 8
_WIDE = (6, 3)  # starts of each kind, at the first point and at further ones
_MOST = 3  # solutions at each point that are looked at, the nearest
_EVALUATIONS = (1200, 600)  # of predictions; then no further start is tried, at the first point and at further ones
_SOLVED = 1e-10  # relative to the largest prediction
_BETWEEN = 1e-7  # change of predictions on the way to another solution; less is the same one along a sloppy direction
_FITTED = 1e-8
_SPREAD = 1.5  # of the logarithms of far starts
_POOL = 12  # points for each far start
_NEAR = 0.02  # relative distance of the points from which a map is read off
_STEPS = 30  # of least squares
_AT_ONCE = 200_000  # predictions at all starts that are looked at together
_HUGE = 1e6  # relative residuals beyond are all alike
_INSIDE = 0.382  # where on the way between two solutions a third one would be a coincidence


@dataclass
class _Equations:
    """predict(y) = predict(x) for points y that agree with x in the coordinates that are held.

    Attributes:
        probe: The model.
        free: The other coordinates.
        evaluations: Of predictions, so far.
    """

    probe: Probe
    free: Tensor
    evaluations: int = 0

    def residuals(self, targets: Tensor, y: Tensor) -> Tensor:
        """What predictions miss at points (m, n) of targets (m, p) or (p,), relative to the largest number of a target."""
        self.evaluations += len(y)
        rest = (self.probe.many_values(y) - targets) / targets.abs().amax(-1, keepdim=True).clamp_min(1e-300)
        return torch.nan_to_num(rest, nan=_HUGE).clamp(-_HUGE, _HUGE)  # also outside the domain

    def groups(self, starts: list[Tensor]) -> Iterator[list[Tensor]]:
        """Starts that are looked at together, as many as one call of the model takes."""
        size = max(1, _AT_ONCE // len(self.probe.outputs)) if self.probe.vectorised else 1
        yield from (starts[k : k + size] for k in range(0, len(starts), size))

    def solutions(self, x: Tensor, starts: Tensor) -> list[Tensor | None]:
        """The solutions that least squares reach from starts (m, n); in logarithms, keeping signs, where no coordinate is 0.

        `x` is one point (n,) or one for each start.
        """
        x = x.expand_as(starts)
        targets, first = self.probe.many_values(x), starts[:, self.free]
        logs = (first != 0).all(1, keepdim=True)

        def points(u: Tensor, of: Tensor) -> Tensor:
            y = x[of].clone()
            y[:, self.free] = torch.where(logs[of], torch.sign(first[of]) * torch.exp(u), u)
            return y

        def rest(u: Tensor, of: Tensor) -> Tensor:
            return self.residuals(targets[of], points(u, of))

        everyone, size = torch.arange(len(x)), first.abs().amax(1)
        unit = torch.where(logs[:, 0] | (size == 0), torch.ones_like(size), size)
        u = least_squares(rest, torch.where(logs, first.abs().log(), first), unit, _STEPS)
        ends = points(u, everyone)
        solved = (rest(u, everyone).abs().amax(1) < _SOLVED) & torch.isfinite(ends).all(1)
        return [y if ok else None for y, ok in zip(ends, solved.tolist(), strict=True)]

    def apart(self, x: Tensor, y: Tensor) -> bool:
        """Whether two solutions are two, and not ends of a valley that is flat to rounding."""
        try:
            between = self.probe.values(x + _INSIDE * (y - x))
        except (ValueError, RuntimeError):
            return True
        return not _alike(x, y) and not relative_change(self.probe.values(x), between) < _BETWEEN


def _alike(y: Tensor, k: Tensor) -> bool:
    return bool(((y - k).abs() <= 1e-5 * (y.abs() + k.abs()) + 1e-9 * k.abs().max()).all())


def second_solutions(finder: Finder, bases: list[Tensor]) -> int:
    """Offers the second solutions at points to a finder.

    Args:
        finder: Where moves are collected; what it knows already is no second solution.
        bases: Flat regular points at which solutions are looked for, the caller's first.

    Returns:
        From how many starts they were looked for; 0 if there are too many unknowns.
    """
    probe, size = finder.probe, finder.probe.size
    held = held_coordinates(finder.fields, bases[-1])
    if size > _MOST_COORDINATES or not 0 < size - len(held) <= MOST_UNKNOWN:
        return 0
    equations = _Equations(probe, torch.tensor([i for i in range(size) if i not in held]))
    tried = 0
    for base, wide, most in zip(bases, _WIDE, _EVALUATIONS, strict=False):
        at_base = replace(finder, points=[base, *(p for p in finder.points if p is not base)][:2])
        where = "the point" if torch.equal(base, probe.point) else "a random point"
        starts = [*_starts(probe, base, equations.free, wide), *_nearly_solved(equations, base, 2 * wide)]
        equations.evaluations = 0
        first = [base, *(move(base) for move in finder.moves)]
        known = list(first)
        for group in equations.groups(starts):
            if equations.evaluations > most:
                break
            tried += len(group)
            for found in equations.solutions(base, torch.stack(group)):
                y = None if found is None else finder.unwound(base, found)
                if y is not None and finder.allows(base, y) and not any(_alike(y, k) for k in known):
                    known.append(y)
        for y in sorted(known[len(first) :], key=lambda y: float((y - base).norm()))[:_MOST]:
            if equations.apart(base, y):
                _offer(at_base, equations, base, y, where, starts)
    return tried


def _offer(finder: Finder, equations: _Equations, x: Tensor, y: Tensor, where: str, starts: list[Tensor]) -> None:
    """Offers the map that takes x to y, in closed form or as a solver."""
    ratio, shift = torch.where((x != 0) & (y != 0), y / x, torch.ones_like(x)), y - x
    for start_of, read in ((lambda v: v + shift, _affine), (lambda v: v * ratio, _monomial)):
        pairs = _pairs(equations, x, y, start_of)
        described = read(*pairs, finder.labels) if pairs else None
        if described is not None and finder.offer("second solution", *described):
            return
    names = ", ".join(finder.labels.name(i) for i in range(len(x)))
    before, after = (", ".join(f"{float(v):.4g}" for v in p) for p in (x, y))
    text = f"at {where} ({names}) = ({before}) -> ({after}), no formula"
    finder.offer("second solution", text, _follower(equations, lambda v: v * ratio, [x + shift, *starts]))


def _starts(probe: Probe, x: Tensor, free: Tensor, count: int) -> Iterator[Tensor]:
    """Two coordinates exchanged, coordinates permuted, numbers in (0, 1) as 1 - x, and random points."""

    def normal(spread: float) -> Tensor:
        return spread * torch.randn(len(x), generator=probe.generator, dtype=torch.float64)

    for i, j in itertools.combinations(free.tolist(), 2):
        y = x.clone()
        y[[i, j]] = y[[j, i]]
        yield y * torch.exp(normal(0.05))
    for k in range(count):
        coins = torch.rand(len(x), generator=probe.generator) < 0.5
        y = x[torch.randperm(len(x), generator=probe.generator)] if k % 2 else x
        yield torch.where(coins & (x > 0) & (x < 1), 1 - y, y) * torch.exp(normal(0.05))
        yield probe.draw()


def _nearly_solved(equations: _Equations, x: Tensor, count: int) -> list[Tensor]:
    """Of many points far and wide, with signs as at x and others, those with the smallest residuals, well apart from each other."""
    generator, free = equations.probe.generator, equations.free
    moves = _SPREAD * torch.randn(_POOL * count, len(free), generator=generator, dtype=torch.float64)
    turned = torch.rand(moves.shape, generator=generator) < 0.5
    turned[::2] = False
    factors = torch.exp(moves) * (1 - 2 * turned.double())
    pool = [x.index_put((free,), x[free] * f) for f in factors]
    sizes = equations.residuals(equations.probe.values(x), torch.stack(pool)).norm(dim=1).tolist()
    chosen, places = [], [torch.zeros(2 * len(free))]
    for i in sorted(range(len(pool)), key=sizes.__getitem__):
        place = torch.cat([moves[i], 9.0 * turned[i]])
        if all(float((place - other).norm()) > 1 for other in places):
            chosen.append(pool[i]), places.append(place)
        if len(chosen) == count:
            break
    return chosen


def _follower(equations: _Equations, start_of: Move, starts: Sequence[Tensor] = ()) -> Move:
    """x -> the solution that least squares reach from start_of(x), or from further starts; x itself where none is found."""

    def move(x: Tensor) -> Tensor:
        rows = x.double().reshape(-1, x.shape[-1])
        ends = torch.stack([_other(equations, row, start_of(row), starts) for row in rows])
        return ends.reshape(x.shape).to(x)

    return move


def _other(equations: _Equations, x: Tensor, start: Tensor, starts: Sequence[Tensor]) -> Tensor:
    for group in ([start], *equations.groups(list(starts))):
        for y in equations.solutions(x, torch.stack(group)):
            if y is not None and equations.apart(x, y):
                return y
    return x


# ---------------------------------------------------------------------------------------------------- the map in words


def _pairs(equations: _Equations, x: Tensor, y: Tensor, start_of: Move) -> tuple[Tensor, Tensor] | None:
    """Points around x and the solutions that belong to them, enough of both to check an affine map; None if they get lost."""
    probe, wanted = equations.probe, len(x) + 3
    draws = torch.randn(2 * len(x) + 6, len(x), generator=probe.generator, dtype=torch.float64)
    near = x * torch.exp(_NEAR * draws)
    near = near[torch.isfinite(probe.many_values(near)).all(1)]
    pairs: list[tuple[Tensor, Tensor]] = []
    for some in near.split(wanted if probe.vectorised else 1):
        if len(pairs) < wanted:
            ends = equations.solutions(some, torch.stack([start_of(v) for v in some]))
            pairs += [
                (v, end) for v, end in zip(some, ends, strict=True) if end is not None and equations.apart(v, end)
            ]
    if len(pairs) < wanted:
        return None
    before, after = zip((x, y), *pairs[:wanted], strict=True)
    return torch.stack(before), torch.stack(after)


def _regression(before: Tensor, after: Tensor) -> Tensor | None:
    """Coefficients (n, n + 1) of after = before C' with a column of ones, as short fractions; None if it is no such map."""
    design = torch.cat([before, before.new_ones(len(before), 1)], 1)
    spread = design.abs().amax(0).clamp_min(1e-300)
    found = torch.linalg.lstsq(design / spread, after, driver="gelsd").solution / spread[:, None]
    rest = (design @ found - after).abs().amax(0)
    if not bool((rest <= _FITTED * after.abs().amax(0).clamp_min(1e-3)).all()):
        return None
    return torch.tensor([[_short(c) for c in row] for row in found.mT.tolist()], dtype=torch.float64)


def _short(value: float) -> float:
    near = Fraction(value).limit_denominator(6)
    return float(near) if abs(near - value) < 1e-6 else value


def _affine(before: Tensor, after: Tensor, labels: Labels) -> tuple[str, Move] | None:
    found = _regression(before, after)
    if found is None:
        return None
    matrix, shift = found[:, :-1], found[:, -1]
    names = [labels.name(i) for i in range(len(shift))]
    texts = [
        expression_of([(c, v) for c, v in zip([b, *row], ["1", *names], strict=True) if c])
        for row, b in zip(matrix.tolist(), shift.tolist(), strict=True)
    ]
    return _written(names, texts), lambda x: (x[..., None, :] * matrix.to(x)).sum(-1) + shift.to(x)


def _monomial(before: Tensor, after: Tensor, labels: Labels) -> tuple[str, Move] | None:
    if bool((before == 0).any() | (after == 0).any()):
        return None
    found = _regression(before.abs().log(), after.abs().log())
    if found is None:
        return None
    powers = found[:, :-1]
    products = _products(before[0], powers)
    factors = torch.tensor([_short(f) for f in (after[0] / products).tolist()], dtype=torch.float64)
    names = [labels.name(i) for i in range(len(factors))]
    texts = [_product(f, row, names) for f, row in zip(factors.tolist(), powers.tolist(), strict=True)]
    return _written(names, texts), lambda x: factors.to(x) * _products(x, powers.to(x))


def _products(x: Tensor, powers: Tensor) -> Tensor:
    """Products of powers (..., n); of the modulus where a power is no integer."""
    whole = powers == powers.round()
    return torch.where(whole, x[..., None, :], x[..., None, :].abs()).pow(powers).prod(-1)


def _product(factor: float, powers: list[float], names: list[str]) -> str:
    above = [_power(v, p) for v, p in zip(names, powers, strict=True) if p > 0]
    below = [_power(v, -p) for v, p in zip(names, powers, strict=True) if p < 0]
    size = "" if abs(factor) == 1 and above else number(abs(factor))
    text = ("-" if factor < 0 else "") + " ".join(filter(None, (size, *above)))
    return text + "".join(f" / {v}" for v in below)


def _power(name: str, power: float) -> str:
    if power == 1:
        return name
    if power == 0.5:
        return f"sqrt({name})"
    return f"{name}^{Fraction(power).limit_denominator(6)}" if power == round(power) else f"{name}^({number(power)})"


def _written(names: list[str], texts: list[str]) -> str:
    """What becomes of each coordinate that changes; an exchange as one."""
    places = {v: t for v, t in zip(names, texts, strict=True) if v != t}
    exchanged = {frozenset((v, t)) for v, t in places.items() if places.get(t) == v}
    swaps = [
        f"{v} <-> {t}" for v, t in places.items() if frozenset((v, t)) in exchanged and names.index(v) < names.index(t)
    ]
    rest = [f"{v} -> {t}" for v, t in places.items() if frozenset((v, t)) not in exchanged]
    return ", ".join(swaps + rest)
