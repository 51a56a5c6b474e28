import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from cases import BLOCKS, CASES, ON_TENSORS, randn

import manifoldid as mid

geoopt = pytest.importorskip("geoopt")

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.3, 1.7, 1.0, 0.9], dtype=torch.float64)


def close(got, wanted, atol=1e-10):
    torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


def plain(p):
    return p.detach().as_subclass(torch.Tensor)


# ------------------------------------------------------------------------------- the properties of geoopt's own tests


SEVEN_ITEMS = {
    "translation": mid.Translation(),
    "scaling": mid.Scaling(),
    "positive-scaling": mid.PositiveScaling(),
    "affine": mid.Affine(),
    "affine-blocks": mid.Affine(blocks=BLOCKS),
    "shift": mid.Shift(randn(2, 7, seed=3)),
}


@pytest.fixture(params=SEVEN_ITEMS)
def space(request):
    return mid.QuotientManifold(SEVEN_ITEMS[request.param], WEIGHTS), request.param


@pytest.fixture(params=[(), (3,), (2, 3)])
def batch(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64])
def dtype(request):
    return request.param


@pytest.fixture
def points(space, batch, dtype):
    manifold, name = space
    x, y, u, v = (0.5 * randn(*batch, 7, seed=k, dtype=dtype) for k in range(4))
    if "positive" in name:
        x, y = x.exp(), y.exp()
    return manifold, x, y, u, v, 1e-4 if dtype == torch.float32 else 1e-9


def test_projection_of_a_point_is_idempotent_and_valid(points):
    manifold, x, *_ = points
    manifold.assert_check_point_on_manifold(x)
    assert torch.equal(manifold.projx(x), x)


def test_projected_vectors_are_tangent(points):
    manifold, x, _, u, _, tolerance = points
    pu = manifold.proju(x, u)
    manifold.assert_check_vector_on_tangent(x, pu, atol=tolerance)
    close(manifold.proju(x, pu), pu, tolerance)


def test_inner_and_norm_agree(points):
    manifold, x, _, u, v, tolerance = points
    close(manifold.inner(x, u, v), manifold.inner(x, v, u), tolerance)
    close(manifold.norm(x, u).square(), manifold.inner(x, u), 10 * tolerance)
    assert manifold.inner(x, u, keepdim=True).shape == (*x.shape[:-1], 1)
    assert manifold.norm(x, u, keepdim=True).shape == (*x.shape[:-1], 1)
    assert manifold.inner(x, u).dtype == x.dtype


@pytest.mark.slow
def test_gradient_agrees_with_finite_steps(points):
    manifold, x, y, _, v, tolerance = points
    leaf = x.clone().requires_grad_()
    manifold.dist2(leaf, y).sum().backward()
    gradient = manifold.egrad2rgrad(x, leaf.grad)
    close(gradient, -2 * manifold.logmap(x, y), 100 * tolerance)
    close(
        manifold.inner(x, gradient, manifold.proju(x, v)), (leaf.grad * manifold.proju(x, v)).sum(-1), 100 * tolerance
    )


@pytest.mark.slow
def test_expmap_and_logmap_are_inverse(points):
    manifold, x, y, u, _, tolerance = points
    close(manifold.dist(manifold.expmap(x, manifold.logmap(x, y)), y), torch.zeros_like(x[..., 0]), 10 * tolerance)
    pu = 0.3 * manifold.proju(x, u)
    close(manifold.logmap(x, manifold.expmap(x, pu)), pu, 10 * tolerance)


def test_distance_is_symmetric_and_keeps_dimensions(points):
    manifold, x, y, *_, tolerance = points
    close(manifold.dist(x, y), manifold.dist(y, x), tolerance)
    close(manifold.dist2(x, y), manifold.dist(x, y).square(), 10 * tolerance)
    assert manifold.dist(x, y, keepdim=True).shape == (*x.shape[:-1], 1)


def test_transport_keeps_inner_products_and_tangency(points):
    manifold, x, y, u, v, tolerance = points
    pu, pv = manifold.proju(x, u), manifold.proju(x, v)
    tu, tv = manifold.transp(x, y, pu), manifold.transp(x, y, pv)
    manifold.assert_check_vector_on_tangent(y, tu, atol=tolerance)
    scale = manifold.norm(x, pu) * manifold.norm(x, pv)
    assert ((manifold.inner(y, tu, tv) - manifold.inner(x, pu, pv)).abs() <= tolerance * scale).all()


def test_fused_motions_agree_with_their_parts(points):
    manifold, x, _, u, v, tolerance = points
    pu, pv = 0.2 * manifold.proju(x, u), manifold.proju(x, v)
    y, carried = manifold.retr_transp(x, pu, pv)
    close(y, manifold.retr(x, pu), tolerance)
    close(carried, manifold.transp(x, y, pv), tolerance)
    close(carried, manifold.transp_follow_retr(x, pu, pv), tolerance)
    y, carried = manifold.expmap_transp(x, pu, pv)
    close(carried, manifold.transp_follow_expmap(x, pu, pv), tolerance)


