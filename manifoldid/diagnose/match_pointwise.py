"""Pointwise gauges as a known group behind a chart: dx/dt = f(x) is a translation of psi(x), psi' = 1 / f."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifoldid.diagnose.chart import SeriesField, TableField
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.groups import GaugeGroup, Parts, Pointwise, Product, Scaling, Shift, Translation
from manifoldid.points import Point, blocks_of, unflatten

_NEWTON = 60  # steps of the inverse of a polynomial, halved where they overshoot

Chart = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def complementary_log_log(x: Tensor) -> Tensor:
    """log(-log(1 - x))."""
    return torch.log(-torch.log1p(-x))


def inverse_complementary_log_log(y: Tensor) -> Tensor:
    """1 - exp(-exp(y))."""
    return -torch.expm1(-torch.exp(y))


# fields whose flows exist for all times; in the chart of the first one they are scalings, in the others translations
_POWER = "x log|x|"
_CHARTS: dict[str, Chart] = {
    _POWER: (torch.log, torch.exp),
    "sqrt(1 + x^2)": (torch.asinh, torch.sinh),
    "1 - x^2": (torch.atanh, torch.tanh),
    "x (1 - x)": (torch.logit, torch.sigmoid),
    "1/cosh(x)": (torch.sinh, torch.asinh),
    "cos(x)^2": (torch.tan, torch.atan),
    "normal_density(normal_quantile(x))": (torch.special.ndtri, torch.special.ndtr),
    "(1 - x) log(1 - x)": (complementary_log_log, inverse_complementary_log_log),
}


@dataclass(frozen=True, repr=False)
class OnBlocks:
    """A function of tensors on some blocks of a dict.

    Attributes:
        function: The function.
        names: The blocks.
    """

    function: Callable[[Tensor], Tensor]
    names: tuple[str, ...]

    def __call__(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """The function of these blocks alone."""
        return {name: self.function(x[name]) for name in self.names}

    def __repr__(self) -> str:
        return f"<{self.function.__name__} of {', '.join(self.names)}>"


@dataclass(frozen=True)
class PolynomialChart:
    """An increasing polynomial psi(x) = c_0 + c_1 x + ..., of odd degree, and its inverse.

    Attributes:
        coefficients: c_0, c_1, ...
    """

    coefficients: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """psi(x), by Horner's rule."""
        value = torch.zeros_like(x)
        for c in reversed(self.coefficients):
            value = value * x + c
        return value

    def slope(self, x: Tensor) -> Tensor:
        """psi'(x)."""
        value = torch.zeros_like(x)
        for k in range(len(self.coefficients) - 1, 0, -1):
            value = value * x + k * self.coefficients[k]
        return value

    @property
    def inverse(self) -> "InversePolynomialChart":
        """The inverse function."""
        return InversePolynomialChart(self)


@dataclass(frozen=True)
class InversePolynomialChart:
    """The inverse of an increasing polynomial, by Newton's method between bounds; twice differentiable."""

    chart: PolynomialChart

    def __call__(self, y: Tensor) -> Tensor:
        """x with psi(x) = y."""
        target = y.detach()
        low, high = self._bounds(target)
        x = 0.5 * (low + high)
        for _ in range(_NEWTON):
            rest = self.chart(x) - target
            low, high = torch.where(rest < 0, x, low), torch.where(rest > 0, x, high)
            new = x - rest / self.chart.slope(x)
            x = torch.where((new > low) & (new < high), new, 0.5 * (low + high))
        for _ in range(2):  # steps that change nothing and carry the derivatives
            x = x - (self.chart(x) - y) / self.chart.slope(x)
        return x

    def _bounds(self, target: Tensor) -> tuple[Tensor, Tensor]:
        width = torch.ones_like(target)
        for _ in range(40):
            outside = (self.chart(-width) > target) | (self.chart(width) < target)
            if not bool(outside.any()):
                break
            width = torch.where(outside, 2 * width, width)
        return -width, width


