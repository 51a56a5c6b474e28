"""Vector fields in closed form: sums of constants, linear terms, pointwise functions and monomials, with constant coefficients.

A field maps flat points (..., n) to velocities (..., n) by the same formula everywhere. Coefficients are stored sparsely, so
that a translation of a million items costs a vector.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from manifoldid._linalg import derivative_along
from manifoldid.diagnose.flows import exponential_action, integrate, steps_of_series
from manifoldid.diagnose.functions import BY_NAME, CONSTANT, IDENTITY
from manifoldid.diagnose.lie_series import EndingSeries, Powers, polynomial

WAVES = {"sin": torch.sin, "cos": torch.cos}
_POLYNOMIAL = 40  # coordinates up to which flows are looked for as polynomials


@dataclass(frozen=True)
class Monomial:
    """coefficient * prod x_j^p * prod log|x_j|^q * prod f(x_j) * e_row, by pairs (j, p), (j, q) of whole numbers and (j, f), f in WAVES."""

    row: int
    coefficient: float
    powers: tuple[tuple[int, int], ...] = ()
    logs: tuple[tuple[int, int], ...] = ()
    waves: tuple[tuple[int, str], ...] = ()


class Field:
    """A vector field on flat points. Subclasses say what the velocity is; the flow is integrated unless they know better."""

    size: int
    closed_form = True

    @property
    def has_flow(self) -> bool:
        """Whether the flow is a function that is known, by formula or by table, and not integrated from null spaces."""
        return self.closed_form

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def flow(self, x: Tensor, t: Tensor) -> Tensor:
        """The point that starts at `x` and moves with the field for time `t`; nan where it does not exist that long."""
        return integrate(self, x, t)

    def bracket(self, other: "Field", x: Tensor) -> Tensor:
        """The Lie bracket D other . self - D self . other at one point (n,)."""
        return derivative_along(other, x, self(x)) - derivative_along(self, x, other(x))


@dataclass(frozen=True, eq=False)
class ClosedField(Field):
    """A sum of closed-form terms with constant coefficients.

    Attributes:
        size: n.
        constant: (n,) or None.
        rows: Rows of the linear part (m,).
        columns: Columns of the linear part (m,).
        entries: Entries of the linear part (m,).
        pointwise: Coefficients (n,) of each scalar function by its name.
        monomials: The rest.
    """

    size: int
    constant: Tensor | None = None
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    columns: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    entries: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    pointwise: dict[str, Tensor] = field(default_factory=dict)
    monomials: tuple[Monomial, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        velocity = torch.zeros_like(x)
        if self.constant is not None:
            velocity = velocity + self.constant.to(x)
        if len(self.rows):
            velocity = velocity + self.linear(x)
        for name, coefficients in self.pointwise.items():
            used = coefficients != 0
            safe = x if bool(used.all()) else torch.where(used, x, torch.full_like(x, 0.5))
            velocity = velocity + coefficients.to(x) * BY_NAME[name].value(safe)
        if self.monomials:
            places, coefficients, rows = self._factors
            factors = x
            if self._padded:
                factors = torch.cat([x, torch.ones_like(x[..., :1]), *self._features(x)], dim=-1)
            values = coefficients.to(x)
            for column in places:
                values = values * factors.index_select(-1, column)
            velocity = velocity.index_add(-1, rows, values)
        return velocity

    def _features(self, x: Tensor) -> list[Tensor]:
        """log|x| and waves of x, as far as monomials have any."""
        waves = any(m.waves for m in self.monomials)
        logs = torch.log(x.abs()) if any(m.logs for m in self.monomials) else torch.zeros_like(x)
        return [logs, *(f(x) for f in WAVES.values() if waves)]

    @cached_property
    def _padded(self) -> bool:
        """Whether the factors of monomials are more than coordinates."""
        return bool((self._factors[0] >= self.size).any())

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of monomials: the factors of each (degree, m) as places in (x, 1, log|x|, waves), its coefficient and its row (m,)."""
        lists = [
            [j for j, power in m.powers for _ in range(power)]
            + [self.size + 1 + j for j, power in m.logs for _ in range(power)]
            + [self.size + 1 + (1 + list(WAVES).index(name)) * self.size + j for j, name in m.waves]
            for m in self.monomials
        ]
        degree = max(map(len, lists))
        places = [own + [self.size] * (degree - len(own)) for own in lists]
        coefficients = torch.tensor([m.coefficient for m in self.monomials], dtype=torch.float64)
        rows = torch.tensor([m.row for m in self.monomials])
        return torch.tensor(places, dtype=torch.long).reshape(-1, degree).mT.contiguous(), coefficients, rows

    def linear(self, x: Tensor) -> Tensor:
        """The linear part of the velocity."""
        if self.is_diagonal:
            return self.diagonal.to(x) * x
        return torch.zeros_like(x).index_add(-1, self.rows, self.entries.to(x) * x[..., self.columns])

    @property
    def is_affine(self) -> bool:
        """Whether there are only constant and linear terms."""
        return not self.pointwise and not self.monomials

    @property
    def is_diagonal(self) -> bool:
        """Whether the linear part acts on every coordinate by itself."""
        return torch.equal(self.rows, self.columns)

    @property
    def diagonal(self) -> Tensor:
        """The diagonal (n,) of the linear part."""
        on = self.rows == self.columns
        return torch.zeros(self.size, dtype=torch.float64).index_add(0, self.rows[on], self.entries[on])

    def matrix(self) -> Tensor:
        """The linear part (n, n), dense."""
        dense = torch.zeros(self.size, self.size, dtype=torch.float64)
        return dense.index_put((self.rows, self.columns), self.entries, accumulate=True)

    def separate_terms(self) -> dict[str, Tensor] | None:
        """Coefficients by function if every coordinate moves by one function of itself; None otherwise."""
        if self.monomials or not self.is_diagonal:
            return None
        terms = dict(self.pointwise)
        if self.constant is not None:
            terms[CONSTANT.name] = terms.get(CONSTANT.name, 0) + self.constant
        if len(self.rows):
            terms[IDENTITY.name] = terms.get(IDENTITY.name, 0) + self.diagonal
        used = sum(((c != 0).long() for c in terms.values()), torch.zeros(self.size, dtype=torch.long))
        return None if bool((used > 1).any()) else terms

    def flow(self, x: Tensor, t: Tensor) -> Tensor:
        moved = self._separate_flow(x, t)
        if moved is not None:
            return moved
        if self.is_affine:
            shift = None if self.constant is None else self.constant.to(x)
            steps = steps_of_series(self.rows, self.columns, self.entries, x, t)
            return exponential_action(self.linear, shift, x, t, steps)
        series = self._series
        return integrate(self, x, t) if series is None else series(x, t)

    def _separate_flow(self, x: Tensor, t: Tensor) -> Tensor | None:
        """The flow, if every coordinate moves by one function of itself whose flow has a formula."""
        terms = self.separate_terms()
        if terms is None:
            return None
        moved = x + 0 * t
        for name, coefficients in terms.items():
            flow, used = BY_NAME[name].flow, coefficients != 0
            if flow is None:
                return None
            safe = torch.where(used, x, torch.full_like(x, 0.5))
            moved = torch.where(used, flow(safe, coefficients.to(x) * t), moved)
        return moved

    @cached_property
    def _series(self) -> EndingSeries | None:
        """The flow, if it is a polynomial."""
        if self.pointwise or any(m.logs or m.waves for m in self.monomials) or self.size > _POLYNOMIAL:
            return None
        velocity = []
        for i in range(self.size):
            terms: list[tuple[float, Powers]] = [
                (m.coefficient, tuple(sorted(m.powers))) for m in self.monomials if m.row == i
            ]
            terms += [(float(self.entries[k]), ((int(self.columns[k]), 1),)) for k in (self.rows == i).nonzero()[:, 0]]
            terms += [] if self.constant is None else [(float(self.constant[i]), ())]
            velocity.append(polynomial(terms))
        return EndingSeries.of(velocity)

    def moved_rows(self) -> Tensor:
        """Which coordinates (n,) the field moves."""
        moved = torch.zeros(self.size, dtype=torch.bool)
        if self.constant is not None:
            moved |= self.constant != 0
        moved[self.rows] = True
        for coefficients in self.pointwise.values():
            moved |= coefficients != 0
        for monomial in self.monomials:
            moved[monomial.row] = True
        return moved

    def on(self, moved: Tensor) -> "ClosedField":
        """The field without its velocities of coordinates where the mask `moved` (n,) is false."""
        if bool(moved.all()):
            return self
        kept, mask = moved[self.rows], moved.double()
        return ClosedField(
            self.size,
            None if self.constant is None else self.constant * mask,
            self.rows[kept],
            self.columns[kept],
            self.entries[kept],
            {name: c * mask for name, c in self.pointwise.items()},
            tuple(m for m in self.monomials if moved[m.row]),
        )

    def lone_coordinate(self) -> int | None:
        """The coordinate that the field moves at constant speed, if that is all it does: predictions do not depend on it."""
        if self.constant is None or not self.is_affine or len(self.rows):
            return None
        moved = self.constant.nonzero()[:, 0].tolist()
        return moved[0] if len(moved) == 1 else None

    def terms_of(self, row: int) -> list[tuple[float, str]]:
        """The terms of one row: coefficient and factor, with {j} for the name of coordinate j."""
        terms = []
        if self.constant is not None and self.constant[row] != 0:
            terms.append((float(self.constant[row]), "1"))
        linear: dict[int, float] = {}
        for k in (self.rows == row).nonzero()[:, 0].tolist():
            column = int(self.columns[k])
            linear[column] = linear.get(column, 0.0) + float(self.entries[k])
        terms += [(entry, f"{{{column}}}") for column, entry in linear.items()]
        for name, c in self.pointwise.items():
            if c[row] != 0:
                terms.append((float(c[row]), BY_NAME[name].written(f"{{{row}}}")))
        for m in self.monomials:
            if m.row == row:
                powers = [f"{{{j}}}" + ("" if p == 1 else f"^{p}") for j, p in m.powers]
                logs = [f"log|{{{j}}}|" + ("" if p == 1 else f"^{p}") for j, p in m.logs]
                waves = [f"{name}({{{j}}})" for j, name in m.waves]
                terms.append((m.coefficient, " ".join(powers + logs + waves) or "1"))
        return terms


