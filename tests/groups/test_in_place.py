"""Putting points back on their section in place gives what the accurate closed forms give."""

import math

import pytest
import torch
from cases import randn
from torch.autograd import forward_ad

import manifoldid as mid
from manifoldid.groups import _in_place, _passes
from manifoldid.points import blocks_of, map_blocks

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
    form = group.settler()(y)
    if form is None:  # far from the section: the closed form is for it
        assert shift == 1000
        if len(shape) == 1:
            assert torch.equal(y, x.to(dtype))
        else:
            rounding = 4 * torch.finfo(dtype).eps * (1 + shift)
            torch.testing.assert_close(group.canonical(y.double()).point, wanted.point, rtol=0, atol=rounding)
        return
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
    size = group.settler()(x).xi[..., :1]
    torch.testing.assert_close(size.double(), wanted, rtol=0, atol=4 * torch.finfo(torch.float32).eps)
    torch.testing.assert_close(x.double().square().mean(-1), torch.ones(shape[:-1]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("items", [8, 100])
def test_points_without_a_representative_are_named_and_stay_finite(items):
    zero, constant = torch.zeros(2, items), torch.full((2, items), 0.3)
    for group, rows in ((mid.Scaling(), zero), (mid.Affine(), constant)):
        form = group.settler()(rows)
        assert not (group.canonical(rows) if form is None else form).regular.any()
    assert torch.isfinite(zero).all()
    assert torch.isfinite(constant).all()


@pytest.mark.parametrize("group", GROUPS[1:], ids=str)
def test_what_is_not_finite_does_not_go_unseen(group):
    x = torch.ones(100).index_fill_(0, torch.tensor([3]), float("nan"))
    assert group.settler()(x) is None
    assert group.settler()(torch.stack([x, torch.arange(100.0)])) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group", GROUPS[1:], ids=str)
def test_rows_whose_squares_lose_digits_are_left_to_the_closed_form(group, dtype):
    rows = torch.randn(2, 100, dtype=dtype, generator=torch.Generator().manual_seed(0))
    rows[0] *= torch.finfo(dtype).tiny ** 0.55
    wanted = group.canonical(rows).point
    assert group.settler()(rows) is None
    torch.testing.assert_close(group.canonical(rows).point, wanted)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
def test_rows_that_cannot_be_settled_stay_on_their_orbits(wrong):
    rows = torch.arange(200.0).view(2, 100)
    rows[0, 3] = wrong
    for group in GROUPS[1:]:
        x = rows.clone()
        assert group.settler()(x) is None
        actual, wanted = group.canonical(x).point, group.canonical(rows).point
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)
    group = mid.LocationScale(locations=("z", "y"), slopes=("q",))
    start = {"z": rows, "y": rows.flip(0), "q": torch.ones(2, 100)}
    x = {n: t.clone() for n, t in start.items()}
    assert group.settler()(x) is None
    assert all(torch.isfinite(t).sum() == torch.isfinite(start[n]).sum() for n, t in x.items())
    for n, t in group.canonical(x).point.items():
        torch.testing.assert_close(t[1], group.canonical(start).point[n][1], rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "weights", [None, {"z": torch.arange(100) % 3 + 0.0, "q": torch.ones(80)}], ids=["", "weights"]
)
def test_locations_scales_and_slopes_move_together(batch, dtype, weights):
    group = mid.LocationScale(locations=("z", "y"), scales=("s",), slopes=("q",))
    shapes = {"z": (100,), "y": (3, 4), "s": (7,), "q": (2, 40)}
    generator = torch.Generator().manual_seed(0)
    x = {n: torch.randn(*batch, *shape, generator=generator, dtype=dtype) + 0.1 for n, shape in shapes.items()}
    x = {n: t.exp() if n in "sq" else t for n, t in x.items()}
    if batch:  # what counts as a batch is what all blocks share
        x = {n: t.flatten(1) for n, t in x.items()}
    else:
        x = {n: t.flatten() for n, t in x.items()}
    wanted, settle = group.canonical({n: t.double() for n, t in x.items()}, weights), group.settler(weights)
    y = {n: t.clone() for n, t in x.items()}
    form = settle(y)
    tolerance = 40 * torch.finfo(dtype).eps
    for n, t in y.items():
        torch.testing.assert_close(t.double(), wanted.point[n], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(form.xi.double(), wanted.xi, rtol=tolerance, atol=tolerance)
    assert form.regular.shape == (*batch, 3)
    assert form.regular.all()
    for n, bad in (("z", 0.3), ("s", 0.0), ("q", float("nan"))):
        y = {**{m: t.clone() for m, t in x.items()}, n: torch.full_like(x[n], bad)}
        start = {m: t.clone() for m, t in y.items()}
        form = settle(y)
        if form is None:  # rows without a size are far from every section
            assert n == "z"
            before, after = (group.canonical(p, weights).point for p in (start, y))
            torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance)
            continue
        assert not form.regular[..., "zsq".index(n)].any()
        assert form.regular.sum() == 2 * form.regular[..., 0].numel()


LABELS = torch.tensor([5, 5, -1, 5, -1, -1, 7, 7, 7, 7])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 1.0, 1.0, 0.0, 2.0])
USERS = {"user": 1, "item": -1}
KEPT = {
    "Translation, weights": (mid.Translation(), {"": (10,)}, WEIGHTS),
    "Scaling, weights": (mid.Scaling(), {"": (10,)}, WEIGHTS),
    "Affine, weights": (mid.Affine(), {"": (10,)}, WEIGHTS),
    "Translation, blocks": (mid.Translation(LABELS), {"": (10,)}, None),
    "Scaling, blocks": (mid.Scaling(LABELS), {"": (10,)}, None),
    "Affine, blocks": (mid.Affine(LABELS), {"": (10,)}, None),
    "Affine, blocks in order": (mid.Affine(LABELS.sort().values), {"": (10,)}, None),
    "Affine, blocks in order and weights": (mid.Affine(LABELS.sort().values), {"": (10,)}, WEIGHTS),
    "Affine, blocks and weights": (mid.Affine(LABELS), {"": (10,)}, WEIGHTS),
    "Affine, common scale": (mid.Affine(LABELS, common_scale=True), {"": (10,)}, None),
    "Affine, common scale and weights": (mid.Affine(LABELS, common_scale=True), {"": (10,)}, WEIGHTS),
    "Translation, blocks in order": (mid.Translation(LABELS.sort().values), {"": (10,)}, None),
    "PositiveScaling": (mid.PositiveScaling(), {"": (10,)}, None),
    "PositiveScaling, weights": (mid.PositiveScaling(), {"": (10,)}, WEIGHTS),
    "PositiveScaling, blocks": (mid.PositiveScaling(LABELS), {"": (10,)}, None),
    "PositiveScaling, blocks and weights": (mid.PositiveScaling(LABELS), {"": (10,)}, WEIGHTS),
    "Shift, one direction": (mid.Shift(randn(1, 10)), {"": (10,)}, None),
    "Shift, three of matrices": (mid.Shift(randn(3, 5, 2)), {"": (5, 2)}, None),
    "Shift, weights": (mid.Shift(randn(2, 10)), {"": (10,)}, WEIGHTS + 0.1),
    "Shift, numbers": (mid.Shift(USERS), {"user": (4,), "item": (6,)}, None),
    "Shift, numbers and weights": (mid.Shift(USERS), {"user": (4,), "item": (6,)}, {"item": WEIGHTS[:6]}),
    "Shift, numbers and tensors": (
        mid.Shift([USERS, {"item": randn(6), "user": 2.0}]),
        {"user": (4,), "item": (6,)},
        None,
    ),
    "Shift, ones and tensors": (mid.Shift([USERS, {"item": randn(6)}]), {"user": (4,), "item": (6,)}, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("piece", [4, 25], ids=["some items", "two rows"])
@pytest.mark.parametrize("case", KEPT)
def test_what_knows_weights_labels_and_directions_gives_the_closed_form_at_every_call(
    case, piece, batch, dtype, monkeypatch
):
    monkeypatch.setattr(_passes, "_PIECE", piece)
    group, shapes, weights = KEPT[case]
    settle = group.settler(weights)
    for seed in (0, 5):
        apart = {n: 2 * (-1.0) ** torch.arange(torch.Size(shape).numel()).view(shape) for n, shape in shapes.items()}
        blocks = {n: randn(*batch, *t.shape, seed=seed + k) + t + 0.3 for k, (n, t) in enumerate(apart.items())}
        x = {n: (t.exp() if group.positive else t).to(dtype) for n, t in blocks.items()}
        x = x.get("", x)
        wanted = group.canonical(map_blocks(torch.Tensor.double, x), weights)
        form = settle(x)
        assert form.point is x
        tolerance = 50 * torch.finfo(dtype).eps  # ten items of size 1, and directions whose angles are not small
        for actual, expected in zip(blocks_of(x).values(), blocks_of(wanted.point).values(), strict=True):
            torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(form.xi.double(), wanted.xi, rtol=tolerance, atol=tolerance)
        assert form.regular is None or (form.regular.shape == wanted.regular.shape and bool(form.regular.all()))


@pytest.mark.parametrize("directions", [torch.ones(1, 200_003), randn(2, 200_003)], ids=["ones", "random"])
def test_long_directions_in_float32_are_taken_out_to_rounding(directions):
    x = (randn(200_003, seed=3) + 1).float()
    wanted = mid.Shift(directions).canonical(x.double())
    form = mid.Shift(directions).settler()(x)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(form.xi.double(), wanted.xi, rtol=0, atol=2 * eps)  # a sum of size 1, and its product
    torch.testing.assert_close(x.double(), wanted.point, rtol=0, atol=4 * eps * float(x.abs().max()))


FAR = {
    "one row": (mid.Scaling(), None),
    "one row, both": (mid.Affine(), None),
    "blocks": (mid.Scaling(LABELS), None),
    "blocks, both": (mid.Affine(LABELS), None),
    "weights": (mid.Affine(), WEIGHTS),
    "common scale": (mid.Affine(LABELS, common_scale=True), None),
    "positive": (mid.PositiveScaling(), None),
    "positive, blocks": (mid.PositiveScaling(LABELS), WEIGHTS),
}


@pytest.mark.parametrize("size", [1e-39, 1e-30, 1e-22, 1e22, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("case", FAR)
def test_points_far_from_the_section_are_left_to_the_closed_form(case, size):
    """Squares overflow or underflow there; before that is seen, a mean is taken out at most, and only one that is finite."""
    group, weights = FAR[case]
    x = (torch.arange(1.0, 11.0) ** 2 / 100).mul(size)
    y = x.clone()
    assert group.settler(weights)(y) is None
    if not math.isfinite(size):
        torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
        return
    rounding = 4 * float((torch.nextafter(x, 2 * x) - x).max() / x.abs().max())  # of numbers that are nearly no numbers
    actual, wanted = (group.canonical(t.double(), weights).point for t in (y, x))
    torch.testing.assert_close(actual, wanted, rtol=0, atol=rounding * float(wanted.abs().max()))


@pytest.mark.parametrize("case", KEPT)
def test_nothing_is_written_where_an_entry_is_not_finite(case):
    group, shapes, weights = KEPT[case]
    x = {n: randn(*shape).abs() + 1 for n, shape in shapes.items()}
    next(iter(x.values())).view(-1)[1] = float("nan")
    before = {n: t.clone() for n, t in x.items()}
    assert group.settler(weights)(x.get("", x)) is None
    for name, t in x.items():
        torch.testing.assert_close(t, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf")])
def test_entries_that_are_not_positive_are_left_to_the_closed_form(bad):
    x = torch.arange(1.0, 11.0).index_fill_(0, torch.tensor([3]), bad)
    for weights in (None, WEIGHTS):  # the weight of that entry is 0
        assert mid.PositiveScaling(LABELS).settler(weights)(x.clone()) is None


def test_what_settlers_refuse():
    x = torch.tensor([1.0, 1.0, 2.0, 1.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0])  # block 5 is constant
    assert mid.Affine(LABELS).settler()(x.clone()) is None
    with pytest.raises(ValueError, match="all zero in block 5"):
        mid.Affine(LABELS).settler(WEIGHTS * (LABELS != 5))(x.clone())
    with pytest.raises(ValueError, match="linearly dependent"):
        mid.Shift(torch.ones(2, 10)).settler()(x.clone())


def test_blocks_of_different_dtypes_are_shifted_together():
    wide = {"user": randn(4), "item": randn(6, seed=1)}
    x = {"user": wide["user"].float(), "item": wide["item"].clone()}
    form = mid.Shift(USERS).settler()(x)
    wanted = mid.Shift(USERS).canonical(wide)
    for name, t in form.point.items():
        assert t.dtype == (torch.float32 if name == "user" else torch.float64)
        torch.testing.assert_close(t.double(), wanted.point[name], rtol=0, atol=4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("weights", [None, {"z": torch.tensor([1.0, 2.0, 0.0, 1.0])}], ids=["", "weights"])
@pytest.mark.parametrize(
    "z",
    [
        [[9.0, 10.0, 11.0, 12.0]],
        [[9.0, 10.0, 11.0, 12.0], [-0.5, 1.0, -1.0, 1.0]],
        [[1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3]] * 2,
    ],
    ids=["one row", "one of two rows", "both rows"],
)
def test_all_locations_stay_on_one_orbit_where_the_first_is_far_from_the_section(z, weights):
    group = mid.LocationScale(("z", "y"), slopes=("q",))
    x = {"z": torch.tensor(z), "y": torch.tensor([[10.0, 11.0]] * len(z)), "q": torch.ones(len(z), 1)}
    y = {n: t.clone() for n, t in x.items()}
    form = group.settler(weights)(y)
    rounding = 8 * torch.finfo(torch.float32).eps * float(x["z"].abs().max())
    wanted = group.canonical({n: t.double() for n, t in x.items()}, weights).point
    found = group.canonical({n: t.double() for n, t in y.items()}, weights).point if form is None else y
    for n, t in found.items():
        torch.testing.assert_close(t.double(), wanted[n], rtol=rounding, atol=rounding)


def test_far_rows_of_locations_are_left_to_the_closed_form():
    group = mid.LocationScale(("z",))
    x = {"z": torch.randn(2, 100, generator=torch.Generator().manual_seed(0)) + 1e5}
    assert group.settler()(x) is None


def test_weights_and_labels_are_looked_at_once_however_many_rows_there_are(monkeypatch):
    group = mid.Affine(LABELS)
    settle = group.settler(WEIGHTS)
    points = [randn(rows, 10, seed=rows) + 2 * (-1.0) ** torch.arange(10) for rows in (1, 3, 2, 1)]
    wanted = [group.canonical(x, WEIGHTS).point for x in points]
    settle(points[0])
    monkeypatch.delattr(_passes.Measure, "__init__")
    for x, point in zip(points[1:], wanted[1:], strict=True):
        torch.testing.assert_close(settle(x).point, point)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_in_order_have_forward_derivatives(dtype):
    section = mid.Section(mid.Affine(torch.tensor([0, 0, 1, 1, 1, 2, 2])))
    x, v = randn(7).to(dtype), randn(7, seed=1).to(dtype)
    with forward_ad.dual_level():
        value, derivative = forward_ad.unpack_dual(section(forward_ad.make_dual(x, v)))
    _, wanted = torch.func.jvp(section, (x,), (v,))
    torch.testing.assert_close(value, section(x))
    torch.testing.assert_close(derivative, wanted)
