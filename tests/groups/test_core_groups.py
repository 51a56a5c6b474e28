import copy
import pickle

import pytest
import torch
from cases import BATCHES, ITEMS, LABELS, Case, positive
from cases import CORE as CASES
from cases import randn as random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import manifoldid as mid
from manifoldid.groups import GaugeGroup
from manifoldid.groups.orbit import flatten_basis
from manifoldid.points import blocks_of, detached, first, flat_weights, flatten, map_blocks

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
each_batch = pytest.mark.parametrize("batch", BATCHES, ids=str)
ON_ITEMS = {name: case for name, case in CASES.items() if isinstance(case.point(), Tensor) and "shift" not in name}
each_item_case = pytest.mark.parametrize("case", ON_ITEMS.values(), ids=ON_ITEMS.keys())


def close(a, b, atol: float = 1e-11) -> None:
    """Points, equal up to rounding of numbers of size 1 to 10."""
    a, b = blocks_of(a), blocks_of(b)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------------------- the action


@each_case
@each_batch
def test_moves_are_a_group_action(case: Case, batch):
    group, x = case.group, case.point(*batch)
    xi = case.move(x)
    close(group.act(torch.zeros_like(xi), x), x, atol=0)
    close(group.undo(xi, group.act(xi, x)), x)
    close(group.act(xi, group.undo(xi, x)), x)
    for k in range(xi.shape[-1]):  # every coordinate is a one-parameter subgroup
        along = torch.zeros_like(xi)
        along[..., k] = 0.7
        close(group.act(along, group.act(0.5 * along, x)), group.act(1.5 * along, x))


@each_case
@each_batch
def test_vertical_basis_is_the_derivative_of_the_action(case: Case, batch):
    x = case.point(*batch)
    close(case.group.vertical_basis(x), GaugeGroup.vertical_basis(case.group, x))
    assert len(case.group.generator_names(x)) == case.group.dimension(x)


@each_case
def test_undo_agrees_with_the_default_that_knows_only_the_action(case: Case):
    x = case.point(2)
    xi = case.move(x)
    close(case.group.undo(xi, x), GaugeGroup.undo(case.group, xi, x), atol=1e-9)


# ---------------------------------------------------------------------------------------------------- representatives


@each_case
@each_batch
@pytest.mark.parametrize("weighted", [False, True])
def test_canonical_representative_is_constant_on_orbits(case: Case, batch, weighted):
    group, x, weights = case.group, case.point(*batch), case.weights if weighted else None
    form = group.canonical(x, weights)
    close(group.canonical(group.act(case.move(x), x), weights).point, form.point)
    close(group.act(form.xi, form.point), x)
    again = group.canonical(form.point, weights)
    close(again.point, form.point)
    torch.testing.assert_close(again.xi, torch.zeros_like(again.xi), rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(ON_ITEMS)),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.floats(-100, 100),
)
def test_canonical_representative_does_not_see_moves_of_any_size(name, seed, size, shift):
    case = ON_ITEMS[name]
    x = case.point(2, seed=seed) * size
    xi = case.move(x, seed=seed + 1, size=1 + abs(shift) / 50)
    moved = case.group.act(xi, x)
    # rounding of the moved point, in units of the smallest spread within a block
    labels = torch.zeros(ITEMS) if case.group.blocks is None else case.group.blocks
    spread = torch.stack([moved[..., labels == label].std(-1) for label in labels.unique()])
    lost = 1 + float(moved.abs().max() / spread.min())
    y = case.group.canonical(x).point
    close(case.group.canonical(moved).point, y, atol=64 * torch.finfo(torch.float64).eps * lost * float(y.abs().max()))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 2, 1, 0, 1, 0.5, 3, 1, 1])], ids=["equal", "with zeros"])
