"""Uncertainty of an estimate that does not depend on the gauge: observed information on the quotient."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from manifoldid.errors import NotConvergedError, NotIdentifiableError
from manifoldid.groups.base import GaugeGroup
from manifoldid.inference.estimate import Estimate
from manifoldid.inference.identify import column_space, complement, null_message, vertical_rows
from manifoldid.inference.information import DenseInverse, jacobian
from manifoldid.inference.names import Names, checked_names
from manifoldid.inference.objective import Likelihood, check_likelihood, prepared
from manifoldid.invariance import default_tolerance
from manifoldid.optim.local_model import FunctionObjective
from manifoldid.points import Point, Weights, flatten, unflatten

_STATIONARY = 1e-3  # standard errors


def infer(
    nll: Likelihood,
    point: Any,
    group: GaugeGroup,
    weights: Weights = None,
    nll_terms: Callable[[Any], Tensor] | None = None,
    names: Names = None,
) -> Estimate:
    """Uncertainty of the estimate `point` from the observed information on the quotient.

    Args:
        nll: Negative log-likelihood of all the data, the sum.
        point: Where it is smallest, in any gauge (`fit(...).point`).
        group: What leaves `nll` unchanged; verified first.
        weights: Item weights of the canonical section.
        nll_terms: The N terms of `nll` as a vector; then covariances are the sandwich (HC0).
        names: What the items are called in tables, pictures and errors: a list, or for dict points a dict from block to list.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: `nll` is not finite, not scalar or not attached, or `nll_terms` does not sum to it.
        NotInvariantError: `nll` sees the gauge.
        NotIdentifiableError: It has null directions beyond the gauge.
        NotConvergedError: `point` is no minimum.
    """
    x = prepared(point, group, weights, "point")
    called = checked_names(names, x)
    check_likelihood(nll, x, group)
    gradient, hessian = _derivatives(nll, x)
    inverse = _inverse(gradient, hessian, x, group, called)
    if nll_terms is not None:
        inverse = inverse @ _score_information(nll, nll_terms, x) @ inverse
    return Estimate(x, group, weights, DenseInverse(inverse), names)


def _inverse(gradient: Tensor, hessian: Tensor, x: Point, group: GaugeGroup, names: Mapping[str, list[str]]) -> Tensor:
    """A generalised inverse of the information, after the checks in the order identifiable, stationary, positive definite."""
    diagonal = hessian.diagonal().abs()
    live = diagonal > torch.finfo(diagonal.dtype).eps ** 2 * diagonal.max()
    usual = diagonal[live].median() if bool(live.any()) else diagonal.new_ones(())
    unit = torch.where(live, diagonal, usual).rsqrt()  # every parameter in its own unit: units do not decide the rank
    gauge = column_space((vertical_rows(group, x) / unit).mT)
    basis = complement(gauge)
    information = basis.mT @ (unit[:, None] * hessian * unit) @ basis
    values, vectors = torch.linalg.eigh(0.5 * (information + information.mT))
    cut = 100 * max(len(unit), 10) * torch.finfo(values.dtype).eps * values.abs().max()
    null = values.abs() <= cut
    if bool(null.any()):
        raise NotIdentifiableError(null_message(basis @ vectors[:, null], gauge, unit, x, group, names))
    slope = vectors.mT @ (basis.mT @ (unit * gradient))
    decrement = float((slope.square() / values.abs()).sum().sqrt())
    if decrement > _STATIONARY:
        raise NotConvergedError(f"`point` is {decrement:.2g} standard errors from the optimum of `nll`; use mid.fit")
    if bool((values < 0).any()):
        raise NotConvergedError(
            f"`point` is a saddle of `nll`, falling along {int((values < 0).sum())} direction(s); use mid.fit from another start"
        )
    lifted = unit[:, None] * (basis @ vectors)
    return (lifted / values) @ lifted.mT


def _derivatives(nll: Likelihood, x: Point) -> tuple[Tensor, Tensor]:
    """Gradient (N,) and Hessian (N, N) beside `flatten(x)`."""
    here = FunctionObjective(nll).expand(x)
    unit = torch.eye(len(here.covector), dtype=here.covector.dtype, device=here.covector.device)
    return here.covector, torch.stack([here.curvature(row) for row in unit])


def _score_information(nll: Likelihood, nll_terms: Callable[[Any], Tensor], x: Point) -> Tensor:
    terms = nll_terms(x)
    if not isinstance(terms, Tensor) or terms.ndim != 1:
        raise ValueError(
            f"`nll_terms` must return a vector, one term per observation, got {getattr(terms, 'shape', terms)}"
        )
    total, value = float(terms.detach().sum()), float(nll(x).detach())
    if not abs(total - value) <= default_tolerance(x) * max(abs(total), abs(value)):
        raise ValueError(
            f"`nll_terms` sum to {total:.8g}, but `nll` is {value:.8g}: nll must be their sum, not their mean"
        )
    scores = jacobian(lambda v: nll_terms(unflatten(v, x)), flatten(x), "`nll_terms`")
    return scores.mT @ scores
