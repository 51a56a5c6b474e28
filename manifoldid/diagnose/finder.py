"""Collects moves that predictions cannot see and that neither flows nor known moves make."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
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
_STALLED = 10  # steps along an orbit without getting nearer to the target

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

    def unwound(self, x: Tensor, y: Tensor) -> Tensor:
        """y with its angles as near to those of x as whole turns bring them."""
        y = y.clone()
        for i, period in self.periods.items():
            y[i] -= period * torch.round((y[i] - x[i]) / period)
        return y

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
        if any(_close(known(target), x) for known in self.moves):  # the inverse of a known move
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
        signs = self._signs_of(move)
        known = [s for s in map(self._signs_of, self.moves) if s is not None]
        return signs is not None and _rank_mod_2([*known, signs]) == _rank_mod_2(known)

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


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= 1e-9 * (a.abs() + b.abs() + 1e-12)).all())