def test_canonical_representatives_are_the_documented_ones(weights):
    x = CASES["affine"].point(4)
    w = torch.ones(ITEMS) if weights is None else weights
    w = w.double()

    def mean(y, items=slice(None)):
        return (w[items] * y[..., items]).sum(-1) / w[items].sum()

    def assert_is(value, wanted):
        torch.testing.assert_close(value, torch.full_like(value, wanted), rtol=0, atol=1e-12)

    section = {
        kind: mid.Section(kind(blocks=blocks), weights)
        for kind in (mid.Translation, mid.Scaling, mid.PositiveScaling, mid.Affine)
        for blocks in (None,)
    }
    assert_is(mean(section[mid.Translation](x)), 0)
    assert_is(mean(section[mid.Scaling](x) ** 2), 1)
    assert_is(mean(section[mid.PositiveScaling](x.exp()).log()), 0)
    assert_is(mean(section[mid.Affine](x)), 0)
    assert_is(mean(section[mid.Affine](x) ** 2), 1)
    common = mid.Section(mid.Affine(blocks=LABELS, common_scale=True), weights)(x)
    assert_is(mean(common**2), 1)
    for label in LABELS.unique():
        items = label == LABELS
        assert_is(mean(mid.Section(mid.Translation(blocks=LABELS), weights)(x), items), 0)
        assert_is(mean(mid.Section(mid.Scaling(blocks=LABELS), weights)(x) ** 2, items), 1)
        assert_is(mean(mid.Section(mid.PositiveScaling(blocks=LABELS), weights)(x.exp()).log(), items), 0)
        y = mid.Section(mid.Affine(blocks=LABELS), weights)(x)
        assert_is(mean(y, items), 0)
        assert_is(mean(y**2, items), 1)
        assert_is(mean(common, items), 0)


@pytest.mark.parametrize("name", [name for name in CASES if "shift" in name or name.startswith("translation")])
@pytest.mark.parametrize("weighted", [False, True])
def test_least_norm_representative_agrees_with_the_default_that_knows_only_the_action(name, weighted):
    case = CASES[name]
    x, weights = case.point(3), case.weights if weighted else None
    form, default = case.group.canonical(x, weights), GaugeGroup.canonical(case.group, x, weights)
    close(form.point, default.point, atol=1e-10)
    torch.testing.assert_close(form.xi, default.xi, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in CASES if not name.startswith("positive") and name not in ("product", "trivial")]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_closest_representative_agrees_with_the_default_that_knows_only_the_action(name, weighted):
    case = CASES[name]
    x, weights = case.point(3), case.weights if weighted else None
    to = map_blocks(lambda s, t: s + 0.3 * t, x, case.point(3, seed=4))
    form, default = case.group.closest(x, to, weights), GaugeGroup.closest(case.group, x, to, weights)
    close(form.point, default.point, atol=1e-9)
    torch.testing.assert_close(form.xi, default.xi, rtol=0, atol=1e-9)
    close(case.group.act(form.xi, form.point), x)


def test_closest_positive_representative_minimises_the_distance_of_logarithms():
    case = CASES["positive-scaling-blocks"]
    x, to = case.point(3), case.point(3, seed=4)
    form = case.group.closest(x, to, case.weights)
    shifted = mid.Translation(blocks=LABELS).closest(x.log(), to.log(), case.weights)
    close(form.point.log(), shifted.point)
    torch.testing.assert_close(form.xi, shifted.xi)


def test_items_without_weight_move_along_but_do_not_define_the_origin():
    weights = torch.ones(ITEMS).double()
    weights[[0, 4]] = 0
    x = CASES["affine"].point()
    changed = x.clone()
    changed[0] += 100
    for group in (mid.Translation(), mid.Affine(), mid.Scaling(), mid.Translation(blocks=LABELS)):
        section = mid.Section(group, weights)
        torch.testing.assert_close(section(changed)[1:], section(x)[1:], rtol=0, atol=1e-12)
        assert (section(changed)[0] - section(x)[0]).abs() > 1


# -------------------------------------------------------------------------------------------------------- batches


@each_case
@pytest.mark.parametrize("weighted", [False, True])
def test_every_row_of_a_batch_is_a_point_of_its_own(case: Case, weighted):
    x, weights = case.point(2, 3), case.weights if weighted else None
    form = case.group.canonical(x, weights)
    xi = case.move(x)
    moved = case.group.act(xi, x)
    for i, j in ((0, 0), (1, 2)):
        row = map_blocks(lambda t: t[i, j], x)  # noqa: B023
        alone = case.group.canonical(row, weights)
        close(map_blocks(lambda t: t[i, j], form.point), alone.point)  # noqa: B023
        if xi.shape[-1]:
            torch.testing.assert_close(form.xi[i, j], alone.xi, rtol=0, atol=1e-12)
            close(map_blocks(lambda t: t[i, j], moved), case.group.act(xi[i, j], row))  # noqa: B023


