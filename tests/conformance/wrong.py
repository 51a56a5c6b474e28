"""Groups and manifolds that are wrong on purpose, each in one way, with the check that is meant to find it."""

from typing import Any, NamedTuple

import torch
from cases import BLOCKS, randn

import manifoldid as mid
from manifoldid.groups import Canonical
from manifoldid.groups.geometry import Geometry


class Wrong(NamedTuple):
    subject: Any
    sample: Any
    caught_by: str
    invariant: Any = None


def log_gaps(x):
    return (x[..., 1:] - x[..., :-1]).log()


# ------------------------------------------------------------------------------------------------------- wrong groups


class NoAction(mid.GaugeGroup):
    """Moves do not compose."""

    dim = 1

    def act(self, xi, x):
        return x + xi * (2 + x.sin())


class OtherMoveElsewhere(mid.Translation):
    """Every orbit is an orbit of the translation, but two moves make another move on another orbit."""

    def act(self, xi, x):
        spread = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        return x + xi + xi.square() * spread


class MovingIdentity(mid.GaugeGroup):
    dim = 1

    def act(self, xi, x):
        return x + xi + 1e-4


class WrongDimension(mid.GaugeGroup):
    """Two coordinates for one direction."""

    dim = 2

    def act(self, xi, x):
        return x + xi[..., :1] + 2 * xi[..., 1:]


class MissingCoordinate(mid.GaugeGroup):
    """Uses two coordinates and says that there is one."""

    dim = 1

    def act(self, xi, x):
        return x * xi[..., 0, None].exp() + xi[..., 1, None]


class BrokenBatch(mid.GaugeGroup):
    """Every point of a batch moves by the mean of all coordinates."""

    dim = 1

    def act(self, xi, x):
        return x + xi.mean()


class Float32Only(mid.GaugeGroup):
    dim = 1

    def act(self, xi, x):
        return (x.float() + xi.float()).to(x.dtype)


class AlwaysFloat64(mid.Translation):
    def act(self, xi, x):
        return x.double() + xi.double()


class WrongSignInBasis(mid.Translation):
    def vertical_basis(self, x):
        return -super().vertical_basis(x)


class UndoTwice(mid.Translation):
    def undo(self, xi, x):
        return x - 2 * xi


class SectionMovesAlong(mid.Translation):
    """Subtracts nine tenths of the mean: the section moves along the orbit."""

    def canonical(self, x, weights=None):
        shift = 0.9 * x.mean(-1, keepdim=True)
        return Canonical(x - shift, shift)


class SectionOffTheOrbit(mid.Translation):
    def canonical(self, x, weights=None):
        form = super().canonical(x, weights)
        return Canonical(2 * form.point, form.xi)


class FrameBackwards(mid.Translation):
    def canonical(self, x, weights=None):
        form = super().canonical(x, weights)
        return Canonical(form.point, -form.xi)


class SectionOfTheBatch(mid.Translation):
    """One mean for the whole batch."""

    def canonical(self, x, weights=None):
        mean = x.mean().expand(*x.shape[:-1], 1)
        return Canonical(x - mean, mean)


class DetachedSection(mid.Translation):
    """Constant on orbits, but autograd does not see the mean."""

    def canonical(self, x, weights=None):
        form = super().canonical(x.detach(), weights)
        return Canonical(x - form.xi, form.xi)


class RawWeights(mid.Translation):
    """Weights that are not normalised."""

    def canonical(self, x, weights=None):
        if weights is None:
            return super().canonical(x)
        shift = (weights * x).mean(-1, keepdim=True)
        return Canonical(x - shift, shift)


class SettlesOnce(mid.Translation):
    def settler(self, weights=None):
        means = []  # found at the first point, and taken out of the others too

        def settle(x):
            means.append(x.mean(-1, keepdim=True))
            return Canonical(x.sub_(means[0]), means[0])

        return settle


class ClosestIsCanonical(mid.Translation):
    def closest(self, x, to, weights=None):
        return self.canonical(x, weights)


class WrongGeometry(mid.Scaling):
    """A scaling with somebody's own geometry."""

    def __init__(self, kind):
        super().__init__()
        object.__setattr__(self, "kind", kind)

    def __repr__(self):
        return f"WrongGeometry({self.kind.__name__})"

    def geometry(self, weights=None):
        right = mid.Scaling().geometry(weights)
        return self.kind(right)


