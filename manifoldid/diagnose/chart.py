"""Pointwise gauges that no library function explains: the chart psi in which they are a translation, from null spaces.

Let the null space be a line with direction nu(x), nu_i = c_i / psi'(x_i), with one unknown function for all coordinates and
constants c_i. Then nu_i psi'(x_i) / c_i is the same for all i at every point: linear in psi', and the same with xi = 1 / psi'
the other way round. Either is solved for as a Chebyshev series; a short one is a formula. Of a long one a table is measured
(`tabulate`), far enough for a group.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifoldid.diagnose.fields import Field, snapped
from manifoldid.diagnose.generators import Search
from manifoldid.diagnose.nullspace import LocalNull, NullSpaces, local_null
from manifoldid.diagnose.tabulate import Table, null_at, tabulated
from manifoldid.diagnose.terms import expression_of

_VERTICAL = 1e-7
_SHORT, _LONG = (4,), (8, 16, 32, 64, 128)  # degrees of series
_MOST_FACTORS = 24  # coordinates up to which their factors are measured; more are taken to have equal ones
_ALIKE = 1e-7


@dataclass(frozen=True, eq=False)
class SeriesField(Field):
    """c_i xi(x_i) with xi, or 1 / xi, a Chebyshev series on [low, high]; outside, the null space at the point decides.

    Attributes:
        coefficients: c (n,), zero for coordinates that do not move.
        series: Coefficients (degree + 1,) of xi, or of 1 / xi.
        inverse: Whether they are those of 1 / xi.
        low: Start of the range of the series.
        high: End of the range of the table.
        nulls: Null spaces of the model.
        polynomial: The series as a polynomial with simple coefficients, up to a factor; None if it is long.
    """

    coefficients: Tensor
    series: Tensor
    inverse: bool
    low: float
    high: float
    nulls: NullSpaces
    polynomial: np.polynomial.Polynomial | None

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of coordinates."""
        return len(self.coefficients)

    @property
    def closed_form(self) -> bool:  # type: ignore[override]
        """Whether the field is a formula."""
        return self.polynomial is not None

    @property
    def text(self) -> str:
        """The field in words."""
        factors = factors_in_words(self.coefficients)
        if self.polynomial is not None:
            written = _written(self.polynomial)
            return f"dx = 1/({written}){factors}" if self.inverse else f"dx = {written}{factors}"
        return f"dx = xi(x){factors}, one function for all, tabulated on [{self.low:.3g}, {self.high:.3g}]"

    def xi(self, x: Tensor) -> Tensor:
        """The velocity of one coordinate."""
        u = (2 * x - (self.low + self.high)) / (self.high - self.low)
        series = self.series.to(x)
        if len(series) <= 5:  # a polynomial, also outside of the table; Clenshaw
            ahead, two_ahead = torch.zeros_like(u), torch.zeros_like(u)
            for c in series.flip(0)[:-1]:
                ahead, two_ahead = c + 2 * u * ahead - two_ahead, ahead
            value = series[0] + u * ahead - two_ahead
        else:
            angle = torch.acos(u.clamp(-1 + 1e-15, 1 - 1e-15))
            value = torch.cos(angle.unsqueeze(-1) * torch.arange(len(series), dtype=u.dtype)) @ series
        return value.reciprocal() if self.inverse else value

    def __call__(self, x: Tensor) -> Tensor:
        moving = self.coefficients != 0
        if self.closed_form:
            return self.coefficients.to(x) * self.xi(torch.where(moving, x, torch.full_like(x, self.low)))
        outside = moving & ((x < self.low) | (x > self.high))
        safe = torch.where(moving, x, torch.full_like(x, self.low)).clamp(self.low, self.high)
        velocity = self.coefficients.to(x) * self.xi(safe)
        return on_null_line(self.nulls, x, velocity) if bool(outside.any()) else velocity