@pytest.mark.parametrize("name", [name for name in ON_ITEMS if "blocks" in name])
def test_labels_are_ordered_by_value_in_the_coordinates(name):
    case = ON_ITEMS[name]
    assert case.group.block_labels == [-2, 7, 40]
    x = case.point()
    xi = torch.zeros(case.group.dimension(x), dtype=torch.float64)
    xi[-1] = 1.0  # the last coordinate moves the items with the largest label
    changed = (case.group.act(xi, x) != x).nonzero()[:, 0].tolist()
    assert changed == (LABELS == 40).nonzero()[:, 0].tolist()


# --------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("mean", "spread"), [(1e3, 1.0), (0.0, 1e-4), (1.0, 1e-4), (1e3, 1e6), (0.0, 1e-30), (0.0, 1e18)]
)
@pytest.mark.parametrize("name", [name for name in ON_ITEMS if not name.startswith("positive")])
def test_float32_sections_have_float32_accuracy(name, mean, spread):
    """Against float64 on the same numbers: after centring, only a few roundings of the result are left."""
    group = ON_ITEMS[name].group
    x = (mean + spread * random(5, ITEMS)).float()
    exact, y = mid.Section(group)(x.double()), mid.Section(group)(x)
    assert y.dtype == torch.float32
    scale = exact.abs().max()
    assert (y - exact).abs().max() <= 8 * torch.finfo(torch.float32).eps * scale


@pytest.mark.parametrize(("mean", "spread"), [(1e3, 1.0), (1.0, 1e-4)])
@pytest.mark.parametrize("name", [name for name in CASES if "shift" in name])
def test_float32_points_far_from_the_section_of_a_shift_keep_float32_accuracy(name, mean, spread):
    case = CASES[name]
    x = case.group.act(mean * case.move(case.point(5)), map_blocks(lambda t: spread * t, case.point(5)))
    x = map_blocks(Tensor.float, x)
    for weights in (None, case.weights):
        section = mid.Section(case.group, weights)
        exact, y = section(map_blocks(Tensor.double, x)), section(x)
        scale = max(float(t.abs().max()) for t in blocks_of(exact).values())
        assert all(t.dtype == torch.float32 for t in blocks_of(y).values())
        for name, t in blocks_of(y).items():
            assert (t - blocks_of(exact)[name]).abs().max() <= 8 * torch.finfo(torch.float32).eps * scale


@pytest.mark.parametrize("size", [1e3, 1e-4, 1e30])
@pytest.mark.parametrize("name", ["positive-scaling", "positive-scaling-blocks"])
def test_float32_positive_sections_have_the_accuracy_of_their_logarithms(name, size):
    x = (size * positive(5, ITEMS)).float()
    section = mid.Section(ON_ITEMS[name].group)
    relative = (section(x) / section(x.double()) - 1).abs().max()
    assert relative <= 4 * torch.finfo(torch.float32).eps * max(1.0, abs(float(x.log().abs().max())))


def test_the_mean_of_a_million_float32_items_has_float32_accuracy():
    x = (1e3 + random(10**6)).float()
    blocks = torch.zeros(10**6, dtype=torch.long)
    for group in (mid.Affine(), mid.Affine(blocks=blocks)):
        y, exact = mid.Section(group)(x), mid.Section(group)(x.double())
        assert (y - exact).abs().max() <= 16 * torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_item_case
def test_half_precision_is_computed_in_float32_and_returned_in_its_dtype(case: Case, dtype):
    x = case.point(3).to(dtype)
    section = mid.Section(case.group, case.weights)
    assert section(x).dtype == section.frame(x).dtype == dtype
    assert torch.equal(section(x), section(x.float()).to(dtype))
    assert torch.equal(section.frame(x), section.frame(x.float()).to(dtype))


def test_half_precision_survives_numbers_whose_squares_overflow():
    x = torch.tensor([6e4, -6e4, 3e4, 0], dtype=torch.float16)
    for group in (mid.Scaling(), mid.Affine()):
        assert torch.isfinite(mid.Section(group)(x)).all()