def test_zero_vectors_stay_zero_and_have_finite_derivatives(points):
    manifold, x, *_, tolerance = points
    zero = torch.zeros_like(x).requires_grad_()
    y = manifold.expmap(x, zero)
    close(y, x, tolerance)
    (slope,) = torch.autograd.grad(y.sum(), zero)
    assert torch.isfinite(slope).all()
    (slope,) = torch.autograd.grad(manifold.norm(x, zero).sum(), zero)
    assert torch.equal(slope, torch.zeros_like(x))


# ------------------------------------------------------------------------------------------------------- parameter


@pytest.mark.parametrize("name", ON_TENSORS)
def test_parameter_is_a_canonical_copy(name):
    group, x = CASES[name].group, CASES[name].sample
    before = x.clone()
    p = mid.parameter(x, group)
    assert isinstance(p, geoopt.ManifoldParameter)
    assert isinstance(p, torch.nn.Parameter)
    assert p.requires_grad
    close(plain(p), mid.Section(group)(x))
    assert p.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    assert p.manifold == mid.QuotientManifold(group)


def test_parameter_keeps_dtype_and_takes_any_strides():
    x = randn(7, 5, dtype=torch.float32).T
    p = mid.parameter(x, mid.Affine(), WEIGHTS)
    assert p.dtype == torch.float32
    assert p.is_contiguous()
    close(plain(p), mid.Section(mid.Affine(), WEIGHTS)(x), 1e-6)
    assert mid.parameter(x.half(), mid.Affine()).dtype == torch.float16
    assert mid.parameter(x.clone().requires_grad_(), mid.Affine()).is_leaf


def test_parameter_of_a_parameter_is_detached_from_it():
    p = mid.parameter(randn(7), mid.Affine())
    q = mid.parameter(p, mid.Affine())
    assert q is not p
    assert q.manifold is not p.manifold


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: mid.parameter({"theta": randn(3), "beta": randn(3)}, CASES["shift-dict"].group),
            TypeError,
            "mid.attach",
        ),
        (lambda: mid.QuotientManifold(CASES["product"].group), TypeError, "mid.attach"),
        (lambda: mid.QuotientManifold(mid.Affine), TypeError, "did you forget the parentheses"),
        (
            lambda: mid.QuotientManifold(mid.Affine(), torch.tensor([1.0, -1.0])),
            ValueError,
            "`weights` must be positive",
        ),
        (
            lambda: mid.parameter(torch.ones(3, 7), mid.Affine()),
            mid.DegeneratePointError,
            "`tensor` at batch index 0, 1, 2 is constant",
        ),
        (lambda: mid.parameter(torch.arange(7), mid.Affine()), TypeError, "`tensor` must be a floating tensor"),
        (lambda: mid.parameter(randn(7), mid.Affine(), torch.ones(6)), ValueError, r"`weights` must have shape \(7,\)"),
        (lambda: mid.parameter(randn(7)[0], mid.Affine()), ValueError, "`tensor` must have at least 1"),
    ],
)
def test_mistakes_are_named(annotations_unchecked, make, error, message):
    with pytest.raises(error, match=message):
        make()


# -------------------------------------------------------------------------------------- copies, devices, state, verdicts


def test_weights_are_a_buffer_and_follow_the_module():
    manifold = mid.QuotientManifold(mid.Affine(), WEIGHTS)
    assert dict(manifold.named_buffers()).keys() == {"weights"}
    assert manifold.to("meta").weights.device.type == "meta"
    manifold = mid.QuotientManifold(mid.Affine(), WEIGHTS).float()
    assert manifold.weights.dtype == torch.float32
    x, y = randn(7), randn(7, seed=1)
    close(manifold.dist(x, y), mid.QuotientManifold(mid.Affine(), WEIGHTS).dist(x, y), 1e-6)


def test_later_changes_of_the_weights_do_not_reach_the_manifold():
    weights = WEIGHTS.clone()
    manifold = mid.QuotientManifold(mid.Affine(), weights)
    weights.zero_()
    assert torch.equal(manifold.weights, WEIGHTS)


def test_manifolds_are_equal_by_value_and_distinct_as_modules():
    one, two = mid.QuotientManifold(mid.Affine(), WEIGHTS), mid.QuotientManifold(mid.Affine(), WEIGHTS)
    assert one == two
    assert one == copy.deepcopy(one)
    assert one == pickle.loads(pickle.dumps(one))
    assert one != mid.QuotientManifold(mid.Affine())
    assert one != mid.QuotientManifold(mid.Affine(blocks=BLOCKS), WEIGHTS)
    assert one != geoopt.Euclidean()
    assert len(list(torch.nn.ModuleList([one, two]).children())) == 2
    # geoopt compares the manifold of a tensor with the one it is given
    tensor = geoopt.ManifoldTensor(randn(7), manifold=one)
    assert geoopt.ManifoldParameter(tensor, manifold=copy.deepcopy(one)).manifold == one


def test_repr_is_short_and_says_the_group():
    assert repr(mid.QuotientManifold(mid.Affine())) == "QuotientManifold(Affine())"
    assert repr(mid.QuotientManifold(mid.Affine(), WEIGHTS)) == "QuotientManifold(Affine(), weights of shape (7,))"


