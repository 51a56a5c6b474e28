"""Closed-form geometries against the defaults that know only the action, and against what geodesics have to satisfy."""

import math

import numpy as np
import pytest
import torch
from cases import BATCHES, LABELS, Case
from cases import CORE as CASES
from cases import randn as random
from torch import Tensor

import manifoldid as mid
from manifoldid.groups.geometry import Geometry
from manifoldid.points import blocks_of, flat_weights, flatten, map_blocks, unflatten

WITH_BATCHES = {
    name: case for name, case in CASES.items() if name != "trivial"
}  # which takes all dimensions as one point
each_case = pytest.mark.parametrize("case", WITH_BATCHES.values(), ids=WITH_BATCHES.keys())
SAME_METRIC = {
    name: case for name, case in WITH_BATCHES.items() if not name.startswith("positive") and name != "product"
}
each_same_metric = pytest.mark.parametrize("case", SAME_METRIC.values(), ids=SAME_METRIC.keys())
each_weights = pytest.mark.parametrize("weighted", [False, True])


def close(a, b, atol=1e-10):
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
        return
    for name, t in blocks_of(a).items():
        torch.testing.assert_close(t, blocks_of(b)[name], rtol=0, atol=atol)


def tangent(x, seed, size=1.0):
    """A vector at `x`; small beside positive entries."""
    vectors = random(flatten(x).numel(), seed=seed)
    u = unflatten(vectors, x)
    return map_blocks(lambda t, v: size * (v * t if bool((t > 0).all()) else v), x, u)


def at(case: Case, weighted: bool, *batch: int):
    """Geometry, two points, and horizontal vectors at the first."""
    geometry = case.group.geometry(case.weights if weighted else None)
    x, y = case.point(*batch), case.point(*batch, seed=40)
    u, v = (geometry.horizontal(x, tangent(x, seed)) for seed in (21, 22))
    return geometry, x, y, u, v


# ---------------------------------------------------------------------------------- against the defaults of any action


@pytest.mark.slow
@each_same_metric
@each_weights
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_metric_and_projection_agree_with_the_default(case: Case, weighted, batch):
    weights = case.weights if weighted else None
    geometry, default = case.group.geometry(weights), Geometry(case.group, weights)
    x = case.point(*batch)
    u, v = tangent(x, 21), tangent(x, 22)
    close(geometry.inner(x, u, v), default.inner(x, u, v))
    close(geometry.horizontal(x, u), default.horizontal(x, u))
    close(geometry.vertical(x, u), default.vertical(x, u))
    close(geometry.gradient(x, u), default.gradient(x, u))
    assert geometry.inner(x, u, v).shape == batch


@each_same_metric
def test_components_agree_with_the_default_where_the_action_moves_every_entry_by_itself(case: Case):
    geometry, default = case.group.geometry(case.weights), Geometry(case.group, case.weights)
    x = case.point(2)
    close(geometry.components(x, tangent(x, 21)), default.components(x, tangent(x, 21)))


@pytest.mark.parametrize("name", ["positive-scaling", "positive-scaling-blocks"])
@each_weights
def test_the_geometry_of_positive_points_is_that_of_their_logarithms(name, weighted):
    case = CASES[name]
    geometry, x, y, u, v = at(case, weighted, 3)
    logs = Geometry(mid.Translation(blocks=case.group.blocks), case.weights if weighted else None)
    close(geometry.inner(x, u, v), logs.inner(x.log(), u / x, v / x))
    w = tangent(x, 23)
    close(geometry.horizontal(x, w), x * logs.horizontal(x.log(), w / x))
    close(geometry.gradient(x, w), x * logs.gradient(x.log(), x * w))
    close(geometry.exp(x, u), (x.log() + u / x).exp())
    close(geometry.dist(x, y), logs.group.geometry(logs.weights).dist(x.log(), y.log()))


# --------------------------------------------------------------------------------------------------- what has to hold


