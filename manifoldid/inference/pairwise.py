"""All pairwise differences of n scores, with intervals that hold together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manifoldid.inference.contrast import critical_value, half_of
from manifoldid.inference.presentation import Column, rendered
from manifoldid.points import flatten


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