# ------------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.slow
@each_case
def test_sections_and_frames_are_differentiable(case: Case):
    x = case.point(2)
    leaves = [t.clone().requires_grad_() for t in blocks_of(x).values()]

    def both(*tensors):
        point = tensors[0] if isinstance(x, Tensor) else dict(zip(x, tensors, strict=True))
        form = case.group.canonical(point, case.weights)
        return (*blocks_of(form.point).values(), form.xi)

    assert torch.autograd.gradcheck(both, leaves)


@pytest.mark.parametrize("name", ["affine-blocks", "affine-common-scale", "positive-scaling", "scaling"])
def test_sections_are_twice_differentiable(name):
    case = CASES[name]
    x = case.point().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: case.group.canonical(t, case.weights).point, (x,))


@each_item_case
def test_vmap_gives_the_rows_of_a_batch(case: Case):
    x = case.point(4)
    section = mid.Section(case.group, case.weights)
    close(torch.func.vmap(section)(x), section(x))
    close(torch.func.vmap(section.frame)(x), section.frame(x))
    one = torch.func.vmap(torch.func.jacrev(section))(x)
    close(one, torch.stack([torch.func.jacrev(section)(row) for row in x]))


@pytest.mark.parametrize(
    ("group", "bad"),
    [
        (mid.Scaling(), torch.zeros(4)),
        (mid.Affine(), torch.full((4,), 3.0)),
        (mid.PositiveScaling(), torch.tensor([1.0, -1, 2, 3])),
        (mid.PositiveScaling(), torch.tensor([1.0, 0, 2, 3])),
    ],
)
def test_a_degenerate_row_is_zero_where_values_cannot_be_looked_at(group, bad):
    x = torch.stack([positive(4), bad.double(), positive(4, seed=1)])
    section = mid.Section(group)

    def loss_and_slope(row):
        return torch.func.grad_and_value(lambda t: section(t).square().sum())(row)

    y = torch.func.vmap(section)(x)
    assert torch.equal(y[1], torch.zeros(4).double())
    close(y[[0, 2]], section(x[[0, 2]]))
    slope, value = torch.func.vmap(loss_and_slope)(x)
    assert torch.isfinite(slope).all()
    assert torch.isfinite(value).all()


# ---------------------------------------------------------------------------------------------------- nothing is written


@each_case
def test_nothing_of_the_caller_is_overwritten(case: Case):
    x = case.point(3)
    kept, weights = copy.deepcopy(x), copy.deepcopy(case.weights)
    xi = case.move(x)
    moves = xi.clone()
    case.group.canonical(x, case.weights)
    case.group.closest(x, map_blocks(torch.clone, x), case.weights)
    case.group.act(xi, x)
    case.group.undo(xi, x)
    close(x, kept, atol=0)
    assert torch.equal(xi, moves)
    if case.weights is not None:
        close(case.weights, weights, atol=0)


@each_item_case
def test_results_do_not_share_memory_with_the_point(case: Case):
    x = case.point(3)
    kept = x.clone()
    y = mid.Section(case.group)(x)
    y += 1
    assert torch.equal(x, kept)


@each_item_case
def test_any_strides_and_requires_grad_give_the_same_numbers(case: Case):
    x = case.point(3)
    section = mid.Section(case.group, case.weights)
    wanted = section(x)
    close(section(x.mT.contiguous().mT), wanted)
    close(section(x.repeat_interleave(2, -1)[..., ::2]), wanted)
    assert torch.equal(section(torch.nn.Parameter(x)), wanted)
    with torch.no_grad():
        assert not section(torch.nn.Parameter(x)).requires_grad


# ------------------------------------------------------------------------------------------------------- degenerate points