class Wrapped(Geometry):
    """The right geometry of a scaling; subclasses spoil one thing."""

    isometric = True

    def __init__(self, right):
        super().__init__(right.group, right.weights)
        self.right = right

    def inner(self, x, u, v):
        return self.right.inner(x, u, v)

    def horizontal(self, x, u):
        return self.right.horizontal(x, u)

    def gradient(self, x, derivative):
        return self.right.gradient(x, derivative)

    def components(self, x, u):
        return self.right.components(x, u)

    def retract(self, x, u):
        return self.right.retract(x, u)

    def exp(self, x, u):
        return self.right.exp(x, u)

    def log(self, x, y):
        return self.right.log(x, y)

    def dist(self, x, y):
        return self.right.dist(x, y)

    def align(self, x, to):
        return self.right.align(x, to)

    def transport(self, x, y, v):
        return self.right.transport(x, y, v)


class EuclideanMetric(Wrapped):
    def inner(self, x, u, v):
        return (u * v).sum(-1)


class NegativeMetric(Wrapped):
    def inner(self, x, u, v):
        return -self.right.inner(x, u, v)


class HalfProjection(Wrapped):
    def horizontal(self, x, u):
        return u - 0.5 * (u - self.right.horizontal(x, u))


class ObliqueProjection(Wrapped):
    """Removes the vertical direction, along another one than the orthogonal complement."""

    def horizontal(self, x, u):
        return u - x * u[..., :1] / x[..., :1]


class NoProjection(Wrapped):
    def horizontal(self, x, u):
        return u


class TooMuchProjection(Wrapped):
    """Removes a translation as well."""

    def horizontal(self, x, u):
        return mid.Affine().geometry().horizontal(x, u)


class EuclideanGradient(Wrapped):
    def gradient(self, x, derivative):
        return self.right.horizontal(x, derivative)


class VerticalGradient(Wrapped):
    def gradient(self, x, derivative):
        return self.right.gradient(x, derivative) + 0.1 * x


class RawSquares(Wrapped):
    def components(self, x, u):
        return u


class RetractionOfOrderZero(Wrapped):
    def retract(self, x, u):
        return x


class DoubleStep(Wrapped):
    def retract(self, x, u):
        return self.right.retract(x, 2 * u)


class BentRetraction(Wrapped):
    """Right velocity, wrong curve: of first order only."""

    def retract(self, x, u):
        size = self.right.inner(x, u, u).sqrt()[..., None]
        return self.right.exp(x, u + 5 * size * self.right.horizontal(x, x.roll(1, -1)) * size**0.5)


class RetractionForgetsTheSize(Wrapped):
    def retract(self, x, u):
        return x + u / x.abs().max(-1, keepdim=True).values


class FastGeodesic(Wrapped):
    def exp(self, x, u):
        return self.right.exp(x, 1.01 * u)


class LogWithoutSign(Wrapped):
    def log(self, x, y):
        return self.right.log(x, y).abs()


class ShortLog(Wrapped):
    """The chord instead of the arc."""

    def log(self, x, y):
        return self.right.horizontal(x, self.right.align(y, x))


class LogToTheRepresentative(Wrapped):
    """The difference to whatever representative y is."""

    def log(self, x, y):
        return self.right.horizontal(x, y - x)


class DistanceOfRepresentatives(Wrapped):
    def dist(self, x, y):
        return (x - y).norm(dim=-1)


class OneSidedDistance(Wrapped):
    def dist(self, x, y):
        return self.right.dist(x, y) * (1 + 0.1 * torch.sigmoid(x[..., 0] / x.norm(dim=-1)))


class TransportLeavesTheSpace(Wrapped):
    """A vector stays what it was in the ambient space."""

    def transport(self, x, y, v):
        return v


class TransportByProjection(Wrapped):
    """Horizontal and equivariant, but not isometric, as is claimed."""

    def transport(self, x, y, v):
        ratio = (y.square().sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True)).sqrt()
        return self.right.horizontal(y, v * ratio)


