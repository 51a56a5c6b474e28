import math
import pickle

import pytest
import torch
from cases import BLOCKS, CASES, positive, randn
from torch.func import hessian, jacrev, vmap

import manifoldid as mid
from manifoldid.groups.geometry import Geometry
from manifoldid.quotient.horizontal import Quotient

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.3, 1.7, 1.0, 0.9], dtype=torch.float64)
GROUPS = {
    "translation": mid.Translation(),
    "translation-blocks": mid.Translation(blocks=BLOCKS),
    "scaling": mid.Scaling(),
    "scaling-blocks": mid.Scaling(blocks=BLOCKS),
    "positive-scaling": mid.PositiveScaling(),
    "positive-scaling-blocks": mid.PositiveScaling(blocks=BLOCKS),
    "affine": mid.Affine(),
    "affine-blocks": mid.Affine(blocks=BLOCKS),
    "affine-common-scale": mid.Affine(blocks=BLOCKS, common_scale=True),
    "shift": mid.Shift(randn(2, 7, seed=3)),
}
SPHERES = ["scaling", "scaling-blocks", "affine", "affine-blocks", "affine-common-scale"]


def draw(name, *batch, seed=0):
    return positive(*batch, 7, seed=seed) if "positive" in name else randn(*batch, 7, seed=seed)


def close(got, wanted, atol=1e-10, rtol=0.0):
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


# ----------------------------------------------------------------------------- closed forms against the action alone


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", [name for name in GROUPS if "positive" not in name])  # those have another metric
def test_closed_forms_agree_with_autodiff_of_the_action(name, weights):
    own, default = GROUPS[name].geometry(weights), Geometry(GROUPS[name], weights)
    x, u, v = draw(name, 3), randn(3, 7, seed=1), randn(3, 7, seed=2)
    close(own.inner(x, u, v), default.inner(x, u, v))
    close(own.horizontal(x, u), default.horizontal(x, u))
    close(own.gradient(x, u), default.gradient(x, u))
    close(own.components(x, u), default.components(x, u))


def _minimum(distance, dimension, seeds=4):
    """The least value of a function of group coordinates, by L-BFGS from several starts."""
    best = math.inf
    for seed in range(seeds):
        xi = (0.3 * randn(dimension, seed=seed)).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [xi], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure(xi=xi, optimiser=optimiser):
            optimiser.zero_grad()
            value = distance(xi)
            value.backward()
            return value

        optimiser.step(closure)
        best = min(best, float(distance(xi).detach()))
    return best


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", GROUPS)
def test_distance_is_the_least_distance_over_the_group(name, weights):
    """In the total space: sqrt(sum over blocks of W (angle^2 + (difference of log sizes)^2 + ...)), minimised by brute force."""
    group, x, y = GROUPS[name], draw(name), draw(name, seed=5)
    w = torch.ones(7, dtype=torch.float64) if weights is None else weights / weights.mean()
    quotient = Quotient(group, weights)

    def squared(xi):
        moved = group.act(xi, y)
        if name in SPHERES:
            return _cone_distance(name, x, moved, w)
        if "positive" in name:
            return (w * (moved.log() - x.log()).square()).sum()
        return (w * (moved - x).square()).sum()

    least = _minimum(squared, group.dimension(x))
    close(quotient.squared_dist(x, y), torch.tensor(least, dtype=torch.float64), atol=1e-8, rtol=1e-8)


