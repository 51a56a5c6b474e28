"""`TrustRegion`: second-order steps on the quotient, with the interface of a torch optimiser."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from manifoldid.errors import NotInvariantWarning
from manifoldid.groups.base import GaugeGroup, canonicalise, require_group
from manifoldid.invariance import default_tolerance, vertical_share
from manifoldid.optim.local_model import Expansion, LocalModel
from manifoldid.optim.steihaug import Search, Step
from manifoldid.points import HALF, Point, Weights, blocks_of, detached, flatten, is_dict, like_point, map_blocks


class TrustRegion(Optimizer):
    """Riemannian trust region with truncated conjugate gradients, one iteration per `step(closure)`.

    For full-batch problems that LBFGS is used for today: no learning rate, a few dozen steps. It is what `mid.fit` runs. Parameters
    are moved to the canonical section at once and stay on it. A step costs two calls of the closure and a Hessian product per
    conjugate gradient step, by differentiating twice::

        optimizer = TrustRegion(rates, mid.Translation())
        while not optimizer.stopped:
            loss = optimizer.step(closure)

    Args:
        params: A parameter, or a dict from block names to parameters (`dict(model.named_parameters())`): one point.
        group: What leaves the loss unchanged; `mid.Product()` for nothing.
        weights: Item weights of metric and section.
        tolerance: Stop when the gradient norm is this fraction of the largest one met; default eps^0.75.

    Attributes:
        stopped: Why the iteration is over; empty while it goes on. Further steps do nothing.
        converged: Whether it is over because the gradient vanishes and nothing falls there: no saddle.
        gradient_norm: Riemannian norm of the gradient before the last step; nan before the first.

    Raises:
        TypeError: `params` or `group` is of the wrong kind.
        ValueError: A parameter does not require grad, is in half precision, or does not fit the group; `tolerance` is negative.
        DegeneratePointError: The parameters have no representative.
    """

    def __init__(
        self,
        params: Tensor | Mapping[str, Tensor] | nn.ParameterDict | Iterable[Tensor],
        group: GaugeGroup,
        weights: Weights = None,
        tolerance: float | None = None,
    ):
        require_group(group)
        if tolerance is not None and not tolerance >= 0:
            raise ValueError(f"`tolerance` must be a number >= 0, got {tolerance}")
        self._parameters = _one_point(params)
        self.group, self.weights = group, weights
        self.stopped, self.converged, self.gradient_norm = "", False, float("nan")
        parameters = list(blocks_of(self._parameters).values())
        super().__init__(parameters, {"tolerance": tolerance, "radius": 0.0, "largest_gradient": 0.0})
        form, _ = canonicalise(group, detached(self._parameters), weights, "params")
        _write(self._parameters, form.point)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes the one point of the constructor.

        Raises:
            ValueError: There is a point already.
        """
        if self.param_groups:
            raise ValueError("TrustRegion moves one point: pass all of its parameters as one dict of blocks")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """One iteration.

        Args:
            closure: Evaluates the loss at the parameters and returns it, the same data at every call. It may call `backward()` and
                `zero_grad()`, as for LBFGS, but need not.

        Returns:
            The loss before the step.

        Raises:
            TypeError: There is no `closure`, or it returns no floating tensor.
            ValueError: The loss is not one finite number, or has no graph to the parameters.
            DegeneratePointError: The parameters have been moved to where there is no representative.

        Warns:
            NotInvariantWarning: On the first step, when the gradient has a component along the orbit.
        """
        if closure is None or not callable(closure):
            raise TypeError("`closure` must be a function that returns the loss: a step evaluates it more than once")
        settings, memory = self.param_groups[0], self.state[next(iter(blocks_of(self._parameters).values()))]
        objective = _ClosureObjective(closure, self._parameters)
        start = map_blocks(torch.clone, detached(self._parameters))
        model = LocalModel(objective, self.group, self.weights, start)
        self.gradient_norm = model.norm
        if settings["radius"] == 0:
            self._look(model)
        tolerance = model.precision**0.75 if settings["tolerance"] is None else settings["tolerance"]
        last = Step(torch.zeros_like(model.slope), 0.0, False, memory["products"]) if memory else None
        scale = memory.get("scale")
        search = Search(model, tolerance, settings["radius"], settings["largest_gradient"], last, scale)
        try:
            if not self.stopped:
                search.advance()
        finally:
            _write(self._parameters, search.model.x)
        settings["radius"], settings["largest_gradient"] = search.radius, search.largest
        memory["products"] = search.last.products if search.last is not None else 0
        if search.scale is not None:
            memory["scale"] = search.scale
        if search.stopped:
            self.stopped, self.converged = search.stopped, search.converged
        return torch.as_tensor(model.value, dtype=model.slope.dtype, device=model.slope.device)

    def _look(self, model: LocalModel) -> None:
        """Whether the loss seems to have the gauge."""
        if not self.group.generator_names(model.x) or model.norm == 0:
            return
        share = vertical_share(model.x, model.covector_point(), self.group)
        tolerance = default_tolerance(model.x) * 100
        if share.relative > tolerance:
            warnings.warn(
                f"the gradient of `closure` has a share of {share.relative:.1e} along the orbit of {self.group} ({share.generator}): the "
                "loss seems to see the gauge; mid.check_invariance tells, and steps ignore that component",
                NotInvariantWarning,
                stacklevel=3,
            )


