"""Uncertainty of an estimate that does not depend on the gauge: observed information on the quotient."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from manifoldid.errors import NotConvergedError, NotIdentifiableError
from manifoldid.groups.base import GaugeGroup
from manifoldid.groups.orbit import zero_coordinates
from manifoldid.inference.estimate import Estimate
from manifoldid.inference.identify import column_space, complement, null_message, vertical_rows
from manifoldid.inference.information import DenseInverse, products_of
from manifoldid.inference.matrix_free import IterativeInverse, Solver
from manifoldid.inference.names import Names, checked_names
from manifoldid.inference.objective import Likelihood, check_likelihood, prepared
from manifoldid.inference.scores import ScoreObjective, Scores
from manifoldid.optim.local_model import FunctionObjective, LocalModel, derivative
from manifoldid.optim.steihaug import falling
from manifoldid.points import Point, Weights, event_numel, flatten, unflatten

_STATIONARY = 1e-3  # standard errors
_DENSE = 5_000  # numbers of a point whose information is held as a matrix
_WEAK = 1e-6  # of the largest eigenvalue, every parameter in its own unit: columns that are all but collinear
_TOGETHER = 4  # rows of a Hessian in one batch: overhead is shared, and intermediate results stay in the cache
_PRODUCTS = 5_000  # with the Hessian of a large model, to find out whether it is a saddle
_GENERATORS = 64  # of a gauge whose directions a message may spell out


def infer(
    nll: Likelihood,
    point: Any,
    group: GaugeGroup,
    weights: Weights = None,
    nll_terms: Callable[[Any], Tensor] | None = None,
    names: Names = None,
    information: str | None = None,
) -> Estimate:
    """Uncertainty of the estimate `point` from the observed information on the quotient.

    Up to 5,000 numbers the information is a matrix. Above, every contrast is a solve by preconditioned conjugate gradients in Hessian
    products; then covariances of everything are not to be had, and the error says what to ask for. There, null directions are found by
    random probes and so is a saddle (conjugate gradients from a random vector): a small model is looked at completely, a large one with
    high probability.

    Args:
        nll: Negative log-likelihood of all the data, the sum.
        point: Where it is smallest, in any gauge (`fit(...).point`).
        group: What leaves `nll` unchanged; verified first.
        weights: Item weights of the canonical section: who defines the origin. Weights of cases go into `nll`.
        nll_terms: The terms of `nll` as a vector, one per independent observation. A cell of counts is not one observation: expand
            it to its games. Observations that are not independent (games of one session) are summed to one term per cluster,
            `torch.zeros(n).index_add(0, session, terms)`; nothing is corrected for few clusters (no G / (G - 1)).
        names: What the items are called in tables, pictures and errors: a list, or for dict points a dict from block to list.
        information: "observed", the inverse Hessian; "sandwich" (HC0), robust to misspecified variances; or "scores", the inverse of the
            sum of outer products of scores (BHHH). The default is the sandwich where `nll_terms` are given, else observed.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: `nll` is not finite, not scalar or not attached, `nll_terms` does not sum to it or is a single term, or
            `information` is unknown.
        NotInvariantError: `nll` sees the gauge.
        NotIdentifiableError: It has null directions beyond the gauge.
        NotConvergedError: `point` is no minimum.

    Warns:
        UserWarning: There are no more terms than free numbers: the sandwich is singular.
    """
    if information not in (None, "observed", "sandwich", "scores"):
        raise ValueError(
            f"`information` must be 'observed', 'sandwich' (robust standard errors) or 'scores', got {information!r}; the expected "
            "information is not offered"
        )
    if information in ("sandwich", "scores") and nll_terms is None:
        raise ValueError(f"`nll_terms` must be given for {information!r} information: the terms of `nll` as a vector")
    x = prepared(point, group, weights, "point")
    called = checked_names(names, x)
    check_likelihood(nll, x, group)
    kind = information or ("observed" if nll_terms is None else "sandwich")
    scores = Scores(nll, nll_terms, x) if nll_terms is not None else None
    if scores is not None and kind != "observed":
        _check_terms(len(scores), event_numel(x) - zero_coordinates(group, x).numel(), kind)
    inverse_of = _dense if event_numel(x) <= _DENSE else _matrix_free
    origin = "observed information" if kind == "observed" or scores is None else f"{kind} over {len(scores):,} terms"
    return Estimate(x, group, weights, inverse_of(nll, x, group, weights, called, kind, scores), names, origin)


def _check_terms(terms: int, free: int, kind: str) -> None:
    """Warns, or raises, where there are too few terms for the spread of their scores to have full rank: at the estimate they sum to 0."""
    if terms > free:
        return
    few = f"`nll_terms` has {terms} terms for {free} free numbers, so that the {kind} information is singular"
    if kind == "scores":
        raise ValueError(f"{few}; use information='observed', or more terms (clusters)")
    warnings.warn(
        f"{few}: some contrasts get a standard error of 0 and many too small a one; there are no quasi-variances and no Wald test of "
        "all items. Use information='observed', or more terms (clusters)",
        UserWarning,
        stacklevel=3,
    )


def _dense(
    nll: Likelihood,
    x: Point,
    group: GaugeGroup,
    weights: Weights,
    names: Mapping[str, list[str]],
    kind: str,
    scores: Scores | None,
) -> DenseInverse:
    del weights  # of the section only: the g-inverse of a whole matrix needs no metric
    gradient, hessian = _derivatives(nll, x)
    inverse, weak = _inverse(gradient, hessian, x, group, names)
    if scores is None or kind == "observed":
        return DenseInverse(inverse, weak)
    spread = scores.matrix()
    if kind == "scores":
        return DenseInverse(*_inverse(gradient, spread, x, group, names, "the scores (`nll_terms`)"))
    return DenseInverse(inverse @ spread @ inverse, weak)


def _matrix_free(
    nll: Likelihood,
    x: Point,
    group: GaugeGroup,
    weights: Weights,
    names: Mapping[str, list[str]],
    kind: str,
    scores: Scores | None,
) -> IterativeInverse:
    """The same by solves; the checks in the same order."""
    solver = _checked_solver(LocalModel(FunctionObjective(nll), group, weights, x), names, "`nll`")
    if scores is None or kind == "observed":
        return IterativeInverse(solver)
    if kind == "scores":
        spread = LocalModel(ScoreObjective(FunctionObjective(nll).expand(x), scores), group, weights, x)
        return IterativeInverse(_checked_solver(spread, names, "the scores (`nll_terms`)"))
    return IterativeInverse(solver, scores.information)


def _checked_solver(model: LocalModel, names: Mapping[str, list[str]], who: str) -> Solver:
    solver = Solver(model)
    downhill = falling(model, solver.scale, _PRODUCTS).downhill
    null = solver.null_directions() if downhill is None else model.slope.new_zeros(0, len(model.slope))
    if len(null):
        unit = solver.scale.rsqrt()
        few = model.group.dimension(model.x) <= _GENERATORS
        gauge = column_space((vertical_rows(model.group, model.x) / unit).mT) if few else null.new_zeros(len(unit), 0)
        raise NotIdentifiableError(null_message(null.mT, gauge, unit, model.x, model.group, names, who))
    newton = solver.solve(model.slope)[0]
    _refuse_unfinished(float((model.slope * newton).sum().clamp_min(0).sqrt()), 0 if downhill is None else 1)
    return solver


def _refuse_unfinished(decrement: float, falling_directions: int) -> None:
    if decrement > _STATIONARY:
        raise NotConvergedError(f"`point` is {decrement:.2g} standard errors from the optimum of `nll`; use mid.fit")
    if falling_directions:
        raise NotConvergedError(
            f"`point` is a saddle of `nll`, falling along {falling_directions} direction(s); use mid.fit from another start"
        )


def _inverse(
    gradient: Tensor, hessian: Tensor, x: Point, group: GaugeGroup, names: Mapping[str, list[str]], who: str = "`nll`"
) -> tuple[Tensor, Tensor]:
    """A generalised inverse of the information and its weak directions (m, N).

    Raises:
        NotIdentifiableError: There are null directions beyond the gauge. Checked first; then the point:
        NotConvergedError: It is not stationary, or a saddle.
    """
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
        raise NotIdentifiableError(null_message(basis @ vectors[:, null], gauge, unit, x, group, names, who))
    slope = vectors.mT @ (basis.mT @ (unit * gradient))
    decrement = float((slope.square() / values.abs()).sum().sqrt())
    _refuse_unfinished(decrement, int((values < 0).sum()))
    lifted = unit[:, None] * (basis @ vectors)
    return (lifted / values) @ lifted.mT, lifted[:, values < _WEAK * values.max()].mT


def _derivatives(nll: Likelihood, x: Point) -> tuple[Tensor, Tensor]:
    """Gradient (N,) and Hessian (N, N) beside `flatten(x)`."""
    with torch.enable_grad():
        leaf = flatten(x).detach().clone().requires_grad_()
        slope = derivative(nll(unflatten(leaf, x)).reshape(()), leaf, create_graph=True)
    if not slope.requires_grad:
        return slope, torch.zeros(len(leaf), len(leaf), dtype=leaf.dtype, device=leaf.device)
    unit = torch.eye(len(leaf), dtype=leaf.dtype, device=leaf.device)
    return slope.detach(), torch.cat([products_of(slope, leaf, rows) for rows in unit.split(_TOGETHER)])
