"""What geoopt's optimisers take for granted or get wrong, one test for each trap that was found by reading them."""

import warnings

import pytest
import torch
from cases import randn

import manifoldid as mid

geoopt = pytest.importorskip("geoopt")

GROUPS = {"translation": mid.Translation(), "scaling": mid.Scaling(), "affine": mid.Affine()}
MOVES = {"translation": lambda x: x + 5.0, "scaling": lambda x: 10.0 * x, "affine": lambda x: 10.0 * x + 5.0}
TARGET = randn(7, seed=3)


def on_quotient(x, group, weights=None):
    """A parameter that starts where it is, off the section."""
    return geoopt.ManifoldParameter(x.clone(), manifold=mid.QuotientManifold(group, weights))


def loss_of(group, p):
    return (mid.Section(group)(p) - mid.Section(group)(TARGET)).abs().pow(1.5).sum()


def run(optimiser, p, group, steps=25, closure=False):
    path = []
    for _ in range(steps):

        def evaluate():
            optimiser.zero_grad()
            loss = loss_of(group, p)
            loss.backward()
            return loss.item()

        if closure:
            optimiser.step(evaluate)
        else:
            evaluate()
            optimiser.step()
        path.append(mid.Section(group)(p.detach().as_subclass(torch.Tensor)))
    return torch.stack(path)