@pytest.mark.parametrize(
    ("group", "bad", "reason"),
    [
        (mid.Scaling(), torch.zeros(5), "zero vector"),
        (mid.Affine(), torch.full((5,), 3.0), "constant up to rounding"),
        (mid.Affine(), torch.full((5,), 0.1), "constant up to rounding"),
        (mid.PositiveScaling(), torch.tensor([1.0, 2, 0, 3, 4]), "not positive"),
        (mid.PositiveScaling(), torch.tensor([1.0, 2, -1, 3, 4]), "not positive"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_degenerate_points_are_named_by_batch_index(group, bad, reason, dtype):
    x = positive(2, 6, 5).to(dtype)
    x[1, 2:] = bad.to(dtype)
    with pytest.raises(
        mid.DegeneratePointError, match=rf"`point` at batch index \(1, 2\), \(1, 3\), \(1, 4\) \(1 more\) .*{reason}"
    ):
        mid.Section(group)(x)
    with pytest.raises(mid.DegeneratePointError, match=rf"`point` at batch index 3 .*{reason}"):
        mid.Section(group)(x[:, 3].flip(0).repeat_interleave(2, 0)[[2, 2, 2, 0]])
    with pytest.raises(ValueError, match=rf"`point` (is|has) .*{reason}"):
        mid.Section(group)(bad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_spread_of_rounding_is_no_unit(dtype):
    """A constant that went through a computation: one entry in a hundred is off by one unit in the last place."""
    for value in (0.1, 1e3 + 0.1, 1e-30):
        x = torch.full((100,), value, dtype=dtype)
        weights = (1 + torch.arange(100)).double()
        for w in (None, weights):
            for y in (x, torch.cat([x[:99], torch.nextafter(x[99:], x[99:] * 2)])):
                with pytest.raises(mid.DegeneratePointError, match="constant up to rounding"):
                    mid.Section(mid.Affine(), w)(y)
    many = torch.full((100,), 0.1, dtype=dtype)
    many[::2] = torch.nextafter(many[::2], many[::2] * 8) * (1 + 8 * torch.finfo(dtype).eps)
    assert torch.isfinite(mid.Section(mid.Affine())(many)).all()


@pytest.mark.parametrize(
    "group", [mid.Scaling(blocks=LABELS), mid.Affine(blocks=LABELS), mid.PositiveScaling(blocks=LABELS)]
)
def test_degenerate_blocks_are_named(group):
    x = positive(3, ITEMS)
    x[2, LABELS == 7] = 0
    with pytest.raises(mid.DegeneratePointError, match="`point` at batch index 2 in block 7 "):
        mid.Section(group)(x)


def test_degenerate_blocks_of_a_product_are_named():
    group = mid.Product(skill=mid.Affine(), scale=mid.Scaling(blocks=torch.tensor([4, 4, 9, 9])))
    x = {"skill": random(3), "scale": torch.tensor([1.0, 2, 0, 0]).double()}
    with pytest.raises(mid.DegeneratePointError, match="`point` in block 'scale', block 9 is a zero vector"):
        mid.Section(group)(x)
    with pytest.raises(mid.DegeneratePointError, match="`point` in block 'skill' is constant"):
        mid.Section(group)({"skill": torch.ones(3).double(), "scale": torch.ones(4).double()})


@pytest.mark.parametrize(
    ("group", "x", "hint"),
    [
        (mid.Translation(), torch.zeros(5, 1), "; did you mean over='batch'"),
        (mid.Scaling(), torch.ones(1), "; did you mean over='batch'"),
        (mid.Affine(), torch.tensor([[0.0, 1.0]]), "; did you mean over='batch'"),
        (mid.Translation(blocks=torch.tensor([0, 1, 2])), torch.ones(3), ": every block has one item$"),
        (mid.Shift(torch.eye(3)), torch.ones(3), "$"),
        (mid.Affine(blocks=torch.tensor([0, 0, 1, 1])), torch.tensor([0.0, 1, 0, 1]), ": no block has enough items$"),
    ],
)
def test_a_quotient_of_dimension_zero_is_refused(group, x, hint):
    with pytest.raises(mid.DegeneratePointError, match="nothing identifiable is left" + hint):
        mid.Section(group)(x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [name for name in CASES if name != "trivial"])
def test_non_finite_points_are_refused(name, value):
    case = CASES[name]
    x = case.point(2)
    block = blocks_of(x)[(case.group.block_names or ("",))[0]]
    block[(0,) * block.ndim] = value
    with pytest.raises(ValueError, match="`point` must be finite"):
        mid.Section(case.group)(x)


# ------------------------------------------------------------------------------------------------------ shapes and names


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mid.Translation(blocks=torch.tensor([0.0, 1.0])), TypeError, "`blocks` must be integer labels"),
        (lambda: mid.Translation(blocks=["A", "B"]), TypeError, "pandas.factorize"),
        (
            lambda: mid.Affine(blocks=torch.zeros(2, 2, dtype=torch.long)),
            ValueError,
            r"`blocks` must have shape \(n,\)",
        ),
        (lambda: mid.Shift(3), TypeError, "`directions` must be a tensor"),
        (lambda: mid.Shift({}), TypeError, "`directions` must be a tensor"),
        (lambda: mid.Shift({"a": "1"}), TypeError, "`directions` of block 'a' must be a tensor or a number, got str"),
        (lambda: mid.Shift(torch.ones(2, 3, dtype=torch.long)), ValueError, "`directions` must be a floating tensor"),
        (lambda: mid.Product(a=mid.Translation), TypeError, "did you forget the parentheses"),
        (lambda: mid.Product(mid.Translation()), TypeError, "needs the block of .* by name"),
        (lambda: mid.Product(a=mid.Shift({"b": 1})), TypeError, "names its own blocks, without a name"),
        (
            lambda: mid.Product(mid.Shift({"a": 1, "b": 1}), a=mid.Affine()),
            ValueError,
            r"two groups on the block\(s\) \['a'\]",
        ),
    ],
)
def test_wrong_arguments_of_groups_are_named(annotations_unchecked, make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("group", "x", "error", "message"),
    [
        (mid.Translation(), [1.0, 2.0], TypeError, "`point` must be a tensor or a dict of tensors, got list"),
        (
            mid.Translation(),
            torch.ones(3, dtype=torch.long),
            TypeError,
            "`point` must be a floating tensor, got dtype torch.int64",
        ),
        (mid.Translation(), torch.tensor(1.0), ValueError, r"`point` must have at least 1 dimension.* got shape \(\)"),
        (
            mid.Translation(),
            {"a": torch.ones(3)},
            ValueError,
            r"say which block it acts on: as a group mid.Product\(a=Translation\(\)\)",
        ),
        (
            mid.Affine(blocks=torch.tensor([0, 0, 1, 1])),
            torch.ones(5),
            ValueError,
            "`blocks` has 4 labels and `point` has 5 items",
        ),
        (
            mid.Shift(torch.ones(1, 3)),
            torch.ones(4),
            ValueError,
            r"`point` must end in the shape \(3,\) of the directions",
        ),
        (mid.Shift({"a": 1, "b": 1}), torch.ones(4), ValueError, "`point` must be a dict with the blocks a, b"),
        (
            mid.Shift({"a": 1, "b": 1}),
            {"a": torch.ones(4), "c": torch.ones(2)},
            ValueError,
            "`point` lacks the blocks b .* it has",
        ),
        (
            mid.Shift({"a": torch.ones(3)}),
            {"a": torch.ones(4)},
            ValueError,
            r"`point\['a'\]` must end in the shape \(3,\)",
        ),
        (mid.Product(a=mid.Affine()), torch.ones(4), ValueError, "`point` must be a dict with the blocks a"),
        (
            mid.Product(a=mid.Affine()),
            {"b": torch.ones(4)},
            ValueError,
            r"`point` lacks the blocks \['a'\] .* it has \['b'\]",
        ),
        (
            mid.Product(a=mid.Affine(), b=mid.Affine()),
            {"a": random(2, 4), "b": random(4)},
            ValueError,
            "different numbers of batch dimensions",
        ),
    ],
)
def test_points_that_do_not_fit_are_named(annotations_unchecked, group, x, error, message):
    with pytest.raises(error, match=message):
        mid.Section(group)(x)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(4), r"`weights` must have shape \(9,\), one weight per item, got \(4,\)"),
        (torch.tensor([1.0] * 8 + [-1]), "`weights` must be finite and not negative"),
        (torch.tensor([1.0] * 8 + [float("nan")]), "`weights` must be finite and not negative"),
        (torch.zeros(9), "`weights` are all zero"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights, message):
    for group in (mid.Translation(), mid.Affine(blocks=LABELS), mid.Shift(random(1, 9))):
        with pytest.raises(ValueError, match=message):
            mid.Section(group, weights)(random(9))


