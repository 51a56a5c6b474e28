"""Candidate vector fields in families of growing complexity.

A family is a finite list of fields X_1 .. X_m in closed form. The search looks for constant combinations of them that
predictions cannot see; a family only has to evaluate its fields at a point and to turn coefficients into a field.
"""

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from manifoldid.diagnose.fields import WAVES, ClosedField, Monomial, combined
from manifoldid.diagnose.functions import CONSTANT, IDENTITY, ScalarFunction


class Family(ABC):
    """Candidate fields with constant coefficients to be found.

    Attributes:
        name: What the family is, in words.
    """

    name: str

    @property
    @abstractmethod
    def count(self) -> int:
        """m, how many candidates there are."""

    @abstractmethod
    def evaluate(self, x: Tensor) -> Tensor:
        """The candidates at a flat point (n,), as columns (n, m)."""

    @abstractmethod
    def field(self, coefficients: Tensor) -> ClosedField:
        """The field with these coefficients (m,)."""

    def costs(self) -> Tensor:
        """What one unit of each coefficient (m,) costs: simpler candidates are preferred."""
        return torch.ones(self.count, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Pointwise(Family):
    """c_i f(x_i) d/dx_i for every coordinate i and some scalar functions f, constants and identity among them."""

    size: int
    functions: tuple[ScalarFunction, ...]

    @property
    def name(self) -> str:  # type: ignore[override]
        return "pointwise " + ", ".join(f.name for f in self.functions)

    @property
    def count(self) -> int:
        return self.size * len(self.functions)

    def evaluate(self, x: Tensor) -> Tensor:
        return torch.cat([torch.diag(f.value(x)) for f in self.functions], dim=1)

    def field(self, coefficients: Tensor) -> ClosedField:
        n, parts = self.size, dict(zip((f.name for f in self.functions), coefficients.split(self.size), strict=True))
        constant, diagonal = parts.pop(CONSTANT.name, None), parts.pop(IDENTITY.name, None)
        index = torch.zeros(0, dtype=torch.long) if diagonal is None else diagonal.nonzero()[:, 0]
        entries = torch.zeros(0, dtype=torch.float64) if diagonal is None else diagonal[index]
        return ClosedField(
            n,
            constant if constant is not None and bool(constant.any()) else None,
            index,
            index,
            entries,
            {name: c for name, c in parts.items() if bool(c.any())},
        )


@dataclass(frozen=True, eq=False)
class AffineMaps(Family):
    """All constants d/dx_i and all linear fields x_j d/dx_i."""

    size: int
    name: str = "affine"

    @property
    def count(self) -> int:
        return self.size + self.size**2

    def evaluate(self, x: Tensor) -> Tensor:
        eye = torch.eye(self.size, dtype=x.dtype)
        return torch.cat([eye, torch.kron(eye, x[None])], dim=1)

    def field(self, coefficients: Tensor) -> ClosedField:
        constant, matrix = coefficients[: self.size], coefficients[self.size :].reshape(self.size, self.size)
        index = matrix.nonzero()
        return ClosedField(
            self.size,
            constant.clone() if bool(constant.any()) else None,
            index[:, 0],
            index[:, 1],
            matrix[index[:, 0], index[:, 1]],
        )

    def costs(self) -> Tensor:
        # l is as simple as l - l_0 but treats all items alike: the diagonal gets a little discount
        matrix = torch.ones(self.size, self.size, dtype=torch.float64) - 0.1 * torch.eye(self.size, dtype=torch.float64)
        return torch.cat([torch.ones(self.size, dtype=torch.float64), matrix.reshape(-1)])


@dataclass(frozen=True, eq=False)
class Operators(Family):
    """A given list of linear operators, each sparse: (rows, columns, entries) of a constant vector and of a matrix."""

    size: int
    members: tuple[ClosedField, ...]
    name: str
    all_or_nothing: bool = False

    @property
    def count(self) -> int:
        return len(self.members)

    def evaluate(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members], dim=1)

    def field(self, coefficients: Tensor) -> ClosedField:
        return combined(self.members, coefficients.tolist())


def row_maps(
    size: int, rows: int, columns: int, start: int = 0, total: int | None = None, along: str = "columns"
) -> list[ClosedField]:
    """Fields X -> X E_ab and X -> 1 e_a' of the matrix X (rows, columns) that lies in the flat vector from `start` on.

    With `along="rows"` the roles are exchanged: X -> E_ab X and X -> e_a 1'.
    """
    total = size if total is None else total
    place = start + torch.arange(rows * columns).reshape(rows, columns)
    place = place if along == "columns" else place.T
    kinds, fields = place.shape[1], []
    for a in range(kinds):
        constant = torch.zeros(total, dtype=torch.float64)
        constant[place[:, a]] = 1.0
        fields.append(ClosedField(total, constant))
    ones = torch.ones(place.shape[0], dtype=torch.float64)
    for a, b in itertools.product(range(kinds), repeat=2):
        fields.append(ClosedField(total, None, place[:, a], place[:, b], ones))
    return fields


