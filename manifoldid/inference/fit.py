"""Maximum likelihood on the quotient: a Riemannian trust region with truncated conjugate gradients."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldid.errors import UnboundedEstimateError, listed
from manifoldid.groups.base import GaugeGroup
from manifoldid.inference.objective import Likelihood, check_likelihood, derivative, prepared
from manifoldid.points import Point, Weights, blocks_of, detached, flat_weights, flatten, unflatten

_FAR = 1e3  # how many steps ahead a direction of recession is followed


@dataclass(frozen=True)
class FitResult:
    """Where a fit ended, and why.

    Attributes:
        point: The estimate, on the canonical section.
        nll: Negative log-likelihood there.
        converged: Whether the gradient vanishes to the tolerance or to rounding.
        iterations: Steps tried.
        gradient_norm: Riemannian norm of the gradient at the canonical representative.
        message: Why the iteration stopped.
    """

    point: Any
    nll: float
    converged: bool
    iterations: int
    gradient_norm: float
    message: str


class _Model:
    """The likelihood around one point, as a function of the flat tangent vector u: nll(retract(x, u))."""

    def __init__(self, nll: Likelihood, group: GaugeGroup, weights: Weights, x: Point):
        self.nll, self.group, self.weights, self.x = nll, group, weights, x
        self.geometry = group.geometry(weights)
        with torch.enable_grad():
            self.leaf = torch.zeros_like(flatten(x)).requires_grad_()
            value = self._along(self.leaf)
            self.covector = derivative(value, self.leaf, create_graph=True)
        self.value = float(value.detach())
        self.slope = self.covector.detach()
        self.gradient = self.raised(self.slope)
        self.norm = float((self.slope * self.gradient).sum().clamp_min(0).sqrt())

    def _along(self, u: Tensor) -> Tensor:
        return self.nll(self.geometry.retract(self.x, unflatten(u, self.x))).reshape(())

    def moved(self, u: Tensor) -> Point:
        """The canonical representative of where the tangent vector `u` leads."""
        y = self.geometry.retract(self.x, unflatten(u, self.x))
        return detached(self.group.canonical(y, self.weights).point)

    def value_along(self, u: Tensor) -> float:
        """The likelihood where `u` leads; infinite where it cannot be computed."""
        with torch.no_grad():
            value = float(self._along(u))
        return value if value == value else float("inf")

    def raised(self, covector: Tensor) -> Tensor:
        """The horizontal vector that stands for a covector in the metric: the preconditioner."""
        return flatten(self.geometry.gradient(self.x, unflatten(covector, self.x)))

    def size(self, u: Tensor) -> float:
        """Metric norm of a tangent vector."""
        point = unflatten(u, self.x)
        return float(self.geometry.inner(self.x, point, point).sum().clamp_min(0).sqrt())

    def curvature(self, u: Tensor) -> Tensor:
        """Hessian of the likelihood along `u`, a covector."""
        if not self.covector.requires_grad:
            return torch.zeros_like(u)
        return derivative((self.covector * u).sum(), self.leaf).detach()

    def step(self, radius: float) -> tuple[Tensor, float, bool]:
        """Steihaug's truncated conjugate gradients: the step, the decrease that it promises, whether it ends on the boundary."""
        p, hp = torch.zeros_like(self.slope), torch.zeros_like(self.slope)
        r, z = self.slope, self.gradient
        d, rz = -z, float((r * z).sum())
        goal = rz * min(0.1, rz**0.5) ** 2 if rz > 0 else 0.0
        goal = max(min(goal, rz * 1e-4), rz * 1e-24)
        for _ in range(2 * len(p) + 10):
            if rz <= goal or rz <= 0:
                break
            hd = self.curvature(d)
            bend = float((d * hd).sum())
            alpha = rz / bend if bend > 0 else float("inf")
            if bend <= 0 or self.size(p + alpha * d) >= radius:
                tau = self._to_boundary(p, d, radius)
                p, hp = p + tau * d, hp + tau * hd
                return p, -float((self.slope * p).sum() + 0.5 * (p * hp).sum()), True
            p, hp, r = p + alpha * d, hp + alpha * hd, r + alpha * hd
            z = self.raised(r)
            new = float((r * z).sum())
            d, rz = -z + (new / rz) * d, new
        return p, -float((self.slope * p).sum() + 0.5 * (p * hp).sum()), False

    def _to_boundary(self, p: Tensor, d: Tensor, radius: float) -> float:
        pp, dd, both = self.size(p) ** 2, self.size(d) ** 2, self.size(p + d) ** 2
        pd = 0.5 * (both - pp - dd)
        return (-pd + max(pd * pd + dd * (radius * radius - pp), 0.0) ** 0.5) / dd

    def runs_away(self, u: Tensor) -> bool:
        """Whether the likelihood never gets worse along `u`, up to a thousand times as far as the step."""
        eps = torch.finfo(self.slope.dtype).eps
        length = float(u.abs().max())
        if not length > 0:
            return False
        last = self.value
        for t in (1.0, 3.0, 10.0, 30.0, 100.0, _FAR):
            value = self.value_along(t * u)
            if value == float("inf") and t >= 100:
                return True  # it has decreased all the way to where exponentials overflow
            if not value <= last + 64 * eps * abs(last):
                return False
            last = min(value, last)
        return True