def test_a_block_without_weight_is_named():
    with pytest.raises(ValueError, match="`weights` are all zero in block 7"):
        mid.Section(mid.Translation(blocks=LABELS), (LABELS != 7).double())(random(9))


def test_dependent_directions_are_refused():
    with pytest.raises(ValueError, match="`directions` leave the 2 directions of Shift linearly dependent"):
        mid.Section(mid.Shift(torch.ones(2, 4)))(torch.ones(4))
    rows = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]])
    with pytest.raises(ValueError, match="`weights` leave the 2 directions of Shift linearly dependent"):
        mid.Section(mid.Shift(rows), torch.tensor([1.0, 1, 1, 0]))(torch.ones(4))


# ------------------------------------------------------------------------------------------------------------ values


@each_case
def test_groups_are_values(case: Case):
    group = case.group
    again = pickle.loads(pickle.dumps(group))
    assert again == group
    assert hash(again) == hash(group)
    assert copy.deepcopy(group) == group
    namespace = {"torch": torch, **vars(mid)}
    assert eval(repr(group), namespace) == group
    with pytest.raises((AttributeError, TypeError)):
        group.blocks = None


def test_groups_differ_by_their_arguments():
    different = [
        mid.Translation(),
        mid.Scaling(),
        mid.Affine(),
        mid.Affine(blocks=torch.tensor([0, 0, 1])),
        mid.Affine(blocks=torch.tensor([0, 1, 1])),
        mid.Affine(blocks=torch.tensor([0, 0, 1]), common_scale=True),
        mid.Shift({"a": 1}),
        mid.Shift({"a": 2}),
        mid.Product(),
        mid.Product(a=mid.Affine()),
        mid.Product(b=mid.Affine()),
        mid.Product(mid.Shift({"a": 1})),
    ]
    for i, a in enumerate(different):
        assert [a == b for b in different] == [i == j for j in range(len(different))]


