"""Graphs without breaks: pytest -m compile --jaxtyping-packages= ."""

import pytest
import torch
from cases import BLOCKS, positive, randn

import manifoldid as mid
from manifoldid.quotient.horizontal import Quotient

pytestmark = [pytest.mark.compile, pytest.mark.usefixtures("fresh_compiler")]

GROUPS = {
    "translation": mid.Translation(),
    "scaling": mid.Scaling(),
    "positive-scaling": mid.PositiveScaling(),
    "affine": mid.Affine(),
    "affine-blocks": mid.Affine(blocks=BLOCKS),
    "affine-common-scale": mid.Affine(blocks=BLOCKS, common_scale=True),
}


@pytest.mark.parametrize("name", GROUPS)
def test_the_geometry_compiles_to_one_graph(name):
    quotient = Quotient(GROUPS[name])
    draw = positive if "positive" in name else randn
    x, y = draw(3, 7), draw(3, 7, seed=5)

    def everything(x, y):
        step = quotient.log(x, y)
        return (
            quotient.dist(x, y),
            step,
            quotient.exp(x, 0.5 * step),
            quotient.transport(x, y, step),
            quotient.gradient(x, y),
        )

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(x, y), everything(x, y), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_a_compiled_distance_has_derivatives_at_coincident_points():
    quotient, x = Quotient(mid.Affine()), randn(7)
    compiled = torch.compile(quotient.squared_dist, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    compiled(leaf, x).backward()
    torch.testing.assert_close(leaf.grad, torch.zeros_like(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["scaling", "positive-scaling", "affine"])
def test_degenerate_rows_are_finite_in_a_graph(name):
    quotient = Quotient(GROUPS[name])
    x, y = positive(3, 7), positive(3, 7, seed=5)
    x[1] = 0.0
    for operation in (quotient.horizontal_component, quotient.exp, quotient.log, quotient.dist):
        assert torch.isfinite(torch.compile(operation, fullgraph=True, backend="aot_eager")(x, y)).all()
