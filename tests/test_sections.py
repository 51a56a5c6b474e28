"""Sections are constant on orbits, their frames lead back, and what has no representative is refused."""

import copy
import pickle

import pytest
import torch

import manifoldid as mid
from manifoldid.sections import as_section

LABELS = torch.tensor([7, -2, 7, -2, 7, 40, 40])
GROUPS = {
    "translation": mid.Translation(),
    "scaling": mid.Scaling(),
    "positive scaling": mid.PositiveScaling(),
    "affine": mid.Affine(),
    "translation per block": mid.Translation(blocks=LABELS),
    "affine, one scale": mid.Affine(blocks=LABELS, common_scale=True),
    "shift": mid.Shift(torch.arange(14.0, dtype=torch.float64).reshape(2, 7).cos()),
}
each_group = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(group, *batch, seed=0):
    x = random(*batch, 7, seed=seed)
    return x.exp() if isinstance(group, mid.PositiveScaling) else x


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def moved(group, x, seed=3):
    xi = random(*x.shape[:-1], group.dimension(x), seed=seed)
    return group.act(xi, x)


# ----------------------------------------------------------------------------------------------------------- canonical


@each_group
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_frame_moves_the_representative_to_the_point(group, batch):
    x, section = points(group, *batch), mid.Section(group)
    assert section.frame(x).shape == (*batch, group.dimension(x))
    close(group.act(section.frame(x), section(x)), x)


@each_group
def test_carry_takes_the_point_to_its_representative_and_moves_other_points_alike(group):
    x, y, section = points(group, 3), points(group, 3, seed=1), mid.Section(group)
    xi = section.frame(x)
    close(section.carry(xi, x), section(x))
    close(group.act(xi, section.carry(xi, y)), y)


def test_carry_takes_new_items_along():
    x, new = random(3, 7), random(3, 2, seed=1)
    section = mid.Section(mid.Affine())
    together = torch.cat([x, new], -1)
    weights = torch.tensor([1.0] * 7 + [0, 0])
    close(section.carry(section.frame(x), new), mid.Section(mid.Affine(), weights)(together)[:, 7:])


def test_carry_into_blocks_follows_the_labels_of_the_new_items():
    x = random(7)
    section = mid.Section(mid.Translation(blocks=LABELS))
    xi = section.frame(x)  # blocks -2, 7, 40
    new = torch.zeros(3, dtype=torch.float64)
    close(section.carry(xi, new, blocks=torch.tensor([40, -2, 7])), -xi[[2, 0, 1]])


def test_carry_names_a_frame_that_does_not_fit():
    with pytest.raises(ValueError, match=r"`xi` must have shape \(\*batch, 2\) for Affine\(\), got \(3,\)"):
        mid.Section(mid.Affine()).carry(random(3), random(7))
    with pytest.raises(ValueError, match=r"`y` must have at least 1 dimension"):
        mid.Section(mid.Affine()).carry(random(2), torch.tensor(1.0))


# ------------------------------------------------------------------------------------------------------ blocks per call


@pytest.mark.parametrize("kind", [mid.Translation, mid.Scaling, mid.PositiveScaling, mid.Affine])
def test_blocks_of_one_call_are_those_of_a_group_with_blocks(kind):
    x = points(kind(), 3)
    section, wanted = mid.Section(kind()), mid.Section(kind(blocks=LABELS))
    close(section(x, blocks=LABELS), wanted(x), atol=0)
    close(section.frame(x, blocks=LABELS), wanted.frame(x), atol=0)
    close(section.carry(wanted.frame(x), x, blocks=LABELS), wanted(x))
    replaced = mid.Section(kind(blocks=torch.zeros(7, dtype=torch.long)))
    close(replaced(x, blocks=LABELS), wanted(x), atol=0)


def test_only_the_partition_counts_and_not_the_labels():
    x = random(3, 7)
    renamed = torch.tensor([0, 10**12, 0, 10**12, 0, -5, -5])
    close(mid.Section(mid.Affine())(x, blocks=renamed), mid.Section(mid.Affine())(x, blocks=LABELS), atol=1e-14)


def test_blocks_that_cannot_be_used_are_named():
    with pytest.raises(TypeError, match="`blocks` needs a group on items"):
        mid.Section(mid.Product())(random(7), blocks=LABELS)
    with pytest.raises(ValueError, match="`blocks` has 7 labels and `point` has 6 items"):
        mid.Section(mid.Translation())(random(6), blocks=LABELS)
    with pytest.raises(mid.DegeneratePointError, match="in block 40 is constant"):
        mid.Section(mid.Affine())(torch.tensor([1.0, 2, 3, 4, 5, 6, 6]), blocks=LABELS)