class TransportForgetsTheSize(Wrapped):
    def transport(self, x, y, v):
        ratio = (y.square().sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True)).sqrt()
        return self.right.transport(x, y, v) / ratio


class AlignmentLeavesTheOrbit(Wrapped):
    def align(self, x, to):
        return to


def spoilt(kind, caught_by):
    return Wrong(WrongGeometry(kind), randn(7), caught_by)


GROUPS = {
    "no-action": Wrong(NoAction(), randn(7), "moves_compose"),
    "other-move-elsewhere": Wrong(OtherMoveElsewhere(), randn(7), "moves_compose"),
    "moving-identity": Wrong(MovingIdentity(), randn(7), "identity_does_nothing"),
    "wrong-dimension": Wrong(WrongDimension(), randn(7), "dimension_is_that_of_the_orbit"),
    "missing-coordinate": Wrong(MissingCoordinate(), randn(7), "act_returns_a_point"),
    "broken-batch": Wrong(BrokenBatch(), randn(7), "points_of_a_batch_move_alone"),
    "float32-only": Wrong(Float32Only(), randn(7), "identity_does_nothing"),
    "always-float64": Wrong(AlwaysFloat64(), randn(7), "action_keeps_shape_and_dtype"),
    "wrong-sign-in-basis": Wrong(WrongSignInBasis(), randn(7), "vertical_basis_is_the_velocity_of_the_action"),
    "undo-twice": Wrong(UndoTwice(), randn(7), "undo_is_the_inverse"),
    "section-moves-along": Wrong(SectionMovesAlong(), randn(7) + 1, "section_is_constant_on_orbits"),
    "section-off-the-orbit": Wrong(SectionOffTheOrbit(), randn(7), "section_is_idempotent"),
    "frame-backwards": Wrong(FrameBackwards(), randn(7), "frame_leads_back"),
    "section-of-the-batch": Wrong(SectionOfTheBatch(), randn(7), "section_treats_points_of_a_batch_alone"),
    "detached-section": Wrong(DetachedSection(), randn(7), "section_does_not_change_along_the_orbit"),
    "raw-weights": Wrong(RawWeights(), randn(7), "only_ratios_of_weights_matter"),
    "closest-is-canonical": Wrong(ClosestIsCanonical(), randn(7) + 1, "closest_stays_on_the_orbit"),
    "settles-once": Wrong(SettlesOnce(), randn(7) + 1, "settling_is_the_section_in_place"),
    "wrong-invariant": Wrong(mid.Affine(), randn(7).sort().values, "declared_invariant_is_invariant", log_gaps),
    "metric-of-representatives": spoilt(EuclideanMetric, "metric_is_invariant"),
    "negative-metric": spoilt(NegativeMetric, "metric_is_symmetric_and_positive"),
    "half-projection": spoilt(HalfProjection, "projection_is_idempotent"),
    "oblique-projection": spoilt(ObliqueProjection, "projection_is_self_adjoint"),
    "no-projection": spoilt(NoProjection, "projection_removes_vertical_vectors"),
    "too-much-projection": spoilt(TooMuchProjection, "projection_removes_no_more"),
    "euclidean-gradient": spoilt(EuclideanGradient, "gradient_represents_the_derivative"),
    "vertical-gradient": spoilt(VerticalGradient, "gradient_is_horizontal"),
    "raw-squares": spoilt(RawSquares, "components_are_invariant"),
    "retraction-of-order-zero": spoilt(RetractionOfOrderZero, "retraction_is_of_first_order"),
    "double-step": spoilt(DoubleStep, "retraction_is_of_first_order"),
    "bent-retraction": spoilt(BentRetraction, "retraction_is_of_second_order"),
    "retraction-forgets-the-size": spoilt(RetractionForgetsTheSize, "retraction_is_equivariant"),
    "fast-geodesic": spoilt(FastGeodesic, "geodesics_have_the_right_length"),
    "log-without-sign": spoilt(LogWithoutSign, "log_inverts_exp"),
    "short-log": spoilt(ShortLog, "log_is_as_long_as_the_distance"),
    "log-to-the-representative": spoilt(LogToTheRepresentative, "log_sees_orbits_only"),
    "distance-of-representatives": spoilt(DistanceOfRepresentatives, "distance_sees_orbits_only"),
    "one-sided-distance": spoilt(OneSidedDistance, "distance_is_a_metric"),
    "transport-leaves-the-space": spoilt(TransportLeavesTheSpace, "transport_is_linear_and_horizontal"),
    "transport-by-projection": spoilt(TransportByProjection, "transport_is_isometric"),
    "transport-forgets-the-size": spoilt(TransportForgetsTheSize, "transport_is_equivariant"),
    "alignment-leaves-the-orbit": spoilt(AlignmentLeavesTheOrbit, "alignment_finds_the_representative"),
}


