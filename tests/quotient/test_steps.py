"""The short cut that steps of geoopt's optimisers take, against the formulas with derivatives."""

import pytest
import torch
from cases import BLOCKS, positive, randn

import manifoldid as mid
from manifoldid.groups._row_step import RowStep
from manifoldid.groups._sphere_step import SphereStep

geoopt = pytest.importorskip("geoopt")

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.3, 1.7, 1.0, 0.9], dtype=torch.float64)
SPHERES = {"scaling": mid.Scaling(), "affine": mid.Affine()}
GROUPS = {"translation": mid.Translation(), "positive-scaling": mid.PositiveScaling(), **SPHERES}


def operations(manifold, x, u, v):
    return {
        "gradient": manifold.egrad2rgrad(x, u),
        "squares": manifold.component_inner(x, u),
        "retraction": manifold.retr(x, u),
        **dict(zip(("end", "carried"), manifold.retr_transp(x, u, v), strict=True)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("offset", [None, 0.5, 1e3], ids=["on-section", "near", "far"])
@pytest.mark.parametrize("name", GROUPS)
def test_steps_without_derivatives_are_those_with_derivatives(name, offset, weights, batch, dtype):
    group, x = GROUPS[name], (positive if name == "positive-scaling" else randn)(*batch, 7)
    x = (mid.Section(group, weights)(x) if offset is None else x + offset).to(dtype)
    u, v = (randn(*batch, 7, seed=seed, dtype=dtype) for seed in (1, 2))  # neither is horizontal
    manifold = mid.QuotientManifold(group, weights)
    with torch.enable_grad():
        slow = operations(manifold, x.double(), u.double(), v.double())
    with torch.no_grad():
        fast = operations(manifold, x, u, v)
    # the mean costs offset / size digits of what is left, in all formulas
    tolerance = 32 * torch.finfo(dtype).eps * (1 + (offset or 0.0) * float(x.std(-1).reciprocal().max()))
    for key, wanted in slow.items():
        torch.testing.assert_close(
            fast[key].double(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()), msg=key
        )


@pytest.mark.parametrize(
    "x",
    [torch.ones(7), torch.zeros(7), torch.full((7,), float("nan")), 1e-30 * randn(7), 1e30 * randn(7), randn(7) + 1e3],
    ids=["constant", "zero", "nan", "small", "large", "far"],
)
def test_points_that_need_care_have_no_short_cut(x):
    assert SphereStep.at(x.float(), None, shifts=True) is None
    assert RowStep.at(x.float(), shifts=True) is None
    assert SphereStep.at(torch.stack([x.float(), randn(7).float()]), None, shifts=True) is None


@pytest.mark.parametrize("name", SPHERES)
def test_long_steps_and_opposite_ends_are_finite(name):
    manifold, x = mid.QuotientManifold(SPHERES[name]), mid.Section(SPHERES[name])(randn(7))
    u = manifold.proju(x, randn(7, seed=1))
    u = u * (torch.pi / manifold.norm(x, u) * 7**0.5)  # to the opposite point
    with torch.no_grad():
        y, carried = manifold.retr_transp(x, u, u)
    torch.testing.assert_close(y, -x, rtol=0, atol=1e-12)
    assert torch.isfinite(carried).all()


@pytest.mark.parametrize("name", GROUPS)
def test_a_step_to_infinity_is_not_finite_and_no_error_of_arithmetic(name):
    x, u = mid.Section(GROUPS[name])(positive(7)), torch.full((7,), float("inf"))
    with torch.no_grad():
        assert not torch.isfinite(mid.QuotientManifold(GROUPS[name]).retr(x, u.double())).any()


@pytest.mark.parametrize("name", GROUPS)
def test_a_point_that_is_not_finite_is_refused_before_a_step(name):
    x = positive(7).index_fill_(0, torch.tensor([3]), float("nan"))
    with torch.no_grad(), pytest.raises(ValueError):
        mid.QuotientManifold(GROUPS[name]).egrad2rgrad(x, randn(7))


def test_a_point_that_left_the_domain_is_refused_before_a_step():
    with torch.no_grad(), pytest.raises(mid.DegeneratePointError, match="positive"):
        mid.QuotientManifold(mid.PositiveScaling()).egrad2rgrad(-positive(7), randn(7))


@pytest.mark.parametrize("group", [mid.Affine(blocks=BLOCKS), mid.Affine(blocks=BLOCKS, common_scale=True)])
def test_blocks_have_no_short_cut_and_the_same_answers(group):
    manifold, x, u = mid.QuotientManifold(group), randn(7), randn(7, seed=1)
    with torch.no_grad():
        fast = operations(manifold, x, u, u)
    for key, wanted in operations(manifold, x, u, u).items():
        torch.testing.assert_close(fast[key], wanted)


# ---------------------------------------------------------------------------------------- nothing stale is ever answered


def test_a_write_through_data_is_seen_by_the_next_operation():
    """`_version` does not count such writes."""
    for group in (mid.Affine(), mid.Orthogonal(), mid.GeneralLinear("A", "B")):
        x = {"A": randn(5, 2), "B": randn(4, 2, seed=1)} if group.block_names else randn(5, 2)
        geometry = group.geometry()
        blocks = list(x.values()) if group.block_names else [x]
        geometry.inner(x, x, x)
        for t in blocks:
            t.data.mul_(t.cos())
        copies = {key: t.clone() for key, t in x.items()} if group.block_names else x.clone()
        assert torch.equal(geometry.inner(x, x, x), group.geometry().inner(copies, copies, copies))


def test_what_a_step_remembers_ends_with_the_step():
    p = mid.parameter(randn(7), mid.Affine())
    manifold, optimiser = p.manifold, geoopt.optim.RiemannianAdam([p], lr=1e-2)
    p.grad = randn(7, seed=1)
    optimiser.step()
    assert manifold._within is None
    with torch.no_grad():
        gradient = manifold.egrad2rgrad(p, p.grad)
        p.data.copy_(positive(7))
        again = manifold.component_inner(p, gradient)
        fresh = manifold.component_inner(p.clone(), gradient)
    assert torch.equal(again, fresh)


def test_a_step_that_ends_in_an_error_leaves_nothing_behind():
    good = mid.parameter(randn(7), mid.Affine())
    bad = geoopt.ManifoldParameter(torch.ones(7, dtype=torch.float64), manifold=mid.QuotientManifold(mid.Affine()))
    for p in (good, bad):
        p.grad = randn(7, seed=1)
    optimiser = geoopt.optim.RiemannianAdam([good, bad], lr=1e-2)
    with pytest.raises(mid.DegeneratePointError, match="constant"):
        optimiser.step()
    assert good.manifold._within is None
    assert bad.manifold._within is None


def test_parameters_that_share_a_manifold_keep_apart():
    manifold = mid.QuotientManifold(mid.Affine())
    alone = [geoopt.ManifoldParameter(randn(7, seed=k), manifold=mid.QuotientManifold(mid.Affine())) for k in (0, 1)]
    shared = [geoopt.ManifoldParameter(randn(7, seed=k), manifold=manifold) for k in (0, 1)]
    for points in (alone, shared):
        optimiser = geoopt.optim.RiemannianAdam(points, lr=1e-2)
        for step in range(3):
            for k, p in enumerate(points):
                p.grad = randn(7, seed=10 + 2 * step + k)
            optimiser.step()
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.detach(), other.detach())