@dataclass(frozen=True, eq=False)
class CombinedField(Field):
    """A constant combination of other fields."""

    parts: tuple[Field, ...]
    weights: tuple[float, ...]

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of coordinates n."""
        return self.parts[0].size

    def __call__(self, x: Tensor) -> Tensor:
        return sum((w * part(x) for w, part in zip(self.weights, self.parts, strict=True)), torch.zeros_like(x))


@dataclass(frozen=True, eq=False)
class FunctionField(Field):
    """A field given by a function, described in words."""

    size: int
    function: Callable[[Tensor], Tensor]
    text: str
    closed_form: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


def combined(fields: Iterable[ClosedField], weights: Iterable[float]) -> ClosedField:
    """The constant combination of closed fields, as one."""
    fields, weights = list(fields), list(weights)
    size = fields[0].size
    constant, pointwise, monomials = None, {}, []
    rows, columns, entries = [], [], []
    for f, w in zip(fields, weights, strict=True):
        if w == 0:
            continue
        if f.constant is not None:
            constant = w * f.constant if constant is None else constant + w * f.constant
        rows.append(f.rows), columns.append(f.columns), entries.append(w * f.entries)
        for name, c in f.pointwise.items():
            pointwise[name] = pointwise.get(name, 0) + w * c
        monomials += [replace(m, coefficient=w * m.coefficient) for m in f.monomials]
    if not rows:
        return ClosedField(size)
    index = torch.cat(rows) * size + torch.cat(columns)
    unique, inverse = torch.unique(index, return_inverse=True)
    values = torch.zeros(len(unique), dtype=torch.float64).index_add(0, inverse, torch.cat(entries))
    keep = values != 0
    unique, values = unique[keep], values[keep]
    return ClosedField(size, constant, unique // size, unique % size, values, pointwise, tuple(monomials))


def snapped(value: float) -> float:
    """`value`, or the simple fraction that it is up to rounding."""
    fraction = float(Fraction(value).limit_denominator(12))
    return fraction if abs(fraction - value) <= 1e-7 * abs(value) else value
