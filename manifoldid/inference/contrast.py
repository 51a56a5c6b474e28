"""Functions of a point that do not see the gauge, with their uncertainty: from an estimate or from an ensemble."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

_CHUNK = 2**22  # numbers of one batch of simulated contrasts


@dataclass(frozen=True, eq=False)
class Contrast:
    """One or several functions of a point that are constant on its orbits, and their covariance.

    From `infer` the value is that of the estimate and the covariance follows by the delta method; from an `Ensemble` the value is
    the mean over the members and the covariance the spread of ONE member (ddof 1), not of their mean.

    Attributes:
        value: A number () or a vector (k,).
        covariance: (k, k); (1, 1) for a number.
        members: Of an ensemble: the function of every member, (M,) or (M, k).
    """

    value: Tensor
    covariance: Tensor
    members: Tensor | None = None

    @property
    def standard_error(self) -> Tensor:
        """Square roots of the variances, shaped like `value`."""
        return self.covariance.diagonal().clamp_min(0).sqrt().reshape(self.value.shape)

    @property
    def correlation(self) -> Tensor:
        """Correlations (k, k); nan in the rows of a contrast without variance."""
        return correlation_of(self.covariance)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Normal interval (low, high), each shaped like `value`, of every contrast by itself.

        Raises:
            ValueError: `level` is not between 0 and 1.
        """
        half = NormalDist().inv_cdf(0.5 + checked_level(level) / 2) * self.standard_error
        return self.value - half, self.value + half

    def simultaneous_interval(
        self, level: float = 0.95, draws: int = 100_000, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Intervals (low, high) that hold all contrasts at once with probability `level`.

        value +- c standard_error, where c is the quantile of max_k |t_k| of the normal distribution with this correlation, found by
        simulation (single-step max-t; Hothorn, Bretz & Westfall 2008). Its own error is about 1 % of c at 10,000 draws.

        Args:
            level: Probability that every interval holds its contrast.
            draws: Simulated vectors of contrasts.
            generator: Of the simulation; None is a private one seeded 0.

        Raises:
            ValueError: `level` is not between 0 and 1, or `draws` is below 100.
        """
        checked_level(level)
        half = critical_value(self._simulated(draws, generator), level) * self.standard_error
        return self.value - half, self.value + half

    def adjusted_p_values(self, draws: int = 100_000, generator: torch.Generator | None = None) -> Tensor:
        """p-values, shaped like `value`, that every contrast is 0, adjusted for looking at all of them (single-step max-t).

        The probability that the largest |t| of all contrasts is at least that of this one if all of them are 0, by simulation:
        (1 + hits) / (1 + draws), so never 0. Below 1 - level where `simultaneous_interval(level)` misses 0.

        Args:
            draws: Simulated vectors of contrasts.
            generator: Of the simulation; None is a private one seeded 0.

        Raises:
            ValueError: `draws` is below 100.
        """
        return adjusted(self.value, self.standard_error, self._simulated(draws, generator))

    def wald_test(self, null: Tensor | float = 0.0) -> "WaldTest":
        """Tests that all contrasts equal `null`: (value - null)' covariance^+ (value - null), chi-squared.

        Contrasts that depend on each other linearly (all pairs of three items) count once: the degrees of freedom are the rank.

        Args:
            null: A number or a vector (k,).

        Raises:
            ValueError: `null` does not fit, there is no variance at all, or `null` contradicts a linear relation that the contrasts
                obey exactly.
        """
        null = torch.as_tensor(null, dtype=torch.float64, device=self.value.device)
        if null.ndim and null.shape != self.value.shape:
            raise ValueError(
                f"`null` must be a number or have the shape {tuple(self.value.shape)}, got {tuple(null.shape)}"
            )
        rest = (self.value.double() - null).reshape(-1)
        errors = self.covariance.double().diagonal().clamp_min(0).sqrt()
        if not bool((errors > 0).any()):
            raise ValueError("`covariance` of these contrasts is zero: there is nothing to test")
        unit = torch.where(errors > 0, errors, errors.max())
        values, vectors = torch.linalg.eigh(self.covariance.double() / unit / unit[:, None])
        cut = values > 100 * len(values) * torch.finfo(self.covariance.dtype).eps * values[-1]
        along = vectors.mT @ (rest / unit)
        tolerance = torch.finfo(self.value.dtype).eps ** 0.5 * (
            1 + float((self.value.double().reshape(-1) / unit).abs().max())
        )
        if bool((along[~cut].abs() > tolerance).any()):
            raise ValueError(
                f"`null` contradicts {int((~cut).sum())} linear relation(s) that the contrasts obey exactly (x - y, y - z and x - z "
                "cannot all be 1), or that come from too small a sample: an ensemble with fewer members, or a sandwich with fewer "
                "terms (clusters), than contrasts; choose a null value that obeys them, fewer contrasts, or a larger sample"
            )
        statistic, freedom = float((along[cut].square() / values[cut]).sum()), int(cut.sum())
        half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
        tail = torch.special.gammaincc(half[0], half[1])
        return WaldTest(statistic, freedom, float(tail))

    def _simulated(self, draws: int, generator: torch.Generator | None) -> Tensor:
        """The largest |t| of every simulated vector of contrasts."""
        spread = self.covariance.detach().cpu().double()
        errors = spread.diagonal().clamp_min(0).sqrt()
        scale = torch.where(errors > 0, errors, 1.0).reciprocal()
        factor = half_of(scale[:, None] * spread * scale)

        def largest(noise: Tensor) -> Tensor:
            return (noise @ factor.mT).abs().amax(-1)

        return largest_contrasts(largest, factor.shape[-1], len(errors), draws, generator)

    def __repr__(self) -> str:
        of = "" if self.members is None else f": the spread of one of {len(self.members)} members"
        if self.value.ndim == 0:
            return f"Contrast(value={float(self.value):.6g}, standard_error={float(self.standard_error):.6g}{of})"
        return f"Contrast(value={_short(self.value)}, standard_error={_short(self.standard_error)}{of})"


@dataclass(frozen=True)
class WaldTest:
    """A test of several contrasts at once.

    Attributes:
        statistic: Squared distance from the null value in standard errors, chi-squared under it.
        degrees_of_freedom: How many linearly independent contrasts were tested.
        p_value: Probability of a statistic at least this large if the null value is true.
    """

    statistic: float
    degrees_of_freedom: int
    p_value: float


def correlation_of(covariance: Tensor) -> Tensor:
    """Correlations (n, n), exactly 1 on the diagonal; nan in rows and columns without variance."""
    errors = covariance.diagonal().clamp_min(0).sqrt()
    unit = torch.where(errors > 0, errors, torch.nan)
    result = (covariance / unit / unit[:, None]).clamp(-1, 1)
    return result.masked_fill(torch.eye(len(errors), dtype=torch.bool, device=errors.device) & (errors > 0), 1)


def checked_level(level: float) -> float:
    """`level` itself.

    Raises:
        ValueError: It is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level}")
    return level


