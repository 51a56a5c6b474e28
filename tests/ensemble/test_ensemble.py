import warnings

import numpy as np
import pytest
import torch

import manifoldid as mid
from manifoldid.groups import GaugeGroup
from manifoldid.quotient.frechet import frechet_mean

LABELS = torch.tensor([7, -2, 7, -2, 7, -2])
GROUPS = {
    "translation": mid.Translation(),
    "scaling": mid.Scaling(),
    "positive scaling": mid.PositiveScaling(),
    "affine": mid.Affine(),
    "translation per block": mid.Translation(blocks=LABELS),
    "affine per block": mid.Affine(blocks=LABELS),
    "affine, one scale": mid.Affine(blocks=LABELS, common_scale=True),
    "shift": mid.Shift(torch.arange(12.0, dtype=torch.float64).reshape(2, 6).cos()),
}
each_group = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())
RAMP = 0.5 + torch.arange(6, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def members(group, size=20):
    """Noisy copies of one point, and the same after a move of every member of its own."""
    x = random(6) + 0.2 * random(size, 6, seed=1)
    x = x.exp() if isinstance(group, mid.PositiveScaling) else x
    return x, group.act(random(size, group.dimension(x[0]), seed=2), x)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ----------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.slow
@each_group
@pytest.mark.parametrize("weights", [None, RAMP], ids=["equal", "weighted"])
def test_statistics_do_not_depend_on_the_gauges_of_the_members(group, weights):
    x, moved = members(group)
    a, b = mid.Ensemble(x, group, weights), mid.Ensemble(moved, group, weights)
    close(a.aligned, b.aligned)
    close(a.mean(), b.mean())
    close(a.std(), b.std())
    close(a.covariance(), b.covariance())
    section = mid.Section(group)
    contrast = a.contrast(section), b.contrast(section)
    close(contrast[0].value, contrast[1].value)
    close(contrast[0].covariance, contrast[1].covariance)


@each_group
def test_members_are_aligned_to_the_canonical_section(group):
    x, _ = members(group)
    ensemble = mid.Ensemble(x, group, RAMP)
    close(ensemble.aligned, mid.Section(group, RAMP)(x), atol=1e-13)
    close(ensemble.std(), ensemble.aligned.std(0))
    close(ensemble.covariance(), torch.cov(ensemble.aligned.mT))
    close(ensemble.covariance().diagonal().sqrt(), ensemble.std())
    assert ensemble.counts.tolist() == [20] * 6
    assert len(ensemble) == 20


@pytest.mark.parametrize("name", ["translation", "positive scaling", "shift", "translation per block"])
def test_the_mean_of_flat_quotients_is_taken_entry_by_entry(name):
    group = GROUPS[name]
    _, moved = members(group)
    close(mid.Ensemble(moved, group).mean(), mid.Section(group)(moved).mean(0), atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaling", "affine", "affine per block", "affine, one scale"])
@pytest.mark.parametrize("weights", [None, RAMP], ids=["equal", "weighted"])
def test_the_mean_of_spheres_is_the_frechet_mean(name, weights):
    """Its logarithms of the members add up to zero, and no point near it has a smaller sum of squared distances."""
    group = GROUPS[name]
    _, moved = members(group)
    mean = mid.Ensemble(moved, group, weights).mean()
    geometry = group.geometry(weights)
    close(geometry.log(mean.expand_as(moved), moved).mean(0), torch.zeros(6).double())
    close(mid.Section(group, weights)(mean), mean, atol=1e-12)

    def spread(x):
        return geometry.dist(x.expand_as(moved), moved).square().sum()

    for k in range(6):
        for step in (-1e-3, 1e-3):
            near = mean.clone()
            near[k] += step
            assert spread(near) > spread(mean) - 1e-12


def test_the_mean_of_members_on_one_orbit_is_that_orbit():
    x = random(6)
    for group in GROUPS.values():
        if not isinstance(group, mid.PositiveScaling):
            orbit = group.act(random(5, group.dimension(x), seed=3), x.expand(5, 6))
            ensemble = mid.Ensemble(orbit, group)
            close(ensemble.mean(), mid.Section(group)(x))
            close(ensemble.std(), torch.zeros(6).double())


def test_results_can_be_read_in_another_section():
    x, moved = members(mid.Translation())
    ensemble = mid.Ensemble(moved, mid.Translation())
    reference = mid.Reference(mid.Translation(), 2)
    inside = x - x[:, 2:3]
    for section in (reference, lambda t: t - t[2]):
        close(ensemble.mean(section), inside.mean(0))
        close(ensemble.std(section), inside.std(0))
        close(ensemble.covariance(section), torch.cov(inside.mT))
    assert ensemble.std(reference)[2] == 0
    affine = mid.Ensemble(moved, mid.Affine())
    y = affine.mean(
        mid.Reference(mid.Affine(), (5, 2)) if moved[0, 2] > moved[0, 5] else mid.Reference(mid.Affine(), (2, 5))
    )
    close(mid.Section(mid.Affine())(y), affine.mean())


def test_members_that_a_reference_cannot_take_are_named():
    x = torch.arange(6).double() + 0.1 * random(5, 6)
    x[3, :2] = x[3, :2].flip(0)
    ensemble = mid.Ensemble(x, mid.Affine())
    for statistic in (ensemble.mean, ensemble.std, ensemble.covariance):
        with pytest.raises(mid.DegeneratePointError, match=r"member 3 of the ensemble .* has reference items"):
            statistic(mid.Reference(mid.Affine(), (0, 1)))
    positive = mid.Ensemble(x, mid.Scaling())
    with pytest.raises(
        mid.DegeneratePointError, match=r"member . of the ensemble .* has a reference item that is not positive"
    ):
        positive.std(mid.Reference(mid.Scaling(), 0))


def test_factors_of_a_product_are_averaged_as_they_are_alone():
    x = {"scale": random(6, 3).exp(), "skill": torch.arange(4).double() + 0.1 * random(6, 4)}
    group = mid.Product(scale=mid.PositiveScaling(), skill=mid.Affine())
    sections = {"scale": mid.Reference(mid.PositiveScaling(), 1), "skill": mid.Reference(mid.Affine(), (0, 3))}
    for chosen in (None, sections):
        together = mid.Ensemble(x, group).mean(chosen)
        for name, factor in group.by_block.items():
            close(together[name], mid.Ensemble(x[name], factor).mean(chosen and chosen[name]))


def test_a_section_that_sees_the_gauge_is_refused():
    ensemble = mid.Ensemble(random(5, 6), mid.Translation())
    for statistic in (ensemble.std, ensemble.covariance, ensemble.mean):
        with pytest.raises(mid.NotEstimableError, match="`section` is not constant on the orbits of Translation"):
            statistic(lambda x: 2 * x)
    affine = mid.Ensemble(random(5, 6) * 0.1 + torch.arange(6).double(), mid.Affine())
    for statistic in (affine.std, affine.covariance, affine.mean):
        with pytest.raises(mid.NotEstimableError, match="`section` is not constant on the orbits of Affine"):
            statistic(lambda x: x - x[0])


# ------------------------------------------------------------------------------------------------------------ contrasts


def test_contrasts_have_the_spread_of_one_member():
    x, moved = members(mid.Translation(), size=50)
    ensemble = mid.Ensemble(moved, mid.Translation())
    single = ensemble.contrast(lambda t: t[3] - t[5])
    wanted = x[:, 3] - x[:, 5]
    close(single.value, wanted.mean())
    close(single.standard_error, wanted.std())
    close(single.members, wanted)
    assert single.value.shape == single.standard_error.shape == ()
    assert single.covariance.shape == (1, 1)
    assert repr(single).endswith(": the spread of one of 50 members)")
    several = ensemble.contrast(lambda t: t[1:4] - t[0])
    close(several.covariance, torch.cov((x[:, 1:4] - x[:, :1]).mT))
    close(several.standard_error, (x[:, 1:4] - x[:, :1]).std(0))
    low, high = several.interval(0.9)
    close((high - low) / several.standard_error, torch.full((3,), 2 * 1.6448536269514722, dtype=torch.float64))
    close((high + low) / 2, several.value)
    assert "standard_error" in repr(several)
    assert "standard_error" in repr(single)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, 95.0])