@pytest.mark.slow
@each_case
@each_weights
def test_the_metric_is_invariant_and_the_operations_are_equivariant(case: Case, weighted):
    geometry, x, y, u, v = at(case, weighted, 3)
    xi, eta = case.move(x), case.move(x, seed=12)
    gx, hy = case.group.act(xi, x), case.group.act(eta, y)

    def push(w, start=x, move=xi):
        """The derivative of the move, exact for actions that are affine in the point or its logarithm."""
        one = case.group.act(move, map_blocks(lambda s, t: s + 1e-3 * t, start, w))
        two = case.group.act(move, map_blocks(lambda s, t: s - 1e-3 * t, start, w))
        return map_blocks(lambda a, b: (a - b) / 2e-3, one, two)

    gu, gv = push(u), push(v)
    close(geometry.inner(gx, gu, gv), geometry.inner(x, u, v))
    w = tangent(x, 23)
    close(geometry.horizontal(gx, push(w)), push(geometry.horizontal(x, w)))
    close(geometry.exp(gx, gu), case.group.act(xi, geometry.exp(x, u)))
    close(geometry.retract(gx, gu), case.group.act(xi, geometry.retract(x, u)))
    close(geometry.log(gx, hy), push(geometry.log(x, y)))
    close(geometry.dist(gx, hy), geometry.dist(x, y))
    close(geometry.components(gx, gu), geometry.components(x, u))
    close(geometry.transport(gx, hy, gu), push(geometry.transport(x, y, u), y, eta))
    close(geometry.align(case.group.act(eta, x), y), geometry.align(x, y))


@each_case
def test_vertical_and_horizontal_parts_are_orthogonal_projections(case: Case):
    geometry, x, _, u, _ = at(case, True, 3)
    w = tangent(x, 23)
    close(geometry.horizontal(x, u), u)
    close(map_blocks(torch.add, geometry.horizontal(x, w), geometry.vertical(x, w)), w)
    close(geometry.inner(x, u, geometry.vertical(x, w)), torch.zeros(3).double())
    basis = case.group.vertical_basis(x)
    for k in range(case.group.dimension(x)):
        along = map_blocks(lambda t: t[:, k], basis)  # noqa: B023
        close(geometry.inner(x, u, along), torch.zeros(3).double())
        close(geometry.vertical(x, along), along)


@each_case
def test_the_gradient_is_the_horizontal_vector_that_gives_derivatives(case: Case):
    geometry, x, _, u, _ = at(case, True, 3)
    derivative = tangent(x, 24)  # of some function; only its horizontal part is asked for
    gradient = geometry.gradient(x, derivative)
    close(geometry.horizontal(x, gradient), gradient)
    close(geometry.inner(x, gradient, u), (flatten(derivative, 1) * flatten(u, 1)).sum(-1))


@each_case
def test_squares_of_components_add_up_to_the_metric(case: Case):
    geometry, x, _, u, _ = at(case, True, 3)
    close(flatten(geometry.components(x, u), 1).square().sum(-1), geometry.inner(x, u, u))


@pytest.mark.slow
@each_case
@each_weights
def test_exp_and_log_are_inverse_and_log_has_the_length_of_the_distance(case: Case, weighted):
    geometry, x, y, u, _ = at(case, weighted, 3)
    log = geometry.log(x, y)
    close(geometry.horizontal(x, log), log)
    close(geometry.dist(geometry.exp(x, log), y), torch.zeros(3).double(), atol=1e-7)
    section = mid.Section(case.group)
    close(section(geometry.exp(x, log)), section(y))
    close(geometry.inner(x, log, log).sqrt(), geometry.dist(x, y))
    close(geometry.dist(x, y), geometry.dist(y, x))
    short = map_blocks(lambda t: 0.1 * t, u)
    close(geometry.log(x, geometry.exp(x, short)), short)
    close(geometry.squared_dist(x, y), geometry.dist(x, y).square())


@each_case
@each_weights
def test_geodesics_have_constant_speed_and_stay_on_the_section(case: Case, weighted):
    geometry, x, _, u, _ = at(case, weighted, 3)
    speed = geometry.inner(x, u, u).sqrt()
    for t in (0.05, 0.3):
        y = geometry.exp(x, map_blocks(lambda v: t * v, u))  # noqa: B023
        close(geometry.dist(x, y), t * speed, atol=1e-9)
    start = case.group.canonical(x, geometry.weights).point
    flat = geometry.horizontal(start, tangent(start, 21))
    end = geometry.exp(start, map_blocks(lambda v: 0.3 * v, flat))
    close(case.group.canonical(end, geometry.weights).point, end)


