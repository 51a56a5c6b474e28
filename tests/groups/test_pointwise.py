from typing import Any

import pytest
import torch
from cases import BLOCKS, positive, randn

import manifoldid as mid
from manifoldid.groups.geometry import Geometry

POWER = mid.Pointwise(lambda x: x.log().log(), lambda y: y.exp().exp())


def test_powers_are_translations_of_the_double_logarithm():
    x = 1 + positive(6)
    torch.testing.assert_close(POWER.act(torch.tensor([2.0]).double().log(), x), x**2)
    y = mid.Section(POWER)(x)
    torch.testing.assert_close(y.log().log().mean(), torch.zeros(()).double(), rtol=0, atol=1e-13)


def test_reference_items_have_their_values_in_the_chart():
    y = mid.Reference(POWER, 2)(1 + positive(6))
    torch.testing.assert_close(y[2], torch.e * torch.ones(()).double())


def test_blocks_weights_and_scales_are_those_of_the_group_in_the_chart():
    group = mid.Pointwise(torch.asinh, torch.sinh, mid.Affine(blocks=BLOCKS, common_scale=True))
    x, w = randn(7), randn(7, seed=1).exp()
    inside = mid.Section(mid.Affine(blocks=BLOCKS, common_scale=True), weights=w)
    torch.testing.assert_close(mid.Section(group, weights=w)(x), inside(x.asinh()).sinh())
    torch.testing.assert_close(mid.Section(group, weights=w).frame(x), inside.frame(x.asinh()))


def test_geometry_is_that_of_the_chart():
    x, y = 1 + positive(6), 1 + positive(6, seed=1)
    manifold, inside = mid.QuotientManifold(POWER), mid.QuotientManifold(mid.Translation())
    torch.testing.assert_close(manifold.dist(x, y), inside.dist(x.log().log(), y.log().log()))
    torch.testing.assert_close(manifold.expmap(x, manifold.logmap(x, y)), manifold.align(y, to=x))
    u = randn(6, seed=2)
    # any invariant metric that makes the orbit one-dimensional has the same vertical space
    torch.testing.assert_close(
        Geometry.vertical(POWER.geometry(), x, POWER.vertical_basis(x)[0]), POWER.vertical_basis(x)[0]
    )
    assert abs(float(manifold.inner(x, manifold.proju(x, u), POWER.vertical_basis(x)[0]))) < 1e-10


def test_points_outside_the_chart_are_refused():
    with pytest.raises(mid.DegeneratePointError, match="batch index 1 is outside the domain of the chart"):
        mid.Section(POWER)(torch.stack([1 + positive(3), positive(3) / 9]))


def test_a_chart_of_several_blocks_acts_on_a_dict():
    group = mid.Pointwise(
        lambda p: {name: p[name].log() for name in ("rate", "base")},
        lambda q: {name: q[name].exp() for name in ("rate", "base")},
        mid.Shift({"rate": 1, "base": -1}),
    )
    x = {"rate": positive(4), "base": positive(3, seed=1), "free": randn(2)}
    y = group.act(torch.tensor([2.0]).double().log(), x)
    torch.testing.assert_close(y["rate"], 2 * x["rate"])
    torch.testing.assert_close(y["base"], x["base"] / 2)
    here, there = mid.Section(group)(x), mid.Section(group)(y)
    for name in x:
        torch.testing.assert_close(here[name], there[name])


def test_attach_keeps_the_point_on_the_section_of_the_chart():
    p = torch.nn.Parameter(1 + positive(6))
    optimizer = torch.optim.Adam([p], lr=1e-2)
    mid.attach(optimizer, POWER, p)
    target = (1 + positive(6, seed=3)).log()
    for _ in range(10):
        optimizer.zero_grad()
        (p.log()[:, None] / p.log() - target[:, None] / target).square().mean().backward()
        optimizer.step()
        assert abs(float(p.detach().log().log().mean())) < 1e-12


def test_arguments_are_checked():
    wrong: Any = 3
    with pytest.raises(TypeError, match="forward"):
        mid.Pointwise(wrong, torch.exp)
    with pytest.raises(TypeError, match="group"):
        mid.Pointwise(torch.log, torch.exp, wrong)


def test_blocks_that_the_group_does_not_name_are_euclidean():
    logs = lambda p: {name: p[name].log() for name in "ab"}  # noqa: E731
    powers = lambda p: {name: p[name].exp() for name in "ab"}  # noqa: E731
    group = mid.Pointwise(logs, powers, mid.Shift([{"a": torch.ones(2).double(), "b": torch.tensor(-1.0).double()}]))
    x, y = ({"a": positive(2, seed=k), "b": positive(1, seed=k + 2)[0], "free": randn(3, seed=k)} for k in (0, 1))
    geometry = group.geometry()
    torch.testing.assert_close(geometry.horizontal(x, y)["free"], y["free"])
    torch.testing.assert_close(geometry.log(x, y)["free"], y["free"] - x["free"])
