"""Putting points back on their section in place gives what the accurate closed forms give."""

import pytest
import torch

import manifoldid as mid
from manifoldid.groups import _in_place

SHAPES = [(5,), (3, 7), (2, 1, 40), (100,), (2, 100)]
GROUPS = [mid.Translation(), mid.Scaling(), mid.Affine()]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Pieces of 64 and 16 numbers: the shapes above are cut as 1e7 numbers are."""
    monkeypatch.setattr(_in_place, "_ROW_PIECE", 64)
    monkeypatch.setattr(_in_place, "_PIECE", 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 0.1, 1000.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_the_point_and_its_frame_are_those_of_the_closed_form(group, shape, shift, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.1 + shift
    wanted = group.canonical(x.to(dtype).double())
    y = x.to(dtype)
    form = group.settle(y)
    assert form.point is y
    # Sums of n numbers of size |shift| + 1, of which differences are taken.
    tolerance = 4 * shape[-1] ** 0.5 * torch.finfo(dtype).eps * (1 + shift)
    torch.testing.assert_close(y.double(), wanted.point, rtol=0, atol=tolerance)
    torch.testing.assert_close(form.xi.double(), wanted.xi, rtol=tolerance, atol=tolerance)
    assert form.regular is None or bool(form.regular.all())


@pytest.mark.parametrize("items", [8, 100])
def test_points_without_a_representative_are_named_and_stay_finite(items):
    zero, constant = torch.zeros(2, items), torch.full((2, items), 0.3)
    assert not mid.Scaling().settle(zero).regular.any()
    assert not mid.Affine().settle(constant).regular.any()
    assert torch.isfinite(zero).all()
    assert torch.isfinite(constant).all()


@pytest.mark.parametrize("group", GROUPS[1:], ids=str)
def test_what_is_not_finite_does_not_go_unseen(group):
    x = torch.ones(100).index_fill_(0, torch.tensor([3]), float("nan"))
    form = group.settle(x)
    assert not (torch.isfinite(form.xi).all() and form.regular.all())