def pointwise_group(fields: list[Field], points: list[Tensor]) -> GaugeGroup | None:
    """The group of pointwise fields on a vector; None if they are not of one kind, or have no chart on the whole domain.

    Args:
        fields: The fields.
        points: Flat generic points.

    Returns:
        A proposal.
    """
    polynomial = _polynomial_chart(fields)
    if polynomial is not None:
        return polynomial
    names, coefficients = _of_one_function(fields)
    chart = _CHARTS.get(names)
    if chart is None or not all(bool(torch.isfinite(chart[0](x[coefficients.any(0)])).all()) for x in points):
        return None
    return _behind(chart, coefficients, Scaling if names == _POWER else Translation)


def tabulated_group(field: TableField, like: Point) -> GaugeGroup | None:
    """The shift of psi(x), psi the table of a field; None for complex numbers.

    Args:
        field: The field.
        like: A point, for the shapes of its blocks.
    """
    if any(t.is_complex() for t in blocks_of(like).values()):
        return None
    chart, factors = field.table.chart, unflatten(field.coefficients, like)
    moving = {name: c != 0 for name, c in blocks_of(factors).items() if bool((c != 0).any())}
    inside: GaugeGroup
    if isinstance(factors, Tensor):
        alike = factors.ndim == 1 and bool((factors == factors[0]).all())
        inside = Translation() if alike else Shift(factors[None])
        chart = chart if bool(moving[""].all()) else chart.on(moving)
    else:
        inside, chart = Shift([{name: factors[name] for name in moving}]), chart.on(moving)
    return Pointwise(chart, chart.inverse, inside)


def logarithmic_group(diagonals: list[Tensor], like: dict[str, Tensor], positive: dict[str, bool]) -> GaugeGroup | None:
    """Scalings by powers of common factors, as shifts of logarithms of the blocks that they move; None if some are not positive.

    Args:
        diagonals: The exponents (n,) of each scaling.
        like: A point, for the shapes of its blocks.
        positive: Blocks that are positive at all points.
    """
    exponents = [blocks_of(unflatten(d, like)) for d in diagonals]
    names = tuple(name for name in like if any(bool(e[name].any()) for e in exponents))
    if not names or not all(positive[name] and not like[name].is_complex() for name in names):
        return None
    directions = [{name: e[name] for name in names} for e in exponents]
    return Pointwise(OnBlocks(torch.log, names), OnBlocks(torch.exp, names), Shift(directions))


def _of_one_function(fields: list[Field]) -> tuple[str, Tensor]:
    """The function that all fields have in common, and its coefficients (k, n); no name if there is none."""
    rows, names = [], set()
    for f in fields:
        terms = f.separate_terms() if isinstance(f, ClosedField) else None
        if terms is None or len(terms) != 1:
            return "", torch.zeros(0, 0)
        names |= terms.keys()
        rows += list(terms.values())
    return (names.pop() if len(names) == 1 else ""), torch.stack(rows)


def _behind(chart: Chart, coefficients: Tensor, kind: type[Translation] | type[Scaling]) -> GaugeGroup | None:
    """The group that moves coordinate i by coefficients[k, i] in the chart."""
    moved = coefficients != 0
    alike = all(len(row[row != 0].unique()) == 1 for row in coefficients)
    inside: GaugeGroup
    if alike and bool((moved.sum(0) <= 1).all()):
        labels = moved.long().argmax(0)[moved.any(0)]
        inside = kind(blocks=labels if len(coefficients) > 1 else None)
    elif kind is Translation:
        inside = Shift(coefficients[:, moved.any(0)])
    else:
        return None
    group = Pointwise(*chart, inside)
    return group if bool(moved.any(0).all()) else Parts(Product(moved=group), moved=moved.any(0).nonzero()[:, 0])


def _polynomial_chart(fields: list[Field]) -> GaugeGroup | None:
    """The chart of a field 1 / p(x), p a positive polynomial: its antiderivative."""
    field = fields[0]
    if len(fields) != 1 or not isinstance(field, SeriesField) or not field.inverse or field.polynomial is None:
        return None
    density = field.polynomial
    roots = density.roots()
    real = roots[np.abs(roots.imag) < 1e-9 * (1 + np.abs(roots))]
    if len(real) or density.degree() % 2 or density.coef[-1] <= 0:
        return None
    chart = PolynomialChart(tuple(float(c) for c in density.integ().coef))
    return _behind((chart, chart.inverse), field.coefficients[None], Translation)