@dataclass(frozen=True, eq=False)
class Polynomials(Family):
    """Monomials in x_j (and log|x_j| where `logs`) up to a degree, in every row."""

    size: int
    degree: int
    logs: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"polynomial of degree {self.degree}" + (" in x and log|x|" if self.logs else "")

    def _exponents(self) -> list[tuple[int, ...]]:
        features = self.size * (2 if self.logs else 1)
        chosen = itertools.chain.from_iterable(
            itertools.combinations_with_replacement(range(features), d) for d in range(self.degree + 1)
        )
        return list(chosen)

    @property
    def count(self) -> int:
        return self.size * len(self._exponents())

    def evaluate(self, x: Tensor) -> Tensor:
        values = _products(torch.cat([x, torch.log(x.abs())]) if self.logs else x, self._places)
        return torch.kron(torch.eye(self.size, dtype=x.dtype), values[None])

    @cached_property
    def _places(self) -> Tensor:
        return _padded(self._exponents(), self.size * (2 if self.logs else 1))

    def field(self, coefficients: Tensor) -> ClosedField:
        exponents = self._exponents()
        table = coefficients.reshape(self.size, len(exponents))
        constant = torch.zeros(self.size, dtype=torch.float64)
        linear: list[tuple[int, int, float]] = []
        monomials = []
        for row, k in table.nonzero().tolist():
            chosen, value = exponents[k], float(table[row, k])
            if not chosen:
                constant[row] = value
            elif len(chosen) == 1 and chosen[0] < self.size:
                linear.append((row, chosen[0], value))
            else:
                monomials.append(self._monomial(row, value, chosen))
        rows, columns, entries = zip(*linear, strict=True) if linear else ((), (), ())
        return ClosedField(
            self.size,
            constant if bool(constant.any()) else None,
            torch.tensor(rows, dtype=torch.long),
            torch.tensor(columns, dtype=torch.long),
            torch.tensor(entries, dtype=torch.float64),
            {},
            tuple(monomials),
        )

    def _monomial(self, row: int, value: float, chosen: tuple[int, ...]) -> Monomial:
        powers = {j: chosen.count(j) for j in chosen}
        return Monomial(
            row,
            value,
            tuple((j, p) for j, p in powers.items() if j < self.size),
            tuple((j - self.size, p) for j, p in powers.items() if j >= self.size),
        )

    def costs(self) -> Tensor:
        each = torch.tensor([1.0 + 0.2 * max(0, len(chosen) - 1) for chosen in self._exponents()], dtype=torch.float64)
        return each.repeat(self.size)


@dataclass(frozen=True, eq=False)
class LogLinear(Family):
    """x_i^p * (1, x_j or log|x_j|) in row i, p in {0, 1}: power laws with exponents among the parameters."""

    size: int
    name: str = "linear in logarithms"

    def _members(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        members = []
        for i in range(self.size):
            for own in ((), (i,)):
                members.append((i, own, ()))
                members += [(i, (*own, j), ()) for j in range(self.size)]
                members += [(i, own, (j,)) for j in range(self.size)]
        return list(dict.fromkeys((i, tuple(sorted(p)), q) for i, p, q in members))

    @property
    def count(self) -> int:
        return len(self._members())

    def evaluate(self, x: Tensor) -> Tensor:
        rows, places = self._table
        out = torch.zeros(self.size, len(rows), dtype=x.dtype)
        out[rows, torch.arange(len(rows))] = _products(torch.cat([x, torch.log(x.abs())]), places)
        return out

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """The row of each member, and the places of its factors in (x, log|x|)."""
        members = self._members()
        factors = [(*powers, *(self.size + j for j in log)) for _, powers, log in members]
        return torch.tensor([i for i, _, _ in members]), _padded(factors, 2 * self.size)

    def field(self, coefficients: Tensor) -> ClosedField:
        parts, weights = [], []
        for (i, powers, log), c in zip(self._members(), coefficients.tolist(), strict=True):
            if c == 0:
                continue
            counted = tuple((j, powers.count(j)) for j in dict.fromkeys(powers))
            weights.append(c)
            parts.append(_term(self.size, i, counted, tuple((j, 1) for j in log)))
        return combined(parts, weights) if parts else ClosedField(self.size)


class Waves(Operators):
    """1, x_j, sin x_j, cos x_j, x_i sin x_j and x_i cos x_j in row i: amplitudes and angles, as in m sin(i) or sin(x) + y z."""

    def __init__(self, size: int):
        """Lists the fields of all rows."""
        waves = [((j, name),) for name in WAVES for j in range(size)]
        linear = [(), *(((j, 1),) for j in range(size))]
        members = [
            _term(size, i, powers, (), wave)
            for i in range(size)
            for powers, wave in [
                *((p, ()) for p in linear),
                *(((), w) for w in waves),
                *((((i, 1),), w) for w in waves),
            ]
        ]
        super().__init__(size, tuple(members), "amplitudes and angles")

    def evaluate(self, x: Tensor) -> Tensor:
        waves = torch.cat([f(x) for f in WAVES.values()])
        common = torch.cat([x.new_ones(1), x, waves])
        return torch.block_diag(*(torch.cat([common, own * waves])[None] for own in x))


def _padded(chosen: list[tuple[int, ...]], size: int) -> Tensor:
    """Places of factors (m, degree); `size`, the place of a 1, where there are fewer."""
    degree = max(map(len, chosen))
    return torch.tensor([[*own, *[size] * (degree - len(own))] for own in chosen], dtype=torch.long)


def _products(features: Tensor, places: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(1)])[places].prod(1)


def _term(
    size: int,
    row: int,
    powers: tuple[tuple[int, int], ...],
    logs: tuple[tuple[int, int], ...],
    waves: tuple[tuple[int, str], ...] = (),
) -> ClosedField:
    if not powers and not logs and not waves:
        constant = torch.zeros(size, dtype=torch.float64)
        constant[row] = 1.0
        return ClosedField(size, constant)
    if len(powers) == 1 and powers[0][1] == 1 and not logs and not waves:
        return ClosedField(
            size, None, torch.tensor([row]), torch.tensor([powers[0][0]]), torch.ones(1, dtype=torch.float64)
        )
    return ClosedField(size, monomials=(Monomial(row, 1.0, powers, logs, waves),))
