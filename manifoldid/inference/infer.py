"""Uncertainty of an estimate that does not depend on the gauge: observed information on the quotient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from manifoldid.errors import NotConvergedError, NotEstimableError, NotIdentifiableError
from manifoldid.groups.base import GaugeGroup
from manifoldid.inference.identify import column_space, complement, null_message, vertical_rows
from manifoldid.inference.objective import Likelihood, check_likelihood, derivative, prepared
from manifoldid.inference.quasi_variance import QuasiVariances, quasi_variances
from manifoldid.invariance import default_tolerance, largest_change
from manifoldid.points import Point, Weights, blocks_of, detached, event_numel, flatten, unflatten
from manifoldid.sections import SectionLike, as_section

_STATIONARY = 1e-3  # standard errors


@dataclass(frozen=True)
class EstimatedContrast:
    """A function of the point that does not see the gauge, with its uncertainty by the delta method.

    Attributes:
        value: A number or a vector (k,).
        covariance: (k, k); (1, 1) for a number.
    """

    value: Tensor
    covariance: Tensor

    @property
    def standard_error(self) -> Tensor:
        """Shaped like `value`."""
        return self.covariance.diagonal().clamp_min(0).sqrt().reshape(self.value.shape)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Normal interval (low, high), each shaped like `value`.

        Raises:
            ValueError: `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` must be between 0 and 1, got {level}")
        half = NormalDist().inv_cdf(0.5 + level / 2) * self.standard_error
        return self.value - half, self.value + half


class Estimate:
    """A maximum-likelihood estimate and its covariance; made by `infer`.

    Attributes:
        point: The estimate on the canonical section.
        group: Its gauge.
        weights: Item weights of the canonical section.
    """

    def __init__(self, point: Any, group: GaugeGroup, weights: Weights, inverse: Tensor):
        self.point, self.group, self.weights = point, group, weights
        self._inverse = inverse  # a generalised inverse of the information, (N, N)

    def __repr__(self) -> str:
        shapes = {name or "point": tuple(t.shape) for name, t in blocks_of(self.point).items()}
        return f"<Estimate under {self.group!r}, {shapes}>"

    def estimate(self, section: SectionLike = None) -> Any:
        """The estimate on a section, shaped like the point.

        Raises:
            NotEstimableError: `section` is a callable that is not constant on orbits.
            DegeneratePointError: The estimate has no representative on it.
        """
        return detached(self._section(section)(self.point))

    def covariance(self, block: str | None = None, section: SectionLike = None) -> Tensor:
        """Covariance (n, n) of the flattened point or block on a section. Errors as in `estimate`.

        Raises:
            ValueError: The point has several blocks and `block` is not given, or it is unknown.
        """
        start, stop = self._range(block)
        return self._full(section)[start:stop, start:stop]

    def standard_errors(self, section: SectionLike = None) -> Any:
        """Standard errors on a section, shaped like the point. Errors as in `estimate`."""
        return unflatten(self._full(section).diagonal().clamp_min(0).sqrt(), self.point)

    def contrast(self, fn: Callable[[Any], Tensor]) -> EstimatedContrast:
        """A differentiable function of the point that is constant on orbits; returns a number or a vector.

        Raises:
            NotEstimableError: `fn` sees the gauge.
            ValueError: `fn` returns a matrix.
        """
        self._check(fn, "`fn`")
        value = torch.as_tensor(fn(self.point)).detach()
        if value.ndim > 1:
            raise ValueError(f"`fn` must return a number or a vector, got shape {tuple(value.shape)}")
        jacobian = _jacobian(lambda v: torch.as_tensor(fn(unflatten(v, self.point))).reshape(-1), flatten(self.point))
        return EstimatedContrast(value, jacobian @ self._inverse @ jacobian.mT)

    def quasi_variances(self, block: str | None = None) -> QuasiVariances:
        """Quasi-variances of the point or of a block; errors as in `covariance` and `mid.quasi_variances`."""
        return quasi_variances(self.covariance(block))

    def table(
        self, names: Sequence[str] | None = None, section: SectionLike = None, block: str | None = None
    ) -> list[dict[str, Any]]:
        """One row per item: item, estimate, standard_error, quasi_standard_error (where there are 3 items or more).

        Raises:
            ValueError: `names` has the wrong length, or `block` is needed.
        """
        start, stop = self._range(block)
        values = flatten(self.estimate(section))[start:stop].tolist()
        errors = flatten(self.standard_errors(section))[start:stop].tolist()
        if names is not None and len(names) != len(values):
            raise ValueError(f"`names` must have one name per item, {len(values)}, got {len(names)}")
        quasi = self.quasi_variances(block).standard_errors.tolist() if len(values) > 2 else None
        rows = []
        for k, (value, error) in enumerate(zip(values, errors, strict=True)):
            row = {"item": k if names is None else names[k], "estimate": value, "standard_error": error}
            rows.append(row if quasi is None else {**row, "quasi_standard_error": quasi[k]})
        return rows

    # ------------------------------------------------------------------------------------------------ private

    def _section(self, section: SectionLike) -> Callable[[Any], Any]:
        move = as_section(section, self.group, self.weights)
        if section is not None:
            self._check(move, "`section`")
        return move

    def _full(self, section: SectionLike) -> Tensor:
        move = self._section(section)
        jacobian = _jacobian(lambda v: flatten(move(unflatten(v, self.point))), flatten(self.point))
        return jacobian @ self._inverse @ jacobian.mT

    def _range(self, block: str | None) -> tuple[int, int]:
        blocks = blocks_of(self.point)
        known = [name for name in blocks if name]
        if (block is not None and block not in known) or (block is None and len(blocks) > 1):
            raise ValueError(f"`block` must be one of the blocks {known} of the point, got {block!r}")
        start = 0
        for name, t in blocks.items():
            size = event_numel(t)
            if block is None or name == block:
                return start, start + size
            start += size
        raise AssertionError("unreachable")

    def _check(self, fn: Callable[[Any], Any], who: str) -> None:
        change = largest_change(fn, self.point, self.group)
        if not change.relative <= default_tolerance(self.point):
            raise NotEstimableError(
                f"{who} is not constant on the orbits of {self.group!r}: it changes by {change.relative:.1e} relative under the "
                f"{change.generator}; take differences (ratios, distances), or fix a gauge first: mid.Section(group)(x)"
            )


def infer(
    nll: Likelihood,
    point: Any,
    group: GaugeGroup,
    weights: Weights = None,
    nll_terms: Callable[[Any], Tensor] | None = None,
) -> Estimate:
    """Uncertainty of the estimate `point` from the observed information on the quotient.

    Args:
        nll: Negative log-likelihood of all the data, the sum.
        point: Where it is smallest, in any gauge (`fit(...).point`).
        group: What leaves `nll` unchanged; verified first.
        weights: Item weights of the canonical section.
        nll_terms: The N terms of `nll` as a vector; then covariances are the sandwich (HC0).

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: `nll` is not finite, not scalar or not attached, or `nll_terms` does not sum to it.
        NotInvariantError: `nll` sees the gauge.
        NotIdentifiableError: It has null directions beyond the gauge.
        NotConvergedError: `point` is no minimum.
    """
    x = prepared(point, group, weights, "point")
    check_likelihood(nll, x, group)
    gradient, hessian = _derivatives(nll, x)
    inverse = _inverse(gradient, hessian, x, group)
    if nll_terms is not None:
        inverse = inverse @ _score_information(nll, nll_terms, x) @ inverse
    return Estimate(x, group, weights, inverse)


def _inverse(gradient: Tensor, hessian: Tensor, x: Point, group: GaugeGroup) -> Tensor:
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
        raise NotIdentifiableError(null_message(basis @ vectors[:, null], gauge, unit, x, group))
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
    with torch.enable_grad():
        leaf = flatten(x).clone().requires_grad_()
        gradient = derivative(nll(unflatten(leaf, x)).reshape(()), leaf, create_graph=True)
        rows = [derivative(entry, leaf) for entry in gradient]
    return gradient.detach(), torch.stack(rows).detach()


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
    scores = _jacobian(lambda v: nll_terms(unflatten(v, x)), flatten(x))
    return scores.mT @ scores


def _jacobian(fn: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Derivative (k, N) of a vector function, by reverse mode row by row: works for whatever torch can differentiate."""
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        return torch.stack([derivative(entry, leaf) for entry in fn(leaf)]).detach()
