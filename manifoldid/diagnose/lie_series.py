"""Flows of polynomial fields whose Lie series ends: x(t) = x + t X x + t^2/2 X X x + ..., a polynomial in x and t."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Powers = tuple[tuple[int, int], ...]  # ((coordinate, power), ...), coordinates increasing
Polynomial = dict[Powers, float]

_LONGEST = 8  # derivatives, after which a series counts as one without end
_MOST_TERMS = 60  # of one derivative
_ROUNDING = 1e-14  # relative to the terms that a coefficient is the sum of: its size is a matter of units


@dataclass(frozen=True)
class EndingSeries:
    """The flow of a polynomial field.

    Attributes:
        derivatives: X x_i, X X x_i, ... of every coordinate i that moves.
    """

    derivatives: dict[int, list[Polynomial]]

    @staticmethod
    def of(field: list[Polynomial]) -> "EndingSeries | None":
        """The flow of a field given by the velocity of each coordinate; None if its series does not end."""
        derivatives: dict[int, list[Polynomial]] = {}
        for i, now in enumerate(field):
            series: list[Polynomial] = []
            while now:
                series.append(now)
                now = _along(field, now)
                if len(series) > _LONGEST or len(now) > _MOST_TERMS:
                    return None
            if series:
                derivatives[i] = series
        return EndingSeries(derivatives)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The points (..., n) that start at `x` after time t, a scalar or (..., 1)."""
        columns = list((x + 0 * t).unbind(-1))
        time = torch.zeros_like(columns[0]) + (t if t.ndim == 0 else t[..., 0])
        moved = list(columns)
        for i, series in self.derivatives.items():
            factor = torch.ones_like(time)
            for k, derivative in enumerate(series, 1):
                factor = factor * time / k
                moved[i] = moved[i] + factor * _value(derivative, columns)
        return torch.stack(moved, dim=-1)


def polynomial(terms: Iterable[tuple[float, Powers]]) -> Polynomial:
    """A sum of monomials, without those that cancel up to rounding."""
    total: Polynomial = {}
    size: Polynomial = {}
    for coefficient, powers in terms:
        total[powers] = total.get(powers, 0.0) + coefficient
        size[powers] = size.get(powers, 0.0) + abs(coefficient)
    return {powers: c for powers, c in total.items() if abs(c) > _ROUNDING * size[powers]}


def _along(field: list[Polynomial], p: Polynomial) -> Polynomial:
    """The derivative of a polynomial along the field."""
    return polynomial(
        (c * power * factor, _product(_lowered(powers, j), other))
        for powers, c in p.items()
        for j, power in powers
        for other, factor in field[j].items()
    )


def _lowered(powers: Powers, j: int) -> Powers:
    return tuple((k, p - (k == j)) for k, p in powers if p - (k == j))


def _product(first: Powers, second: Powers) -> Powers:
    total = dict(first)
    for k, p in second:
        total[k] = total.get(k, 0) + p
    return tuple(sorted(total.items()))


def _value(p: Polynomial, columns: list[Tensor]) -> Tensor:
    value = torch.zeros_like(columns[0])
    for powers, c in p.items():
        term = torch.full_like(columns[0], c)
        for j, power in powers:
            term = term * columns[j] ** power
        value = value + term
    return value
