"""Checks of geoopt's contract: what its optimisers call, and what they take for granted. One property each."""

import copy
import io
import pickle
from typing import Any

import torch
from torch import Tensor

from manifoldid.conformance.case import Case, normal_vector, require, require_close
from manifoldid.conformance.group_checks import batch_of
from manifoldid.conformance.runner import Skip, check
from manifoldid.points import flatten


class ManifoldSpace:
    """A geoopt manifold with the names of a `Geometry`."""

    def __init__(self, manifold: Any):
        self.manifold = manifold
        self.group = getattr(manifold, "group", None)
        self.isometric = self.group is not None and self.group.geometry().isometric
        self.inner = manifold.inner
        self.horizontal = manifold.proju
        self.gradient = manifold.egrad2rgrad
        self.retract = manifold.retr
        self.exp = manifold.expmap
        self.log = manifold.logmap
        self.dist = manifold.dist
        self.transport = manifold.transp
        self.squares = manifold.component_inner

    def batch_ndim(self, x: Tensor) -> int:
        """Leading dimensions of `x` that are batch."""
        return x.ndim - self.manifold.ndim if self.group is None else self.group.batch_ndim(x)

    def align(self, x: Tensor, to: Tensor) -> Tensor:
        """The representative closest to another point.

        Raises:
            Skip: The manifold has no alignment.
        """
        if self.group is None:
            raise Skip("the manifold is no quotient by a gauge group")
        return self.manifold.align(x, to)


@check("check_point_on_manifold")
def sample_is_on_the_manifold(case: Case) -> None:
    """check_point_on_manifold accepts the sample."""
    ok, reason = case.subject.check_point_on_manifold(case.x, explain=True)
    require(bool(ok), f"the sample is not on the manifold: {reason}")


@check("check_point_on_manifold")
def verdicts_have_reasons(case: Case) -> None:
    """Good points and vectors are accepted, bad ones refused with a reason."""
    manifold, x = case.subject, case.x
    ok, _ = manifold.check_vector_on_tangent(x, manifold.proju(x, normal_vector(x, 1)), explain=True)
    require(bool(ok), "a projected vector is not accepted as tangent")
    ok, reason = manifold.check_point(x[(0,) * x.ndim], explain=True)
    if manifold.ndim and (case.group is None or case.group.dimension(x)):  # the trivial group takes any tensor
        require(not ok and bool(reason), "a point with too few dimensions is accepted, or refused without a reason")
    _ = case.gauge
    ok, reason = manifold.check_point_on_manifold(torch.full_like(x, float("nan")), explain=True)
    require(not ok and bool(reason), "a point of nan is accepted, or refused without a reason")


@check("projx")
def points_stay_where_they_are(case: Case) -> None:
    """Optimisers call projx between steps without moving their momentum: on a quotient it must not change representatives."""
    for x in (case.x, case.move(3)) if case.group is not None and case.group.dimension(case.x) else (case.x,):
        require_close(
            case.subject.projx(x),
            x,
            "projx moves a point that is on the manifold (a section is no projx: momentum stays behind)",
            1e-12,
        )


@check("inner")
def kept_dimensions_broadcast(case: Case) -> None:
    """inner(keepdim=True) and component_inner broadcast with the point; norm is the root of inner."""
    manifold, x, u = case.subject, case.x, case.horizontal(case.x, 2)
    kept, plain = manifold.inner(x, u, keepdim=True), manifold.inner(x, u)
    require(
        kept.ndim == x.ndim or kept.ndim == max(plain.ndim, x.ndim),
        f"inner(keepdim=True) of shape {tuple(kept.shape)} for {tuple(x.shape)}",
    )
    try:
        together = torch.broadcast_shapes(kept.shape, x.shape)
    except RuntimeError:
        together = None
    require(
        together == x.shape,
        f"inner(keepdim=True) has shape {tuple(kept.shape)} and does not broadcast with {tuple(x.shape)}",
    )
    require_close(kept.reshape(plain.shape), plain, "inner(keepdim=True) is not inner", 1e-12)
    require_close(manifold.inner(x, u, u), plain, "inner(x, u) is not inner(x, u, u)", 1e-12)
    require_close(manifold.norm(x, u), plain.sqrt(), "norm is not the root of inner")
    both = torch.broadcast_shapes(manifold.component_inner(x, u).shape, x.shape)
    require(both == x.shape, "component_inner does not broadcast with the point: RiemannianAdam divides by it")


