"""The trust region on a quotient: steps by truncated conjugate gradients, and how far they are believed.

Steihaug, T. (1983). The conjugate gradient method and trust regions in large scale optimization. SIAM J. Numer. Anal. 20, 626-637.
Absil, P.-A., Baker, C. G., Gallivan, K. A. (2007). Trust-region methods on Riemannian manifolds. Found. Comput. Math. 7, 303-330.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldid.optim.local_model import LocalModel

_LONG = 15  # conjugate gradient steps after which a preconditioner pays for its probes
_PROBES = 3  # Hessian products per preconditioner
_LOOKS = 100  # Hessian products that the search for negative curvature may take, however short the fit was
_CHANCE = 1e-3  # of missing it all the same


class Step(NamedTuple):
    """What truncated conjugate gradients found."""

    u: Tensor
    """The tangent vector."""
    promised: float
    """The decrease that the quadratic model promises."""
    at_boundary: bool
    """Whether the trust region or negative curvature ended the search."""
    products: int
    """Hessian products spent."""


class Curvature(NamedTuple):
    """What was seen of the curvature at a point."""

    downhill: Tensor | None
    """A horizontal vector of metric norm 1 with negative curvature; None where none was met."""
    certain: bool
    """Whether there is no other answer, but for a chance of a thousandth; of curvature within rounding of 0 nothing is said."""
    products: int
    """Hessian products spent."""
    flat: bool = False
    """Whether a horizontal vector was met whose curvature is within rounding of 0: the minimum is not unique, or hardly."""


@dataclass
class Search:
    """The state of a trust-region iteration between steps.

    Attributes:
        model: The objective around the current point.
        tolerance: Fraction of the largest gradient norm met at which the iteration stops.
        radius: Of the trust region, in the metric.
        largest: The largest gradient norm met.
        last: The step before, taken or not; None before the first.
        scale: Diagonal of the preconditioner; None for the metric itself.
        products: Hessian products spent on steps.
        stopped: Why the iteration is over; empty while it goes on.
        converged: Whether it is over because the gradient vanishes and nothing falls.
    """

    model: LocalModel
    tolerance: float
    radius: float = 0.0
    largest: float = 0.0
    last: Step | None = None
    scale: Tensor | None = None
    products: int = 0
    stopped: str = ""
    converged: bool = False

    def __post_init__(self):
        self.radius = self.radius or max(1.0, len(self.model.slope) ** 0.5)
        self.largest = max(self.largest, self.model.norm)

    def advance(self) -> None:
        """One iteration: a step that is taken, a smaller trust region, or the end."""
        model, eps = self.model, torch.finfo(self.model.slope.dtype).eps
        if model.norm <= self.tolerance * self.largest:
            self._settle("the gradient vanishes to the tolerance")
            return
        if self.last is not None and self.last.products > _LONG:
            self.scale = diagonal(model, self.scale)
        step = truncated_gradients(model, self.radius, self._accuracy(), self.scale)
        value, rounding = model.value_along(step.u), 64 * eps * abs(model.value)
        self.last, self.products = step, self.products + step.products
        if step.promised <= rounding and not step.at_boundary:
            self._polish(step, value)
            return
        gain = (model.value - value + rounding) / (step.promised + rounding)
        length = model.size(step.u)
        if gain < 0.25:
            self.radius = 0.25 * length
        elif gain > 0.75 and step.at_boundary:
            self.radius = 3 * self.radius
        if gain > 0.05:
            self._move(model.at(model.moved(step.u)))
        elif self.radius <= eps * max(length, eps):
            refused = f"; at some of them it raises: {model.refusal[:200]}" if model.refusal else ""
            self.stopped = f"no step decreases the objective: its derivatives do not fit its values{refused}"

    def _accuracy(self) -> float:
        """How far conjugate gradients reduce the gradient: quadratic at the end, never further than is asked for."""
        share = self.model.norm / self.largest
        return max(min(0.1, share), 0.1 * self.tolerance / share)

    def _move(self, model: LocalModel) -> None:
        self.model, self.largest = model, max(self.largest, model.norm)

    def _polish(self, step: Step, value: float) -> None:
        """Values no longer tell steps apart: gradients decide."""
        closer = self.model.at(self.model.moved(step.u)) if value < float("inf") else self.model
        if closer.norm < 0.5 * self.model.norm:
            self._move(closer)
        else:
            self._settle("the gradient vanishes to rounding")

    def _settle(self, why: str) -> None:
        """The end, unless the point is a saddle: then a step along the direction that falls."""
        seen = falling(self.model, self.scale, max(_LOOKS, self.products))
        if seen.downhill is None:
            doubt = (
                f", and no curvature was seen to fall; {seen.products} Hessian products are too few to exclude a saddle that falls slowly "
                "beside the largest curvature (mid.infer looks again)"
            )
            if seen.flat:
                why += ", and is flat along a direction beyond the gauge: there are other minima (mid.infer names it)"
            self.stopped, self.converged = why if seen.certain else why + doubt, True
            return
        moves = ((sign * 0.1**k * self.radius) * seen.downhill for k in range(12) for sign in (1.0, -1.0))
        u = next((u for u in moves if self.model.value_along(u) < self.model.value), None)
        if u is None:
            self.stopped = (
                "the gradient vanishes at a saddle, and no step along its negative curvature decreases the objective"
            )
            return
        self.last = Step(u, 0.0, True, seen.products)
        self._move(self.model.at(self.model.moved(u)))


def truncated_gradients(model: LocalModel, radius: float, accuracy: float, scale: Tensor | None = None) -> Step:
    """Steihaug's truncated conjugate gradients on the horizontal space.

    Args:
        model: The objective around a point.
        radius: Of the trust region, in the metric.
        accuracy: Stop when the residual gradient is this fraction of the first.
        scale: Diagonal (N,) of the preconditioner; None for the metric.
    """
    p, hp, r = torch.zeros_like(model.slope), torch.zeros_like(model.slope), model.slope
    z = _preconditioned(model, r, scale)
    d, rz, products = -z, float((r * z).sum()), 0
    goal = rz * accuracy**2
    at_boundary = False
    pp, pd, dd = 0.0, 0.0, model.size(d) ** 2  # inner products in the metric
    for _ in range(2 * len(p) + 10):
        if rz <= goal or rz <= 0:
            break
        hd, products = model.curvature(d), products + 1
        bend = float((d * hd).sum())
        alpha = rz / bend if bend > 0 else float("inf")
        if bend <= 0 or pp + 2 * alpha * pd + alpha * alpha * dd >= radius * radius:
            tau = _to_boundary(model, p, d, radius)
            p, hp, at_boundary = p + tau * d, hp + tau * hd, True
            break
        p, hp, r = p + alpha * d, hp + alpha * hd, r + alpha * hd
        z = _preconditioned(model, r, scale)
        new = float((r * z).sum())
        beta = new / rz
        d, rz = -z + beta * d, new
        if scale is None:  # in the metric these follow by recurrence, without a look at the vectors
            pp, pd, dd = pp + 2 * alpha * pd + alpha * alpha * dd, beta * (pd + alpha * dd), new + beta * beta * dd
        else:
            pp, dd, both = model.size(p) ** 2, model.size(d) ** 2, model.size(p + d) ** 2
            pd = 0.5 * (both - pp - dd)
    return Step(p, -float((model.slope * p).sum() + 0.5 * (p * hp).sum()), at_boundary, products)


def diagonal(model: LocalModel, scale: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """A positive diagonal (N,) of the size of the Hessian's, from products with random signs.

    The root mean square of Hz over signs z is the norm of a row of the Hessian in the units of `scale`, and positive where an
    estimate of the diagonal itself need not be.

    Args:
        model: The objective around a point.
        scale: The diagonal so far; None takes the metric.
        generator: Of the signs; None is a private one seeded 0.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    unit = torch.ones_like(model.slope) if scale is None else scale.rsqrt()
    total = torch.zeros_like(model.slope)
    for _ in range(_PROBES):
        z = model.horizontal(unit * _signs(model.slope, generator))
        total += (unit * model.curvature(z)).square()
    rows = total.div_(_PROBES).sqrt_()  # of unit H unit; its own units are gone when scale was right
    usual = float(rows.mean())
    if not 0 < usual < float("inf"):
        return unit.square().reciprocal()
    return rows.clamp_min(1e-6 * usual) / unit.square()