def fit(
    nll: Likelihood,
    start: Any,
    group: GaugeGroup,
    weights: Weights = None,
    tolerance: float | None = None,
    max_iterations: int = 200,
    progress: bool = False,
) -> FitResult:
    """Minimises a negative log-likelihood over the quotient by its gauge, with no ridge and no prior.

    Args:
        nll: Function of the point; returns the sum over all data. Differentiated twice.
        start: A point, in any gauge; not changed.
        group: What leaves `nll` unchanged; verified first. `mid.Product()` for none.
        weights: Item weights of metric and section.
        tolerance: Stop when the gradient norm is this fraction of the largest one met; default eps^0.75.
        max_iterations: Steps at most; reaching it gives `converged=False`.
        progress: Write a line per step to stderr.

    Returns:
        Point on the canonical section, and why the iteration stopped.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: `start` or `nll` is not finite, not scalar, or not attached to the point; `tolerance` is negative or
            `max_iterations` below 1.
        NotInvariantError: `nll` sees the gauge.
        DegeneratePointError: `start` has no representative.
        UnboundedEstimateError: The maximum is at infinity; the message says who runs away.
    """
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"`tolerance` must be a number >= 0, relative to the largest gradient norm, got {tolerance}")
    if max_iterations < 1:
        raise ValueError(f"`max_iterations` must be at least 1, got {max_iterations}")
    x = prepared(start, group, weights, "start")
    check_likelihood(nll, x, group)
    w = flat_weights(weights, x, group.batch_ndim(x))
    weights = weights if w is None or bool((w > 0).all()) else None  # a metric needs all weights positive
    model = _Model(nll, group, weights, x)
    eps = torch.finfo(model.slope.dtype).eps
    tolerance = eps**0.75 if tolerance is None else tolerance
    report = _printer(progress)
    radius, largest, last = max(1.0, len(model.slope) ** 0.5), model.norm, None
    for k in range(max_iterations):
        report(k, model, radius)
        largest = max(largest, model.norm)
        if model.norm <= tolerance * largest:
            return _finished(model, last, k, "the gradient vanishes to the tolerance")
        u, promised, at_boundary = model.step(radius)
        value = model.value_along(u)
        rounding = 64 * eps * abs(model.value)
        if promised <= rounding and not at_boundary:
            new = _Model(nll, group, weights, model.moved(u)) if value < float("inf") else model
            if not new.norm < 0.5 * model.norm:
                return _finished(model, u, k, "the gradient vanishes to rounding")
            model, last = new, u
            continue
        gain = (model.value - value + rounding) / (promised + rounding)
        if at_boundary and radius > 1e4 and model.runs_away(u):
            raise UnboundedEstimateError(_who_runs_away(model, u))
        length = model.size(u)
        if gain < 0.25:
            radius = 0.25 * length
        elif gain > 0.75 and at_boundary:
            radius = 2 * radius
        if gain > 0.05:
            model, last = _Model(nll, group, weights, model.moved(u)), u
        elif radius <= eps * max(model.size(flatten(model.x)), eps):
            return _result(model, False, k + 1, "no step decreases `nll`: its derivatives do not fit its values")
    if last is not None and _moves_on(model, last) and model.runs_away(last):
        raise UnboundedEstimateError(_who_runs_away(model, last))
    return _result(model, False, max_iterations, f"`max_iterations` = {max_iterations} steps were not enough")


def _moves_on(model: _Model, u: Tensor) -> bool:
    """Whether a step is no part of a quadratic convergence."""
    return model.size(u) > 1e-4 * max(
        1e-3, model.size(flatten(model.x))
    )  # in the metric: positive points count in logs


def _finished(model: _Model, last: Tensor | None, k: int, why: str) -> FitResult:
    if last is not None and _moves_on(model, last) and model.runs_away(last):
        raise UnboundedEstimateError(_who_runs_away(model, last))
    return _result(model, True, k, why)


def _result(model: _Model, converged: bool, k: int, why: str) -> FitResult:
    return FitResult(model.x, model.value, converged, k, model.norm, why)


def _who_runs_away(model: _Model, u: Tensor) -> str:
    """The message of an `UnboundedEstimateError`."""
    who = []
    u = _logarithmic(model, u)
    for name, t in blocks_of(unflatten(u, model.x)).items():
        rest = t.detach().abs() if t.ndim == 0 or t.numel() < 3 else (t - t.median()).abs()
        far = (rest > 0.3 * float(u.abs().max())).nonzero().tolist()
        if far:
            items = listed([entry[0] if len(entry) == 1 else tuple(entry) for entry in far]) if t.ndim else ""
            who.append(f"{'items ' + items if items else ''}{f' of block {name!r}' if name else ''}".strip())
    return (
        f"`nll` has no minimum: it keeps decreasing while {' and '.join(who) or 'the point'} run away to infinity "
        "(separation: an item that always or never wins, a class that a feature separates). Leave these out, collect data that "
        "contradict it, or put a prior into `nll` on mid.Section(group)(x)"
    )


def _logarithmic(model: _Model, u: Tensor) -> Tensor:
    """The tangent vector `u`, relative to the point in blocks of positive numbers."""
    positive = set()
    for factor, of in model.group.factors():
        positive.update([of] if isinstance(of, str) and factor.positive else factor.positive)
    vectors = blocks_of(unflatten(u, model.x))
    pieces = [vectors[name] / t if name in positive else vectors[name] for name, t in blocks_of(model.x).items()]
    return torch.cat([flatten(piece) for piece in pieces])


def _printer(progress: bool) -> Callable[[int, _Model, float], None]:
    def report(k: int, model: _Model, radius: float) -> None:
        if progress:
            sys.stderr.write(f"{k:4d}  nll {model.value:.10g}  gradient {model.norm:.2e}  radius {radius:.1e}\n")

    return report
