"""A function on the quotient around one point: value, slope, curvature along tangent vectors, and where these lead."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from manifoldid.groups.base import GaugeGroup
from manifoldid.points import OUT_OF_DOMAIN, Point, Weights, detached, flat_weights, flatten, unflatten


class Expansion(NamedTuple):
    """A function at one point, to second order."""

    value: Tensor
    """The value, a number."""
    covector: Tensor
    """Its derivative (N,) beside `flatten(point)`."""
    curvature: Callable[[Tensor], Tensor]
    """The Euclidean Hessian times a vector (N,)."""


@runtime_checkable
class Objective(Protocol):
    """What is minimised: a function of a point, and its expansion there."""

    def value(self, x: Point) -> float:
        """The value at `x`, without derivatives."""
        ...

    def expand(self, x: Point) -> Expansion:
        """Value and derivatives at `x`."""
        ...


class FunctionObjective:
    """A torch function of the point, differentiated by autograd.

    Args:
        function: Returns a tensor with one number.
    """

    def __init__(self, function: Callable[[Point], Tensor]):
        self._function = function

    def value(self, x: Point) -> float:
        with torch.no_grad():
            return float(self._function(x))

    def expand(self, x: Point) -> Expansion:
        with torch.enable_grad():
            leaf = flatten(x).detach().clone().requires_grad_()
            return expansion_of(self._function(unflatten(leaf, x)).reshape(()), leaf)


def expansion_of(value: Tensor, leaf: Tensor) -> Expansion:
    """The expansion of `value`, whose graph ends at the flat vector `leaf`."""
    with torch.enable_grad():
        covector = derivative(value, leaf, create_graph=True)

    def curvature(v: Tensor) -> Tensor:
        if not covector.requires_grad:
            return torch.zeros_like(v)
        (result,) = torch.autograd.grad(covector, leaf, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if result is None else result

    return Expansion(value.detach(), covector.detach(), curvature)


def derivative(value: Tensor, leaf: Tensor, create_graph: bool = False) -> Tensor:
    """The gradient of `value`, zero where it does not depend on `leaf`."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=create_graph, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


class LocalModel:
    """An objective around the point `x`, as a function of the flat horizontal tangent vector u: f(retract(x, u)).

    Args:
        objective: What is minimised, constant on the orbits of `group`.
        group: The gauge group.
        weights: Item weights of the section; those that are all positive weigh the metric too.
        x: A point on the canonical section.

    Attributes:
        value: The objective at `x`.
        slope: Its derivative, a covector (N,).
        gradient: The horizontal vector that stands for it in the metric.
        norm: The metric norm of the gradient.
        refusal: What the objective last said of a point that it does not take.
    """

    refusal: str = ""

    def __init__(self, objective: Objective, group: GaugeGroup, weights: Weights, x: Point):
        self.objective, self.group, self.weights, self.x = objective, group, weights, x
        w = flat_weights(group.entry_weights(weights, x), x, group.batch_ndim(x))
        # a metric needs positive weights; items of weight 0 only leave the definition of the origin to the others
        geometry = group.geometry(weights if w is None or bool((w > 0).all()) else None)
        self.geometry = geometry.remembering()  # nobody writes to `x` while the model lives
        expansion = objective.expand(x)
        self.value, self.slope, self._euclidean = float(expansion.value), expansion.covector, expansion.curvature
        self._bend = self._bend_of_retraction()
        self.gradient = self.raised(self.slope)
        self.norm = float((self.slope * self.gradient).sum().clamp_min(0).sqrt())

    @property
    def precision(self) -> float:
        """The relative precision of the numbers of the point."""
        return torch.finfo(self.slope.dtype).eps

    def covector_point(self) -> Point:
        """The derivative at `x`, shaped like it."""
        return unflatten(self.slope, self.x)

    def at(self, x: Point) -> "LocalModel":
        """The same objective around another point."""
        return LocalModel(self.objective, self.group, self.weights, x)

    def moved(self, u: Tensor) -> Point:
        """The canonical representative of where the tangent vector `u` leads."""
        y = self.geometry.retract(self.x, unflatten(u, self.x))
        return detached(self.group.canonical(y, self.weights).point)

    def value_along(self, u: Tensor) -> float:
        """The objective where `u` leads; as `value_at`."""
        return self.value_at(detached(self.geometry.retract(self.x, unflatten(u, self.x))))

    def value_at(self, x: Point) -> float:
        """The objective at `x`; infinite where it is nan, or refuses `x` as torch.distributions do outside of their domain."""
        try:
            value = self.objective.value(x)
        except OUT_OF_DOMAIN as error:
            self.refusal = " ".join(str(error).split())
            return float("inf")
        return value if value == value else float("inf")

    def raised(self, covector: Tensor) -> Tensor:
        """The horizontal vector that stands for a covector in the metric."""
        return flatten(self.geometry.gradient(self.x, unflatten(covector, self.x)))

    def lowered(self, u: Tensor) -> Tensor:
        """The covector <u, .> of the metric; undoes `raised` for covectors that vanish along the orbit."""
        with torch.enable_grad():
            leaf = u.detach().clone().requires_grad_()
            point = unflatten(leaf, self.x)
            return torch.autograd.grad(0.5 * self.geometry.inner(self.x, point, point).sum(), leaf)[0]

    def horizontal(self, u: Tensor) -> Tensor:
        """The horizontal component of a vector."""
        return flatten(self.geometry.horizontal(self.x, unflatten(u, self.x)))

    def size(self, u: Tensor) -> float:
        """The metric norm of a tangent vector."""
        point = unflatten(u, self.x)
        return float(self.geometry.inner(self.x, point, point).sum().clamp_min(0).sqrt())

    def curvature(self, u: Tensor) -> Tensor:
        """The Hessian of u -> f(retract(x, u)) along horizontal `u`, a covector."""
        return self._euclidean(u) + self._bend(u)

    def _bend_of_retraction(self) -> Callable[[Tensor], Tensor]:
        """Second derivatives of u -> <df, retract(x, u)>: what a curved retraction adds to the Euclidean Hessian."""
        with torch.enable_grad():
            leaf = torch.zeros_like(self.slope).requires_grad_()
            along = flatten(self.geometry.retract(self.x, unflatten(leaf, self.x)))
            return expansion_of((self.slope * along).sum(), leaf).curvature
