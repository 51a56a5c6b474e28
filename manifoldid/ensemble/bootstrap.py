"""Bootstrap replicates: the likelihood maximised again on resampled data."""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from manifoldid.ensemble.progress import counted
from manifoldid.errors import (
    DegeneratePointError,
    NotConvergedError,
    NotIdentifiableError,
    UnboundedEstimateError,
)
from manifoldid.groups.base import GaugeGroup
from manifoldid.inference import fit, infer
from manifoldid.inference.names import Names
from manifoldid.inference.objective import Likelihood
from manifoldid.points import Point, Weights

Data = TypeVar("Data")
# what a sample can do to a likelihood, and what to call it
FAILURES: dict[type[Exception], str] = {
    UnboundedEstimateError: "separated",
    NotIdentifiableError: "not identifiable",
    NotConvergedError: "not converged",
    DegeneratePointError: "degenerate",
}


def replicates(
    nll: Callable[[Any, Data], torch.Tensor],
    resample: Callable[[torch.Generator], Data],
    size: int,
    start: Any,
    group: GaugeGroup,
    weights: Weights,
    failures: str,
    names: Names,
    generator: torch.Generator | None,
    progress: bool,
) -> tuple[list[Point], dict[str, int]]:
    """The estimates of `size` resampled data sets, and how many were dropped, by reason. Arguments: `Ensemble.from_bootstrap`.

    Raises:
        ValueError: `size` is below 2, `failures` is unknown, or fewer than two replicates are left.
    """
    if size < 2:
        raise ValueError(f"`size` must be at least 2, got {size}: one replicate has no spread")
    if failures not in ("raise", "drop"):
        raise ValueError(f"`failures` must be 'raise' or 'drop', got {failures!r}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    points: list[Point] = []
    dropped: Counter[str] = Counter()
    for k in counted(size, "bootstrap", progress):
        data = resample(generator)
        try:
            points.append(_estimate(lambda x, data=data: nll(x, data), start, group, weights, names))
        except tuple(FAILURES) as error:
            if failures == "raise":
                raise type(error)(_of_replicate(error, k, size)) from error
            dropped[next(name for kind, name in FAILURES.items() if isinstance(error, kind))] += 1
    if len(points) < 2:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise ValueError(
            f"`resample` leaves {len(points)} of {size} replicates with an estimate ({reasons}): no spread"
        )
    return points, dict(dropped)


def _estimate(nll: Likelihood, start: Any, group: GaugeGroup, weights: Weights, names: Names) -> Point:
    """The maximum of one replicate, refused where it is no isolated one.

    Raises:
        NotConvergedError: The fit did not get there.
    """
    result = fit(nll, start, group, weights, names=names)
    if not result.converged:
        raise NotConvergedError(f"the fit stopped early: {result.message}")
    infer(nll, result.point, group, weights, names=names)  # a fit alone does not notice pools that never met
    return result.point


def _of_replicate(error: Exception, k: int, size: int) -> str:
    return (
        f"bootstrap replicate {k} of {size}: {error}. Resample whole strata, smooth the weights (exponential instead of counts: "
        "every observation stays), or drop such replicates with failures='drop' and say so"
    )
