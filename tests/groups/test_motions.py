import pytest
import torch
from cases import randn

import manifoldid as mid
from manifoldid.groups.geometry import Geometry
from manifoldid.groups.orbit import closest_by_newton

GROUPS = {"rigid": mid.RigidMotion(), "similarity": mid.Similarity()}
each_group = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())


def distances(x):
    return (x[..., :, None, :] - x[..., None, :, :]).square().sum(-1)


@each_group
def test_the_section_is_centred_on_principal_axes(group):
    x, w = 5 + randn(3, 8, 2), randn(8, seed=1).exp()
    y = mid.Section(group, weights=w)(x)
    v = (w / w.mean())[:, None]
    torch.testing.assert_close((v * y).mean(-2), torch.zeros(3, 2).double(), rtol=0, atol=1e-13)
    gram = y.mT @ (v * y) / 8
    torch.testing.assert_close(gram[:, 0, 1], torch.zeros(3).double(), rtol=0, atol=1e-13)
    assert (gram[:, 0, 0] > gram[:, 1, 1]).all()
    if group == mid.Similarity():
        torch.testing.assert_close(gram.diagonal(dim1=-2, dim2=-1).sum(-1), torch.ones(3).double())
    else:
        torch.testing.assert_close(distances(y), distances(x))


@each_group
def test_frames_lead_back_from_mirror_images_too(group):
    x = randn(7, 3)
    section = mid.Section(group)
    for mirror in ((1, 1, 1), (1, 1, -1), (-1, -1, -1)):
        y = x * torch.tensor(mirror).double() + 3
        torch.testing.assert_close(group.act(section.frame(y), section(y)), y, rtol=0, atol=1e-12)
        torch.testing.assert_close(section(y), section(x), rtol=0, atol=1e-12)
        assert mid.QuotientManifold(group).dist(x, y) < 1e-7


@each_group
def test_closest_agrees_with_newton_on_the_action(group):
    x, u = randn(2, 7, 2), randn(2, 7, 2, seed=1)
    to, w = x + 0.1 * u, randn(7, seed=2).exp()
    form, newton = group.closest(x, to, w), closest_by_newton(group, x, to, w)
    torch.testing.assert_close(form.point, newton.point)
    torch.testing.assert_close(group.act(form.xi, form.point), x)


def test_rigid_geometry_agrees_with_what_follows_from_the_action():
    x, u, w = randn(2, 7, 3), randn(2, 7, 3, seed=1), randn(7, seed=2).exp()
    closed, derived = mid.RigidMotion().geometry(w), Geometry(mid.RigidMotion(), w)
    torch.testing.assert_close(closed.horizontal(x, u), derived.horizontal(x, u))
    torch.testing.assert_close(closed.gradient(x, u), derived.gradient(x, u))
    closed, derived = mid.Similarity().geometry(w), Geometry(mid.Similarity(), w)
    torch.testing.assert_close(closed.horizontal(x, u), derived.horizontal(x, u))
    torch.testing.assert_close(closed.inner(x, u, u), derived.inner(x, u, u))


def test_shape_distance_is_kendalls():
    x, y = randn(7, 2), randn(7, 2, seed=1)
    a, b = ((t - t.mean(0)) / (t - t.mean(0)).norm() for t in (x, y))
    rho = torch.acos(torch.linalg.svdvals(a.mT @ b).sum())
    torch.testing.assert_close(mid.QuotientManifold(mid.Similarity()).dist(x, y), 7**0.5 * rho)


@each_group
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetric_configurations_have_finite_gradients(group, dtype):
    square = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=dtype).requires_grad_()
    manifold = mid.QuotientManifold(group)
    other = torch.tensor([[1, 0], [0, 2], [-1, 0], [0, -2]], dtype=dtype)
    for value in (
        mid.Section(group)(square).pow(3).sum(),
        manifold.dist(square, other),
        manifold.dist(square, square.detach()),
        manifold.logmap(square, other).pow(3).sum(),
    ):
        (slope,) = torch.autograd.grad(value, square)
        assert torch.isfinite(slope).all()


@each_group
def test_degenerate_configurations_are_refused(group):
    with pytest.raises(mid.DegeneratePointError, match="subspace of dimension below"):
        mid.Section(group)(torch.full((5, 2), 3.3).double())  # one place
    with pytest.raises(mid.DegeneratePointError, match="subspace of dimension below"):
        mid.Section(group)(randn(5, 1) @ randn(1, 3, seed=1))  # a line in space
    assert torch.isfinite(mid.Section(group)(randn(5, 1) @ randn(1, 2, seed=1))).all()  # a line in the plane is fine


@each_group
def test_one_column_keeps_its_side_and_aligns_to_either(group):
    x = randn(6, 1)
    section = mid.Section(group)
    torch.testing.assert_close(group.act(section.frame(x), section(x)), x)
    assert mid.QuotientManifold(group).dist(x, -x) < 1e-7


@each_group
def test_configurations_far_from_the_origin_keep_their_digits_in_float32(group):
    x = 1e3 + randn(20, 2)
    narrow = mid.Section(group)(x.float()).double()
    torch.testing.assert_close(narrow, mid.Section(group)(x), rtol=0, atol=10 * 1e3 * torch.finfo(torch.float32).eps)


def test_an_ensemble_of_maps_is_aligned():
    centre = randn(8, 2)
    members = torch.stack(
        [mid.Similarity().act(randn(4, seed=k), centre + 0.01 * randn(8, 2, seed=k)) for k in range(12)]
    )
    mean = mid.Ensemble(members, mid.Similarity()).mean()
    assert float(mid.QuotientManifold(mid.Similarity()).dist(mean, centre)) < 0.03


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@each_group
def test_section_compiles_without_graph_breaks(group):
    x = randn(7, 2)
    torch.testing.assert_close(torch.compile(mid.Section(group), fullgraph=True)(x), mid.Section(group)(x))
