"""All pairwise differences of n scores, with intervals that hold together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manifoldid.errors import listed
from manifoldid.inference.contrast import critical_value, half_of
from manifoldid.inference.presentation import Column, rendered
from manifoldid.plots import contrasts
from manifoldid.points import flatten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAWN = 200  # pairs


@dataclass(frozen=True, eq=False)
class PairwiseContrasts:
    """The differences of all pairs among n scores.

    Attributes:
        scores: (n,), in any gauge.
        covariance: (n, n), in that gauge.
        labels: What the scores are called, n of them.
    """

    scores: Tensor
    covariance: Tensor
    labels: Sequence[str | int] = field(repr=False)

    @property
    def value(self) -> Tensor:
        """Differences (n, n): value[i, j] = scores[i] - scores[j]."""
        return self.scores[:, None] - self.scores

    @property
    def standard_error(self) -> Tensor:
        """Standard errors (n, n) of the differences; 0 on the diagonal."""
        variances = self.covariance.diagonal()
        both = variances[:, None] + variances - 2 * self.covariance
        return both.fill_diagonal_(0).clamp_min(0).sqrt()

    def simultaneous_interval(
        self, level: float = 0.95, draws: int = 20_000, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Intervals (low, high), each (n, n), that hold all differences at once with probability `level`.

        Single-step max-t, as `Contrast.simultaneous_interval`, without ever forming the covariance of the n (n - 1) / 2 differences.

        Raises:
            ValueError: `level` is not between 0 and 1, or `draws` is below 100.
        """
        i, j = torch.triu_indices(len(self.scores), len(self.scores), offset=1)
        errors = self.standard_error.detach().cpu().double()[i, j]
        inverse = torch.where(errors > 0, errors.reciprocal(), 0)
        half = half_of(self.covariance.detach().cpu().double())

        def largest(noise: Tensor) -> Tensor:
            scores = noise @ half.mT
            return ((scores[:, i] - scores[:, j]) * inverse).abs().amax(-1)

        reach = critical_value(largest, half.shape[-1], len(i), level, draws, generator) * self.standard_error
        return self.value - reach, self.value + reach

    def table(
        self, level: float = 0.95, draws: int = 20_000, generator: torch.Generator | None = None
    ) -> list[dict[str, Any]]:
        """One row per pair i < j: item, other, difference, standard_error, low, high (simultaneous). Errors as there."""
        low, high = self.simultaneous_interval(level, draws, generator)
        columns = [t.tolist() for t in (self.value, self.standard_error, low, high)]
        keys = ("difference", "standard_error", "low", "high")
        return [
            {
                "item": self.labels[i],
                "other": self.labels[j],
                **{key: of[i][j] for key, of in zip(keys, columns, strict=True)},
            }
            for i in range(len(self.labels))
            for j in range(i + 1, len(self.labels))
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
            against: The label of one item: only the differences of the others with it.
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
        i, j = torch.triu_indices(len(labels), len(labels), offset=1)
        if against is not None:
            if against not in labels:
                raise ValueError(f"`against` must be one of the labels {listed(labels)}, got {against!r}")
            j = torch.full((len(labels) - 1,), labels.index(against))
            i = torch.tensor([k for k in range(len(labels)) if k != labels.index(against)])
        if len(i) > _DRAWN:
            raise ValueError(f"`against` must name one item: all {len(i)} pairs cannot be told apart in one picture")
        low, high = self.simultaneous_interval(level, generator=generator)
        names = [f"{labels[a]} - {labels[b]}" for a, b in zip(i.tolist(), j.tolist(), strict=True)]
        meaning = f"difference, {level:.0%} intervals that hold together"
        return contrasts(self.value[i, j], low[i, j], high[i, j], names, meaning, axes)

    def __str__(self) -> str:
        rows = self.table()
        apart = sum(row["low"] > 0 or row["high"] < 0 for row in rows)
        columns = [
            Column("item"),
            Column("other"),
            Column("difference", scale="standard_error"),
            Column("standard_error"),
            Column("low", scale="standard_error"),
            Column("high", scale="standard_error"),
        ]
        note = f"{apart} of {len(rows)} pairs differ: 95 % intervals that hold together (max-t)"
        return rendered("Pairwise differences", columns, rows, [note])


def differences(t: Tensor) -> Tensor:
    """All numbers of a block minus the first one: all differences are differences of these."""
    real = flatten(t)
    return real[1:] - real[0]