def _one_point(params: Any) -> Point:
    """The point that `params` are, checked."""
    if isinstance(params, nn.Module):
        raise TypeError("`params` must be parameters, got a module: pass dict(module.named_parameters())")
    if not isinstance(params, Tensor) and not is_dict(params):
        params = list(params) if isinstance(params, Iterable) else [params]
        if len(params) != 1 or not isinstance(params[0], Tensor):
            raise TypeError(
                f"`params` must be one parameter or a dict of blocks, got a list of {len(params)}: name the blocks, as "
                "dict(model.named_parameters()) does"
            )
        params = params[0]
    point = params if isinstance(params, Tensor) else dict(params.items())
    for name, parameter in blocks_of(point).items():
        label = f"params[{name!r}]" if name else "params"
        if not isinstance(parameter, Tensor):
            raise TypeError(f"`{label}` must be a parameter, got {type(parameter).__name__}")
        if not (parameter.requires_grad and parameter.is_leaf):
            raise ValueError(f"`{label}` must be a leaf that requires grad; leave frozen tensors out")
        if parameter.dtype in HALF:
            raise ValueError(
                f"`{label}` is {parameter.dtype}, too coarse for second derivatives; convert with .float()"
            )
    return point


def _write(parameters: Point, x: Point) -> None:
    with torch.no_grad():
        map_blocks(lambda p, t: p.copy_(t), parameters, x)


class _Backward(TorchFunctionMode):
    """Inside: `backward()` keeps the graph for second derivatives, or does nothing where only the value is asked for."""

    def __init__(self, wanted: bool):
        super().__init__()
        self._wanted = wanted

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.backward:
            if not self._wanted:
                return None
            kwargs["retain_graph"] = True
        return func(*args, **kwargs)


class _ClosureObjective:
    """The loss of a closure, as a function of the point that its parameters are."""

    def __init__(self, closure: Callable[[], Tensor], parameters: Point):
        self._closure, self._parameters = closure, parameters

    def value(self, x: Point) -> float:
        return float(self._loss(x, derivatives=False).detach())

    def expand(self, x: Point) -> Expansion:
        loss = self._loss(x, derivatives=True)
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"`closure` must return a finite loss, got {float(loss.detach())}")
        if not loss.requires_grad:
            raise ValueError(
                "`closure` returns a loss without a graph to the parameters: detach(), .item() or no_grad() cuts it"
            )
        with torch.enable_grad():
            covector = self._gradient(loss.reshape(()), create_graph=True)

        def curvature(v: Tensor) -> Tensor:
            if not covector.requires_grad:
                return torch.zeros_like(v)
            return self._gradient(covector, v).detach()

        return Expansion(loss.detach().reshape(()), covector.detach(), curvature)

    def _loss(self, x: Point, derivatives: bool) -> Tensor:
        _write(self._parameters, x)
        with torch.enable_grad(), _Backward(derivatives):
            loss = self._closure()
        if not isinstance(loss, Tensor) or not loss.is_floating_point():
            raise TypeError(f"`closure` must return the loss, a floating tensor, got {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(f"`closure` must return one number, got shape {tuple(loss.shape)}; use .sum()")
        return loss

    def _gradient(self, of: Tensor, along: Tensor | None = None, create_graph: bool = False) -> Tensor:
        blocks = blocks_of(self._parameters)
        found = torch.autograd.grad(
            of, list(blocks.values()), along, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        slopes = {
            name: torch.zeros_like(p) if slope is None else slope
            for (name, p), slope in zip(blocks.items(), found, strict=True)
        }
        return flatten(like_point(slopes, self._parameters))