# ---------------------------------------------------------------------------------------------------------- closest to


@each_group
def test_closest_section_is_constant_on_orbits_and_fixes_its_centre(group):
    x = points(group, 3)
    at = points(group, seed=8) + (x[0] if not isinstance(group, mid.PositiveScaling) else 0)
    at = at if isinstance(group, mid.PositiveScaling) else x[0] + 0.2 * at
    section = mid.Section(group, at=at)
    close(section(at), at)
    y = x[:1]
    close(section(moved(group, y)), section(y), atol=1e-11)
    close(group.act(section.frame(y), section(y)), y)


@each_group
def test_closest_representative_cannot_be_moved_closer(group):
    x = points(group)
    at = x + 0.3 * points(group, seed=8).abs()
    weights = 0.5 + torch.arange(7.0, dtype=torch.float64)
    y = mid.Section(group, weights, at=at)(x)

    def distance(t):
        if isinstance(group, mid.PositiveScaling):
            return (weights * (t.log() - at.log()) ** 2).sum()
        return (weights * (t - at) ** 2).sum()

    for k in range(group.dimension(x)):
        for step in (-1e-3, 1e-3):
            xi = torch.zeros(group.dimension(x), dtype=torch.float64)
            xi[k] = step
            assert distance(group.act(xi, y)) > distance(y)


def test_closest_section_is_differentiable():
    at = random(7, seed=1)
    x = (at + 0.3 * random(2, 7)).requires_grad_()
    for group in (mid.Affine(blocks=LABELS), mid.Translation(), mid.Scaling()):
        section = mid.Section(group, at=at)
        assert torch.autograd.gradcheck(lambda t: (section(t), section.frame(t)), (x,))  # noqa: B023


@pytest.mark.parametrize("group", [mid.Scaling(), mid.Affine()])
def test_a_point_on_the_far_side_has_no_closest_representative(group):
    at = random(7)
    with pytest.raises(mid.DegeneratePointError, match=r"no representative closest to `at`.*choose another `at`"):
        mid.Section(group, at=at)(-at)


def test_closest_section_keeps_blocks_that_at_does_not_name():
    group = mid.Product(skill=mid.Translation())
    x = {"skill": random(2, 4), "free": random(2, 3)}
    y = mid.Section(group, at={"skill": torch.ones(4)})(x)
    close(y["skill"].mean(-1), torch.ones(2).double())
    close(y["free"], x["free"], atol=0)


# ------------------------------------------------------------------------------------------------------------ reference


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("index", [2, -1])
def test_reference_items_have_their_values(index, batch):
    x = random(*batch, 7).exp()
    zero, one = torch.zeros(batch).double(), torch.ones(batch).double()
    close(mid.Reference(mid.Translation(), index)(x)[..., index], zero, atol=0)
    close(mid.Reference(mid.Scaling(), index)(x)[..., index], one, atol=0)
    close(mid.Reference(mid.PositiveScaling(), index)(x)[..., index], one, atol=0)


def test_reference_of_affine_puts_two_items_to_zero_and_one():
    x = random(3, 7)
    x[:, 4] = x[:, 2] + 0.5
    y = mid.Reference(mid.Affine(), (2, 4))(x)
    close(y[:, 2], torch.zeros(3).double(), atol=0)
    close(y[:, 4], torch.ones(3).double())


def test_reference_is_constant_on_orbits_and_has_a_frame():
    x = random(3, 7).sort(-1).values.exp()
    cases = [
        (mid.Translation(), 3),
        (mid.Scaling(), 3),
        (mid.PositiveScaling(), 3),
        (mid.Affine(), (1, 5)),
        (mid.Translation(blocks=LABELS), [0, 1, 5]),
        (mid.Scaling(blocks=LABELS), torch.tensor([5, 2, 3])),
        (mid.Affine(blocks=LABELS), [(5, 6), (0, 4), (1, 3)]),
        (GROUPS["shift"], (0, 3)),
    ]
    for group, index in cases:
        section = mid.Reference(group, index)
        close(section(moved(group, x)), section(x), atol=1e-10)
        close(group.act(section.frame(x), section(x)), x, atol=1e-11)
        close(section(section(x)), section(x), atol=1e-11)