def falling(
    model: LocalModel, scale: Tensor | None = None, most: int = _LOOKS, generator: torch.Generator | None = None
) -> Curvature:
    """A direction of negative curvature, or the certainty that there is none: conjugate gradients from a random covector.

    As long as all curvatures met are positive, the residual after k steps is q(H) times the first, with q(0) = 1 and all roots of q
    positive: q >= 1 on negative numbers, so that what the first residual has along a falling direction never shrinks. It is about
    1 / sqrt(N) of the whole. A residual below a thousandth of that leaves a chance of a thousandth for such a direction.

    Args:
        model: The objective around a point.
        scale: Diagonal (N,) of the preconditioner; None for the metric.
        most: Hessian products at most. Twice N see everything; otherwise ill-conditioned problems need many, and may stay uncertain.
        generator: Of the first covector; None is a private one seeded 0.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    count = len(model.slope)
    r = torch.randn(count, generator=generator, device=generator.device, dtype=torch.float64).to(model.slope)
    r = r if scale is None else r * scale.sqrt()
    d = _preconditioned(model, r, scale)
    rz = dd = float((r * d).sum())
    goal, largest, rounding = rz * _CHANCE**2 / count, 0.0, 100 * max(count, 10) * model.precision
    for k in range(min(most, 2 * count + 10)):
        if not rz > goal:
            return Curvature(None, rz == rz, k)
        hd = model.curvature(d)
        bend = float((d * hd).sum())
        largest = max(largest, abs(bend) / dd)
        if not bend > rounding * largest * dd:  # flat: what is left of the residual has no curvature at all
            falls = bend < -rounding * largest * dd
            return Curvature(d / model.size(d) if falls else None, bend == bend, k + 1, bend == bend and not falls)
        r = r - (rz / bend) * hd
        z = _preconditioned(model, r, scale)
        new = float((r * z).sum())
        d, dd, rz = z + (new / rz) * d, new + (new / rz) ** 2 * dd, new
    return Curvature(None, False, min(most, 2 * count + 10))


def _preconditioned(model: LocalModel, r: Tensor, scale: Tensor | None) -> Tensor:
    return model.raised(r) if scale is None else model.horizontal(model.lowered(model.raised(r)) / scale)


def _to_boundary(model: LocalModel, p: Tensor, d: Tensor, radius: float) -> float:
    pp, dd, both = model.size(p) ** 2, model.size(d) ** 2, model.size(p + d) ** 2
    pd = 0.5 * (both - pp - dd)
    return (-pd + max(pd * pd + dd * (radius * radius - pp), 0.0) ** 0.5) / dd


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (len(like),), generator=generator, device=generator.device).to(like) * 2 - 1
