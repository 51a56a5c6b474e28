"""Checks of a metric and of the motions of a space: a group's geometry, or a geoopt manifold. One property each."""

import math

import torch
from torch import Tensor

from manifoldid.conformance.case import (
    Case,
    as_float32,
    normal_vector,
    require,
    require_close,
    size,
    velocity,
)
from manifoldid.conformance.group_checks import as_float64_like, batch_of, entry
from manifoldid.conformance.runner import Skip, check
from manifoldid.groups.orbit import flatten_basis, unflattened_velocity
from manifoldid.points import Point, blocks_of, flatten, map_blocks, unflatten


def _plus(x: Point, u: Point, t: float = 1.0) -> Point:
    return map_blocks(lambda a, b: a + t * b, x, u)


def _times(t: float, u: Point) -> Point:
    return map_blocks(lambda b: t * b, u)


def _zero(u: Point) -> Point:
    return map_blocks(torch.zeros_like, u)


def _pairing(derivative: Point, v: Point, ndim: int) -> Tensor:
    return (flatten(derivative, ndim) * flatten(v, ndim)).sum(-1)


# ---------------------------------------------------------------------------------------------------------- the metric


@check("inner")
def metric_is_symmetric_and_positive(case: Case) -> None:
    """<u, v> = <v, u>, linear, and <u, u> > 0."""
    u, v = case.tangent(case.x, 1), case.tangent(case.x, 2)
    inner = case.space.inner
    require_close(
        inner(case.x, u, v), inner(case.x, v, u), "<u, v> is not <v, u>", 1e-10, _length(case, u) * _length(case, v)
    )
    require_close(
        inner(case.x, _plus(u, v, 2.0), v),
        inner(case.x, u, v) + 2 * inner(case.x, v, v),
        "the metric is not linear",
        1e-9,
        _length(case, u) * _length(case, v) + _length(case, v) ** 2,
    )
    require(bool((inner(case.x, u, u) > 0).all()), "<u, u> is not positive")


def _length(case: Case, u: Point, x: Point | None = None) -> float:
    x = case.x if x is None else x
    return math.sqrt(max(float(case.space.inner(x, u, u).max()), 0.0))


@check("inner")
def metric_is_invariant(case: Case) -> None:
    """<dg u, dg v> at g.x = <u, v> at x."""
    x, y = case.x, case.move(8)
    u, v = case.tangent(x, 1), case.tangent(x, 2)
    moved_u, moved_v = case.carry(8, u), case.carry(8, v)
    require_close(
        case.space.inner(y, moved_u, moved_v),
        case.space.inner(x, u, v),
        "<dg u, dg v> at g.x is not <u, v> at x: the metric depends on the representative",
        1e-7,
        _length(case, u) * _length(case, v),
    )


# ------------------------------------------------------------------------------------------------------ the projection


@check("horizontal")
def projection_is_idempotent(case: Case) -> None:
    """P P u = P u."""
    u = case.tangent(case.x, 3)
    once = case.space.horizontal(case.x, u)
    require_close(case.space.horizontal(case.x, once), once, "P P u is not P u", scale=u)


@check("horizontal")
def projection_is_self_adjoint(case: Case) -> None:
    """<P u, v> = <u, P v>."""
    u, v = case.tangent(case.x, 3), case.tangent(case.x, 4)
    inner, project = case.space.inner, case.space.horizontal
    require_close(
        inner(case.x, project(case.x, u), v),
        inner(case.x, u, project(case.x, v)),
        "<P u, v> is not <u, P v>: the projection is not orthogonal in the metric",
        scale=_length(case, u) * _length(case, v),
    )


@check("horizontal")
def projection_removes_vertical_vectors(case: Case) -> None:
    """P V = 0 for velocities V of the orbit."""
    coordinates = case.xi(9, size=1.0)
    vertical = unflattened_velocity(case.gauge, case.x, coordinates)
    require_close(
        case.space.horizontal(case.x, vertical),
        _zero(vertical),
        "the projection leaves a part of the vertical space",
        scale=vertical,
    )