def test_reference_takes_one_item_per_block_in_any_order():
    x = random(7)
    y = mid.Reference(mid.Translation(blocks=LABELS), [5, 3, 0])(x)
    close(y, x - x[torch.tensor([0, 3, 0, 3, 0, 5, 5])])


def test_reference_takes_blocks_of_one_call():
    x = random(3, 7)
    wanted = mid.Reference(mid.Translation(blocks=LABELS), [0, 1, 5])
    section = mid.Reference(mid.Translation(), [0, 1, 5])
    close(section(x, blocks=LABELS), wanted(x), atol=0)
    close(section.frame(x, blocks=LABELS), wanted.frame(x), atol=0)


def test_reference_of_shifts_of_dicts_names_blocks():
    x = {"theta": random(2, 4), "beta": random(2, 3, seed=1)}
    group = mid.Shift({"theta": 1, "beta": 1})
    y = mid.Reference(group, {"beta": 1})(x)
    close(y["beta"], x["beta"] - x["beta"][:, 1:2])
    close(y["theta"], x["theta"] - x["beta"][:, 1:2])
    with pytest.raises(ValueError, match="`index` of Reference is 5, but block 'beta' has 3 items"):
        mid.Reference(group, {"beta": 5})(x)
    with pytest.raises(ValueError, match=r"`index` of Reference needs 1 reference item\(s\), one per direction"):
        mid.Reference(group, {"beta": [0, 1]})(x)


@pytest.mark.parametrize(
    ("group", "index", "bad"),
    [
        (mid.Affine(), (0, 1), torch.tensor([2.0, 1, 0, 3])),
        (mid.Affine(), (0, 1), torch.tensor([1.0, 1, 0, 3])),
        (mid.Scaling(), 0, torch.tensor([-1.0, 1, 0, 3])),
        (mid.Scaling(), 0, torch.tensor([0.0, 1, 0, 3])),
        (mid.PositiveScaling(), 0, torch.tensor([1.0, 1, -1, 3])),
    ],
)
def test_a_reference_that_would_leave_the_orbit_is_refused(group, index, bad):
    x = torch.stack([torch.tensor([1.0, 2, 3, 4]), bad])
    with pytest.raises(
        mid.DegeneratePointError, match=r"`point` at batch index 1 has (a reference item|reference items|entries)"
    ):
        mid.Reference(group, index)(x)


@pytest.mark.parametrize(
    ("group", "index", "error", "message"),
    [
        (mid.Translation(), 7, ValueError, "`index` of Reference is 7, but the point has 7 items"),
        (mid.Translation(), (1, 2), ValueError, "needs one item for each of 1 block"),
        (mid.Translation(), 1.5, TypeError, "must be made of integers, got 1.5"),
        (mid.Translation(), True, TypeError, "must be made of integers, got True"),
        (mid.Affine(), 2, ValueError, r"needs 2 items \(i, j\) for each of 1 block"),
        (mid.Affine(), (2, 2), ValueError, "needs different items"),
        (mid.Affine(), (6, -1), ValueError, "needs different items"),
        (mid.Translation(blocks=LABELS), (0, 1), ValueError, r"needs one item for each of 3 block\(s\)"),
        (
            mid.Translation(blocks=LABELS),
            (0, 2, 5),
            ValueError,
            r"needs one item in every block, got .* labels \[-2, 7, 40\]",
        ),
        (mid.Affine(blocks=LABELS), [(0, 1), (2, 4), (5, 6)], ValueError, r"needs 2 items \(i, j\) in every block"),
        (mid.Affine(blocks=LABELS, common_scale=True), (0, 2), TypeError, "common_scale=True"),
        (mid.Product(), 0, TypeError, "Product has no reference items"),
        (mid.Translation(), "Ann", TypeError, r"got 'Ann': a section does not know names, use names.index"),
        (mid.Translation(blocks=LABELS), 0, ValueError, "must be a list, one entry per block"),
    ],
)
def test_reference_items_that_do_not_fit_are_named(group, index, error, message):
    with pytest.raises(error, match=message):
        mid.Reference(group, index)(random(7).exp())


# ---------------------------------------------------------------------------------------------------- dicts of sections


def test_a_dict_of_sections_takes_the_canonical_section_elsewhere():
    group = mid.Product(skill=mid.Translation(), scale=mid.PositiveScaling())
    x = {"skill": random(4), "scale": random(3).exp(), "free": random(2)}
    y = as_section({"skill": mid.Reference(mid.Translation(), 2)}, group)(x)
    close(y["skill"], x["skill"] - x["skill"][2])
    close(y["scale"].log().mean(), torch.tensor(0.0).double())
    close(y["free"], x["free"], atol=0)


