"""Tables of the one function xi of a pointwise gauge, measured by null spaces at points that are laid out for it.

At a point x the null direction is nu_i = c_i xi(x_i) up to a factor, so that one derivative of the predictions gives the ratios
of xi at as many places as there are coordinates. Places are laid out in chains that overlap in one place.
"""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from manifoldid.diagnose.generators import Search
from manifoldid.diagnose.nullspace import LocalNull, local_null
from manifoldid.diagnose.table import TableChart

_FIRST = 33  # places on the range of the drawn points
_STEP = 6  # further places in a step beyond it
_BENT = 0.5  # logarithm of a factor by which xi may differ from its neighbours
_MARGIN = 4.0  # how far the table goes beyond the drawn points, in standard deviations of them in the chart
_STEPS = 18  # beyond them, on each side
_GROWTH = 2.0  # of steps
_GOES_ON = 0.8  # ratio of growths of the chart, over two steps, by which it does not come to an end
_NEAR_STEPS = 4  # that are kept where the chart comes to an end at infinity
_FITTED = 1e-10  # relative error of the spline of 1 / xi at places that it was not made of, before they go into it, too
_WORST = 1e-6  # the same of a table that is any good
_GAIN = 2.0  # by which the error falls when cells are halved (64 for a smooth function); less is rounding
_MOST = 1500  # places
_STILL = 1e-7  # velocity of a coordinate that does not move
_BASES = 3  # drawn points at which places are tried one by one


@dataclass(frozen=True)
class Table:
    """What was measured.

    Attributes:
        chart: psi with psi' = 1 / xi, in units of the standard deviation of the drawn points.
        error: Relative error of psi', an estimate.
        count: At how many places xi was measured.
        ends: Where the chart ends below and above: '' if it goes as far as was asked for.
    """

    chart: TableChart
    error: float
    count: int
    ends: tuple[str, str]

    @property
    def complete(self) -> bool:
        """Whether it goes as far as was asked for."""
        return self.ends == ("", "")