@check("horizontal")
def projection_removes_no_more(case: Case) -> None:
    """The image has the dimension of the space less that of the orbit."""
    ndim = case.ndim
    one = flatten(case.x, ndim)
    count = one.shape[-1]
    if count > 400:
        raise Skip("the point has more than 400 numbers")
    columns = []
    for k in range(count):
        unit = torch.zeros_like(one)
        unit[..., k] = 1
        columns.append(flatten(case.space.horizontal(case.x, unflatten(unit, case.x, ndim)), ndim))
    projection = torch.stack(columns, dim=-1)
    basis = flatten_basis(case.gauge.vertical_basis(case.x), case.x, ndim)
    rank = float(torch.linalg.matrix_rank(basis, rtol=1e-10).min())
    trace = projection.diagonal(dim1=-2, dim2=-1).sum(-1)
    require_close(
        trace,
        torch.full_like(trace, count - rank),
        "the rank (trace) of the projection is not that of the quotient",
        1e-7,
        1.0,
    )


@check("horizontal")
def horizontal_and_vertical_are_orthogonal(case: Case) -> None:
    """<P u, V> = 0."""
    u = case.horizontal(case.x, 5)
    vertical = unflattened_velocity(case.gauge, case.x, case.xi(9, size=1.0))
    value = case.space.inner(case.x, u, vertical)
    require_close(
        value,
        torch.zeros_like(value),
        "horizontal vectors are not orthogonal to the orbit",
        scale=_length(case, u) * max(_length(case, vertical), 1e-12),
    )


@check("horizontal")
def projection_commutes_with_the_group(case: Case) -> None:
    """P dg u at g.x = dg P u."""
    u = case.tangent(case.x, 5)
    there = case.space.horizontal(case.move(10), case.carry(10, u))
    back = case.carry(10, case.space.horizontal(case.x, u))
    require_close(there, back, "P at g.x is not P at x, carried along", 1e-7, scale=case.carry(10, u))


@check("gradient")
def gradient_represents_the_derivative(case: Case) -> None:
    """<grad f, v> = df(v) for horizontal v."""
    derivative = case.derivative(case.x)
    gradient = case.space.gradient(case.x, derivative)
    v = case.horizontal(case.x, 6)
    slope = _pairing(derivative, v, case.ndim)
    require_close(
        case.space.inner(case.x, gradient, v),
        slope,
        "<grad f, v> is not df(v): a factor, a weight or the metric is missing in the gradient",
        1e-7,
        max(size(slope), _length(case, gradient) * _length(case, v)),
    )


@check("gradient")
def gradient_is_horizontal(case: Case) -> None:
    """P grad f = grad f."""
    gradient = case.space.gradient(case.x, case.derivative(case.x))
    require_close(case.space.horizontal(case.x, gradient), gradient, "the gradient is not horizontal", 1e-7)


@check("components")
def components_are_invariant(case: Case) -> None:
    """Squares of the components of dg u at g.x are those of u at x."""
    x, u = case.x, case.horizontal(case.x, 7)
    squares = case.space.squares(x, u)
    require(all(bool((t >= 0).all()) for t in blocks_of(squares).values()), "squares of components are negative")
    there = case.space.squares(case.move(11), case.carry(11, u))
    require_close(
        there,
        squares,
        "the second moments that adaptive optimisers accumulate are not invariant: runs from x0 and g.x0 part",
        1e-6,
    )


@check("components")
def components_sum_to_the_metric(case: Case) -> None:
    """Squares of the components sum to <u, u>."""
    u = case.horizontal(case.x, 7)
    squares = case.space.squares(case.x, u)
    total = sum(
        (t.flatten(min(case.ndim, t.ndim)) if t.ndim > case.ndim else t[..., None]).sum(-1)
        for t in blocks_of(squares).values()
    )
    if isinstance(case.x, Tensor) and squares.shape[case.ndim :].numel() != case.x.shape[case.ndim :].numel():
        raise Skip("one number for the whole point")
    require_close(total, case.space.inner(case.x, u, u), "squares of the components do not sum to <u, u>", 1e-7)


# ------------------------------------------------------------------------------------------------------------- motions


@check("dist")
def distance_is_a_metric(case: Case) -> None:
    """dist is symmetric, positive, 0 at equal points, and keeps the triangle inequality."""
    dist = case.space.dist
    xy, yx = dist(case.x, case.y), dist(case.y, case.x)
    require_close(xy, yx, "dist(x, y) is not dist(y, x)")
    require(bool((xy > 0).all()), "dist(x, y) is 0 for different points")
    require_close(dist(case.x, case.x), torch.zeros_like(xy), "dist(x, x) is not 0", 1e-6, scale=1.0)
    around = dist(case.x, case.z) + dist(case.z, case.y)
    require(bool((xy <= around * (1 + 1e-9)).all()), "the triangle inequality does not hold")


