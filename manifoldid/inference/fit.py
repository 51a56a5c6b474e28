"""Maximum likelihood on the quotient: a Riemannian trust region with truncated conjugate gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldid.errors import NotIdentifiableError, UnboundedEstimateError
from manifoldid.groups.base import GaugeGroup
from manifoldid.inference.names import Names, checked_names
from manifoldid.inference.objective import Likelihood, check_likelihood, prepared
from manifoldid.inference.progress import Progress
from manifoldid.inference.recession import lone_runaway, moves_on, runs_away, who_runs_away
from manifoldid.optim.local_model import FunctionObjective, LocalModel
from manifoldid.optim.steihaug import Search
from manifoldid.points import Weights

_WIDE = 1e4  # a trust region this wide makes one ask whether there is a minimum at all
_LOOK = 20  # and so do this many steps


@dataclass(frozen=True)
class FitResult:
    """Where a fit ended, and why.

    Attributes:
        point: The estimate, on the canonical section.
        nll: Negative log-likelihood there.
        converged: Whether the gradient vanishes, to the tolerance or to rounding, and no direction was met that falls there: no saddle.
            Where the search for one had to end undecided (an ill-conditioned Hessian, more than 50 numbers), `message` says so; `infer`
            looks at the whole Hessian, and refuses a saddle.
        iterations: Steps tried.
        gradient_norm: Riemannian norm of the gradient at the canonical representative.
        message: Why the iteration stopped; and whether a direction beyond the gauge was met along which nothing changes (pools that never
            met, an item without data). Then the point is one of many, predictions apart; `infer` refuses it and names the direction.
    """

    point: Any
    nll: float
    converged: bool
    iterations: int
    gradient_norm: float
    message: str


def fit(
    nll: Likelihood,
    start: Any,
    group: GaugeGroup,
    weights: Weights = None,
    tolerance: float | None = None,
    max_iterations: int = 200,
    progress: bool = False,
    names: Names = None,
) -> FitResult:
    """Minimises a negative log-likelihood over the quotient by its gauge, with no ridge and no prior.

    A trust region with truncated conjugate gradients (`optim/steihaug.py`), in Hessian products only. A stationary start that is a
    saddle is left along its negative curvature; looking for it costs at most 100 Hessian products, or as many as the fit itself. A
    minimum at infinity is found by its direction: where the likelihood goes on improving, up to a thousand steps ahead.

    Args:
        nll: Function of the point; returns the sum over all data. Differentiated twice, where `x.index_select(0, i)` costs less
            than `x[i]`.
        start: A point, in any gauge; not changed.
        group: What leaves `nll` unchanged; verified first. `mid.Product()` for none.
        weights: Item weights of metric and section; zero for items that do not define the origin.
        tolerance: Stop when the gradient norm is this fraction of the largest one met; default eps^0.75.
        max_iterations: Steps at most; reaching it gives `converged=False`.
        progress: Write a table with a row per step to stderr.
        names: What the items are called in errors: a list, or for dict points a dict from block to list.

    Returns:
        Point on the canonical section, and why the iteration stopped.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: `start` or `nll` is not finite, not scalar, or not attached to the point; `tolerance` is negative or
            `max_iterations` below 1.
        NotInvariantError: `nll` sees the gauge.
        DegeneratePointError: `start` has no representative.
        UnboundedEstimateError: The maximum is at infinity; the message says who runs away.
        NotIdentifiableError: `nll` does not depend on the point at all: no data. Single null directions are for `infer` to name.
    """
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"`tolerance` must be a number >= 0, relative to the largest gradient norm, got {tolerance}")
    if max_iterations < 1:
        raise ValueError(f"`max_iterations` must be at least 1, got {max_iterations}")
    x = prepared(start, group, weights, "start")
    called = checked_names(names, x)
    check_likelihood(nll, x, group)
    model = LocalModel(FunctionObjective(nll), group, weights, x)
    search = Search(model, model.precision**0.75 if tolerance is None else tolerance)
    with Progress(progress) as table:
        for k in range(max_iterations):
            table.row(k, search)
            before = search.model
            search.advance()
            step = search.last
            if step is not None and step.at_boundary and search.radius > _WIDE and runs_away(before, step.u):
                raise UnboundedEstimateError(who_runs_away(before, step.u, called))
            if search.stopped:
                break
            if k % _LOOK == _LOOK - 1:
                _refuse_infinity(search, called)
    _refuse_infinity(search, called)
    if search.model.norm == 0 and not bool(search.model.curvature(_noise(search.model.slope)).any()):
        raise NotIdentifiableError(
            "`nll` does not change with the point at all, to second order: are there no data, or are all of them masked?"
        )
    end, why = search.model, search.stopped or f"`max_iterations` = {max_iterations} steps were not enough"
    return FitResult(end.x, end.value, search.converged, k + (not search.converged), end.norm, why)


def _noise(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _refuse_infinity(search: Search, names: Mapping[str, Sequence[str]]) -> None:
    """Raises where the last step is too long for an end and somebody runs away."""
    if search.last is None or not moves_on(search.model, search.last.u):
        return
    u = search.last.u
    away = u if runs_away(search.model, u) else lone_runaway(search.model, u)
    if away is not None:
        raise UnboundedEstimateError(who_runs_away(search.model, away, names))
