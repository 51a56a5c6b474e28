"""All pairwise differences of n scores, with intervals that hold together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manifoldid.inference.contrast import adjusted, checked_level, critical_value, half_of, largest_contrasts
from manifoldid.inference.names import place_of
from manifoldid.inference.pools import pairs
from manifoldid.inference.presentation import Column, rendered
from manifoldid.plots import contrasts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAWN = 200  # pairs


@dataclass(frozen=True, eq=False)
class PairwiseContrasts:
    """The differences of all pairs among n scores that have one: pairs of different pools are nan, and in no table.

    Attributes:
        scores: (n,), in any gauge.
        covariance: (n, n), in that gauge.
        labels: What the scores are called, n of them.
        pools: Labels (n,) of scores without a common origin; None for one pool.
    """

    scores: Tensor
    covariance: Tensor
    labels: Sequence[str | int] = field(repr=False)
    pools: Tensor | None = field(default=None, repr=False)

    @property
    def value(self) -> Tensor:
        """Differences (n, n): value[i, j] = scores[i] - scores[j]."""
        return self._within(self.scores[:, None] - self.scores)

    @property
    def standard_error(self) -> Tensor:
        """Standard errors (n, n) of the differences; 0 on the diagonal."""
        variances = self.covariance.diagonal()
        both = variances[:, None] + variances - 2 * self.covariance
        return self._within(both.fill_diagonal_(0).clamp_min(0).sqrt())

    def simultaneous_interval(
        self, level: float = 0.95, draws: int = 20_000, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Intervals (low, high), each (n, n), that hold all differences at once with probability `level`.

        Single-step max-t, as `Contrast.simultaneous_interval`, without ever forming the covariance of the n (n - 1) / 2 differences.

        Raises:
            ValueError: `level` is not between 0 and 1, or `draws` is below 100.
        """
        checked_level(level)
        return self._reach(critical_value(self._simulated(draws, generator), level))

    def adjusted_p_values(self, draws: int = 20_000, generator: torch.Generator | None = None) -> Tensor:
        """p-values (n, n) of no difference, adjusted for all pairs: as `Contrast.adjusted_p_values`; 1 on the diagonal.

        Below .05 exactly where the simultaneous interval of level .95 misses 0.

        Raises:
            ValueError: `draws` is below 100.
        """
        return self._p_values(self._simulated(draws, generator))

    def table(
        self, level: float = 0.95, draws: int = 20_000, generator: torch.Generator | None = None
    ) -> list[dict[str, Any]]:
        """One row per pair i < j: item, other, difference, standard_error, low, high (simultaneous), p_value (adjusted).

        Raises:
            ValueError: `level` is not between 0 and 1, or `draws` is below 100.
        """
        checked_level(level)
        largest = self._simulated(draws, generator)
        low, high = self._reach(critical_value(largest, level))
        columns = [t.tolist() for t in (self.value, self.standard_error, low, high, self._p_values(largest))]
        keys = ("difference", "standard_error", "low", "high", "p_value")
        return [
            {
                "item": self.labels[i],
                "other": self.labels[j],
                **{key: of[i][j] for key, of in zip(keys, columns, strict=True)},
            }
            for i, j in zip(*(t.tolist() for t in pairs(self.pools, len(self.scores))), strict=True)
        ]

    def plot(
        self,
        against: str | int | None = None,
        axes: "Axes | None" = None,
        level: float = 0.95,
        generator: torch.Generator | None = None,
    ) -> "Axes":
        """Draws the differences with their simultaneous intervals; those that miss 0 are dark.

        Args:
            against: The label or index of one item: only the differences of the others with it.
            axes: Where to draw; default a figure of its own.
            level: Probability that all intervals, also those not drawn, hold.
            generator: Of the simulation.

        Returns:
            The axes; `axes.figure.savefig(path)` writes the picture.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: `against` is no label, more than 200 pairs would be drawn, or `level` is not between 0 and 1.
        """
        labels = list(self.labels)
        i, j = pairs(self.pools, len(labels))
        if against is not None:
            one = place_of(against, labels, "against")
            chosen = (i == one) | (j == one)
            i = (i + j - one)[chosen]
            j = torch.full_like(i, one)
        if len(i) > _DRAWN:
            raise ValueError(f"`against` must name one item: all {len(i)} pairs cannot be told apart in one picture")
        low, high = self.simultaneous_interval(level, generator=generator)
        names = [f"{labels[a]} - {labels[b]}" for a, b in zip(i.tolist(), j.tolist(), strict=True)]
        meaning = f"difference, {level:.0%} intervals that hold together"
        return contrasts(self.value[i, j], low[i, j], high[i, j], names, meaning, axes)

    def __str__(self) -> str:
        rows = self.table()
        apart = sum(row["low"] > 0 or row["high"] < 0 for row in rows)
        for row in rows:
            row["p_value"] = "<0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"
        columns = [
            Column("item"),
            Column("other"),
            Column("difference", scale="standard_error"),
            Column("standard_error"),
            Column("low", scale="standard_error"),
            Column("high", scale="standard_error"),
            Column("p_value"),
        ]
        note = f"{apart} of {len(rows)} pairs differ: 95 % intervals that hold together, p-values adjusted for all pairs (max-t)"
        title = "Pairwise differences" if self.pools is None else "Pairwise differences within pools"
        return rendered(title, columns, rows, [note])

    def _within(self, matrix: Tensor) -> Tensor:
        if self.pools is None:
            return matrix
        pools = self.pools.to(matrix.device)
        return torch.where(pools[:, None] == pools, matrix, torch.nan)

    def _simulated(self, draws: int, generator: torch.Generator | None) -> Tensor:
        """The largest |t| of every simulated set of differences."""
        i, j = pairs(self.pools, len(self.scores))
        errors = self.standard_error.detach().cpu().double()[i, j]
        inverse = torch.where(errors > 0, errors.reciprocal(), 0)
        half = half_of(self.covariance.detach().cpu().double())

        def largest(noise: Tensor) -> Tensor:
            scores = noise @ half.mT
            return ((scores[:, i] - scores[:, j]) * inverse).abs().amax(-1)

        return largest_contrasts(largest, half.shape[-1], len(i), draws, generator)

    def _reach(self, critical: float) -> tuple[Tensor, Tensor]:
        reach = critical * self.standard_error
        return self.value - reach, self.value + reach

    def _p_values(self, largest: Tensor) -> Tensor:
        return self._within(adjusted(self.value, self.standard_error, largest))
