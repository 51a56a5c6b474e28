"""Groups made of the generators that a diagnosis found, where the catalogue has none."""

import functools
import pickle

import pytest
import torch
from closed_loop import assert_adam_does_not_see, gauge_copies
from unseen_models import F64, normal, uniform

import manifoldid as mid
from manifoldid.conformance import check_group
from manifoldid.diagnose.fields import ClosedField, Monomial
from manifoldid.diagnose.flows import integrate
from manifoldid.groups.orbit import moved
from manifoldid.points import flatten


def mixed_scaling(x):  # (a x, a^2 y, a^-3 z)
    return torch.stack([x[0] ** 2 / x[1], x[0] ** 3 * x[2], x.prod()])


def two_scales(x):  # u -> a u + b, s -> a^2 s: least norm alone would send all to 0
    d = x[1:3] - x[:1]
    return torch.cat([d.square() / x[3:4], x[4:] / x[3:4], d[:1] / d[1:]])


def shear(x):  # y -> y + t x, z -> z + t
    return torch.stack([x[0], x[1] - x[0] * x[2]])


def unipotent(x):  # y -> y + t x, z -> z + t y + t^2 x / 2: the norm has two minima on an orbit
    return torch.stack([x[0], x[1].square() - 2 * x[0] * x[2], x[3] * x[0]])


def heisenberg(x):  # left translations of two elements of the Heisenberg group
    return torch.stack([x[3] - x[0], x[4] - x[1], x[5] - x[2] - x[0] * (x[4] - x[1])])


def quadratic(x):  # z -> z + t x^2
    return torch.stack([x[0], x[2] - x[1] * x[0].square()])


def boost(x):  # SO(1, 1) on rows
    return (torch.outer(x[0], x[0]) - torch.outer(x[1], x[1])).flatten()


def symplectic(x):  # Sp(2)
    return (torch.outer(x[:, 0], x[:, 1]) - torch.outer(x[:, 1], x[:, 0])).flatten()


def ellipse(x):  # rotations that no change of units makes round: two points of an orbit have the least norm
    return torch.stack([x[0].square() + 2 * x[1].square(), x[2], x[3]])


def blocks_of_exponents(x):  # a -> s a, b -> s^2 b, c -> c / s, c one number
    return torch.cat([x["a"] * x["c"], x["b"] * x["c"].square()])


MODELS = {
    mixed_scaling: lambda g: uniform(g, 3),
    two_scales: lambda g: normal(g, 5),
    shear: lambda g: normal(g, 3),
    unipotent: lambda g: normal(g, 4),
    heisenberg: lambda g: normal(g, 6),
    quadratic: lambda g: normal(g, 3),
    boost: lambda g: torch.stack([uniform(g, 4, low=1.5, high=3), normal(g, 4)]),
    symplectic: lambda g: normal(g, 5, 2),
    ellipse: lambda g: normal(g, 4),
    blocks_of_exponents: lambda g: {"a": uniform(g, 3), "b": normal(g, 2), "c": normal(g).abs() + 0.5},
}
pytestmark = pytest.mark.slow
every = pytest.mark.parametrize("predict", MODELS, ids=lambda model: model.__name__)


@functools.cache
def diagnosed(predict):
    """A point of a model, another one, and the group of its diagnosis."""
    generator = torch.Generator().manual_seed(0)
    point = MODELS[predict](generator)
    diagnosis = mid.diagnose(predict, point, sample=lambda: MODELS[predict](generator))
    assert all(g.complete for g in diagnosis.generators)
    assert type(diagnosis.group).__name__ == "GeneratedGroup"
    return point, MODELS[predict](generator), diagnosis.group


@every
def test_the_section_is_one_point_of_an_orbit_and_its_frame_leads_back(predict):
    _, x, group = diagnosed(predict)
    section = mid.Section(group)
    here = section(x)
    assert (predict(here) - predict(x)).abs().max() < 1e-9 * predict(x).abs().max()
    for seed in range(2):
        xi = torch.randn(group.dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
        there = moved(group, xi, x)
        size = flatten(here).norm() + flatten(there).norm()
        assert (flatten(section(there)) - flatten(here)).norm() < 1e-8 * size
        assert (flatten(moved(group, section.frame(there), section(there))) - flatten(there)).norm() < 1e-8 * size


def test_frames_lead_back_to_points_that_no_exponential_reaches():
    point, _, group = diagnosed(symplectic)
    y = mid.Section(group)(point)
    # half a turn and a stretch: of trace below -2, as no exp(M) of trace 0
    x = y * torch.tensor([-3.0, -1 / 3], dtype=F64)
    assert (mid.Section(group)(x) - y).norm() < 1e-8 * y.norm()
    assert (moved(group, mid.Section(group).frame(x), y) - x).norm() < 1e-8 * x.norm()


def test_a_quadratic_group_passes_the_conformance_kit():  # which takes seconds where nothing has a closed form
    point, _, group = diagnosed(quadratic)
    report = check_group(group, point, invariant=quadratic)
    assert report.passed, str(report)


def test_25_steps_of_adam_do_not_see_a_quadratic_gauge():
    point, other, group = diagnosed(quadratic)
    assert_adam_does_not_see(group, quadratic, point, other, tolerance=1e-8)


@pytest.mark.parametrize("predict", [two_scales, quadratic, symplectic], ids=lambda model: model.__name__)
def test_an_ensemble_of_gauge_copies_has_no_spread(predict):
    point, _, group = diagnosed(predict)
    members = gauge_copies(group, point, 8, 0.5)
    assert mid.Ensemble(members, group).std().abs().max() < 1e-8 * point.abs().max()


def test_a_generated_group_is_pickled_and_maps_batches_in_float32():
    point, _, group = diagnosed(quadratic)
    again = pickle.loads(pickle.dumps(group))
    batch = point.float().expand(2, 3, 3)
    assert again == group
    assert torch.equal(again.act(torch.ones(2, 3, 1), batch), group.act(torch.ones(2, 3, 1), batch))
    assert mid.Section(again)(batch).dtype == torch.float32


def test_flows_whose_series_ends_are_those_that_are_integrated():
    field = ClosedField(
        4,
        torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=F64),
        monomials=(Monomial(2, 3.0, ((0, 1), (1, 2))), Monomial(3, -1.0, ((2, 1), (0, 1)))),
    )
    x, t = normal(torch.Generator().manual_seed(0), 5, 4), torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    assert torch.allclose(field.flow(x, t), integrate(field, x, t), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_units_do_not_decide_what_a_polynomial_flow_moves(unit):
    field = ClosedField(3, torch.tensor([0.0, unit, 0.0], dtype=F64), monomials=(Monomial(2, 1 / unit**2, ((1, 2),)),))
    x = torch.tensor([0.5, 2.0 * unit, 1.0], dtype=F64)
    # dy/dt = unit, dz/dt = (y / unit)^2
    expected = torch.tensor([0.5, 3.0 * unit, 1.0 + (27 - 8) / 3], dtype=F64)
    torch.testing.assert_close(field.flow(x, torch.ones((), dtype=F64)), expected, rtol=1e-14, atol=0)