@check("dist")
def distance_sees_orbits_only(case: Case) -> None:
    """dist(x, g.x) = 0, dist(g.x, y) = dist(x, y) = dist(x, g.y)."""
    dist, x, y = case.space.dist, case.x, case.y
    require_close(dist(x, case.move(12)), torch.zeros_like(dist(x, y)), "dist(x, g.x) is not 0", 1e-6, scale=1.0)
    require_close(dist(case.move(12), y), dist(x, y), "dist(g.x, y) is not dist(x, y)", 1e-7)
    require_close(dist(x, case.move(13, y)), dist(x, y), "dist(x, g.y) is not dist(x, y)", 1e-7)


@check("exp")
def geodesics_have_the_right_length(case: Case) -> None:
    """dist(x, exp(x, t v)) = t |v|."""
    v = case.short(case.x, 8)
    for t in (0.3, 1.0):
        reached = case.space.exp(case.x, _times(t, v))
        length = t * case.space.inner(case.x, v, v).sqrt()
        require_close(case.space.dist(case.x, reached), length, "dist(x, exp(x, t v)) is not t |v|", 1e-7)


@check("exp")
def geodesics_start_with_their_velocity(case: Case) -> None:
    """exp(x, 0) = x, and d exp(x, t v) / dt at 0 is v."""
    v = _times(0.1, case.horizontal(case.x, 8))
    require_close(case.space.exp(case.x, _zero(v)), case.x, "exp(x, 0) is not x", 1e-10)
    start = velocity(lambda t: case.space.exp(case.x, _times(t, v)))
    require_close(
        start, v, "the velocity of exp(x, t v) at t = 0 is not v: sign, factor, or not a horizontal lift", 1e-6
    )


@check("log")
def log_inverts_exp(case: Case) -> None:
    """exp(x, log(x, y)) is on the orbit of y, and log(x, exp(x, v)) = v."""
    step = case.space.log(case.x, case.y)
    reached = case.space.exp(case.x, step)
    require_close(
        case.space.dist(reached, case.y),
        torch.zeros_like(case.space.dist(case.x, case.y)),
        "exp(x, log(x, y)) is not y",
        1e-6,
        1.0,
    )
    v = case.short(case.x, 8)
    require_close(case.space.log(case.x, case.space.exp(case.x, v)), v, "log(x, exp(x, v)) is not v", 1e-7)


@check("log")
def log_is_as_long_as_the_distance(case: Case) -> None:
    """log(x, y) is horizontal and |log(x, y)| = dist(x, y)."""
    step = case.space.log(case.x, case.y)
    require_close(case.space.horizontal(case.x, step), step, "log is not horizontal")
    require_close(
        case.space.inner(case.x, step, step).sqrt(),
        case.space.dist(case.x, case.y),
        "|log(x, y)| is not dist(x, y)",
        1e-7,
    )


@check("log")
def log_sees_orbits_only(case: Case) -> None:
    """log(x, g.y) = log(x, y), and log(g.x, y) = dg log(x, y)."""
    log = case.space.log(case.x, case.y)
    require_close(case.space.log(case.x, case.move(13, case.y)), log, "log(x, g.y) is not log(x, y)", 1e-7)
    require_close(
        case.space.log(case.move(14), case.y), case.carry(14, log), "log(g.x, y) is not log(x, y) carried along", 1e-6
    )


@check("retract")
def retraction_is_of_first_order(case: Case) -> None:
    """retract(x, 0) = x, and d retract(x, t v) / dt at 0 is v."""
    v = _times(0.1, case.horizontal(case.x, 9))
    require_close(case.space.retract(case.x, _zero(v)), case.x, "retract(x, 0) is not x", 1e-10)
    start = velocity(lambda t: case.space.retract(case.x, _times(t, v)))
    require_close(start, v, "the velocity of retract(x, t v) at t = 0 is not v: order zero, sign or factor", 1e-6)


@check("retract")
def retraction_is_of_second_order(case: Case) -> None:
    """The distance to the geodesic shrinks at least like t^2."""
    v = case.horizontal(case.x, 9)
    length = _length(case, v)
    errors = []
    for t in (0.08, 0.04, 0.02):
        step = _times(t / length, v)
        errors.append(float(case.space.dist(case.space.retract(case.x, step), case.space.exp(case.x, step)).max()))
    if errors[-1] < 1e-9:
        return
    slope = math.log(errors[0] / errors[-1]) / math.log(4)
    require(slope > 1.8, f"|retract(x, t v) - exp(x, t v)| shrinks like t^{slope:.1f}, expected t^2")