def _cone_distance(name, x, y, w):
    """Squared length of the shortest path in the total space of a scaling: metric sum w u^2 / s^2 = W (d log s)^2 + W angle^2."""
    labels = torch.zeros(7, dtype=torch.long) if "blocks" not in name and "common" not in name else BLOCKS
    groups = [labels == label for label in labels.unique()]
    total = torch.zeros((), dtype=torch.float64)
    if name.startswith("affine"):
        centred = [torch.zeros(7, dtype=torch.float64) + t for t in (x, y)]
        for k, t in enumerate((x, y)):
            for mask in groups:
                mean = (w * t)[mask].sum() / w[mask].sum()
                centred[k] = torch.where(mask, t - mean, centred[k])
        for mask in groups:  # the shift itself: what the group moves first
            gap = ((w * x)[mask].sum() - (w * y)[mask].sum()) / w[mask].sum()
            total = total + gap.square()
        x, y = centred
    if "common" in name:
        groups = [torch.ones(7, dtype=torch.bool)]
    for mask in groups:
        a, b, v = x[mask], y[mask], w[mask]
        size_a, size_b = (v * a * a).sum().sqrt(), (v * b * b).sum().sqrt()
        angle = torch.acos((v * a * b).sum() / (size_a * size_b))
        total = total + v.sum() * (angle.square() + (size_a / size_b).log().square())
    return total


@pytest.mark.parametrize("name", GROUPS)
def test_log_points_along_the_steepest_descent_of_the_distance(name):
    quotient, x, y = Quotient(GROUPS[name], WEIGHTS), draw(name), draw(name, seed=5)
    derivative = jacrev(lambda x: quotient.squared_dist(x, y))(x)
    close(quotient.gradient(x, derivative), -2 * quotient.log(x, y), atol=1e-8)


@pytest.mark.parametrize("name", GROUPS)
def test_exponential_solves_the_geodesic_equation(name):
    """The velocity is transported along itself, and log of the end points back."""
    quotient, x = Quotient(GROUPS[name], WEIGHTS), draw(name)
    u = 0.3 * quotient.horizontal_component(x, randn(7, seed=6))
    y = quotient.exp(x, u)
    close(quotient.log(x, y), u, atol=1e-8)
    close(
        quotient.exp(quotient.exp(x, 0.5 * u), 0.5 * quotient.transport(x, quotient.exp(x, 0.5 * u), u)), y, atol=1e-8
    )
    close(-quotient.log(y, x), quotient.transport(x, y, u), atol=1e-8)


# -------------------------------------------------------------------------------------- coincident and opposite points


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_derivatives_at_coincident_points_are_their_limits(name):
    quotient, x = Quotient(GROUPS[name], WEIGHTS), draw(name)
    projection = jacrev(lambda u: quotient.horizontal_component(x, u))(torch.zeros_like(x))
    close(jacrev(lambda y: quotient.log(x, y))(x), projection, atol=1e-9)
    close(jacrev(lambda u: quotient.exp(x, u))(torch.zeros_like(x)), projection, atol=1e-9)
    metric = hessian(
        lambda u: quotient.inner(x, quotient.horizontal_component(x, u), quotient.horizontal_component(x, u))
    )(x)
    close(hessian(lambda y: quotient.squared_dist(x, y))(x), metric, atol=1e-8)
    assert torch.equal(jacrev(lambda y: quotient.dist(x, y))(x), torch.zeros_like(x))
    near = quotient.exp(x, 1e-5 * quotient.horizontal_component(x, randn(7, seed=4)))
    close(jacrev(lambda y: quotient.log(x, y))(near), projection, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPHERES)