def test_sections_that_users_hand_in_are_checked(annotations_unchecked):
    group = mid.Product(skill=mid.Translation())
    with pytest.raises(ValueError, match=r"`section` names the blocks \['skil'\]"):
        as_section({"skil": mid.Section(mid.Translation())}, group)
    with pytest.raises(TypeError, match="`section` must be a section, a dict of sections or a callable, got int"):
        as_section(3, group)
    with pytest.raises(ValueError, match="`section` is a dict of sections, so the point must be a dict"):
        as_section({"skill": mid.Section(mid.Translation())}, group)(random(3))


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "section",
    [
        mid.Section(mid.Affine(), torch.ones(3)),
        mid.Section(mid.Translation(blocks=LABELS)),
        mid.Section(mid.Product(a=mid.Affine()), at={"a": torch.tensor([1.0, 2.0])}),
        mid.Reference(mid.Affine(), (0, 1)),
        mid.Reference(mid.Translation(), 2),
    ],
    ids=repr,
)
def test_sections_are_values(section):
    assert pickle.loads(pickle.dumps(section)) == section
    assert copy.deepcopy(section) == section
    assert hash(copy.deepcopy(section)) == hash(section)
    assert eval(repr(section), {"torch": torch, **vars(mid)}) == section
    assert section != mid.Section(mid.Scaling())
    with pytest.raises(AttributeError, match="immutable"):
        section.group = mid.Scaling()


def test_weights_that_the_caller_changes_later_do_not_change_the_section():
    weights, at = torch.ones(7), random(7)
    section, close_to = mid.Section(mid.Affine(), weights), mid.Section(mid.Affine(), at=at)
    before = section(random(7)), close_to(at + 0.1 * random(7))
    weights[0], at[0] = 100, 100
    assert torch.equal(section(random(7)), before[0])
    assert close_to != mid.Section(mid.Affine(), at=at)


@pytest.mark.parametrize("kind", [mid.Section, lambda group: mid.Reference(group, 0)])
def test_what_is_no_group_is_refused(annotations_unchecked, kind):
    with pytest.raises(
        TypeError, match=r"`group` must be a gauge group, such as mid.Translation.*forget the parentheses"
    ):
        kind(mid.Translation)
    with pytest.raises(TypeError, match=r"`group` must be a gauge group, such as mid.Translation"):
        kind("translation")


# ---------------------------------------------------------------------------------------------------- compile and export


@pytest.mark.compile
@pytest.mark.usefixtures("fresh_compiler")
@each_group
def test_sections_compile_without_graph_breaks(group):
    x = points(group, 3)
    section = mid.Section(group)

    def function(t):
        return section(t), section.frame(t)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x), function(x), strict=True):
        close(a, b)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    (compiled(leaf)[0] ** 3).sum().backward()
    (function(other)[0] ** 3).sum().backward()
    close(leaf.grad, other.grad)


@pytest.mark.compile
@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_of_one_call_compile_without_graph_breaks_or_new_graphs():
    section = mid.Section(mid.Affine())
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(lambda t, b: section(t, blocks=b), fullgraph=True, backend=backend)
    x = random(3, 7)
    for labels in (LABELS, LABELS.flip(0), torch.zeros(7, dtype=torch.long), torch.tensor([1, 1, 1, 2, 2, 3, 3])):
        close(compiled(x, labels), section(x, blocks=labels))
    assert len(graphs) == 1


@pytest.mark.compile
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("group", [mid.Scaling(), mid.Affine(), mid.PositiveScaling()])
def test_compiled_sections_put_degenerate_rows_to_zero(group):
    x = random(3, 7).exp()
    x[1] = 0 if not isinstance(group, mid.Affine) else 2.5
    y = torch.compile(mid.Section(group), fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(y[1], torch.zeros(7).double())
    close(y[[0, 2]], mid.Section(group)(x[[0, 2]]))


@pytest.mark.compile
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor_gives_the_numbers_of_eager_mode():
    x = random(3, 7)
    section = mid.Section(mid.Affine(blocks=LABELS))
    close(torch.compile(section, fullgraph=True)(x), section(x))


def test_frames_that_do_not_fit_the_points_are_refused():
    section = mid.Section(mid.Translation())
    with pytest.raises(ValueError, match="one frame per point"):
        section.carry(torch.zeros(3, 1), torch.zeros(4, 5))
    assert section.carry(torch.zeros(3, 1), torch.zeros(5)).shape == (3, 5)  # one point, three frames