@check("retract")
def retraction_is_equivariant(case: Case) -> None:
    """retract(g.x, dg v) is on the orbit of retract(x, v)."""
    v = _times(0.1, case.horizontal(case.x, 9))
    here = case.gauge.canonical(case.space.retract(case.x, v)).point
    there = case.gauge.canonical(case.space.retract(case.move(15), case.carry(15, v))).point
    require_close(there, here, "retract(g.x, dg v) is not on the orbit of retract(x, v)", 1e-6)


@check("align")
def alignment_finds_the_representative(case: Case) -> None:
    """align(x, to) is on the orbit of x, the same for g.x, and x itself for to = x."""
    align, x, to = case.space.align, case.x, case.y
    aligned = align(x, to)
    require_close(
        case.gauge.canonical(aligned).point, case.gauge.canonical(x).point, "align(x, to) left the orbit of x", 1e-7
    )
    require_close(align(case.move(16), to), aligned, "align(g.x, to) is not align(x, to)", 1e-6)
    require_close(align(case.move(16), x), x, "align(g.x, to=x) is not x", 1e-6)


@check("align")
def geodesics_end_at_the_aligned_point(case: Case) -> None:
    """exp(x, log(x, y)) = align(y, to=x)."""
    reached = case.space.exp(case.x, case.space.log(case.x, case.y))
    require_close(reached, case.space.align(case.y, case.x), "exp(x, log(x, y)) is not align(y, to=x)", 1e-6)


# ----------------------------------------------------------------------------------------------------------- transport


@check("transport")
def transport_is_linear_and_horizontal(case: Case) -> None:
    """transport is linear in v, and horizontal (tangent) at its end."""
    u, v = case.horizontal(case.x, 10), case.horizontal(case.x, 11)
    carry = lambda w: case.space.transport(case.x, case.y, w)  # noqa: E731
    sum_of = _plus(carry(u), carry(v), 2.0)
    require_close(carry(_plus(u, v, 2.0)), sum_of, "transport is not linear", scale=max(size(sum_of), size(u)))
    require_close(
        case.space.horizontal(case.y, sum_of),
        sum_of,
        "the transported vector is not horizontal (tangent) at its new point",
        scale=sum_of,
    )


@check("transport")
def transport_to_the_same_point_does_nothing(case: Case) -> None:
    """transport(x, x, v) = v."""
    u = case.horizontal(case.x, 10)
    require_close(case.space.transport(case.x, case.x, u), u, "transport(x, x, v) is not v", 1e-7)


@check("transport")
def transport_is_equivariant(case: Case) -> None:
    """transport commutes with the group at both ends."""
    u = case.horizontal(case.x, 10)
    here = case.space.transport(case.x, case.y, u)
    there = case.space.transport(case.move(17), case.y, case.carry(17, u))
    require_close(there, here, "transport of dg v from g.x is not transport of v from x", 1e-6)
    end = case.space.transport(case.x, case.move(18, case.y), u)
    require_close(end, case.carry(18, here, case.y), "transport to g.y is not transport to y carried along", 1e-6)


@check("transport")
def transport_is_isometric(case: Case) -> None:
    """transport keeps inner products, where the geometry claims it."""
    if not case.space.isometric:
        raise Skip("no isometry is claimed")
    u, v = case.horizontal(case.x, 10), case.horizontal(case.x, 11)
    carry = lambda w: case.space.transport(case.x, case.y, w)  # noqa: E731
    require_close(
        case.space.inner(case.y, carry(u), carry(v)),
        case.space.inner(case.x, u, v),
        "transport changes inner products",
        1e-7,
        _length(case, u) * _length(case, v),
    )


# --------------------------------------------------------------------------------------------- batches, dtypes, optimisers


