"""Pointwise gauges that no library function explains: the chart psi in which they are a translation, from null spaces.

Let the null space be a line with direction nu(x), nu_i = s_i / psi'(x_i), with one unknown function for all coordinates and
signs s_i. Then s_i nu_i psi'(x_i) = s_j nu_j psi'(x_j) at every point: linear in psi', and the same with xi = 1 / psi' the
other way round. Either is solved for as a Chebyshev series; a short one is a formula.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifoldid.diagnose.fields import Field, snapped
from manifoldid.diagnose.generators import Search
from manifoldid.diagnose.nullspace import LocalNull, NullSpaces, local_null
from manifoldid.diagnose.terms import expression_of

_VERTICAL = 1e-7
_DEGREES = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, eq=False)
class TabulatedField(Field):
    """s_i xi(x_i) with xi a Chebyshev series on [low, high]; outside, the null space at the point decides.

    Attributes:
        signs: (n,), zero for coordinates that do not move.
        series: Coefficients (degree + 1,) of xi, or of 1 / xi.
        inverse: Whether they are those of 1 / xi.
        low: Start of the range of the table.
        high: End of the range of the table.
        nulls: Null spaces of the model.
        polynomial: The series as a polynomial with simple coefficients, up to a factor; None if it is long.
    """

    signs: Tensor
    series: Tensor
    inverse: bool
    low: float
    high: float
    nulls: NullSpaces
    polynomial: np.polynomial.Polynomial | None

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of coordinates."""
        return len(self.signs)

    @property
    def closed_form(self) -> bool:  # type: ignore[override]
        """Whether the field is a formula."""
        return self.polynomial is not None

    @property
    def text(self) -> str:
        """The field in words."""
        signed = "" if bool((self.signs >= 0).all()) else " with signs"
        if self.polynomial is not None:
            written = _written(self.polynomial)
            return f"dx = 1/({written}){signed}" if self.inverse else f"dx = {written}{signed}"
        return f"dx = xi(x){signed}, one function for all, tabulated on [{self.low:.3g}, {self.high:.3g}]"

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
        moving = self.signs != 0
        if self.closed_form:
            return self.signs.to(x) * self.xi(torch.where(moving, x, torch.full_like(x, self.low)))
        outside = moving & ((x < self.low) | (x > self.high))
        velocity = self.signs.to(x) * self.xi(
            torch.where(moving, x, torch.full_like(x, self.low)).clamp(self.low, self.high)
        )
        if not bool(outside.any()):
            return velocity
        if x.ndim > 1:
            return torch.stack([self(row) for row in x.flatten(0, -2)]).reshape(x.shape)
        scale = self.nulls.scale
        null = local_null(self.nulls.probe, x.detach().double(), scale).null
        return (scale * (null @ (null.mT @ (velocity.double() / scale)))).to(x)


def add_tabulated(search: Search) -> bool:
    """Adds a pointwise field without a formula if the null space is a line that one explains; returns whether it did."""
    nulls, n = search.nulls, search.nulls.probe.size
    if not isinstance(nulls, NullSpaces) or search.dim != 1 or search.fields or not 2 <= n <= 200:
        return False
    points = nulls.regular(max(12, -(-280 // max(n - 1, 1))))
    direction = torch.stack([p.null[:, 0] * nulls.scale for p in points])
    signs = _signs(direction)
    if signs is None:
        return False
    drawn = torch.stack([p.x for p in points])[:, signs != 0]
    low, high = float(drawn.min()), float(drawn.max())
    for degree, inverse in itertools.product(_DEGREES, (False, True)):
        series = _series(points, direction * signs, signs != 0, low, high, degree, inverse)
        if series is None:
            continue
        field = TabulatedField(signs, series, inverse, low, high, nulls, _polynomial(series, low, high))
        if all(_vertical(search, field, p) for p in [*points, *search.fresh_points()]):
            search.fields.append(field)
            return True
    return False


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


def _vertical(search: Search, field: TabulatedField, p: LocalNull) -> bool:
    if bool(((p.x < field.low) | (p.x > field.high)).any()):
        return True
    velocity = field(p.x) / search.nulls.scale
    return float((p.seen @ velocity).norm()) <= _VERTICAL * float(velocity.norm())