@dataclass(frozen=True, eq=False)
class TableField(Field):
    """c_i / psi'(x_i) with psi a table; outside of it, the null space at the point decides.

    Attributes:
        coefficients: c (n,), zero for coordinates that do not move.
        table: The table.
        nulls: Null spaces of the model.
    """

    coefficients: Tensor
    table: Table
    nulls: NullSpaces
    closed_form = False
    has_flow = True

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of coordinates."""
        return len(self.coefficients)

    def moved_rows(self) -> Tensor:
        """Which coordinates (n,) the field moves."""
        return self.coefficients != 0

    @property
    def text(self) -> str:
        """The field in words."""
        factors = factors_in_words(self.coefficients)
        return f"dx = xi(x){factors}, one function for all, a table on {self.table.chart.range}"

    def _inside(self, x: Tensor) -> Tensor:
        """`x` with numbers from the table where it does not move."""
        return torch.where(self.coefficients.to(x) != 0, x, self.table.chart.breaks[0].to(x))

    def __call__(self, x: Tensor) -> Tensor:
        chart, given = self.table.chart, self._inside(x)
        safe = given.clamp(chart.low, chart.high)
        velocity = self.coefficients.to(x) / chart.slopes(safe)
        return on_null_line(self.nulls, x, velocity) if bool((safe != given).any()) else velocity

    def flow(self, x: Tensor, t: Tensor) -> Tensor:
        """See `Field.flow`: nan where a coordinate leaves the table."""
        chart, c = self.table.chart, self.coefficients.to(x)
        moved = chart.inverse.values(chart.values(self._inside(x)) + c * t)
        return torch.where(c != 0, moved, x + 0 * t)


def on_null_line(nulls: NullSpaces, x: Tensor, velocity: Tensor) -> Tensor:
    """What of velocities (..., n) lies in the null spaces at points (..., n); nan outside of the domain of predictions."""
    if x.ndim > 1:
        rows = zip(x.flatten(0, -2), velocity.flatten(0, -2), strict=True)
        return torch.stack([on_null_line(nulls, *row) for row in rows]).reshape(x.shape)
    try:
        null = local_null(nulls.probe, x.detach().double(), nulls.scale).null
    except (ValueError, RuntimeError):
        return torch.full_like(x, torch.nan)
    return (nulls.scale * (null @ (null.mT @ (velocity.double() / nulls.scale)))).to(x)


def factors_in_words(coefficients: Tensor) -> str:
    """What the factors of the coordinates are, to be added to a formula."""
    if bool((coefficients >= 0).all()):
        return "" if len(coefficients.unique()) <= 2 and bool((coefficients <= 1).all()) else " with factors"
    return " with signs" if bool(torch.isin(coefficients.abs(), torch.tensor([0.0, 1.0])).all()) else " with factors"


def add_tabulated(search: Search) -> bool:
    """Adds a pointwise field without a formula if the null space is a line that one explains; returns whether it did."""
    nulls, n = search.nulls, search.nulls.probe.size
    if not isinstance(nulls, NullSpaces) or search.dim != 1 or search.fields or not 2 <= n <= 200:
        return False
    points = nulls.regular(max(12, -(-280 // max(n - 1, 1))))
    signs = _signs(_directions(search, points))
    if signs is None:
        return False
    coefficients = signs * _factors(search, signs != 0)
    return (
        _add_series(search, points, coefficients, _SHORT)
        or _add_table(search, points, coefficients)
        or _add_series(search, points, coefficients, _LONG)
    )


def _add_series(search: Search, points: list[LocalNull], coefficients: Tensor, degrees: tuple[int, ...]) -> bool:
    """Adds a field whose xi, or 1 / xi, is a Chebyshev series; returns whether it did."""
    moving, nulls = coefficients != 0, search.nulls
    assert isinstance(nulls, NullSpaces)
    drawn = torch.stack([p.x for p in points])[:, moving]
    low, high = float(drawn.min()), float(drawn.max())
    direction = torch.where(moving, _directions(search, points) / coefficients, 0.0)
    for degree, inverse in itertools.product(degrees, (False, True)):
        series = _series(points, direction, moving, low, high, degree, inverse)
        if series is None:
            continue
        field = SeriesField(coefficients, series, inverse, low, high, nulls, _polynomial(series, low, high))
        if all(_vertical(search, field, p) for p in [*points, *search.fresh_points()] if _within(field, p.x)):
            search.fields.append(field)
            return True
    return False


def _within(field: SeriesField, x: Tensor) -> bool:
    return not bool(((x < field.low) | (x > field.high)).any())


def _add_table(search: Search, points: list[LocalNull], coefficients: Tensor) -> bool:
    """Adds a field whose xi is a table; returns whether it did."""
    nulls = search.nulls
    if not isinstance(nulls, NullSpaces) or not nulls.probe.exact:
        return False
    drawn = torch.stack([*(p.x for p in points), nulls.probe.point])[:, coefficients != 0]
    table = tabulated(search, coefficients, drawn.flatten())
    if table is None:
        return False
    field = TableField(coefficients, table, nulls)
    if not all(_vertical(search, field, p) for p in [*points, *search.fresh_points()]):
        return False
    search.fields.append(field)
    return True


def _directions(search: Search, points: list[LocalNull]) -> Tensor:
    return torch.stack([p.null[:, 0] * search.nulls.scale for p in points])


def _factors(search: Search, moving: Tensor) -> Tensor:
    """Sizes (n,) of the constants c: where numbers go around, each coordinate meets the same values of xi.

    All 1 where they cannot be told.
    """
    order, n = moving.nonzero()[:, 0], len(moving)
    found = []
    for p in search.nulls.regular(2) if len(order) <= _MOST_FACTORS else ():
        logs = []
        for turn in range(len(order)):
            x = p.x.clone()
            x[order] = p.x[order.roll(turn)]
            null = null_at(search, x)
            logs.append(
                torch.full((n,), torch.nan) if null is None else (null.null[:, 0] * search.nulls.scale).abs().log()
            )
        size = torch.stack(logs).double().mean(0)[order].exp()
        found.append(size / size.median())
    one = torch.ones(n, dtype=torch.float64)
    if len(found) < 2 or not bool(((found[0] / found[1] - 1).abs() < _ALIKE).all()):
        return one
    one[order] = torch.tensor([snapped(c) for c in found[0].tolist()], dtype=torch.float64)
    return one


def _polynomial(series: Tensor, low: float, high: float) -> np.polynomial.Polynomial | None:
    """The series as a polynomial in x, lowest coefficient 1; None if it is long."""
    if len(series) > 5:
        return None
    inside = np.polynomial.Chebyshev(series.numpy()).convert(kind=np.polynomial.Polynomial)
    powers = inside(np.polynomial.Polynomial([-(high + low) / (high - low), 2 / (high - low)])).coef
    powers = np.where(np.abs(powers) > 1e-7 * np.abs(powers).max(), powers, 0.0)
    powers = powers / powers[np.nonzero(powers)[0][0]]
    return np.polynomial.Polynomial([snapped(c) for c in powers.tolist()]).trim()


def _written(polynomial: np.polynomial.Polynomial) -> str:
    names = ["1", "x", *(f"x^{k}" for k in range(2, len(polynomial.coef)))]
    return expression_of([(c, name) for c, name in zip(map(float, polynomial.coef), names, strict=True) if c != 0])


def _signs(direction: Tensor) -> Tensor | None:
    """Signs (n,) of a null direction that are the same at all points, relative to each other; None if they are not."""
    size = direction.abs().mean(0)
    moving = size > 1e-9 * size.max()
    lead = int(size.argmax())
    signs = torch.sign(direction * torch.sign(direction[:, lead : lead + 1])) * moving
    return signs[0] if bool((signs == signs[0]).all()) else None


def _series(
    points: list[LocalNull], direction: Tensor, moving: Tensor, low: float, high: float, degree: int, inverse: bool
) -> Tensor | None:
    """Chebyshev coefficients of xi (or of 1 / xi) that fit the directions (K, n); None if none do."""
    rows, means = [], []
    for p, nu in zip(points, direction, strict=True):
        u, nu = ((2 * p.x[moving] - (low + high)) / (high - low)).clamp(-1, 1), nu[moving]
        table = torch.cos(torch.arange(degree + 1, dtype=torch.float64) * torch.acos(u)[:, None])
        table = nu[:, None] * table if inverse else table / nu[:, None]  # the same number for every coordinate
        table = table / (nu.abs().mean() if inverse else nu.reciprocal().abs().mean())
        rows.append(table - table.mean(0))
        means.append(table.mean(0) * torch.sign(nu.sum()))
    count = sum(len(row) for row in rows)
    if count < 2 * degree + 2:
        return None
    # of least norm: where no point has been seen the series stays tame
    system = torch.cat([*rows, torch.stack(means).mean(0, keepdim=True)])
    right = torch.zeros(count + 1, dtype=torch.float64)
    right[-1] = 1.0
    series = torch.linalg.pinv(system, rtol=1e-13) @ right
    return series if float((system @ series - right).abs().max()) < 1e-9 else None


def _vertical(search: Search, field: Field, p: LocalNull) -> bool:
    velocity = field(p.x) / search.nulls.scale
    return float((p.seen @ velocity).norm()) <= _VERTICAL * float(velocity.norm())