@check("batches")
def points_of_a_batch_are_treated_alone(case: Case) -> None:
    """inner, projection and retraction of a batch are those of each of its points."""
    batch = batch_of(case)
    u = normal_vector(batch, 12)
    space = case.space
    u = space.horizontal(batch, u)
    whole_inner, whole_step = space.inner(batch, u, u), space.retract(batch, _times(0.1, u))
    require(
        tuple(whole_inner.shape[:2]) == (2, 3),
        f"inner of a (2, 3) batch has shape {tuple(whole_inner.shape)}, expected (2, 3, ...)",
    )
    for i, j in ((0, 2), (1, 0)):
        x, v = entry(batch, i, j), entry(u, i, j)
        require_close(space.inner(x, v, v), whole_inner[i, j], "inner of a batch is not inner of each of its points")
        require_close(
            space.retract(x, _times(0.1, v)),
            entry(whole_step, i, j),
            "retract of a batch is not retract of each of its points",
        )
        require_close(
            space.horizontal(x, normal_at(batch, i, j)),
            entry(space.horizontal(batch, normal_vector(batch, 13)), i, j),
            "the projection of a batch is not the projection of each of its points",
        )


def normal_at(batch: Point, i: int, j: int) -> Point:
    """One entry of the vectors that a batch is tested with."""
    return entry(normal_vector(batch, 13), i, j)


@check("dtypes")
def float32_agrees_with_float64(case: Case) -> None:
    """projection and retraction keep float32, and are near those in float64."""
    # a short horizontal vector: the length of a point can be far beyond the domain in a chart
    vector = _times(0.1, case.horizontal(case.x, 13))
    x, u = as_float32(case.x), as_float32(vector)
    for name in ("horizontal", "retract"):
        operation = getattr(case.space, name)
        narrow, wide = operation(x, u), operation(case.x, vector)
        for block, t in blocks_of(narrow).items():
            wanted = blocks_of(x)[block].dtype
            require(t.dtype == wanted, f"{name} of a {wanted} point has dtype {t.dtype}")
        require_close(as_float64_like(narrow, wide), wide, f"{name} in float32 is far from float64", 1e-3)


@check("optimisers")
def runs_from_x_and_from_gx_agree(case: Case) -> None:
    """20 steps of Adam as geoopt takes them, second moments in the invariant frame."""
    ends = []
    for start in (case.x, case.move(19)):
        ends.append(case.gauge.canonical(_adam(case, start)).point)
    require_close(ends[1], ends[0], "20 steps of Adam from x0 and from g.x0 end on different orbits", 1e-5)


def _adam(case: Case, x: Point, steps: int = 20, rate: float = 3e-3) -> Point:
    target = case.y
    first = second = _zero(x)

    def derivative(x: Point) -> Point:
        here, there = case.derivative(x), case.function(x).detach() - case.function(target).detach()
        return map_blocks(lambda d: d * there.reshape(there.shape + (1,) * (d.ndim - there.ndim)), here)

    for k in range(1, steps + 1):
        gradient = case.space.gradient(x, derivative(x))
        first = _plus(_times(0.9, first), gradient, 0.1)
        second = map_blocks(lambda s, g: 0.99 * s + 0.01 * g, second, case.space.squares(x, gradient))
        direction = map_blocks(lambda m, s, k=k: m / (1 - 0.9**k) / ((s / (1 - 0.99**k)).sqrt() + 1e-8), first, second)
        step = case.space.horizontal(x, _times(-rate, direction))
        new = case.space.retract(x, step)
        x, first = new, case.space.transport(x, new, first)
    return x


SPACE_CHECKS = (
    metric_is_symmetric_and_positive,
    metric_is_invariant,
    projection_is_idempotent,
    projection_is_self_adjoint,
    projection_removes_vertical_vectors,
    projection_removes_no_more,
    horizontal_and_vertical_are_orthogonal,
    projection_commutes_with_the_group,
    gradient_represents_the_derivative,
    gradient_is_horizontal,
    components_are_invariant,
    components_sum_to_the_metric,
    distance_is_a_metric,
    distance_sees_orbits_only,
    geodesics_have_the_right_length,
    geodesics_start_with_their_velocity,
    log_inverts_exp,
    log_is_as_long_as_the_distance,
    log_sees_orbits_only,
    retraction_is_of_first_order,
    retraction_is_of_second_order,
    retraction_is_equivariant,
    alignment_finds_the_representative,
    geodesics_end_at_the_aligned_point,
    transport_is_linear_and_horizontal,
    transport_to_the_same_point_does_nothing,
    transport_is_equivariant,
    transport_is_isometric,
    points_of_a_batch_are_treated_alone,
    float32_agrees_with_float64,
    runs_from_x_and_from_gx_agree,
)