# ---------------------------------------------------------------------------------------------------- wrong manifolds


def wrong_manifolds() -> dict[str, Wrong]:
    """Subclasses of the right manifold that spoil one thing. In a function, because geoopt is loaded for them."""

    class SectionAsProjx(mid.QuotientManifold):
        def projx(self, x):
            return mid.Section(self.group)(x)

    class InnerWithoutKeepdim(mid.QuotientManifold):
        def inner(self, x, u, v=None, *, keepdim=False):
            return super().inner(x, u, v)

    class UnprojectedFusion(mid.QuotientManifold):
        def retr_transp(self, x, u, v):
            return self.retr(x, u), v

    class StuckFollow(mid.QuotientManifold):
        def transp_follow_retr(self, x, u, v):
            return v

    class AcceptsEverything(mid.QuotientManifold):
        def _check_point_on_manifold(self, x, *, atol=1e-5, rtol=1e-5):
            return True, None

    class AcceptsNothing(mid.QuotientManifold):
        def _check_vector_on_tangent(self, x, u, *, atol=1e-5, rtol=1e-5):
            return False, "no"

    class NormalisesByZero(mid.QuotientManifold):
        def expmap(self, x, u):
            size = u.norm(dim=-1, keepdim=True)
            return super().expmap(x, torch.where(size > 0, size * (u / size), u))

    class LeavesTheManifold(mid.QuotientManifold):
        def retr(self, x, u):
            return 0 * x

    class DistanceForItsSquare(mid.QuotientManifold):
        def dist2(self, x, y, *, keepdim=False):
            return self.dist(x, y, keepdim=keepdim)

    class FlattensBatches(mid.QuotientManifold):
        def inner(self, x, u, v=None, *, keepdim=False):
            value = super().inner(x, u, v, keepdim=keepdim)
            return value if keepdim or value.ndim < 2 else value.flatten()

    class EgradIsProju(mid.QuotientManifold):
        def egrad2rgrad(self, x, u):
            return self.proju(x, u)

    class ForgetsWeights(mid.QuotientManifold):
        def __deepcopy__(self, memo):
            return type(self)(self.group)

    class TransportsTheNegative(mid.QuotientManifold):
        def transp(self, x, y, v):
            return -super().transp(x, y, v)

    group = mid.Affine()
    weights = torch.linspace(0.5, 2.0, 7, dtype=torch.float64)
    caught = {
        SectionAsProjx: "points_stay_where_they_are",
        InnerWithoutKeepdim: "kept_dimensions_broadcast",
        UnprojectedFusion: "fused_motions_agree",
        StuckFollow: "fused_motions_agree",
        AcceptsEverything: "verdicts_have_reasons",
        AcceptsNothing: "verdicts_have_reasons",
        NormalisesByZero: "steps_of_zero_length_have_finite_derivatives",
        LeavesTheManifold: "motions_stay_on_the_manifold",
        DistanceForItsSquare: "squared_distance_is_the_square",
        FlattensBatches: "batches_keep_their_shape",
        EgradIsProju: "gradient_represents_the_derivative",
        TransportsTheNegative: "transport_to_the_same_point_does_nothing",
    }
    table = {kind.__name__: Wrong(kind(group), 3 * randn(7) + 2, name) for kind, name in caught.items()}
    table["ForgetsWeights"] = Wrong(ForgetsWeights(group, weights), 3 * randn(7) + 2, "copies_behave_alike")
    table["SectionAsProjx-blocks"] = Wrong(
        SectionAsProjx(mid.Translation(blocks=BLOCKS)), randn(7), "points_stay_where_they_are"
    )
    return table
