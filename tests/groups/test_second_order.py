"""What a second-order method asks of a retraction: derivatives at the zero vector, where angles and norms vanish."""

import pytest
import torch
from cases import CASES

from manifoldid.points import flatten, unflatten


@pytest.mark.parametrize("name", CASES)
def test_a_retraction_has_two_finite_derivatives_at_zero(name):
    group, x = CASES[name].group, CASES[name].sample
    if (isinstance(x, torch.Tensor) and x.is_complex()) or (not isinstance(x, torch.Tensor) and not x):
        pytest.skip("real points only")
    x = group.canonical(x, None).point
    geometry = group.geometry(None)
    leaf = torch.zeros_like(flatten(x)).requires_grad_()
    value = flatten(geometry.retract(x, unflatten(leaf, x)))
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=value.dtype)
    (slope,) = torch.autograd.grad((weights * value).sum(), leaf, create_graph=True)
    direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(1), dtype=slope.dtype)
    assert torch.isfinite(slope).all()
    if slope.requires_grad:  # else the retraction is a sum, as under translations
        assert torch.isfinite(torch.autograd.grad((slope * direction).sum(), leaf)[0]).all()