@dataclass
class Rates:
    """Measures xi at places, relative to the first one that was measured.

    Attributes:
        search: Null spaces of the model; a line at generic points.
        coefficients: c (n,), zero for coordinates that do not move.
        known: xi by place.
    """

    search: Search
    coefficients: Tensor
    known: dict[float, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.moving = (self.coefficients != 0).nonzero()[:, 0]
        self.bases = [p.x for p in self.search.nulls.regular(_BASES)]
        self.order = self.moving[self.bases[0][self.moving].argsort()]  # places keep the order of a drawn point

    def measured(self, places: list[float]) -> bool:
        """Whether xi could be measured at all these places, in chains from one that is known to the next ones."""
        new = [u for u in places if u not in self.known]
        if not self.known and new:
            self.known[new.pop(0)] = 1.0
        width = len(self.moving) - 1
        for k in range(0, len(new), width):
            batch = new[k : k + width]
            if not self._together(batch) and not all(self._together([u]) or self._alone(u) for u in batch):
                return False
        return True

    def _nearest(self, place: float) -> list[float]:
        """The known places, nearest first."""
        return sorted(self.known, key=lambda u: abs(u - place))

    def _together(self, batch: list[float]) -> bool:
        """Measures places beside the nearest known one, and further known ones to fill the coordinates up."""
        near = self._nearest(batch[0])
        others = near[: len(self.moving) - len(batch)]
        fill = len(self.moving) - len(batch) - len(others)
        if fill > 0:  # only at the beginning: places in between that nobody asked for
            others += [batch[0] + (others[0] - batch[0]) * (j + 1) / (fill + 1) for j in range(fill)]
        places = sorted([*batch, *others])
        x = self.bases[0].clone()
        x[self.order] = torch.tensor(places, dtype=torch.float64)
        rates = self._rates(x)
        if rates is None:
            return False
        by_place = dict(zip(places, rates[self.order].tolist(), strict=True))
        unit = self.known[near[0]] / by_place[near[0]]
        self.known.update({u: unit * by_place[u] for u in batch})
        return True

    def _alone(self, place: float) -> bool:
        """Measures one place in place of one coordinate of a drawn point, and a known one in the same way."""
        for base, (i, j) in itertools.product(self.bases, [(0, -1), (-1, 0)]):
            i, j = self.order[i], self.order[j]
            sizes = []
            for u in (place, self._nearest(place)[0]):
                x = base.clone()
                x[i] = u
                rates = self._rates(x)
                sizes.append(math.nan if rates is None else float(rates[i] / rates[j]))
            if all(map(math.isfinite, sizes)):
                self.known[place] = self.known[self._nearest(place)[0]] * sizes[0] / sizes[1]
                return True
        return False

    def _rates(self, x: Tensor) -> Tensor | None:
        """xi (n,) at the coordinates of a point up to a factor; None where predictions do not say."""
        null = null_at(self.search, x)
        if null is None:
            return None
        direction = null.null[:, 0] * self.search.nulls.scale
        rates = torch.where(self.coefficients != 0, direction / self.coefficients, direction)
        moving = rates[self.moving]
        still = direction[self.coefficients == 0].abs().max() if len(moving) < len(rates) else 0.0
        same_sign = bool((moving > 0).all() | (moving < 0).all())
        return rates / moving[0] if same_sign and float(still) <= _STILL * float(direction.abs().max()) else None


def null_at(search: Search, x: Tensor) -> LocalNull | None:
    """The null space at a point; None if predictions are not finite there, or its dimension is not the generic one."""
    probe = search.nulls.probe
    try:
        if not bool(torch.isfinite(probe.values(x)).all()):
            return None
        found = local_null(probe, x, search.nulls.scale)
    except (ValueError, RuntimeError):
        return None
    return found if found.rank == search.nulls.rank else None


def tabulated(search: Search, coefficients: Tensor, drawn: Tensor) -> Table | None:
    """The table of a pointwise gauge.

    Args:
        search: Null spaces of the model; a line at generic points.
        coefficients: c (n,).
        drawn: Numbers that the table has to cover, and from whose spread it gets its unit.

    Returns:
        The table; None if predictions at points that are laid out for it do not tell xi.
    """
    low, high = float(drawn.min()), float(drawn.max())
    rates = Rates(search, coefficients)
    if not rates.measured(np.linspace(low, high, _FIRST).tolist()):
        return None
    unit = _spread(rates, drawn)
    ends = tuple(_extended(rates, sign, unit) for sign in (-1, 1))
    error = _refined(rates)
    if error is None or error > _WORST:
        return None
    return Table(_spline(rates).scaled(1 / _spread(rates, drawn)), error, len(rates.known), (ends[0], ends[1]))


def _spline(rates: Rates) -> TableChart:
    nodes = torch.tensor(sorted(rates.known), dtype=torch.float64)
    return TableChart.of(nodes, 1 / torch.tensor([rates.known[u] for u in nodes.tolist()], dtype=torch.float64))


def _spread(rates: Rates, drawn: Tensor) -> float:
    """Half the range of the middle two thirds of numbers, in the chart: a standard deviation that tails do not see."""
    sixths = torch.tensor([1 / 6, 5 / 6], dtype=torch.float64)
    low, high = torch.quantile(_spline(rates).values(drawn), sixths).tolist()
    return 0.5 * (high - low)


def _extended(rates: Rates, sign: int, unit: float) -> str:
    """Measures beyond the last place, in growing steps, and towards a place where a step has failed in halves.

    Returns:
        Where it ends before the chart has grown by enough units; '' if it has, or goes on growing.
    """
    end = (max if sign > 0 else min)(rates.known)
    step, wall, grown = sign * (max(rates.known) - min(rates.known)) / 8, math.inf, [0.0]
    kept = dict(rates.known)
    for _ in range(_STEPS):
        places, before = np.linspace(end, end + step, 2 * _STEP + 1).tolist(), dict(rates.known)
        if rates.measured(places[::2]) and rates.measured(places[1::2]) and _smooth(rates, places):
            density = 1 / np.array([rates.known[u] for u in places])
            grown.append(abs(float(np.trapezoid(density, places))) / unit)
            end, step = end + step, _GROWTH * step if math.isinf(wall) else 0.5 * (wall - end - step)
            if sum(grown) >= _MARGIN:
                return ""
            kept = dict(rates.known) if len(grown) <= _NEAR_STEPS else kept
        else:
            rates.known = before
            wall, step = end + step, 0.5 * step
    if sum(grown) >= 1 and grown[-1] > _GOES_ON * grown[-3]:
        return ""
    if not math.isinf(wall):
        decimals = max(0, -math.floor(math.log10(abs(wall - end))) - 1)
        return f"at {round(0.5 * (end + wall), decimals) + 0.0:.6g}"
    rates.known = kept
    return "at infinity" if sign > 0 else "at minus infinity"


def _smooth(rates: Rates, places: list[float]) -> bool:
    """Whether xi is like its mean at the neighbours, at equidistant places: there is no pole or zero in between."""
    size = np.log([rates.known[u] for u in places])
    return bool((np.abs(size[1:-1] - 0.5 * (size[:-2] + size[2:])) < _BENT).all())


def _refined(rates: Rates) -> float | None:
    """Measures between places until the spline does not change; returns its relative error, None if it cannot be measured."""
    places = sorted(rates.known)
    cells, before = list(itertools.pairwise(places)), math.inf
    while True:
        chart = _spline(rates)
        middles = [0.5 * (a + b) for a, b in cells]
        if not rates.measured(middles):
            return None
        slope = chart.slopes(torch.tensor(middles, dtype=torch.float64))
        wanted = 1 / torch.tensor([rates.known[u] for u in middles], dtype=torch.float64)
        errors = ((slope - wanted).abs() / wanted).tolist()
        worst = max(errors)
        bad = {k + j for k, e in enumerate(errors) if e > _FITTED for j in (-1, 0, 1)}
        if not bad or len(rates.known) > _MOST or worst > before / _GAIN:
            return worst
        before = worst
        cells = [
            half for k, (a, b) in enumerate(cells) if k in bad for half in ((a, 0.5 * (a + b)), (0.5 * (a + b), b))
        ]
