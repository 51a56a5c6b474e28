"""Putting points back on their section in place gives what the accurate closed forms give."""

import pytest
import torch

import manifoldid as mid
from manifoldid.groups import _in_place

SHAPES = [(5,), (3, 7), (2, 1, 40), (100,), (2, 100)]
GROUPS = [mid.Translation(), mid.Scaling(), mid.Affine()]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Pieces of 32 numbers, sums of squares of 8: the shapes above are cut as 1e7 numbers are."""
    for name, size in {"_PIECE": 32, "_LONG": 16, "_STAGE": 8}.items():
        monkeypatch.setattr(_in_place, name, size)


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


@pytest.mark.parametrize("group", GROUPS[1:], ids=str)
@pytest.mark.parametrize("shape", [(1_000_003,), (2, 200_003)], ids=str)
def test_the_size_of_long_rows_in_float32_is_right_to_rounding(group, shape, monkeypatch):
    """One float32 sum of 1e6 squares is wrong by 1e-5."""
    monkeypatch.undo()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    wanted = group.canonical(x.double()).xi[..., :1]
    size = group.settle(x).xi[..., :1]
    torch.testing.assert_close(size.double(), wanted, rtol=0, atol=4 * torch.finfo(torch.float32).eps)
    torch.testing.assert_close(x.double().square().mean(-1), torch.ones(shape[:-1]).double(), rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_locations_scales_and_slopes_move_together(batch, dtype):
    group = mid.LocationScale(locations=("z", "y"), scales=("s",), slopes=("q",))
    shapes = {"z": (100,), "y": (3, 4), "s": (7,), "q": (2, 40)}
    generator = torch.Generator().manual_seed(0)
    x = {n: torch.randn(*batch, *shape, generator=generator, dtype=dtype) + 0.1 for n, shape in shapes.items()}
    x = {n: t.exp() if n in "sq" else t for n, t in x.items()}
    if batch:  # what counts as a batch is what all blocks share
        x = {n: t.flatten(1) for n, t in x.items()}
    else:
        x = {n: t.flatten() for n, t in x.items()}
    wanted = group.canonical({n: t.double() for n, t in x.items()})
    y = {n: t.clone() for n, t in x.items()}
    form = group.settle(y)
    tolerance = 40 * torch.finfo(dtype).eps
    for n, t in y.items():
        torch.testing.assert_close(t.double(), wanted.point[n], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(form.xi.double(), wanted.xi, rtol=tolerance, atol=tolerance)
    assert form.regular.shape == (*batch, 3)
    assert form.regular.all()
    for n, bad in (("z", 0.3), ("s", 0.0), ("q", float("nan"))):
        form = group.settle({**{m: t.clone() for m, t in x.items()}, n: torch.full_like(x[n], bad)})
        assert not form.regular[..., "zsq".index(n)].any()
        assert form.regular.sum() == 2 * form.regular[..., 0].numel()