# 1. projx is called between steps and must not re-gauge


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_stabilising_leaves_the_run_as_it_was(name):
    group, paths = GROUPS[name], []
    for stabilize in (None, 1, 10):
        p = on_quotient(MOVES[name](randn(7)), group)
        paths.append(run(geoopt.optim.RiemannianAdam([p], lr=1e-2, stabilize=stabilize), p, group))
    torch.testing.assert_close(paths[1], paths[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(paths[2], paths[0], rtol=0, atol=1e-12)


def test_a_section_as_projx_would_leave_the_momentum_behind():
    class Regauging(mid.QuotientManifold):
        def projx(self, x):
            return mid.Section(self.group)(x)

    group, paths = mid.Affine(), []
    for kind in (mid.QuotientManifold, Regauging):
        p = geoopt.ManifoldParameter(MOVES["affine"](randn(7)), manifold=kind(group))
        paths.append(run(geoopt.optim.RiemannianAdam([p], lr=1e-2, stabilize=10), p, group))
    assert (paths[1] - paths[0]).abs().max() > 1e-3


def test_projx_repairs_a_positive_domain_equivariantly():
    manifold = mid.QuotientManifold(mid.PositiveScaling())
    x = torch.tensor([1.0, 0.0, 2.0, -3.0], dtype=torch.float64)
    y = manifold.projx(x)
    assert (y > 0).all()
    assert torch.equal(y[[0, 2]], x[[0, 2]])
    torch.testing.assert_close(manifold.projx(10 * x), 10 * y)


# 2. RiemannianSGD starts its momentum from the raw Euclidean gradient


@pytest.mark.parametrize("name", ["scaling", "affine"])
def test_momentum_of_rsgd_warns_and_the_documented_cure_makes_it_equivariant(name):
    group, x = GROUPS[name], randn(7)

    def path(start, cured):
        p = on_quotient(start, group)
        optimiser = geoopt.optim.RiemannianSGD([p], lr=1e-2, momentum=0.9)
        if cured:
            optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
            return run(optimiser, p, group)
        with pytest.warns(mid.NotInvariantWarning, match="momentum_buffer"):
            return run(optimiser, p, group)

    assert (path(MOVES[name](x), False) - path(x, False)).abs().max() > 1e-4
    torch.testing.assert_close(path(MOVES[name](x), True), path(x, True), rtol=0, atol=1e-9)


# 3. options that RiemannianAdam takes and ignores


@pytest.mark.parametrize("option", ["maximize", "foreach", "capturable", "differentiable"])
def test_options_that_riemannian_adam_ignores_are_refused(option):
    p = mid.parameter(randn(7), mid.Affine())
    optimiser = geoopt.optim.RiemannianAdam([p], lr=1e-2, **{option: True})
    loss_of(mid.Affine(), p).backward()
    before = p.detach().clone()
    with pytest.raises(ValueError, match=f"RiemannianAdam ignores {option}=True"):
        optimiser.step()
    assert torch.equal(p.detach(), before)


def test_fused_adam_is_refused_because_gradscaler_would_not_unscale():
    p = mid.parameter(randn(7), mid.Affine())
    optimiser = geoopt.optim.RiemannianAdam([p], lr=1e-2, fused=True)
    loss_of(mid.Affine(), p).backward()
    with pytest.raises(ValueError, match="fused=True"):
        optimiser.step()


def test_optimisers_without_quotients_are_left_alone():
    p = geoopt.ManifoldParameter(randn(7), manifold=geoopt.Euclidean(ndim=1))
    optimiser = geoopt.optim.RiemannianAdam([p], lr=1e-2, maximize=True)
    p.sum().backward()
    optimiser.step()
    q = torch.nn.Parameter(randn(7))
    optimiser = torch.optim.Adam([q], lr=1e-2, maximize=True)
    q.sum().backward()
    optimiser.step()


# 4. weight decay is written into .grad


@pytest.mark.parametrize("name", GROUPS)
def test_weight_decay_along_the_orbit_does_nothing(name):
    """With equal weights x (centred) is along the orbit or inside the invariant loss: the run does not depend on the start."""
    group, x, paths = GROUPS[name], randn(7), []
    for start in (x, MOVES[name](x)):
        p = mid.parameter(start, group)
        paths.append(run(geoopt.optim.RiemannianAdam([p], lr=1e-2, weight_decay=0.1), p, group))
    torch.testing.assert_close(paths[1], paths[0], rtol=0, atol=1e-9)


# 5. the line search


@pytest.mark.slow
@pytest.mark.parametrize("method", ["armijo", "wolfe"])
@pytest.mark.parametrize("name", GROUPS)
def test_line_search_is_equivariant(name, method):
    group, x, paths = GROUPS[name], randn(7), []
    for start in (x, MOVES[name](x)):
        p = on_quotient(start, group)
        optimiser = geoopt.optim.RiemannianLineSearch([p], line_search_method=method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # at the optimum no step is taken
            paths.append(run(optimiser, p, group, closure=True))
    torch.testing.assert_close(paths[1], paths[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["fr", "pr"])
def test_conjugate_gradients_are_equivariant(method):
    group, x, paths = mid.Affine(), randn(7), []
    for start in (x, MOVES["affine"](x)):
        p = on_quotient(start, group)
        optimiser = geoopt.optim.RiemannianLineSearch([p], line_search_method="wolfe", cg_method=method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            paths.append(run(optimiser, p, group, steps=8, closure=True))
    torch.testing.assert_close(paths[1], paths[0], rtol=0, atol=1e-9)


# 6. samplers assume a Euclidean kinetic energy


@pytest.mark.parametrize("sampler", ["RSGLD", "SGRHMC", "RHMC"])
def test_samplers_are_refused(sampler):
    p = mid.parameter(randn(7), mid.Affine())
    assert not p.manifold.reversible
    kind = getattr(geoopt.samplers, sampler)
    with pytest.raises(ValueError, match=r"reversible|samples from a wrong law"):
        kind([p], epsilon=1e-3).step(lambda: -loss_of(mid.Affine(), p))


# 7. manifolds get lost


def test_assigning_a_state_dict_warns_that_the_manifold_is_lost():
    model = torch.nn.Module()
    model.scores = mid.parameter(randn(7), mid.Affine())
    state = {"scores": torch.zeros(7, dtype=torch.float64)}
    with pytest.warns(mid.DetachedWarning, match="parameter 'scores' of Module was on QuotientManifold"):
        model.load_state_dict(state, assign=True)


def test_replacing_by_another_quotient_parameter_is_silent():
    model = torch.nn.Module()
    model.scores = mid.parameter(randn(7), mid.Affine())
    model.scores = mid.parameter(randn(7), mid.Scaling())
    assert model.scores.manifold.group == mid.Scaling()


# 8. and 11. adaptive steps in the invariant frame


@pytest.mark.parametrize("name", GROUPS)
def test_second_moments_are_invariant(name):
    manifold, x = (
        mid.QuotientManifold(GROUPS[name], 0.5 + torch.rand(7, generator=torch.Generator().manual_seed(0))),
        randn(7),
    )
    u = manifold.proju(x, randn(7, seed=1))
    factor = 1.0 if name == "translation" else 10.0
    moved = manifold.component_inner(MOVES[name](x), factor * u)
    torch.testing.assert_close(moved, manifold.component_inner(x, u))
    torch.testing.assert_close(manifold.component_inner(x, u).sum(-1), manifold.inner(x, u))
    assert manifold.component_inner(x, u, -u).shape == x.shape


def test_geoopts_euclidean_adam_is_not_equivariant_and_the_quotient_is():
    group, x = mid.Scaling(), randn(7)
    gaps = []
    for manifold in (geoopt.Euclidean(ndim=1), mid.QuotientManifold(group)):
        paths = []
        for start in (x, 10 * x):
            p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
            paths.append(run(geoopt.optim.RiemannianAdam([p], lr=1e-2), p, group))
        gaps.append(float((paths[1] - paths[0]).abs().max()))
    assert gaps[0] > 0.05
    assert gaps[1] < 1e-12


# and degenerate points do not pass silently


def test_a_degenerate_parameter_is_named_at_the_step():
    p = geoopt.ManifoldParameter(torch.ones(7, dtype=torch.float64), manifold=mid.QuotientManifold(mid.Affine()))
    optimiser = geoopt.optim.RiemannianAdam([p], lr=1e-2)
    p.grad = torch.ones_like(p)
    with pytest.raises(mid.DegeneratePointError, match="constant"):
        optimiser.step()