@pytest.mark.parametrize("angle", [1e-4, 1e-2, 0.199, 0.201, 1.0, math.pi / 2, math.pi - 1e-3])
def test_distances_are_accurate_in_float32(name, angle):
    group = GROUPS[name]
    quotient, x = Quotient(group), draw(name)
    labels = torch.zeros(7, dtype=torch.long) if "blocks" not in name else BLOCKS
    u = quotient.horizontal_component(x, randn(7, seed=6))
    relative = u / x.abs().max()
    for label in labels.unique():  # unit speed in every block
        mask = labels == label
        part = torch.where(mask, relative, torch.zeros_like(relative))
        length = quotient.norm(x, part) / mask.sum().sqrt()
        relative = torch.where(mask, relative / length, relative)
    y = quotient.exp(x, angle * relative)
    x32, y32 = x.float(), y.float()
    exact = quotient.dist(x32.double(), y32.double())
    close(quotient.dist(x32, y32).double() / exact, torch.ones_like(exact), atol=1e-6)
    step = quotient.log(x32, y32)
    wanted = quotient.log(x32.double(), y32.double())
    assert (step.double() - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("name", SPHERES)
def test_opposite_points_have_a_distance_and_no_logarithm(name):
    quotient, x = Quotient(GROUPS[name], WEIGHTS), draw(name, 2)
    close(quotient.dist(x, -x), torch.full((2,), math.pi * math.sqrt(7), dtype=torch.float64))
    with pytest.raises(mid.DegeneratePointError, match=r"batch index 0, 1 lie opposite"):
        quotient.log(x, -x)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
@pytest.mark.parametrize("name", ["scaling", "affine"])
def test_units_of_any_size_give_the_same_distance(name, scale):
    quotient, x, y = Quotient(GROUPS[name]), draw(name), draw(name, seed=5)
    close(quotient.dist(scale * x, y), quotient.dist(x, y))
    close(quotient.log(scale * x, y) / scale, quotient.log(x, y), atol=1e-9)


# ------------------------------------------------------------------------------------------------- what users rely on


@pytest.mark.parametrize("name", CASES)
def test_horizontal_and_vertical_components_sum_to_the_vector(name):
    group, x = CASES[name].group, CASES[name].sample
    quotient = Quotient(group)
    parts = quotient.vertical_component(x, x), quotient.horizontal_component(x, x)
    for block in x if isinstance(x, dict) else [()]:
        close(parts[0][block] + parts[1][block], x[block])


@pytest.mark.parametrize("name", GROUPS)
def test_vmap_gives_the_rows_of_a_batch(name):
    quotient, x, y = Quotient(GROUPS[name], WEIGHTS), draw(name), draw(name, 4, seed=5)
    close(vmap(quotient.dist, (None, 0))(x, y), quotient.dist(x, y))
    close(vmap(quotient.log, (None, 0))(x, y), quotient.log(x, y))
    close(vmap(quotient.exp, (None, 0))(x, 0.1 * y), quotient.exp(x, 0.1 * y))


@pytest.mark.parametrize("name", ["scaling", "positive-scaling", "affine", "affine-blocks"])
def test_degenerate_rows_are_finite_where_values_cannot_be_looked_at(name):
    quotient, x = Quotient(GROUPS[name]), draw(name, 3)
    x[1] = 0.0
    y = draw(name, 3, seed=5)
    for operation in (quotient.horizontal_component, quotient.gradient, quotient.exp, quotient.log, quotient.dist):
        assert torch.isfinite(vmap(operation)(x, y)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_derivatives_pass_gradcheck(name):
    quotient, x, y = Quotient(GROUPS[name], WEIGHTS), draw(name).requires_grad_(), draw(name, seed=5).requires_grad_()
    u = (0.1 * randn(7, seed=6)).requires_grad_()
    assert torch.autograd.gradcheck(quotient.dist, (x, y))
    assert torch.autograd.gradcheck(quotient.log, (x, y))
    assert torch.autograd.gradcheck(quotient.exp, (x, u))
    assert torch.autograd.gradcheck(quotient.transport, (x, y, u))


def test_batches_broadcast():
    quotient, x, y = Quotient(mid.Affine()), randn(7), randn(2, 3, 7, seed=1)
    assert quotient.dist(x, y).shape == (2, 3)
    assert quotient.log(x, y).shape == (2, 3, 7)
    assert quotient.inner(y, x, x).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    quotient, x, y = Quotient(mid.Affine()), randn(7, dtype=dtype), randn(7, seed=1, dtype=dtype)
    assert quotient.log(x, y).dtype == dtype
    assert quotient.dist(x, y) == quotient.dist(x.float(), y.float()).to(dtype)


def test_frechet_mean_minimises_the_sum_of_squared_distances():
    quotient = Quotient(mid.Affine(), WEIGHTS)
    points = randn(7) + 0.3 * randn(9, 7, seed=1)
    mean = quotient.mean(points)
    close(quotient.log(mean, points).mean(0), torch.zeros(7, dtype=torch.float64), atol=1e-9)
    moved = points * positive(9, 1) + randn(9, 1, seed=2)
    close(quotient.mean(moved), mean, atol=1e-9)


def test_frechet_mean_of_batches_and_of_flat_quotients():
    points = randn(5, 3, 7)
    close(Quotient(mid.Translation()).mean(points), mid.Section(mid.Translation())(points).mean(0))
    close(Quotient(mid.PositiveScaling()).mean(points.exp()), mid.Section(mid.PositiveScaling())(points.mean(0).exp()))
    rows = torch.stack([Quotient(mid.Scaling()).mean(3 + points[:, k]) for k in range(3)])
    close(Quotient(mid.Scaling()).mean(3 + points), rows, atol=1e-9)


def test_geodesics_of_dict_points_reach_their_end_and_move_free_blocks_straight():
    group, x = CASES["product"].group, CASES["product"].sample
    quotient = Quotient(group)
    y = {name: t * 1.3 for name, t in x.items()}
    step = quotient.log(x, y)
    assert set(step) == set(x)
    close(quotient.dist(quotient.exp(x, step), y), torch.zeros((), dtype=torch.float64), atol=1e-12)
    close(quotient.norm(x, step), quotient.dist(x, y))
    close(step["free"], y["free"] - x["free"])


def test_quotients_are_values():
    one = Quotient(mid.Affine(), WEIGHTS)
    assert one == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(Quotient(mid.Affine(), WEIGHTS))
    assert one != Quotient(mid.Affine())
    assert one != 3
    assert repr(Quotient(mid.Affine())) == "Quotient(group=Affine())"
    with pytest.raises(AttributeError, match="immutable"):
        one.group = mid.Scaling()


def test_the_callers_tensors_are_not_written_to():
    x, y, w = randn(7), randn(7, seed=1), WEIGHTS.clone()
    before = x.clone(), y.clone()
    quotient = Quotient(mid.Affine(), w)
    w.fill_(1.0)
    assert quotient.dist(x, y) == Quotient(mid.Affine(), WEIGHTS).dist(x, y)
    quotient.exp(x, y)
    quotient.mean(torch.stack([x, y]))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda q, x: q.dist(x, x.float()),
            TypeError,
            "`y` must have the dtype torch.float64 of `x`, got torch.float32",
        ),
        (lambda q, x: q.dist(x, x[:3]), ValueError, r"`y` must end in the shape \(7,\)"),
        (lambda q, x: q.inner(x, x[:3], x), ValueError, r"`u` must end in the shape \(7,\)"),
        (lambda q, x: q.dist(x.expand(2, 7), x.expand(3, 7)), ValueError, "does not broadcast"),
        (lambda q, x: q.dist(x, {"a": x}), ValueError, "`y` of Affine must be a tensor"),
        (lambda q, x: q.exp(x, {"a": x}), ValueError, "`u` must be a tensor like `x`"),
        (lambda q, x: q.dist(x, x * float("nan")), ValueError, "`y` must be finite"),
        (lambda q, x: q.dist(x, torch.stack([x, 0 * x])), mid.DegeneratePointError, "`y` at batch index 1 is constant"),
        (lambda q, x: q.exp(0 * x, x), mid.DegeneratePointError, "`x` is constant"),
        (lambda q, x: q.mean(x), ValueError, r"`points` must have shape \(M, \*batch, \*event\)"),
        (lambda q, x: q.dist(x[:2], x[:2]), mid.DegeneratePointError, "nothing identifiable is left"),
        (lambda q, x: Quotient(mid.Affine), TypeError, "did you forget the parentheses"),
        (
            lambda q, x: Quotient(mid.Affine(), torch.tensor([1.0, 0.0])),
            ValueError,
            "`weights` must be positive in a metric",
        ),
        (lambda q, x: Quotient(mid.Affine(), [1.0]), TypeError, "`weights` must be a tensor"),
    ],
)
def test_mistakes_are_named(annotations_unchecked, make, error, message):
    with pytest.raises(error, match=message):
        make(Quotient(mid.Affine()), randn(7))
