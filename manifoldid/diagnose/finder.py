"""Collects moves that predictions cannot see and that neither flows nor known moves make."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from manifoldid.diagnose.diagnosis import DiscreteSymmetry, SymmetryMap
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.generated import affine_matrices
from manifoldid.diagnose.labels import Labels
from manifoldid.diagnose.match_parts import clusters
from manifoldid.diagnose.moves import relative_change
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.sparse import echelon_basis
from manifoldid.points import blocks_of

_SAME = 1e-9
_MOST_TRIES = 700
_MOST_FOUND = 24
_ATTEMPTS = 4  # from places on the orbit
_MOST_TURNS = 6  # rotations whose half turns are looked at
_STALLED = 10  # steps along an orbit without getting nearer to the target
_LONGEST = 0.7  # time of such a step

Move = Callable[[Tensor], Tensor]


@dataclass
class Finder:
    """Collects finite symmetries that are independent of the flows and of each other."""

    probe: Probe
    fields: list[Field]
    points: list[Tensor]
    labels: Labels
    positive: Tensor  # (n,) coordinates that `sample` only draws positive
    found: list[DiscreteSymmetry] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    periods: dict[int, float] = field(default_factory=dict)  # of coordinates that are angles
    tries: int = 0

    def __post_init__(self) -> None:
        self.before = [self.probe.values(x) for x in self.points]
        self._clusters = clusters(self.fields) if self.fields else []

    def error(self, ends: Iterable[Tensor]) -> float:
        """Largest relative change of predictions from the points to others."""
        self.tries += 1
        worst = 0.0
        for y, before in zip(ends, self.before, strict=True):
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
        ends = [move(x) for x in self.points]
        if not self.allows(self.points[0], ends[0]):
            return False
        error = self.error(ends)
        if not error <= _SAME or self._known(ends):
            return False

        block, t = next(iter(blocks_of(self.probe.like).items()))
        self.found.append(DiscreteSymmetry(name, text, SymmetryMap(text, len(self.found), move, block, t.ndim), error))
        self.moves.append(move)
        return True

    def offer_all(self, candidates: Iterable[tuple[str, str, Move]]) -> None:
        """Offers those of many moves, each with name and text, that predictions do not see at the first point."""
        chosen = list(itertools.islice(candidates, _MOST_TRIES))
        if not chosen:
            return
        before = self.before[0]
        after = self.probe.many_values(torch.stack([move(self.points[0]) for _, _, move in chosen]))
        changes = (after - before).abs().amax(1) / before.abs().max().clamp_min(1e-300)
        for candidate, change in zip(chosen, changes.tolist(), strict=True):
            if change <= _SAME:
                self.offer(*candidate)

    def allows(self, x: Tensor, y: Tensor) -> bool:
        """Whether y stays in the domain: it does not when all that changes sign are numbers that `sample` only draws positive."""
        turned = torch.sign(y) != torch.sign(x)
        return not bool((turned & self.positive).any()) or bool((turned & ~self.positive).any())

    def unwound(self, x: Tensor, y: Tensor) -> Tensor:
        """y with its angles as near to those of x as whole turns bring them."""
        y = y.clone()
        for i, period in self.periods.items():
            y[i] -= period * torch.round((y[i] - x[i]) / period)
        return y

    def _known(self, ends: list[Tensor]) -> bool:
        """Whether known moves and flows carry the points to these ends."""
        x, target = self.points[0], ends[0]
        if self._product_of_signs(target):
            return True
        pairs = itertools.product(self.moves, repeat=2) if len(self.moves) <= 10 else ()
        if _close(x, target) or any(_close(known(x), target) for known in self.moves):
            return True
        if any(_close(b(a(x)), target) for a, b in pairs):
            return True
        if any(_close(known(target), x) for known in self.moves):  # the inverse of a known move
            return True
        words: list[Move] = [lambda v: v, *self.moves]
        return bool(self.fields) and any(self._reaches(word, ends) for word in words[:4])

    def _signs_of(self, y: Tensor) -> np.ndarray | None:
        """Which coordinates a change of signs turns that leads to y; None if none does."""
        x = self.points[0]
        return (y != x).numpy() if bool((y.abs() == x.abs()).all()) else None

    def _product_of_signs(self, target: Tensor) -> bool:
        """Whether known changes of signs combine to this one: elimination over two elements."""
        signs = self._signs_of(target)
        known = [s for s in (self._signs_of(move(self.points[0])) for move in self.moves) if s is not None]
        return signs is not None and _rank_mod_2([*known, signs]) == _rank_mod_2(known)

    def _reaches(self, word: Move, ends: list[Tensor]) -> bool:
        """Whether flows carry word(x) to the end of x: Gauss-Newton steps along the orbit, from a few places on it.

        The same flows have to do it at a second point; where fields are constant (a parameter that nothing sees) or have
        stabilisers, reaching the first is enough. Fields that move nothing that has to move are left out.
        """
        starts = [word(x) for x in self.points]
        scale = ends[0].abs().clamp_min(1e-6)
        far = (starts[0] - ends[0]).abs() > 1e-9 * scale
        fields = [f for cluster in self._clusters if bool((_moved_rows(cluster) & far).any()) for f in cluster]
        if not fields or len(fields) > 40 or not all(f.has_flow for f in fields):
            return False
        velocities = torch.stack([f(starts[0]) for f in fields])
        if bool(far[velocities.abs().sum(0) == 0].any()):
            return False
        flows = Flows.of(fields)
        steps = flows.between(starts[0], ends[0], scale)
        if steps is None:
            return False
        constant = all(isinstance(f, ClosedField) and f.is_affine and not len(f.rows) for f in fields)
        if constant or int(torch.linalg.matrix_rank(velocities)) < len(fields) or len(self.points) < 2:
            return True
        y, end = starts[1], ends[1]
        for step in steps:
            y = flows.flow(y, step)
        return bool(((y - end).abs() < 1e-6 * end.abs().clamp_min(1e-6)).all())


@dataclass(frozen=True)
class Flows:
    """Flows of fields one after the other; of affine fields exp(sum t_k X_k), on the coordinates that take part.

    Attributes:
        fields: The fields.
        matrices: Affine fields as matrices [[B, b], [0, 0]]; None if some are not.
        places: Coordinates that these matrices are about.
    """

    fields: list[Field]
    matrices: Tensor | None
    places: Tensor

    @staticmethod
    def of(fields: list[Field]) -> "Flows":
        """Looks at what the fields are."""
        matrices = affine_matrices(fields)
        if matrices is None:
            return Flows(fields, None, torch.arange(fields[0].size))
        used = (matrices != 0).any(0)[:-1]
        places = (used.any(1) | used.any(0)[:-1]).nonzero()[:, 0]
        both = torch.cat([places, torch.tensor([fields[0].size])])
        return Flows(fields, matrices[:, both][:, :, both], places)

    def between(self, start: Tensor, target: Tensor, scale: Tensor) -> list[Tensor] | None:
        """Times of flows that carry one point to another; None if none are found."""
        turns = self.turns
        longest = math.inf if self.straight else _LONGEST
        for steps in itertools.chain(*(itertools.combinations(turns, count) for count in (1, 2, 3))):
            y = functools.reduce(self.flow, steps, start)
            if bool(((y - target).abs() <= 1e-8 * scale).all()):
                return list(steps)
        generator = torch.Generator().manual_seed(0)
        for attempt in range(_ATTEMPTS):
            y, steps, rest = start, [], []
            if attempt:
                steps.append(torch.randn(len(self.fields), generator=generator, dtype=torch.float64))
                y = self.flow(y, steps[-1])
            for _ in range(40):
                velocities = self.velocities(y).mT
                if not bool(torch.isfinite(velocities).all()):
                    break
                step = torch.linalg.pinv(velocities / scale[:, None], rtol=1e-10) @ ((target - y) / scale)
                steps.append(step * min(1.0, longest / max(float(step.abs().max()), 1e-300)))
                y = self.flow(y, steps[-1])
                rest.append(float(((y - target) / scale).abs().max()))
                if rest[-1] < 1e-8:
                    return steps
                if float(step.abs().max()) < 1e-10 or (len(rest) > _STALLED and rest[-1] > 0.5 * rest[-1 - _STALLED]):
                    break
        return None

    @property
    def straight(self) -> bool:
        """Whether all fields are constants."""
        return self.matrices is not None and not bool(self.matrices[:, :-1, :-1].any())

    @property
    def turns(self) -> list[Tensor]:
        """Times of half turns by the fields that are rotations: to -1 in GL(2), say, steps towards it do not find the way."""
        if self.matrices is None:
            return []
        linear = self.matrices[:, :-1, :-1]
        stretches = (linear + linear.mT).flatten(1)
        values, axes = torch.linalg.eigh(stretches @ stretches.mT)
        rotations = axes[:, values <= 1e-12 * linear.square().sum()]
        if not rotations.shape[1]:
            return []
        found = []
        for times in echelon_basis(rotations)[0].mT[:_MOST_TURNS]:  # of one part each, where parts are independent
            angles = torch.linalg.eigvals(torch.einsum("k,kab->ab", times, linear)).imag.abs()
            found += [times * (half * math.pi / angles.max()) for half in (1, 2) if float(angles.max()) > 0]
        return found

    def velocities(self, x: Tensor) -> Tensor:
        """Values (k, n) of the fields at a flat point."""
        if self.matrices is None:
            return torch.stack([f(x) for f in self.fields])
        found = x.new_zeros(len(self.fields), len(x))
        found[:, self.places] = (self.matrices @ torch.cat([x[self.places], x.new_ones(1)]))[:, :-1]
        return found

    def flow(self, x: Tensor, times: Tensor) -> Tensor:
        """Where the flows carry a point."""
        if self.matrices is not None:
            matrix = torch.linalg.matrix_exp(torch.einsum("k,kab->ab", times, self.matrices))
            return x.index_put((self.places,), (matrix @ torch.cat([x[self.places], x.new_ones(1)]))[:-1])
        for f, t in zip(self.fields, times, strict=True):
            x = f.flow(x, t)
        return x


def _moved_rows(fields: list[Field]) -> Tensor:
    return torch.stack(
        [f.moved_rows() if isinstance(f, ClosedField) else torch.ones(f.size, dtype=torch.bool) for f in fields]
    ).any(0)


def _rank_mod_2(rows: list[np.ndarray]) -> int:
    rank, rows = 0, [row.copy() for row in rows]
    while rows:
        pivot = rows.pop()
        if pivot.any():
            rank += 1
            lead = int(pivot.argmax())
            rows = [row ^ pivot if row[lead] else row for row in rows]
    return rank


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-9 * (a.abs() + b.abs() + 1e-12)).all())