def test_parameters_survive_deepcopy_and_pickle():
    p = mid.parameter(randn(7), mid.Affine(), WEIGHTS)
    for q in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert isinstance(q, geoopt.ManifoldParameter)
        assert torch.equal(plain(q), plain(p))
        assert q.manifold == p.manifold


def test_state_dicts_save_and_load():
    class Model(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.scores = mid.parameter(randn(7, seed=seed), mid.Affine(), WEIGHTS)

    one, two = Model(0), Model(1)
    buffer = io.BytesIO()
    torch.save({name: plain(t) for name, t in one.state_dict().items()}, buffer)
    buffer.seek(0)
    two.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(plain(two.scores), plain(one.scores))
    assert isinstance(two.scores, geoopt.ManifoldParameter)
    two.double()
    assert two.scores.manifold == one.scores.manifold


def test_verdicts_name_batch_entries():
    manifold = mid.QuotientManifold(mid.Affine())
    x = randn(2, 3, 7)
    x[1, 2] = 4.0
    ok, reason = manifold.check_point_on_manifold(x, explain=True)
    assert not ok
    assert "(1, 2)" in reason
    assert "constant" in reason
    good = randn(3, 7)
    u = manifold.proju(good, randn(3, 7, seed=1))
    u[1] += 1
    ok, reason = manifold.check_vector_on_tangent(good, u, explain=True)
    assert not ok
    assert "batch index 1 has a component along the orbit" in reason
    ok, reason = manifold.check_point(randn(7)[0], explain=True)
    assert not ok
    assert "at least 1 dimension" in reason


def test_random_points_are_canonical_and_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    manifold = mid.QuotientManifold(mid.Affine())
    x = manifold.random(3, 7, dtype=torch.float64)
    assert isinstance(x, geoopt.ManifoldTensor)
    close(plain(x), mid.Section(mid.Affine())(plain(x)))
    assert torch.equal(plain(x), plain(manifold.random((3, 7), dtype=torch.float64)))
    other = manifold.random(3, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert not torch.equal(plain(x), plain(other))
    assert (plain(mid.QuotientManifold(mid.PositiveScaling()).random(7)) > 0).all()
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(TypeError, match="std"):
        manifold.random(7, std=2.0)


@pytest.mark.parametrize("group", [mid.Translation(), mid.Scaling(), mid.Affine()])
def test_scaled_multiplies_distances(group):
    manifold = mid.QuotientManifold(group)
    scaled = geoopt.Scaled(manifold, 2.0)
    x, y, u = randn(7), randn(7, seed=1), manifold.proju(randn(7), randn(7, seed=2))
    close(scaled.dist(x, y), 2 * manifold.dist(x, y))
    close(scaled.expmap(x, scaled.logmap(x, y)), manifold.align(y, x))
    close(scaled.inner(x, u), manifold.inner(x, u))
    assert scaled.retr_transp(x, u, u)[0].shape == x.shape


def test_products_of_geoopt_hold_quotients():
    affine, positive = mid.QuotientManifold(mid.Affine(), WEIGHTS), mid.QuotientManifold(mid.PositiveScaling())
    product = geoopt.ProductManifold((affine, 7), (positive, 4), (geoopt.Sphere(), 3))
    sphere = torch.nn.functional.normalize(randn(3), dim=0)
    x = product.pack_point(randn(7), randn(4, seed=1).exp(), sphere)
    y = product.pack_point(randn(7, seed=2), randn(4, seed=3).exp(), sphere.roll(1))
    product.assert_check_point_on_manifold(x)
    u = product.proju(x, randn(14, seed=4))
    product.assert_check_vector_on_tangent(x, u)
    close(product.inner(x, u), affine.inner(x[:7], u[:7]) + positive.inner(x[7:11], u[7:11]) + u[11:].square().sum())
    wanted = affine.dist2(x[:7], y[:7]) + positive.dist2(x[7:11], y[7:11]) + geoopt.Sphere().dist2(x[11:], y[11:])
    close(product.dist2(x, y), wanted)
    assert product.component_inner(x, u).shape == x.shape
    close(product.retr_transp(x, u, u)[0][:7], affine.retr(x[:7], u[:7]))
    p = geoopt.ManifoldParameter(x.clone(), manifold=product)
    optimiser = geoopt.optim.RiemannianAdam([p], lr=1e-2)
    before = product.dist(plain(p), y)
    for _ in range(10):
        optimiser.zero_grad()
        product.dist2(p, y).sum().backward()
        optimiser.step()
    assert product.dist(plain(p), y) < before


def test_geoopt_is_loaded_on_first_use_and_without_warnings():
    code = (
        "import sys, warnings; warnings.simplefilter('error'); import manifoldid as mid; assert 'geoopt' not in sys.modules;"
        "assert 'QuotientManifold' in dir(mid); mid.conformance; assert 'geoopt' not in sys.modules;"
        "mid.QuotientManifold(mid.Affine()); assert 'geoopt' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_names_of_the_package_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'Quotient'"):
        _ = mid.Quotient
