"""Pointwise gauges without a formula: the chart is a table, and the group behind it is one like any other."""

import copy
import functools
import math
import pickle

import pytest
import scipy
import torch
from closed_loop import assert_adam_does_not_see, gauge_copies

import manifoldid as mid
from manifoldid.diagnose.chart import add_tabulated
from manifoldid.diagnose.generators import Search
from manifoldid.diagnose.match_pointwise import tabulated_group
from manifoldid.diagnose.nullspace import NullSpaces
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.table import TableChart

pytestmark = pytest.mark.slow
F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def psi(x):
    return x + torch.tanh(x)


def differences(x):
    y = psi(x)
    return torch.sigmoid(y[:1] - y[1:])


def sums(p):  # a moves up and b moves down; `scale` stays
    return torch.cat([p["scale"] * torch.sigmoid(psi(p["a"])[:, None] + psi(p["b"])).flatten(), p["scale"]])


@functools.cache
def diagnosed():
    return mid.diagnose(differences, normal(3), sample=lambda generator: torch.randn(3, generator=generator, dtype=F64))


def search_and_table(predict, point):
    """What `diagnose` does for such a field, alone."""
    search = Search(NullSpaces(Probe(predict, point)), [])
    assert add_tabulated(search)
    return search.fields[0]


@pytest.fixture(scope="module")
def table():
    nodes = torch.linspace(-4, 5, 150, dtype=F64)
    return TableChart.of(nodes, 1 + 0.5 * torch.cos(nodes))


def test_a_table_is_the_integral_of_its_slopes(table):
    x = torch.linspace(-4, 5, 7, dtype=F64)
    exact = [scipy.integrate.quad(lambda u: 1 + 0.5 * math.cos(u), 0.0, end)[0] for end in x.tolist()]
    error = table(x) - torch.tensor(exact, dtype=F64)
    assert (error - error[0]).abs().max() < 1e-10  # of the order of the spacing to the sixth over 6! times 9


def test_the_inverse_of_a_table_is_exact_and_both_have_two_derivatives(table):
    x = torch.linspace(-4, 5, 301, dtype=F64).reshape(7, 43)
    assert (table.inverse(table(x)) - x).abs().max() < 1e-14
    assert (torch.vmap(table.inverse)(torch.vmap(table)(x)) - x).abs().max() < 1e-14
    assert (table.inverse(table(x.float())) - x).abs().max() < 2e-6
    some = x[1::3, 1::20].clone().requires_grad_()
    for function in (table, table.inverse):
        assert torch.autograd.gradcheck(function, some)
        assert torch.autograd.gradgradcheck(function, some)


def test_numbers_outside_of_a_table_are_refused_with_its_range_and_the_remedy(table):
    for function in (table, table.inverse):
        with pytest.raises(mid.DegeneratePointError, match=r"2 number\(s\).*\[-4, 5\].*`sample`"):
            function(torch.tensor([0.0, 9.0, -9.0], dtype=F64))
    assert torch.isnan(torch.vmap(table)(torch.tensor([[9.0]]))).all()


def test_a_field_without_a_formula_is_a_group_that_finite_moves_confirm():
    d = diagnosed()
    assert [g.closed_form for g in d.generators] == [False]
    assert d.generators[0].flow_error < 1e-11
    point, group = normal(3), d.group
    shift = psi(group.act(torch.tensor([3.0], dtype=F64), point)) - psi(point)  # three standard deviations beyond
    assert (shift - shift[0]).abs().max() < 1e-9
    assert pickle.loads(pickle.dumps(group)) == group == copy.deepcopy(group)
    assert "psi, tabulated on [" in repr(group)
    for words in ("a shift of psi(x), psi tabulated on", "psi(x[0]) - psi(x[", "outside of ["):
        assert words in str(d)


def test_a_group_behind_a_table_passes_the_conformance_kit():
    report = mid.conformance.check_group(diagnosed().group, normal(3), invariant=differences)
    assert report.passed, str(report)


def test_25_steps_of_adam_and_an_ensemble_of_20_copies_do_not_see_a_tabulated_gauge():
    group, point = diagnosed().group, normal(3)
    assert_adam_does_not_see(group, differences, point, normal(3, seed=1), tolerance=1e-10)
    assert mid.Ensemble(gauge_copies(group, point, 20, 0.5), group).std().abs().max() < 1e-10


def test_blocks_that_move_by_signed_multiples_of_one_function_share_a_table():
    point = {"a": normal(2), "b": normal(2, seed=1), "scale": normal(1, seed=2).exp()}
    group = tabulated_group(search_and_table(sums, point), point)
    mid.check_invariance(sums, point, group)
    a, b = (psi(group.act(torch.tensor([0.5], dtype=F64), point)[k]) - psi(point[k]) for k in "ab")
    assert torch.allclose(a, -b, rtol=1e-8)
    copies = gauge_copies(group, point, 4, 0.5)
    spread = mid.Ensemble(copies, group).std()
    assert all(float(t.abs().max()) < 1e-10 for t in spread.values())


def test_factors_of_the_coordinates_are_measured():
    weighted = lambda x: torch.stack([2 * psi(x[0]) - psi(x[1]), psi(x[1]) - psi(x[2])])  # noqa: E731
    field = search_and_table(weighted, normal(3))
    assert torch.allclose(field.coefficients / field.coefficients[1], torch.tensor([0.5, 1.0, 1.0], dtype=F64))


@pytest.mark.parametrize(
    ("function", "ends"),
    [(lambda x: x + x.sqrt(), ("at 0", "")), (lambda x: x.log() + torch.tanh(x), ("", ""))],
    ids=["finite", "infinite"],
)
def test_where_a_chart_comes_to_an_end_in_the_domain_is_said(function, ends):
    field = search_and_table(lambda x: torch.sigmoid(function(x)[:1] - function(x)[1:]), 2 + normal(3).square())
    assert field.table.ends == ends