@check("retr_transp")
def fused_motions_agree(case: Case) -> None:
    """retr_transp, transp_follow_retr and expmap_transp are the compositions of their parts."""
    manifold, x = case.subject, case.x
    u, v = 0.1 * case.horizontal(x, 3), case.horizontal(x, 4)
    y, carried = manifold.retr_transp(x, u, v)
    require_close(y, manifold.retr(x, u), "retr_transp does not go where retr goes", 1e-12)
    require_close(carried, manifold.transp(x, y, v), "retr_transp does not transport as transp does")
    require_close(manifold.transp_follow_retr(x, u, v), carried, "transp_follow_retr is not transp to retr(x, u)")
    y, carried = manifold.expmap_transp(x, u, v)
    require_close(y, manifold.expmap(x, u), "expmap_transp does not go where expmap goes", 1e-12)
    require_close(manifold.transp_follow_expmap(x, u, v), carried, "transp_follow_expmap is not expmap_transp")


@check("retr")
def motions_stay_on_the_manifold(case: Case) -> None:
    """retr and expmap lead to points on the manifold."""
    manifold, x = case.subject, case.x
    u = 0.3 * case.horizontal(x, 5)
    for name in ("retr", "expmap"):
        ok, reason = manifold.check_point_on_manifold(getattr(manifold, name)(x, u), explain=True)
        require(bool(ok), f"{name} leaves the manifold: {reason}")


@check("dist2")
def squared_distance_is_the_square(case: Case) -> None:
    """dist2 = dist^2, and keepdim changes the shape only."""
    manifold = case.subject
    value = manifold.dist(case.x, case.y)
    require_close(manifold.dist2(case.x, case.y), value.square(), "dist2 is not dist^2")
    kept = manifold.dist(case.x, case.y, keepdim=True)
    require_close(kept.reshape(value.shape), value, "dist(keepdim=True) is not dist", 1e-12)


@check("retr")
def steps_of_zero_length_have_finite_derivatives(case: Case) -> None:
    """The derivatives of retr and expmap by u at u = 0 are finite."""
    zero = torch.zeros_like(case.x).requires_grad_()
    for name in ("retr", "expmap"):
        total = flatten(getattr(case.subject, name)(case.x, zero)).sum()
        (slope,) = torch.autograd.grad(total, zero, allow_unused=True)
        require(
            slope is not None and bool(torch.isfinite(slope).all()),
            f"the derivative of {name}(x, u) at u = 0 is not finite",
        )


@check("state_dict")
def copies_behave_alike(case: Case) -> None:
    """A deep copy and a pickled copy have the same metric."""
    manifold, x = case.subject, case.x
    u = case.horizontal(x, 6)
    wanted = manifold.inner(x, u)
    require_close(copy.deepcopy(manifold).inner(x, u), wanted, "a deep copy has another metric", 1e-14)
    buffer = io.BytesIO()
    try:
        torch.save(manifold, buffer)
    except (AttributeError, ImportError, pickle.PicklingError) as error:
        raise Skip(f"its class cannot be pickled where it is defined ({error})") from None
    buffer.seek(0)
    require_close(
        torch.load(buffer, weights_only=False).inner(x, u), wanted, "a pickled copy has another metric", 1e-14
    )


@check("inner")
def batches_keep_their_shape(case: Case) -> None:
    """Vectors and points keep the shape of a batch, inner has one number per point."""
    manifold, batch = case.subject, batch_of(case)
    u = manifold.proju(batch, normal_vector(batch, 1))
    require(u.shape == batch.shape, f"proju of shape {tuple(batch.shape)} has shape {tuple(u.shape)}")
    for name, value in (("retr", manifold.retr(batch, u)), ("egrad2rgrad", manifold.egrad2rgrad(batch, u))):
        require(value.shape == batch.shape, f"{name} of shape {tuple(batch.shape)} has shape {tuple(value.shape)}")
    shape = tuple(manifold.inner(batch, u).shape)
    require(shape[:2] == (2, 3), f"inner of a (2, 3) batch has shape {shape}")


MANIFOLD_CHECKS = (
    sample_is_on_the_manifold,
    verdicts_have_reasons,
    points_stay_where_they_are,
    kept_dimensions_broadcast,
    fused_motions_agree,
    motions_stay_on_the_manifold,
    squared_distance_is_the_square,
    steps_of_zero_length_have_finite_derivatives,
    copies_behave_alike,
    batches_keep_their_shape,
)
