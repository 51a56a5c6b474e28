"""The quotient as a geoopt manifold. The only module that imports geoopt, and the only one that speaks its abbreviations.

geoopt's contract, and where its optimisers break it for any manifold, is in the comments at the method that answers to it.
"""

import cmath
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from manifoldid.errors import DegeneratePointError, DetachedWarning, NotInvariantWarning, listed
from manifoldid.groups.base import GaugeGroup, checked, same_value
from manifoldid.groups.geometry import StepGeometry
from manifoldid.points import HALF, compute_point, concrete
from manifoldid.quotient.horizontal import Quotient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # geoopt scripts 73 functions with torch.jit, which torch deprecates
    import geoopt
    from geoopt.samplers.base import Sampler


class QuotientManifold(geoopt.Manifold):
    """The quotient M/G of the space of points by a gauge group, for geoopt's optimisers.

    A point is represented by any element of its orbit; tangent vectors are horizontal vectors at that element; the metric is the
    invariant one of the group. Optimisers stay on the horizontal lift of their path: on translation, shift, scaling and affine
    gauges mean and size stay what they were, and runs from x0 and from g.x0 are the same run.

    What geoopt's optimisers do wrong with any manifold is refused or warned of at the first step: `RiemannianSGD` starts its
    momentum from the raw Euclidean gradient, so put `optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)` for every
    parameter before the first step; `maximize`, `foreach`, `fused`, `capturable` and `differentiable` are ignored by
    `RiemannianAdam`. Samplers are refused: they assume a Euclidean kinetic energy. A wolfe `RiemannianLineSearch` needs a closure
    that returns a float or a detached loss, and parameters that all have a gradient. `weight_decay` is added to `.grad`, in place,
    at the representative, so it is invariant only where the penalty is.

    Args:
        group: A gauge group on one tensor. For a group on several tensors use `mid.attach` or `mid.fit`.
        weights: Positive item weights (n,) of the metric; None for equal ones. A buffer, so `.to()` moves it.

    Raises:
        TypeError: `group` is no group, or acts on a dict of tensors.
        ValueError: A weight is not positive.
    """

    name = "Quotient"
    ndim = 1
    reversible = False  # geoopt's samplers draw Euclidean momenta, which is the wrong law for an invariant metric
    __scaling__ = geoopt.Manifold.__scaling__.copy()
    _within: "_Step | None" = None  # while an optimiser of geoopt takes a step

    def __init__(self, group: GaugeGroup, weights: Tensor | None = None):
        super().__init__()
        quotient = Quotient(group, weights)  # all checks of the arguments
        if group.block_names or isinstance(weights, dict):
            raise TypeError(
                f"`group` {group} acts on a dict of tensors and a geoopt manifold holds one tensor: use "
                "mid.attach(optimizer, group, params) with any torch optimiser, or mid.fit"
            )
        self.group = group
        self.ndim = group.event_dim
        self.register_buffer("weights", quotient.weights)

    # ------------------------------------------------------------------------------------------------ value semantics

    def __eq__(self, other: object) -> bool:
        """Equal group and weights: geoopt compares manifolds with `!=`, and a deep copy is the same manifold."""
        if not isinstance(other, QuotientManifold) or type(self) is not type(other):
            return NotImplemented
        return self.group == other.group and same_value(self.weights, other.weights)

    # By identity: torch finds submodules with sets, and two equal manifolds in one module are two submodules.
    __hash__ = geoopt.Manifold.__hash__

    def extra_repr(self) -> str:
        """The group, and whether there are weights."""
        return (
            repr(self.group)
            if self.weights is None
            else f"{self.group!r}, weights of shape {tuple(self.weights.shape)}"
        )

    def __repr__(self) -> str:
        return f"QuotientManifold({self.extra_repr()})"

    @property
    def quotient(self) -> Quotient:
        """The same quotient in the vocabulary of this package, checked and free of geoopt."""
        return Quotient(self.group, self.weights)

    @property
    def _geometry(self):
        return self.group.geometry(self.weights)

    # ------------------------------------------------------------------------------------------------ one point

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """<u, v>_x, shape (*batch); with `keepdim` broadcastable to the point."""
        value = _inner(self._geometry, x, u, u if v is None else v)
        return self._kept(value, x, u) if keepdim else value

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """|u|_x, with derivative 0 at u = 0."""
        square = self.inner(x, u, keepdim=keepdim)
        positive = square > 0
        return torch.where(positive, torch.where(positive, square, torch.ones_like(square)).sqrt(), 0 * square)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Products of the components of `u` and `v` in a frame that moves with the group: what adaptive optimisers accumulate.

        The default of geoopt, <u, v>_x, would give all entries of a point one learning rate; squares of the raw entries would
        not be invariant.
        """
        step = self._step_at(x, u) if v is None else None
        if step is not None:
            return step.squares(_plain(u))
        geometry = self._geometry
        a = _vector(geometry.components, x, u)
        b = a if v is None else _vector(geometry.components, x, v)
        return (a * b.conj()).real if a.is_complex() else a * b

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The horizontal component of `u`."""
        return _vector(self._geometry.horizontal, x, u)

    def horizontal_component(self, x: Tensor, u: Tensor) -> Tensor:
        """The component of `u` orthogonal to the orbit of `x`. Checked; see `Quotient.horizontal_component`."""
        return self.quotient.horizontal_component(x, u)

    def vertical_component(self, x: Tensor, u: Tensor) -> Tensor:
        """The component of `u` along the orbit of `x`. Checked; see `Quotient.vertical_component`."""
        return self.quotient.vertical_component(x, u)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """The Riemannian gradient for the derivative `u` that autograd returns.

        Optimisers call this once a step and before they move anything, so this is where they learn what is wrong.

        Raises:
            DegeneratePointError: `x` has no quotient.
            ValueError: `u` is not finite.
        """
        step = self._step_at(x, u)
        if step is not None or concrete(u):
            self._check_derivative(u)
        if step is not None:  # then `x` is regular
            if self._within is not None:
                self._within.keep(x, step)
            return step.gradient(_plain(u))
        if self._within is not None:
            self._within.close()  # the check below may end the step
        if concrete(x):
            with torch.no_grad():
                wide = compute_point(_plain(x))
                checked(self.group.canonical(wide, self.weights), self.group, wide, "x")
        return _vector(self._geometry.gradient, x, u)

    def projx(self, x: Tensor) -> Tensor:
        """`x` itself: every element of an orbit represents it. Entries that left a positive domain are put back into it.

        It is not the section: optimisers call this between steps (`stabilize`, newer versions at every step) and would leave
        their momentum behind. Moving point and momentum together is what `mid.attach` does.
        """
        if "" not in self.group.positive:
            return x
        smallest = torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return torch.where(x > 0, x, smallest)

    # ------------------------------------------------------------------------------------------------ motions

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """A step from `x` along the horizontal component of `u`, to second order a geodesic."""
        step = self._step_at(x, u)
        if step is not None:
            return step.retract(_plain(u))
        geometry = self._geometry.remembering()
        return _vector(lambda x, u: geometry.retract(x, geometry.horizontal(x, u)), x, u)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """`v` at `x`, carried to `y`: linear, horizontal, equivariant; parallel where there is a closed form."""
        return _vector(lambda x, v, y: self._geometry.transport(x, y, v), x, v, y)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retr(x, u)`, and `v` carried there."""
        step = self._step_at(x, u, v)
        if step is not None:
            return step.retract_and_carry(_plain(u), _plain(v))
        y = self.retr(x, u)
        return y, self.transp(x, y, v)

    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` carried to `retr(x, u)`."""
        return self.transp(x, self.retr(x, u), v)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        """The geodesic from `x` along the horizontal component of `u`. Checked; see `Quotient.exp`."""
        return self.quotient.exp(x, u)

    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`expmap(x, u)`, and `v` carried there."""
        y = self.expmap(x, u)
        return y, self.transp(x, y, v)

    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """`v` carried to `expmap(x, u)`."""
        return self.transp(x, self.expmap(x, u), v)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        """The velocity at `x` of the shortest geodesic to the orbit of `y`. Checked; see `Quotient.log`."""
        return self.quotient.log(x, y)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """The distance of the orbits of `x` and `y`, shape (*batch). Checked; see `Quotient.dist`."""
        value = self.quotient.dist(x, y)
        return self._kept(value, x, y) if keepdim else value

    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """The squared distance, smooth where the orbits coincide. Checked; see `Quotient.squared_dist`."""
        value = self.quotient.squared_dist(x, y)
        return self._kept(value, x, y) if keepdim else value

    def align(self, x: Tensor, to: Tensor) -> Tensor:
        """The representative of the orbit of `x` closest to `to`. Checked; see `Quotient.align`."""
        return self.quotient.align(x, to)

    def mean(self, points: Tensor) -> Tensor:
        """The Frechet mean of `points` (M, ...) on the canonical section. Checked; see `Quotient.mean`."""
        return self.quotient.mean(points)

    def random(
        self,
        *size: int | Sequence[int],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Normal scores on the canonical section (log-normal ones for a positive domain), as a `geoopt.ManifoldTensor`.

        Args:
            *size: Shape of the points.
            dtype: Their dtype; a group on complex points needs a complex one.
            device: Their device.
            generator: Source; default a private one seeded with 0, so that two calls draw the same.
            **kwargs: Nothing; geoopt's interface has it.

        Returns:
            The points.

        Raises:
            TypeError: There are unknown arguments.
        """
        if kwargs:
            raise TypeError(f"`random` does not know the arguments {sorted(kwargs)}")
        shape = geoopt.utils.size2shape(*size)  # pyrefly: ignore[bad-argument-type]
        self._assert_check_shape(shape, "x")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        x = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device).to(device)
        x = x.exp() if "" in self.group.positive else x
        point = self.group.canonical(self.quotient.regular(x), self.weights).point
        return geoopt.ManifoldTensor(point, manifold=self)  # pyrefly: ignore[no-matching-overload]

    # ------------------------------------------------------------------------------------------------ verdicts

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        reason = None
        for dtype in (torch.float32, torch.complex64):  # a shape has no dtype; some groups take complex points only
            try:
                self.group.validate(torch.empty(tuple(shape), dtype=dtype, device="meta"), name)
            except (TypeError, ValueError) as error:
                reason = reason or str(error)
            else:
                return True, None
        return False, reason

    def _check_point_on_manifold(self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> tuple[bool, str | None]:
        """Whether every point of the batch has a quotient; the reason names batch entries. Tolerances have nothing to do here."""
        del atol, rtol
        try:
            self.quotient.regular(_plain(x), "x")
        except (ValueError, DegeneratePointError) as error:
            return False, str(error)
        return True, None

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        """Whether every vector of the batch is horizontal; the reason names batch entries and the size of the vertical part."""
        if self.group.batch_ndim(x) < x.ndim and u.shape[u.ndim - self.ndim :] != x.shape[x.ndim - self.ndim :]:
            return False, f"'u' must end in the shape of the point {tuple(x.shape)}, got {tuple(u.shape)}"
        vertical = _vector(self._geometry.vertical, x, u)
        size, whole = self.norm(x, vertical), self.norm(x, u)
        bad = ~(size <= atol + rtol * whole)
        if not bool(bad.any()):
            return True, None
        entries = [entry[0] if len(entry) == 1 else tuple(entry) for entry in bad.nonzero().tolist()]
        where = f" at batch index {listed(entries)}" if bad.ndim else ""
        return False, (
            f"'u'{where} has a component along the orbit of 'x', of relative size {float((size / whole)[bad].max()):.1e}; "
            "proju(x, u) is without it"
        )

    def _check_derivative(self, u: Tensor) -> None:
        if cmath.isfinite(u.sum().item()) or bool(torch.isfinite(u).all()):
            return  # one pass nearly always; a sum that overflows says nothing yet
        if self._within is not None:
            self._within.close()
        raise ValueError(
            f"the gradient of a point of shape {tuple(u.shape)} on {self!r} must be finite, and has nan or infinite entries: the "
            "loss is not finite, or its derivative; the point has not been moved"
        )

    def _step_at(self, x: Tensor, *vectors: Tensor) -> StepGeometry | None:
        """The short cut of the geometry for steps of optimisers: no derivatives are asked for, nothing is broadcast."""
        if torch.is_grad_enabled():
            return None
        step = None if self._within is None else self._within.known(x)
        if step is None and (x.dtype in HALF or x.is_complex() or not concrete(x)):
            return None
        for v in vectors:
            if v.shape != x.shape or v.dtype != x.dtype or (step is None and not concrete(v)):
                return None
        return self._geometry.step_at(_plain(x)) if step is None else step

    def _kept(self, value: Tensor, x: Tensor, other: Tensor) -> Tensor:
        return value.reshape(value.shape + (1,) * (max(x.ndim, other.ndim) - value.ndim))


def parameter(tensor: Tensor, group: GaugeGroup, weights: Tensor | None = None) -> geoopt.ManifoldParameter:
    """A copy of `tensor`, moved to the canonical section, as a parameter for geoopt's optimisers.

    Args:
        tensor: A point (*batch, *event), or a batch of them.
        group: A gauge group on one tensor; for a group on a dict of tensors use `mid.attach`.
        weights: Positive item weights of the section and of the metric; only ratios matter.

    Returns:
        A `geoopt.ManifoldParameter` on `QuotientManifold(group, weights)`. State dicts save and load it; use
        `load_state_dict(assign=False)`: assigning replaces the parameter by one without manifold, with a warning.
        `module.to("meta")` loses the manifold too, and there torch tells nobody: put `mid.parameter` in its place again.

    Raises:
        TypeError: `tensor` is no floating tensor, `group` is no group, or acts on a dict.
        ValueError: Shapes or weights do not fit, or entries are not finite.
        DegeneratePointError: A point has no representative.
    """
    manifold = QuotientManifold(group, weights)
    x = manifold.quotient.regular(tensor, "tensor")
    x = x.detach().as_subclass(Tensor)
    with torch.no_grad():
        point = group.canonical(compute_point(x), manifold.weights).point.to(x.dtype)
    copy = point.clone(memory_format=torch.contiguous_format)
    return geoopt.ManifoldParameter(copy, manifold=manifold)  # pyrefly: ignore[unexpected-keyword]


# -------------------------------------------------------------------------------- geometry for points of any floating dtype


def _plain(x: Tensor) -> Tensor:
    return x.as_subclass(Tensor) if type(x) is not Tensor else x


def _vector(operation: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """`operation` on plain tensors of one batch, half precision computed in float32."""
    tensors = torch.broadcast_tensors(*(_plain(t) for t in (x, *others)))
    if x.dtype not in HALF:
        return operation(*tensors)
    return operation(*(t.float() for t in tensors)).to(x.dtype)


def _inner(geometry, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return _vector(geometry.inner, x, u, v)


# ------------------------------------------------------------------------------------------------ steps of geoopt's optimisers


class _Step:
    """The geometry at the point that an optimiser is about to move, for its calls after `egrad2rgrad`.

    It is open during one step of `RiemannianAdam` or `RiemannianSGD` without closure, where nobody else can write to the point.
    """

    def __init__(self, manifolds: list[QuotientManifold]):
        self._open = True
        self._known: tuple[Tensor, int, StepGeometry] | None = None
        self._manifolds = manifolds
        for manifold in manifolds:
            vars(manifold)["_within"] = self  # torch's own way to set an attribute of a module takes longer

    def close(self) -> None:
        """Forgets everything, for good."""
        self._open, self._known = False, None
        for manifold in self._manifolds:
            vars(manifold)["_within"] = None
        self._manifolds = []

    def keep(self, x: Tensor, step: StepGeometry) -> None:
        """Remembers the geometry at `x`, and only that."""
        if self._open:
            self._known = (x, x._version, step)

    def known(self, x: Tensor) -> StepGeometry | None:
        """The geometry at `x`, if it is the point of the last gradient and was not moved since."""
        if self._known is None or self._known[0] is not x or self._known[1] != x._version:
            return None
        return self._known[2]


# what they do wrong, where it happens

_IGNORED = ("maximize", "foreach", "fused", "capturable", "differentiable")


def _before_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Looks, before the first step of an optimiser of geoopt, for what it gets wrong on a quotient; opens a `_Step`.

    Raises:
        ValueError: An option is set that geoopt ignores, or the optimiser is a sampler.
    """
    if not isinstance(optimizer, geoopt.optim.mixin.OptimMixin):
        return
    for group in optimizer.param_groups:
        mine = [p for p in group["params"] if isinstance(getattr(p, "manifold", None), QuotientManifold)]
        fresh = [p for p in mine if p not in optimizer.state]
        if not fresh:
            continue
        kind = type(optimizer).__name__
        if isinstance(optimizer, Sampler):
            raise ValueError(f"{kind} assumes a Euclidean kinetic energy: on a quotient it samples from a wrong law")
        ignored = [option for option in _IGNORED if group.get(option)]
        if ignored:
            raise ValueError(
                f"{kind} ignores {', '.join(f'{o}={group[o]}' for o in ignored)}: leave it out (for maximize, negate the loss), "
                "or use mid.attach with torch's own optimiser"
            )
        if isinstance(optimizer, geoopt.optim.RiemannianSGD) and group["momentum"] > 0:
            warnings.warn(
                "RiemannianSGD starts its momentum from the raw Euclidean gradient, which is not invariant: set optimizer.state[p]"
                '["momentum_buffer"] = torch.zeros_like(p) for every parameter p before the first step',
                NotInvariantWarning,
                stacklevel=3,
            )
    if type(optimizer) in (geoopt.optim.RiemannianAdam, geoopt.optim.RiemannianSGD) and len(args) == 1 and not kwargs:
        _Step(_manifolds(optimizer))


def _after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
    """Closes what `_before_step` has opened."""
    if isinstance(optimizer, geoopt.optim.mixin.OptimMixin):
        for manifold in _manifolds(optimizer):
            if manifold._within is not None:
                manifold._within.close()


def _manifolds(optimizer: Optimizer) -> list[QuotientManifold]:
    """The quotients that the parameters of an optimiser are on."""
    manifolds = [getattr(p, "manifold", None) for group in optimizer.param_groups for p in group["params"]]
    return [manifold for manifold in manifolds if isinstance(manifold, QuotientManifold)]


def _before_registration(module: torch.nn.Module, name: str, new: torch.nn.Parameter | None) -> None:
    """Warns where a plain parameter takes the place of one on a quotient, as `load_state_dict(assign=True)` does."""
    old = getattr(module._parameters.get(name), "manifold", None)
    if isinstance(old, QuotientManifold) and new is not None and getattr(new, "manifold", None) is None:
        warnings.warn(
            f"parameter {name!r} of {type(module).__name__} was on {old!r} and is replaced by one without manifold: "
            "optimisers will not see the gauge; load with assign=False, or put mid.parameter(tensor, group) there",
            DetachedWarning,
            stacklevel=4,
        )


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)
register_module_parameter_registration_hook(_before_registration)

__all__ = ["QuotientManifold", "parameter"]