@each_case
def test_exp_and_retract_start_with_the_velocity(case: Case):
    geometry, x, _, u, _ = at(case, True, 3)
    for curve in (geometry.exp, geometry.retract):
        close(curve(x, map_blocks(torch.zeros_like, u)), x)
        forth, back = (curve(x, map_blocks(lambda v: s * 1e-4 * v, u)) for s in (1, -1))  # noqa: B023
        close(map_blocks(lambda a, b: (a - b) / 2e-4, forth, back), u, atol=1e-6)


@each_case
@each_weights
def test_transport_is_an_isometry_that_carries_geodesics_along(case: Case, weighted):
    geometry, x, y, u, v = at(case, weighted, 3)
    carried = [geometry.transport(x, y, w) for w in (u, v)]
    for w in carried:
        close(geometry.horizontal(y, w), w)
    close(geometry.inner(y, *carried), geometry.inner(x, u, v))
    log = geometry.log(x, y)
    back = map_blocks(torch.neg, geometry.log(y, x))
    close(geometry.transport(x, y, log), back, atol=1e-9)
    close(geometry.transport(y, x, carried[0]), u, atol=1e-9)


@each_case
def test_the_aligned_representative_is_on_the_orbit_and_no_move_brings_it_closer(case: Case):
    geometry, x, y, _, _ = at(case, True, 3)
    section = mid.Section(case.group)
    close(section(geometry.align(x, y)), section(x))
    close(geometry.align(y, y), y)
    xi = case.move(x)
    close(geometry.align(case.group.act(xi, y), y), y)


# ------------------------------------------------------------------------------------------- independent formulas (numpy)


def test_distances_are_those_of_the_textbook():
    x, y = random(9), random(9, seed=1)
    w = np.linspace(1, 3, 9) / np.linspace(1, 3, 9).mean()
    weights = torch.as_tensor(w)
    a, b = x.numpy(), y.numpy()

    def angle(s, t, weight):
        cosine = (weight * s * t).sum() / math.sqrt((weight * s * s).sum() * (weight * t * t).sum())
        return math.acos(cosine)

    def centred(s, weight):
        return s - (weight * s).sum() / weight.sum()

    translation = math.sqrt((w * centred(b - a, w) ** 2).sum())
    assert float(mid.Translation().geometry(weights).dist(x, y)) == pytest.approx(translation, rel=1e-12)
    scaling = math.sqrt(w.sum()) * angle(a, b, w)
    assert float(mid.Scaling().geometry(weights).dist(x, y)) == pytest.approx(scaling, rel=1e-12)
    affine = math.sqrt(w.sum()) * angle(centred(a, w), centred(b, w), w)
    assert float(mid.Affine().geometry(weights).dist(x, y)) == pytest.approx(affine, rel=1e-12)
    total = 0.0
    for label in LABELS.unique():
        k = (label == LABELS).numpy()
        total += w[k].sum() * angle(centred(a[k], w[k]), centred(b[k], w[k]), w[k]) ** 2
    assert float(mid.Affine(blocks=LABELS).geometry(weights).dist(x, y)) == pytest.approx(math.sqrt(total), rel=1e-12)


@pytest.mark.parametrize(
    "group",
    [mid.Scaling(), mid.Affine(), mid.Affine(blocks=LABELS), mid.Translation(), mid.PositiveScaling()],
    ids=repr,
)
def test_distances_of_almost_equal_float32_points_have_float32_accuracy(group):
    x = random(9).exp()
    u = group.geometry().horizontal(x, x * random(9, seed=1))
    for size in (1e-2, 1e-3):
        y = (x + size * u).float()
        exact = group.geometry().dist(x.float().double(), y.double())
        relative = (group.geometry().dist(x.float(), y) / exact - 1).abs()
        assert relative <= 8 * torch.finfo(torch.float32).eps
        step, wanted = group.geometry().log(x.float(), y), group.geometry().log(x.float().double(), y.double())
        assert (step - wanted).abs().max() <= 8 * torch.finfo(torch.float32).eps * wanted.abs().max()


# ------------------------------------------------------------------------------------------------------ singular places


