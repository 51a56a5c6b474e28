import pytest
import torch
from cases import randn

import manifoldid as mid
from manifoldid.groups.geometry import Geometry
from manifoldid.groups.orbit import closest_by_newton

GROUP = mid.Phase()


def state(*shape, seed=0):
    return torch.complex(randn(*shape, seed=seed), randn(*shape, seed=seed + 50))


def test_the_entry_of_largest_modulus_is_real_and_positive():
    z = state(4, 6)
    y = mid.Section(GROUP)(z)
    largest = y.gather(-1, y.abs().argmax(-1, keepdim=True))
    torch.testing.assert_close(largest, largest.abs().to(y.dtype))
    torch.testing.assert_close(y.abs(), z.abs())


def test_entries_of_weight_zero_do_not_define_the_phase():
    z = torch.tensor([5j, 1j, 2.0]).to(torch.complex128)
    y = mid.Section(GROUP, weights=torch.tensor([0.0, 1.0, 0.1]))(z)
    torch.testing.assert_close(y, torch.tensor([5j, 1j, 2.0]).to(torch.complex128))
    y = mid.Section(GROUP, weights=torch.tensor([0.0, 1.0, 0.0]))(z)
    torch.testing.assert_close(y[1], torch.tensor(1.0).to(torch.complex128))


def test_distance_is_that_of_the_closest_phase():
    z, y = state(6), state(6, seed=1)
    square = z.abs().square().sum() + y.abs().square().sum() - 2 * torch.vdot(z, y).abs()
    manifold = mid.QuotientManifold(GROUP)
    torch.testing.assert_close(manifold.dist(z, y), square.sqrt())
    angles = torch.linspace(0, 2 * torch.pi, 400).double()
    brute = (z - torch.polar(torch.ones_like(angles), angles)[:, None] * y).abs().square().sum(-1).min().sqrt()
    assert float(manifold.dist(z, y)) <= float(brute) < float(manifold.dist(z, y)) * 1.0001


def test_closed_forms_agree_with_what_follows_from_the_action():
    z, u, w = state(3, 6), state(3, 6, seed=1), randn(6, seed=2).exp()
    closed, derived = GROUP.geometry(w), Geometry(GROUP, w)
    torch.testing.assert_close(closed.horizontal(z, u), derived.horizontal(z, u))
    torch.testing.assert_close(closed.gradient(z, u), derived.gradient(z, u))
    torch.testing.assert_close(closed.inner(z, u, u), derived.inner(z, u, u))
    to = z + 0.1 * u
    torch.testing.assert_close(GROUP.closest(z, to, w).point, closest_by_newton(GROUP, z, to, w).point)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_orthogonal_states_are_at_a_finite_distance_with_finite_gradients(dtype):
    z = torch.tensor([1, 0, 0], dtype=dtype).requires_grad_()
    y = torch.tensor([0, 1j, 0], dtype=dtype)
    manifold = mid.QuotientManifold(GROUP)
    for other, expected in ((y, 2**0.5), (1j * z.detach(), 0.0), (-z.detach(), 0.0)):
        value = manifold.dist(z, other)
        assert abs(float(value.detach()) - expected) < 1e-6
        (slope,) = torch.autograd.grad(value, z)
        assert torch.isfinite(torch.view_as_real(slope)).all()
    with pytest.raises(mid.DegeneratePointError, match="orthogonal to `at`"):
        mid.Section(GROUP, at=y)(z.detach())


def test_zero_and_real_points_are_refused():
    with pytest.raises(mid.DegeneratePointError, match="batch index 1 is a zero vector"):
        mid.Section(GROUP)(torch.stack([state(3), torch.zeros(3).to(torch.complex128)]))
    with pytest.raises(TypeError, match="must be complex"):
        mid.Section(GROUP)(randn(3))


def test_attached_runs_from_two_phases_are_one_run():
    target = state(6, seed=4)
    target = target[:, None] * target.conj()

    def run(start):
        p = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.Adam([p], lr=1e-2)
        mid.attach(optimizer, GROUP, p)
        for _ in range(20):
            optimizer.zero_grad()
            (p[:, None] * p.conj() - target).abs().square().mean().backward()
            optimizer.step()
        return p.detach()

    z = state(6)
    one, other = run(z), run(GROUP.act(torch.tensor([2.0]).double(), z))
    torch.testing.assert_close(one[:, None] * one.conj(), other[:, None] * other.conj(), rtol=0, atol=1e-12)


def test_an_ensemble_of_states_is_aligned():
    z = state(6)
    members = torch.stack([GROUP.act(randn(1, seed=k) * 5, z + 0.01 * state(6, seed=k)) for k in range(10)])
    assert float(mid.QuotientManifold(GROUP).dist(mid.Ensemble(members, GROUP).mean(), z)) < 0.03