def half_of(covariance: Tensor) -> Tensor:
    """A matrix (n, rank) with half @ half.T equal to the covariance: symmetric ones of any rank have one."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.mT))
    live = values > len(values) * torch.finfo(values.dtype).eps * values[-1:].abs()
    return vectors[:, live] * values[live].sqrt()


def largest_contrasts(
    largest: Callable[[Tensor], Tensor],
    rank: int,
    size: int,
    draws: int,
    generator: torch.Generator | None,
) -> Tensor:
    """`largest(noise)` (draws,) over standard normal noise (draws, rank), in batches of bounded memory.

    Args:
        largest: The largest contrast (b,) of every row of noise (b, rank), on the CPU.
        rank: Independent normal numbers behind the contrasts.
        size: How many contrasts `largest` forms per row.
        draws: Rows in all.
        generator: Of the noise; None is a private one seeded 0.

    Raises:
        ValueError: `draws` is below 100.
    """
    if draws < 100:
        raise ValueError(f"`draws` must be at least 100, got {draws}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    batch, found, left = max(1, _CHUNK // max(size, 1)), [], draws
    while left > 0:
        noise = torch.randn(min(batch, left), rank, generator=generator, device=generator.device, dtype=torch.float64)
        found.append(largest(noise.cpu()))
        left -= len(noise)
    return torch.cat(found)


def critical_value(largest: Tensor, level: float) -> float:
    """The quantile `level` of the largest contrasts (draws,)."""
    return float(largest.kthvalue(math.ceil(level * len(largest))).values)


def adjusted(value: Tensor, error: Tensor, largest: Tensor) -> Tensor:
    """The share of the largest contrasts (draws,) that reach |value / error|, in the shape of `value`; 1 where value and error are 0."""
    reached = torch.where(value == 0, 0, value / error).detach().abs().cpu().double()
    hits = len(largest) - torch.searchsorted(largest.sort().values, reached.contiguous())
    return torch.where(reached.isnan(), torch.nan, (1 + hits) / (1 + len(largest))).to(value)


def _short(t: Tensor) -> str:
    shown = ", ".join(f"{entry:.6g}" for entry in t[:6].tolist())
    return f"[{shown}]" if len(t) <= 6 else f"[{shown}, ... {len(t)} in all]"
