import pytest
import torch
from cases import randn

import manifoldid as mid
from manifoldid.groups.geometry import Geometry
from manifoldid.groups.orbit import closest_by_newton

GROUP = mid.Orthogonal()
SECTION = mid.Section(GROUP)
FLIP = torch.tensor([1.0, 1.0, -1.0]).double()


def test_the_section_is_on_principal_axes_with_positive_largest_entries():
    x, w = randn(3, 8, 3), randn(8, seed=1).exp()
    y = mid.Section(GROUP, weights=w)(x)
    gram = y.mT @ (y * (w / w.mean())[:, None])
    torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-12)
    assert (gram.diagonal(dim1=-2, dim2=-1).diff() < 0).all()
    assert (y.gather(-2, y.abs().argmax(-2, keepdim=True)) > 0).all()
    torch.testing.assert_close(y @ y.mT, x @ x.mT)


def test_mirror_images_are_one_orbit_and_their_frames_lead_back():
    x = randn(7, 3)
    for y in (x, x * FLIP):
        torch.testing.assert_close(SECTION(y), SECTION(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(GROUP.act(SECTION.frame(y), SECTION(y)), y, rtol=0, atol=1e-12)
    assert mid.QuotientManifold(GROUP).dist(x, x * FLIP) < 1e-12


def test_new_items_are_carried_to_the_section_of_the_old_ones():
    q, new = torch.linalg.qr(randn(3, 3, seed=2)).Q, randn(4, 3, seed=3)
    for mirror in (torch.ones(3).double(), FLIP):
        x, turn = randn(7, 3), q * mirror
        here = SECTION.carry(SECTION.frame(x), new)
        there = SECTION.carry(SECTION.frame(x @ turn), new @ turn)
        torch.testing.assert_close(here, there, rtol=0, atol=1e-12)


def test_distance_is_the_procrustes_distance():
    x, y = randn(7, 3), randn(7, 3, seed=1)
    square = x.square().sum() + y.square().sum() - 2 * torch.linalg.matrix_norm(y.mT @ x, "nuc")
    torch.testing.assert_close(mid.QuotientManifold(GROUP).dist(x, y), square.sqrt())


def test_closed_forms_agree_with_what_follows_from_the_action():
    x, u = randn(2, 7, 3), randn(2, 7, 3, seed=1)
    w = randn(7, seed=2).exp()
    closed, derived = GROUP.geometry(w), Geometry(GROUP, w)
    torch.testing.assert_close(closed.horizontal(x, u), derived.horizontal(x, u))
    torch.testing.assert_close(closed.gradient(x, u), derived.gradient(x, u))
    torch.testing.assert_close(closed.inner(x, u, u), derived.inner(x, u, u))
    to = x + 0.1 * u
    torch.testing.assert_close(GROUP.closest(x, to, w).point, closest_by_newton(GROUP, x, to, w).point)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_singular_values_give_finite_gradients(dtype):
    x = torch.eye(5, 3, dtype=dtype).requires_grad_()
    manifold = mid.QuotientManifold(GROUP)
    for value in (
        SECTION(x).pow(3).sum(),
        manifold.dist(x, x.detach().flip(0)),
        manifold.logmap(x, 2 * x.detach()).pow(3).sum(),
    ):
        (slope,) = torch.autograd.grad(value, x)
        assert torch.isfinite(slope).all()


def test_rank_loss_is_named_by_its_batch_index():
    x = randn(4, 6, 3)
    x[2, :, 1:] = 0
    with pytest.raises(mid.DegeneratePointError, match="batch index 2 has rank below r - 1"):
        SECTION(x)
    x[2, :, 1] = 1  # rank r - 1 moves freely
    assert torch.isfinite(SECTION(x)).all()
    with pytest.raises(mid.DegeneratePointError, match="rank below"):
        SECTION(randn(2, 4))  # two rows cannot hold four columns


def test_one_column_has_a_sign_and_no_coordinates():
    x = randn(6, 1)
    assert GROUP.dimension(x) == 0
    torch.testing.assert_close(SECTION(-x), SECTION(x))
    assert mid.QuotientManifold(GROUP).dist(x, -x) == 0


def test_an_ensemble_is_aligned_by_generalised_procrustes_analysis():
    centre = randn(10, 3)
    turns = torch.linalg.qr(randn(20, 3, 3, seed=1)).Q
    members = (centre + 0.01 * randn(20, 10, 3, seed=2)) @ turns
    ensemble = mid.Ensemble(members, GROUP)
    assert float(ensemble.std().max()) < 0.03 < float(members.std(0).min())
    assert float(mid.QuotientManifold(GROUP).dist(ensemble.mean(), centre)) < 0.05
    gram = ensemble.contrast(lambda x: (x @ x.mT).flatten())
    torch.testing.assert_close(gram.value, (members @ members.mT).mean(0).flatten())


def test_float32_of_large_units_agrees_with_float64():
    x = 1e4 * randn(50, 4)
    narrow = SECTION(x.float())
    torch.testing.assert_close(narrow.double(), SECTION(x), rtol=0, atol=1e4 * 50 * 4 * torch.finfo(torch.float32).eps)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_section_and_projection_compile_without_graph_breaks():
    x, u = randn(7, 3).requires_grad_(), randn(7, 3, seed=1)
    section = torch.compile(SECTION, fullgraph=True)
    torch.testing.assert_close(section(x), SECTION(x))
    section(x).pow(2).sum().backward()
    project = torch.compile(GROUP.geometry().horizontal, fullgraph=True)
    torch.testing.assert_close(project(x.detach(), u), GROUP.geometry().horizontal(x.detach(), u))