SPHERES = {name: case for name, case in CASES.items() if case.sphere}
each_sphere = pytest.mark.parametrize("case", SPHERES.values(), ids=SPHERES.keys())


@each_sphere
def test_coincident_and_opposite_orbits_give_finite_numbers_and_derivatives(case: Case):
    geometry, x = case.group.geometry(), case.point()
    for y in (case.group.act(case.move(x), x), -x):
        for function in (
            lambda t: geometry.dist(t, y),  # noqa: B023
            lambda t: geometry.log(t, y).sum(),  # noqa: B023
            lambda t: geometry.transport(t, y, geometry.horizontal(t, torch.ones_like(t))).sum(),  # noqa: B023
        ):
            slope, value = torch.func.grad_and_value(function)(x)
            assert torch.isfinite(value)
            assert torch.isfinite(slope).all()
    close(geometry.log(x, x), torch.zeros(9).double(), atol=1e-12)
    assert float(geometry.dist(x, -x)) == pytest.approx(math.pi * 3, rel=1e-6)


@each_sphere
def test_a_full_turn_comes_back(case: Case):
    geometry, x = case.group.geometry(), case.point()
    one = case.group.blocks is None or getattr(case.group, "common_scale", False)
    groups = [torch.ones(9, dtype=torch.bool)] if one else [label == LABELS for label in LABELS.unique()]
    u = geometry.horizontal(x, random(9, seed=1))
    turn = torch.zeros(9).double()
    for items in groups:
        part = torch.where(items, u, 0.0)
        length = geometry.inner(x, part, part).sqrt()
        turn += part * (2 * math.pi * items.double().sum().sqrt() / length)
    close(geometry.exp(x, turn), x, atol=1e-9)


@pytest.mark.slow
@each_sphere
def test_exp_and_log_are_smooth_at_zero(case: Case):
    geometry, x = case.group.geometry(), case.point()
    zero = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: geometry.exp(x, u), (zero,))
    assert torch.autograd.gradgradcheck(lambda u: geometry.exp(x, u), (zero,))
    y = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: geometry.log(x, t), (y,))
    assert torch.autograd.gradcheck(lambda t: geometry.squared_dist(x, t), (y,))


@pytest.mark.slow
@each_case
def test_operations_are_differentiable_and_work_under_vmap(case: Case):
    geometry, x, y, u, _ = at(case, True, 2)
    leaves = [t.detach().clone().requires_grad_() for t in blocks_of(x).values()]

    def together(*tensors):
        z = tensors[0] if isinstance(x, Tensor) else dict(zip(x, tensors, strict=True))
        results = [geometry.exp(z, u), geometry.log(z, y), geometry.transport(z, y, u)]
        return [geometry.dist(z, y), *(flatten(result, 1) for result in results)]

    assert torch.autograd.gradcheck(together, leaves, fast_mode=True)
    close(torch.func.vmap(geometry.exp)(x, u), geometry.exp(x, u))
    close(torch.func.vmap(geometry.log)(x, y), geometry.log(x, y))


def test_free_blocks_of_a_product_are_euclidean():
    case = CASES["product"]
    geometry, x, y, u, _ = at(case, True, 3)
    close(geometry.exp(x, u)["free"], x["free"] + u["free"])
    close(geometry.log(x, y)["free"], y["free"] - x["free"])
    only = {name: t if name == "free" else torch.zeros_like(t) for name, t in u.items()}
    close(geometry.inner(x, only, only), only["free"].square().sum(-1))
    weights = {**case.weights, "free": torch.tensor([1.0, 3.0])}
    weighted = case.group.geometry(weights)
    w = flat_weights({"free": weights["free"]}, {"free": x["free"]}, 1)
    close(weighted.inner(x, only, only), (w * only["free"].square()).sum(-1))
    close(weighted.gradient(x, only)["free"], only["free"] / w)


def test_the_trivial_group_is_euclidean_space():
    for x, y in ((random(3), random(3, seed=1)), (random(2, 3), random(2, 3, seed=1))):
        geometry = mid.Product().geometry()
        close(geometry.exp(x, y), x + y)
        close(geometry.log(x, y), y - x)
        close(geometry.horizontal(x, y), y)
        close(geometry.inner(x, x, y), (x * y).sum())
        close(geometry.dist(x, y), (x - y).square().sum().sqrt())
