"""A chart given by a table: psi with psi' = 1 / xi as a spline, and its inverse.

The spline is that of `scipy.interpolate` (a quintic spline of 1 / xi, integrated), evaluated in torch: with derivatives, for
batches, in every dtype, under `torch.compile` and `torch.func`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import scipy  # its submodules load on first use
import torch
from torch import Tensor

from manifoldid.errors import DegeneratePointError
from manifoldid.groups.base import same_value
from manifoldid.points import Point, blocks_of, concrete, like_point

DEGREE = 5  # of the spline of psi'
_NEWTON = 8  # steps inside of one cell, where psi is nearly linear


@dataclass(frozen=True, eq=False, repr=False)
class TableChart:
    """An increasing function psi on [low, high], element by element, and of a dict on the blocks that it names.

    Numbers outside are refused; where values may not be looked at (under `torch.compile` and `vmap`) they are nan.

    Attributes:
        breaks: Ends of the cells (m + 1,), increasing.
        coefficients: psi in each cell (m, 7), by powers of x - breaks[cell].
        moving: Of each block ('' for a tensor) the entries that the chart is for; others stay as they are. None: all of a tensor.
    """

    breaks: Tensor
    coefficients: Tensor
    moving: dict[str, Tensor] | None = None

    @staticmethod
    def of(nodes: Tensor, slopes: Tensor) -> "TableChart":
        """The chart with psi'(nodes) = slopes > 0, both (N,) with increasing nodes, N > 5, and psi = 0 in the middle."""
        spline = scipy.interpolate.make_interp_spline(nodes.numpy(), slopes.numpy(), k=DEGREE)
        pieces = scipy.interpolate.PPoly.from_spline(spline.antiderivative())
        keep = (pieces.x[1:] > pieces.x[:-1]).nonzero()[0]  # knots at the ends are repeated
        breaks = torch.from_numpy(pieces.x[[*keep, keep[-1] + 1]].copy())
        coefficients = torch.from_numpy(pieces.c[::-1, keep].T.copy())
        chart = TableChart(breaks, coefficients)
        middle = float(chart.values(nodes[len(nodes) // 2]))
        unit = torch.eye(1, coefficients.shape[1], dtype=torch.float64)
        return replace(chart, coefficients=coefficients - middle * unit)

    def scaled(self, factor: float) -> "TableChart":
        """factor psi."""
        return replace(self, coefficients=factor * self.coefficients)

    def on(self, moving: dict[str, Tensor] | None) -> "TableChart":
        """The same function on some entries."""
        return replace(self, moving=moving)

    @property
    def low(self) -> float:
        """Start of the table."""
        return float(self.breaks[0])

    @property
    def high(self) -> float:
        """End of the table."""
        return float(self.breaks[-1])

    @property
    def inverse(self) -> "InverseTableChart":
        """The inverse function."""
        return InverseTableChart(self)

    @property
    def range(self) -> str:
        """Where the table is, as text."""
        return f"[{self.low:.4g}, {self.high:.4g}]"

    def __call__(self, x: Point) -> Point:
        """psi(x).

        Raises:
            DegeneratePointError: A number lies outside of the table.
        """
        return self.on_blocks(x, self._looked_up, self.breaks[0])

    def on_blocks(self, x: Point, function: Callable[[Tensor], Tensor], neutral: Tensor) -> Point:
        """A function of the entries that move; `neutral` is a number that it takes, in place of the others."""
        if self.moving is None:
            return function(x)
        parts = {}
        for name, where in self.moving.items():
            t, mask = blocks_of(x)[name], where.to(blocks_of(x)[name].device)
            parts[name] = torch.where(mask, function(torch.where(mask, t, neutral.to(t))), t)
        return like_point(parts, x)

    def _looked_up(self, x: Tensor) -> Tensor:
        self.refuse(x, self.inside(x), "has {} outside of {}, where the chart of this gauge is tabulated")
        return self.values(x)

    def inside(self, x: Tensor) -> Tensor:
        """Which numbers lie in the table."""
        return (x >= self.breaks[0].to(x)) & (x <= self.breaks[-1].to(x))

    def values(self, x: Tensor) -> Tensor:
        """psi(x) element by element, nan outside."""
        return self._piecewise(x, self.coefficients)

    def slopes(self, x: Tensor) -> Tensor:
        """psi'(x) element by element, nan outside."""
        return self._piecewise(x, self.coefficients[:, 1:] * torch.arange(1.0, self.coefficients.shape[1]))

    def _piecewise(self, x: Tensor, coefficients: Tensor) -> Tensor:
        breaks, inside = self.breaks.to(x), self.inside(x)
        safe = torch.where(inside, x, breaks[0])
        cell = _cell(safe, breaks)
        value = _polynomial(coefficients.to(x)[cell], safe - breaks[cell])
        return torch.where(inside, value, torch.full_like(value, torch.nan))

    def refuse(self, x: Tensor, inside: Tensor, text: str) -> None:
        """Raises where finite numbers are not inside, if values may be looked at.

        Raises:
            DegeneratePointError: There are such numbers.
        """
        if not concrete(x) or bool((inside | ~torch.isfinite(x)).all()):
            return
        count = int((~inside & torch.isfinite(x)).sum())
        raise DegeneratePointError(
            f"`x` {text.format(f'{count} number(s)', self.range)}: `mid.diagnose` with a `sample` that draws from a wider range "
            "makes a longer table"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableChart) and same_value(
            (self.breaks, self.coefficients, self.moving), (other.breaks, other.coefficients, other.moving)
        )

    def __hash__(self) -> int:
        return hash((self.low, self.high, len(self.breaks)))

    def __repr__(self) -> str:
        return f"<psi, tabulated on {self.range}>"


@dataclass(frozen=True)
class InverseTableChart:
    """The inverse of a table, by Newton's method inside of the cell; twice differentiable."""

    chart: TableChart

    def __call__(self, y: Point) -> Point:
        """x with psi(x) = y.

        Raises:
            DegeneratePointError: A number has none inside of the table.
        """
        return self.chart.on_blocks(y, self._looked_up, self.chart.coefficients[0, 0])

    def _looked_up(self, y: Tensor) -> Tensor:
        x = self.values(y)
        text = "would be moved so that {} leave {}, where the chart of this gauge is tabulated"
        self.chart.refuse(y, torch.isfinite(x), text)
        return x

    def values(self, y: Tensor) -> Tensor:
        """The inverse element by element, nan outside of the table."""
        breaks, coefficients = self.chart.breaks.to(y), self.chart.coefficients.to(y)
        last = _polynomial(coefficients[-1], breaks[-1] - breaks[-2])
        ends = torch.cat([coefficients[:, 0], last.reshape(1)])
        inside = (y >= ends[0]) & (y <= ends[-1])
        safe = torch.where(inside, y, ends[0])
        cell = _cell(safe, ends)
        own, width, target = coefficients[cell], (breaks[1:] - breaks[:-1])[cell], safe.detach()
        slopes = own[..., 1:] * torch.arange(1, own.shape[-1], dtype=y.dtype, device=y.device)
        d = width * (target - ends[cell]) / (ends[cell + 1] - ends[cell])
        for _ in range(_NEWTON):
            d = (d - (_polynomial(own, d) - target) / _polynomial(slopes, d)).clamp_min(0)
            d = torch.minimum(d, width)
        for _ in range(2):  # steps that change nothing and carry the derivatives
            d = d - (_polynomial(own, d) - safe) / _polynomial(slopes, d)
        return torch.where(inside, breaks[cell] + d, torch.full_like(y, torch.nan))

    def __repr__(self) -> str:
        return "<its inverse>"


def _cell(x: Tensor, ends: Tensor) -> Tensor:
    """The index of the cell in which each number lies."""
    return torch.bucketize(x.detach().contiguous(), ends[1:-1].contiguous(), right=True)


def _polynomial(coefficients: Tensor, x: Tensor) -> Tensor:
    """Values by Horner's rule; coefficients (..., k) by increasing power."""
    value = coefficients[..., -1]
    for k in range(coefficients.shape[-1] - 2, -1, -1):
        value = value * x + coefficients[..., k]
    return value