def test_a_level_outside_of_zero_to_one_is_refused(level):
    with pytest.raises(ValueError, match="`level` must be between 0 and 1"):
        mid.Ensemble(random(5, 6), mid.Translation()).contrast(lambda t: t[0] - t[1]).interval(level)


@pytest.mark.parametrize(
    ("group", "fn", "generator"),
    [
        (mid.Translation(), lambda x: x[2], "translation"),
        (mid.Translation(), lambda x: (x[2] - x[3]) * (1 + 1e-4 * x.mean()), "translation"),
        (mid.Translation(), lambda x: x.mean() ** 2, "translation"),
        (mid.Affine(), lambda x: x[2] - x[3], "scaling"),
        (mid.Translation(blocks=LABELS), lambda x: x[0] - x[1], "translation of block"),
        (mid.Scaling(), lambda x: x[2] - x[3], "scaling"),
    ],
)
def test_a_contrast_that_sees_the_gauge_is_refused_and_the_generator_named(group, fn, generator):
    with pytest.raises(mid.NotEstimableError, match=f"`fn` is not constant on the orbits .* under the {generator}"):
        mid.Ensemble(random(5, 6), group).contrast(fn)


def test_a_contrast_written_in_numpy_is_checked_by_finite_moves():
    x = random(5, 6)
    ensemble = mid.Ensemble(x, mid.Translation())
    contrast = ensemble.contrast(lambda t: np.subtract(t.numpy()[3], t.numpy()[5]))
    close(contrast.members, x[:, 3] - x[:, 5])
    with pytest.raises(mid.NotEstimableError, match="translation"):
        ensemble.contrast(lambda t: t.numpy()[3])
    with pytest.raises(mid.NotEstimableError, match="combination of generators"):
        mid.Ensemble(random(5, 140), mid.Translation(blocks=torch.arange(140) // 2)).contrast(lambda t: t.numpy()[3])


def test_a_contrast_that_returns_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"`fn` must return a number or a vector, got shape \(6, 6\)"):
        mid.Ensemble(random(5, 6), mid.Translation()).contrast(lambda x: x[:, None] - x)


# --------------------------------------------------------------------------------------------------- kinds of members


def test_lists_and_stacked_members_are_the_same():
    x = random(5, 6)
    wanted = mid.Ensemble(x, mid.Affine()).aligned
    close(mid.Ensemble(list(x), mid.Affine()).aligned, wanted, atol=0)
    close(mid.Ensemble(tuple(torch.nn.Parameter(row) for row in x), mid.Affine()).aligned, wanted, atol=0)
    as_dicts = mid.Ensemble([{"a": row} for row in x], mid.Product(a=mid.Affine()))
    close(as_dicts.aligned["a"], wanted, atol=0)
    stacked = mid.Ensemble({"a": x}, mid.Product(a=mid.Affine()))
    close(stacked.aligned["a"], wanted, atol=0)


def test_weights_count_for_a_group_that_acts_on_all_blocks():
    class Together(mid.GaugeGroup):
        dim = 1

        def act(self, xi, x):
            return {name: t + xi for name, t in x.items()}

    x = {"a": random(3, 3), "b": random(3, 2, seed=1)}
    weights = {"a": torch.tensor([1.0, 2, 5]), "b": torch.tensor([3.0, 1])}
    aligned = mid.Ensemble(x, Together(), weights).aligned
    for name, t in mid.Section(Together(), weights)(x).items():
        close(aligned[name], t)


@pytest.mark.slow
def test_members_of_dicts_keep_their_blocks():
    group = mid.Product(mid.Shift({"theta": 1, "beta": 1}), skill=mid.Affine(), scale=mid.PositiveScaling())
    size = 8
    x = {
        "theta": random(size, 3),
        "free": random(size, 2, 2, seed=1),
        "skill": random(4, seed=2) + 0.2 * random(size, 4, seed=3),
        "beta": random(size, 2, seed=4),
        "scale": random(size, 3, seed=5).exp(),
    }
    moved = group.act(random(size, 4, seed=6), x)
    weights = {"skill": torch.tensor([1.0, 2, 3, 4])}
    a, b = mid.Ensemble(x, group, weights), mid.Ensemble(moved, group, weights)
    assert list(b.mean()) == list(x)
    for name in x:
        close(a.mean()[name], b.mean()[name])
        close(a.std()[name], b.std()[name])
        close(a.covariance(block=name), b.covariance(block=name))
        assert b.mean()[name].shape == x[name].shape[1:]
    close(b.mean()["free"], x["free"].mean(0))
    close(b.mean()["skill"], frechet_mean(mid.Affine(), x["skill"], weights["skill"]))
    close(b.mean()["scale"], mid.Section(mid.PositiveScaling())(x["scale"]).mean(0))
    gap = b.contrast(lambda t: t["theta"][0] - t["beta"][1])
    close(gap.value, (x["theta"][:, 0] - x["beta"][:, 1]).mean())
    y = b.mean(
        {"skill": mid.Reference(mid.Affine(), (int(a.mean()["skill"].argmin()), int(a.mean()["skill"].argmax())))}
    )
    assert y["skill"].min() == 0
    assert y["skill"].max() == pytest.approx(1)
    close(y["scale"], b.mean()["scale"])
    with pytest.raises(ValueError, match=r"`block` is needed: the members have the blocks \['beta', 'free'"):
        b.covariance()
    with pytest.raises(ValueError, match="`block` is 'nobody', but the members have the blocks"):
        b.covariance(block="nobody")
    with pytest.raises(ValueError, match="`block` is 'theta', but the members are tensors without blocks"):
        mid.Ensemble(random(5, 6), mid.Translation()).covariance(block="theta")


def test_a_group_of_ones_own_is_aligned_to_the_mean():
    class Rotation(GaugeGroup):
        dim = 1
        event_dim = 2

        def act(self, xi, x):
            cos, sin = xi.cos()[..., None, :], xi.sin()[..., None, :]
            a, b = x[..., :1], x[..., 1:]
            return torch.cat([cos * a - sin * b, sin * a + cos * b], -1)

        def canonical(self, x, weights=None):
            """The first row points along the first axis."""
            angle = torch.atan2(x[..., 0, 1:], x[..., 0, :1])
            return mid.groups.Canonical(self.act(-angle, x), angle)

    x = random(4, 2) + 0.1 * random(6, 4, 2, seed=1)
    moved = Rotation().act(random(6, 1, seed=2), x)
    a, b = mid.Ensemble(x, Rotation()), mid.Ensemble(moved, Rotation())
    close(a.aligned, b.aligned, atol=1e-7)
    close(a.std(), b.std(), atol=1e-7)
    # no member can be turned closer to the mean
    mean = b.mean()
    turned = Rotation().act(torch.full((6, 1), 1e-2).double(), b.aligned)
    assert ((turned - mean).square().sum((1, 2)) >= (b.aligned - mean).square().sum((1, 2)) - 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_members_keep_precision(dtype):
    _x, moved = members(mid.Affine())
    ensemble = mid.Ensemble(moved.to(dtype), mid.Affine())
    exact = mid.Ensemble(moved.to(dtype).double(), mid.Affine())
    eps = torch.finfo(torch.float32).eps
    assert (ensemble.std() - exact.std()).abs().max() < 64 * eps
    assert (ensemble.mean() - exact.mean()).abs().max() < 64 * eps


def test_nothing_of_the_caller_is_overwritten_or_shared():
    x = random(5, 6).requires_grad_()
    kept = x.detach().clone()
    ensemble = mid.Ensemble(x, mid.Translation())
    ensemble.members.zero_()
    assert torch.equal(x, kept)
    ensemble = mid.Ensemble(x, mid.Translation())
    with torch.no_grad():
        x.zero_()
    close(ensemble.mean(), mid.Section(mid.Translation())(kept).mean(0))
    assert not ensemble.mean().requires_grad
    weights = torch.ones(6).double()
    ensemble = mid.Ensemble(kept, mid.Scaling(), weights)
    before = ensemble.mean()
    weights[0] = 100
    close(ensemble.mean(), before)


# --------------------------------------------------------------------------------------------------------------- table


def test_the_table_has_one_row_per_item():
    x = random(5, 3)
    rows = mid.Ensemble(x, mid.Translation()).table(["a", "b", "c"], section=mid.Reference(mid.Translation(), 0))
    inside = x - x[:, :1]
    assert [row["item"] for row in rows] == ["a", "b", "c"]
    assert [row["mean"] for row in rows] == pytest.approx(inside.mean(0).tolist())
    assert [row["standard_deviation"] for row in rows] == pytest.approx(inside.std(0).tolist())
    assert [row["item"] for row in mid.Ensemble(x, mid.Translation()).table()] == [0, 1, 2]
    with pytest.raises(ValueError, match="`names` must have one name per item, 3, got 2"):
        mid.Ensemble(x, mid.Translation()).table(["a", "b"])
    dicts = mid.Ensemble({"a": x, "b": x}, mid.Product(a=mid.Translation()))
    assert len(dicts.table(block="a")) == 3


def test_repr_says_what_is_in_it():
    assert repr(mid.Ensemble(random(5, 6), mid.Affine())) == "<Ensemble of 5 members under Affine(), {'point': (6,)}>"


# ------------------------------------------------------------------------------------- members that saw different items


def hidden(size=40, items=6, share=0.7):
    observed = torch.rand(size, items, generator=torch.Generator().manual_seed(4)) < share
    observed[:, 0] |= observed.sum(1) < 3  # everybody saw a few
    observed[:, 1] |= observed.sum(1) < 3
    observed[:, 2] |= observed.sum(1) < 3
    return observed


@pytest.mark.parametrize("kind", [mid.Translation, mid.Scaling, mid.PositiveScaling, mid.Affine])
@pytest.mark.parametrize("blocks", [None, LABELS], ids=["one block", "blocks"])
def test_members_without_noise_are_recovered_from_what_they_saw(kind, blocks):
    group = kind(blocks=blocks)
    truth = random(6)
    truth = truth.exp() if kind is mid.PositiveScaling else truth
    observed = hidden() if blocks is None else hidden(share=0.9)
    if blocks is not None:  # two items of every block at least
        observed[:, :4] = True
    x = group.act(0.5 * random(40, group.dimension(truth), seed=2), truth.expand(40, 6))
    x = torch.where(observed, x, torch.nan)
    ensemble = mid.Ensemble(x, group, observed=observed)
    close(ensemble.aligned, mid.Section(group)(truth).expand(40, 6), atol=1e-9)
    close(ensemble.mean(), mid.Section(group)(truth), atol=1e-9)
    close(ensemble.std(), torch.zeros(6).double(), atol=1e-9)
    assert torch.equal(ensemble.counts, observed.sum(0))


@pytest.mark.parametrize("kind", [mid.Translation, mid.Scaling, mid.PositiveScaling, mid.Affine])
def test_joint_alignment_does_not_depend_on_the_gauges_of_the_members(kind):
    group = kind()
    x, moved = members(group, size=40)
    observed = hidden()
    a, b = mid.Ensemble(x, group, observed=observed), mid.Ensemble(moved, group, observed=observed)
    close(a.aligned, b.aligned, atol=1e-8)
    close(a.std(), b.std(), atol=1e-8)


def test_joint_translation_is_the_two_way_least_squares_fit():
    x, _ = members(mid.Translation(), size=12)
    observed = hidden(12)
    ensemble = mid.Ensemble(x, mid.Translation(), observed=observed)
    # x_mi = s_m + t_i by least squares, t of mean 0
    rows, columns = observed.nonzero(as_tuple=True)
    design = torch.zeros(len(rows), 18).double()
    design[torch.arange(len(rows)), rows] = 1
    design[torch.arange(len(rows)), 12 + columns] = 1
    solution = torch.linalg.lstsq(design, x[rows, columns][:, None], driver="gelsd").solution[:, 0]
    consensus = solution[12:] - solution[12:].mean()
    close(ensemble.mean(), consensus)
    shift = solution[:12] + solution[12:].mean()
    close(ensemble.aligned[rows, columns], (x - shift[:, None])[rows, columns])
    unseen = ~observed
    close(ensemble.aligned[unseen], consensus.expand(12, 6)[unseen])
    rest = torch.where(observed, x - shift[:, None] - consensus, 0.0)
    close(ensemble.std(), (rest.square().sum(0) / (observed.sum(0) - 1)).sqrt())


def test_joint_alignment_of_members_that_saw_everything_is_the_plain_one():
    for group in (mid.Translation(), mid.PositiveScaling()):
        _x, moved = members(group)
        plain, joint = (
            mid.Ensemble(moved, group),
            mid.Ensemble(moved, group, observed=torch.ones(20, 6, dtype=torch.bool)),
        )
        close(
            plain.aligned.log() if group.positive else plain.aligned,
            joint.aligned.log() if group.positive else joint.aligned,
        )
        close(plain.covariance(), joint.covariance())


def test_contrasts_use_the_members_that_saw_their_items():
    x, moved = members(mid.Translation(), size=40)
    observed = hidden()
    ensemble = mid.Ensemble(torch.where(observed, moved, torch.nan), mid.Translation(), observed=observed)
    both = observed[:, 3] & observed[:, 4]
    contrast = ensemble.contrast(lambda t: t[3] - t[4])
    close(contrast.members, (x[:, 3] - x[:, 4])[both])


@pytest.mark.parametrize(
    ("fn", "wanted"),
    [
        (lambda x: (x[3] > x[4]).double(), lambda seen: seen[:, 3] & seen[:, 4]),
        (lambda x: 1e-12 * torch.relu(x[3] - x[4]), lambda seen: seen[:, 3] & seen[:, 4]),
        (lambda x: x.argsort().argsort().double(), lambda seen: seen.all(1)),
        (lambda x: x.max() - x[0], lambda seen: seen.all(1)),
        (lambda x: (x - x.mean())[3] - (x - x.mean())[4], lambda seen: seen[:, 3] & seen[:, 4]),
    ],
    ids=["comparison", "clipped and tiny", "ranks", "largest", "by a section"],
)
def test_contrasts_whose_derivative_tells_nothing_use_the_members_that_saw_their_items_too(fn, wanted):
    x, _ = members(mid.Translation(), size=40)
    observed = hidden()
    ensemble = mid.Ensemble(x, mid.Translation(), observed=observed)
    kept = wanted(observed)
    assert 1 < int(kept.sum()) < 40
    contrast = ensemble.contrast(fn)
    close(contrast.members, torch.stack([fn(member) for member in ensemble.aligned[kept]]))


def test_pairs_of_items_use_the_members_that_saw_both():
    x, _ = members(mid.Translation(), size=40)
    observed = hidden()
    ensemble = mid.Ensemble(x, mid.Translation(), observed=observed)
    rest = ensemble.aligned - ensemble.mean()
    both = observed[:, 3] & observed[:, 4]
    wanted = (rest[both, 3] * rest[both, 4]).sum() / (both.sum() - 1)
    close(ensemble.covariance()[3, 4], wanted)
    close(ensemble.covariance().diagonal().sqrt(), ensemble.std())


def test_members_that_share_no_items_are_named():
    observed = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    with pytest.raises(
        mid.NotIdentifiableError, match=r"`observed` leaves members 2, 3 without items shared.* with member 0"
    ):
        mid.Ensemble(random(4, 4), mid.Translation(), observed=observed).mean()
    observed[:, 1] = True  # which now links them, unless it has no weight
    mid.Ensemble(random(4, 4), mid.Translation(), observed=observed)
    with pytest.raises(mid.NotIdentifiableError, match="leaves members 2, 3 without items of positive weight shared"):
        mid.Ensemble(random(4, 4), mid.Translation(), torch.tensor([1.0, 0, 1, 1]), observed=observed)
    labels = torch.tensor([5, 5, 9, 9])
    apart = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    with pytest.raises(mid.NotIdentifiableError, match="leaves members 2 without items shared in block 9"):
        mid.Ensemble(random(3, 4), mid.Translation(blocks=labels), observed=apart).mean()


def test_items_and_members_without_observations_are_named():
    observed = torch.ones(4, 5, dtype=torch.bool)
    observed[:, 2] = False
    with pytest.raises(mid.NotIdentifiableError, match="`observed` has items that no member saw: 2"):
        mid.Ensemble(random(4, 5), mid.Translation(), observed=observed).mean()
    observed[1:, 2], observed[0, 2] = False, True
    with pytest.raises(ValueError, match="items 2 were seen by one member only, which has no spread"):
        mid.Ensemble(random(4, 5), mid.Translation(), observed=observed).std()
    with pytest.raises(ValueError, match="items Cyd were seen by one member only"):
        mid.Ensemble(random(4, 5), mid.Translation(), None, observed, ["Ann", "Bob", "Cyd", "Dan", "Eve"]).std()
    with pytest.raises(ValueError, match="`observed`: items 0 and 2 were seen together by fewer than two members"):
        mid.Ensemble(random(4, 5), mid.Translation(), observed=observed).covariance()
    with pytest.raises(ValueError, match=r"`fn` uses items that only 1 member\(s\) saw together"):
        mid.Ensemble(random(4, 5), mid.Translation(), observed=observed).contrast(lambda x: x[2] - x[0])


def test_a_member_that_disagrees_in_sign_is_named():
    x = random(6) + 0.1 * random(5, 6, seed=1)
    x[3] = -x[3]
    for group in (mid.Scaling(), mid.Affine()):
        with pytest.raises(mid.NotIdentifiableError, match="members 3 have no positive scale"):
            mid.Ensemble(x, group, observed=torch.ones(5, 6, dtype=torch.bool)).mean()


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: mid.Ensemble(random(5, 6), mid.Translation),
            TypeError,
            "`group` must be a gauge group, such as mid.Translation",
        ),
        (lambda: mid.Ensemble(3, mid.Translation()), TypeError, "`members` must be a stacked tensor, or a list"),
        (lambda: mid.Ensemble([random(6)], mid.Translation()), ValueError, "`members` must be at least two, got 1"),
        (lambda: mid.Ensemble(random(1, 6), mid.Translation()), ValueError, "at least two of them, got leading sizes"),
        (lambda: mid.Ensemble([random(6), {"a": random(6)}], mid.Translation()), TypeError, "all tensors or all dicts"),
        (
            lambda: mid.Ensemble([random(6), random(5)], mid.Translation()),
            ValueError,
            "have different shapes.*observed=",
        ),
        (
            lambda: mid.Ensemble([{"a": random(6)}, {"b": random(6)}], mid.Product()),
            ValueError,
            r"`members\[1\]` has the blocks \['b'\], members\[0\] has \['a'\]",
        ),
        (
            lambda: mid.Ensemble({"a": random(6, 2), "b": random(5, 2)}, mid.Product(a=mid.Translation())),
            ValueError,
            r"got leading sizes \[5, 6\]",
        ),
        (
            lambda: mid.Ensemble({"a": random(6, 2)}, mid.Product(b=mid.Translation())),
            ValueError,
            r"`members` lacks the blocks \['b'\]",
        ),
        (
            lambda: mid.Ensemble(random(5, 6), mid.Translation(), observed=torch.ones(5, 6)),
            TypeError,
            "`observed` must be a bool tensor",
        ),
        (
            lambda: mid.Ensemble(random(5, 6), mid.Translation(), observed=torch.ones(5, 5, dtype=torch.bool)),
            ValueError,
            r"`observed` must have the shape \(M, n\) of tensor members, got \(5, 5\) for members of shape \(5, 6\)$",
        ),
        (
            lambda: mid.Ensemble(random(5, 4, 3), mid.Translation(), observed=random(5, 4, 3) > 0),
            ValueError,
            r"of shape \(5, 4, 3\); leave padding out: members\[:, real\] with blocks=real.nonzero\(\)\[:, 0\]",
        ),
        (
            lambda: mid.Ensemble(random(5, 6).index_fill(1, torch.tensor([4]), torch.nan), mid.Translation()),
            ValueError,
            r"`members` must be finite: member 0 has nan at item 4 \(5 such entries\); observed=",
        ),
        (
            lambda: mid.Ensemble(random(5, 4, 3).where(random(4, 3, seed=1) > 0, torch.inf), mid.Translation()),
            ValueError,
            r"member 0 has inf at item \(\d, \d\) .*; leave padding out",
        ),
        (
            lambda: mid.Ensemble(random(5, 6), mid.Translation(LABELS), weights=(LABELS == 7).double()),
            ValueError,
            "`weights` are all zero in block",
        ),
        (
            lambda: mid.Ensemble([torch.nn.Linear(2, 1)] * 3, mid.Translation()),
            TypeError,
            r"got a list of Linear; call the models and stack what they emit: torch.stack\(\[model\(x\)",
        ),
        (
            lambda: mid.Ensemble(random(5, 6).numpy(), mid.Translation()),
            TypeError,
            "got ndarray; torch.as_tensor makes a tensor of an array",
        ),
        (lambda: mid.Ensemble(random(5, 6), mid.Translation()).std(0), TypeError, "got int; .* there is no dim"),
        (
            lambda: mid.Ensemble(random(5, 6), mid.Translation()).std(mid.Translation()),
            TypeError,
            r"got the group: take mid.Section\(group\)",
        ),
        (
            lambda: mid.Ensemble(random(5, 6), mid.Translation(LABELS)).std(mid.Section(mid.Translation())),
            mid.NotEstimableError,
            r"`section`, which is of Translation\(\), is not constant on the orbits of Translation\(",
        ),
        (
            lambda: mid.Ensemble(random(5, 6), GROUPS["shift"], observed=torch.ones(5, 6, dtype=torch.bool)).mean(),
            TypeError,
            "`observed` needs Translation, Scaling, PositiveScaling or Affine, not Shift",
        ),
    ],
)
def test_wrong_arguments_are_named(annotations_unchecked, make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_members_without_a_representative_are_named():
    x = random(6, 4)
    x[3] = 1
    with pytest.raises(mid.DegeneratePointError, match="`members` at batch index 3 is constant"):
        mid.Ensemble(x, mid.Affine())
    with pytest.raises(mid.DegeneratePointError, match=r"`members` at batch index 0, 1, 2.*not positive"):
        mid.Ensemble(-random(6, 4).exp(), mid.PositiveScaling()).mean()


@pytest.mark.parametrize("group", [mid.Scaling(), mid.Affine(), mid.Affine(blocks=LABELS)], ids=repr)
def test_opposite_members_have_no_mean(group):
    x = random(6).expand(4, 6).clone()
    x[2] = -x[2] if group.blocks is None else torch.where(LABELS == 7, -x[2], x[2])
    with pytest.raises(mid.NotConvergedError, match="points 2 lie opposite to the others"):
        mid.Ensemble(x, group).mean()
    x[0], x[2] = x[2].clone(), x[0].clone()  # the iteration starts at the one that is alone
    with pytest.raises(mid.NotConvergedError, match="lie opposite to the others"):
        mid.Ensemble(x, group).mean()
    x[0] += 0.1 * random(6, seed=1)
    y = mid.Ensemble(x, group).mean()  # almost opposite: far, but defined
    assert group.geometry().dist(y, x[1]) < group.geometry().dist(y, x[0])


def test_comparisons_become_shares():
    members = torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0], [3.0, 2.0, 0.0], [4.0, 0.0, 1.0]])
    assert mid.Ensemble(members, mid.Translation()).contrast(lambda x: x[0] > x[1]).value == 0.75


@pytest.mark.parametrize(("origin", "warned"), [(0.0, False), (300.0, True)])
def test_half_precision_that_has_lost_the_spread_at_a_large_origin_is_told(origin, warned):
    members = (origin + random(8) + 0.1 * random(6, 8, seed=1)).bfloat16()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mid.Ensemble(members, mid.Translation())
    assert ["emit the outputs in float32" in str(w.message) for w in caught] == [True] * warned


def test_items_are_contrasts_by_name():
    x = random(20, 3)
    ensemble = mid.Ensemble(x, mid.Translation(), names=["Ann", "Bob", "Cyd"])
    torch.testing.assert_close(ensemble.contrast("Ann", "Cyd").members, x[:, 0] - x[:, 2])
    with pytest.raises(ValueError, match=r"`minus` must be the name or index of an item \(Ann, Bob, Cyd\)"):
        ensemble.contrast("Ann", "Dan")