def test_labels_that_the_caller_changes_later_do_not_change_the_group():
    labels, directions = LABELS.clone(), random(1, 9)
    groups = mid.Translation(blocks=labels), mid.Shift(directions)
    before = [mid.Section(group)(random(9)) for group in groups]
    labels[:] = 0
    directions[:] = 1
    for group, y in zip(groups, before, strict=True):
        assert torch.equal(mid.Section(group)(random(9)), y)


def test_the_trivial_group_takes_any_point():
    for x in (random(3), random(2, 3), {"a": random(2), "b": random(3, 3)}):
        section = mid.Section(mid.Product())
        close(section(x), x, atol=0)
        assert mid.Product().dimension(x) == 0


def test_a_block_that_no_factor_names_is_left_alone():
    case = CASES["product"]
    x = case.point(2)
    assert torch.equal(case.group.act(case.move(x), x)["free"], x["free"])
    assert torch.equal(mid.Section(case.group)(x)["free"], x["free"])
    assert list(mid.Section(case.group)(x)) == list(x)


def test_flatness_is_that_of_every_factor():
    class Curved(GaugeGroup):
        dim = 1

        def act(self, xi, x):
            return torch.sinh(torch.asinh(x) + xi)

    assert CASES["product"].group.flat
    assert not mid.Product(a=Curved(), b=mid.Affine()).flat


def test_horizontal_lengths_use_weights_of_mean_one():
    x = CASES["product"].point(2)
    w = flat_weights(CASES["product"].weights, x, 1)
    assert w.shape == flatten(x, 1).shape[1:]
    torch.testing.assert_close(w[:4].mean(), torch.tensor(1.0).double())
    assert flatten_basis(CASES["product"].group.vertical_basis(x), x, 1).shape == (2, 4, w.numel())
    assert first(detached(x)).shape == (2, 4)


def test_messages_count_labels_instead_of_listing_them():
    blocks = torch.arange(40) // 2
    groups = {
        mid.Translation(blocks): "Translation(40 items in 20 blocks)",
        mid.Affine(blocks, common_scale=True): "Affine(40 items in 20 blocks, common_scale=True)",
        mid.Product(a=mid.Translation(blocks)): "Product(a=Translation(40 items in 20 blocks))",
        mid.Shift(torch.ones(1, 40)): "Shift(directions=<tensor of shape (1, 40)>)",
        mid.Translation(torch.tensor([0, 0, 1, 1])): "Translation(blocks=torch.tensor([0, 0, 1, 1]))",
    }
    assert {group: str(group) for group in groups} == groups
