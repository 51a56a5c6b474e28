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

    u = falling(model(saddle, torch.zeros(6, dtype=F64)))
    assert u is not None
    assert float(u[0].abs()) == pytest.approx(1, abs=1e-6)
    assert falling(model(lambda x: x[1:].square().sum(), torch.zeros(6, dtype=F64))) is None


def test_curvature_includes_that_of_the_retraction():
    x = mid.Section(mid.Scaling())(torch.tensor([1.0, 2, -1], dtype=F64))
    here = model(lambda x: x[0] / x.norm(), x, mid.Scaling())
    u = here.horizontal(torch.tensor([0.3, -0.2, 0.5], dtype=F64))
    values = torch.tensor([here.value_along(t * u) for t in (-1e-3, 0.0, 1e-3)], dtype=F64)
    second = float((values[0] - 2 * values[1] + values[2]) / 1e-6)
    assert float((here.curvature(u) * u).sum()) == pytest.approx(second, rel=1e-5)
