"""The trust region: exact on quadratics, and not fooled by saddles."""

import pytest
import torch

import manifoldid as mid
from manifoldid.optim.local_model import FunctionObjective, LocalModel
from manifoldid.optim.steihaug import diagonal, falling, truncated_gradients

F64 = torch.float64


def quadratic(units, seed=0):
    """A positive quadratic in unlike units, and its Hessian."""
    root = torch.randn(len(units), len(units), dtype=F64, generator=torch.Generator().manual_seed(seed))
    hessian = (root @ root.mT + len(units) * torch.eye(len(units), dtype=F64)) / units / units[:, None]
    slope = 1 / units
    return (lambda x: 0.5 * x @ hessian @ x - slope @ x), hessian, slope


def model(function, x, group=None):
    return LocalModel(FunctionObjective(function), group or mid.Product(), None, x)


def test_a_step_inside_the_region_is_newtons():
    function, hessian, slope = quadratic(torch.ones(8, dtype=F64))
    step = truncated_gradients(model(function, torch.zeros(8, dtype=F64)), 1e3, 1e-12)
    torch.testing.assert_close(step.u, torch.linalg.solve(hessian, slope), rtol=1e-10, atol=0)
    assert not step.at_boundary
    assert step.promised == pytest.approx(float(0.5 * slope @ step.u))


def test_a_step_that_leaves_the_region_ends_on_its_boundary():
    here = model(quadratic(torch.ones(8, dtype=F64))[0], torch.zeros(8, dtype=F64))
    step = truncated_gradients(here, 0.01, 1e-12)
    assert step.at_boundary
    assert here.size(step.u) == pytest.approx(0.01)


def test_the_preconditioner_undoes_the_units():
    units = torch.logspace(-4, 4, 40, dtype=F64)
    function, hessian, _ = quadratic(units)
    here, scale = model(function, torch.zeros(40, dtype=F64)), None
    for _ in range(8):
        scale = diagonal(here, scale)
    spread = (scale / hessian.diagonal()).log()
    assert float(spread.max() - spread.min()) < 4  # of 36.8 between the units
    plain, better = (truncated_gradients(here, 1e9, 1e-6, s).products for s in (None, scale))
    assert better < plain


def test_the_direction_that_falls_is_found_at_a_saddle():
    def saddle(x):
        return x[1:].square().sum() - 1e-3 * x[0].square()

    u = falling(model(saddle, torch.zeros(6, dtype=F64))).downhill
    assert u is not None
    assert float(u[0].abs()) == pytest.approx(1, abs=1e-6)
    assert falling(model(lambda x: x[1:].square().sum(), torch.zeros(6, dtype=F64))).downhill is None


@pytest.mark.parametrize("n", [50, 200, 500])
@pytest.mark.parametrize("smallest", [1e-1, 1e-4, -1e-1, -1e-4])
def test_one_small_negative_eigenvalue_is_found_and_its_absence_is_certain(n, smallest):
    curvatures = torch.linspace(0.01, 1, n, dtype=F64)
    curvatures[0] = smallest
    axes = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=F64)).Q
    hessian = axes @ torch.diag(curvatures) @ axes.mT
    seen = falling(model(lambda x: 0.5 * x @ hessian @ x, torch.zeros(n, dtype=F64)))
    assert seen.certain
    if smallest > 0:
        assert seen.downhill is None
    else:
        assert seen.downhill is not None
        assert float(seen.downhill @ hessian @ seen.downhill) < 0


def test_a_hessian_too_ill_conditioned_to_look_at_is_not_called_certain():
    curvatures = torch.logspace(-6, 0, 300, dtype=F64)
    curvatures[0] = -1e-6
    here = model(lambda x: 0.5 * (curvatures * x.square()).sum(), torch.zeros(300, dtype=F64))
    seen = falling(here)
    assert seen.downhill is None
    assert not seen.certain
    longer = falling(here, curvatures.abs())  # in its own units it is easy
    assert longer.downhill is not None


def test_flat_directions_are_no_saddle():
    seen = falling(model(lambda x: (x[1:] - x[:-1]).square().sum(), torch.zeros(60, dtype=F64)))
    assert seen.downhill is None
    assert seen.certain
    assert falling(model(lambda x: x.sum(), torch.zeros(60, dtype=F64))).certain


def test_curvature_includes_that_of_the_retraction():
    x = mid.Section(mid.Scaling())(torch.tensor([1.0, 2, -1], dtype=F64))
    here = model(lambda x: x[0] / x.norm(), x, mid.Scaling())
    u = here.horizontal(torch.tensor([0.3, -0.2, 0.5], dtype=F64))
    values = torch.tensor([here.value_along(t * u) for t in (-1e-3, 0.0, 1e-3)], dtype=F64)
    second = float((values[0] - 2 * values[1] + values[2]) / 1e-6)
    assert float((here.curvature(u) * u).sum()) == pytest.approx(second, rel=1e-5)
