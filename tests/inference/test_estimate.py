"""What can be read off an estimate: tables, names, correlations, pairs, text."""

import math

import pytest
import torch

import manifoldid as mid
from manifoldid.inference.information import DenseInverse

F64 = torch.float64
FIRST, SECOND = torch.triu_indices(4, 4, offset=1)
RIGHT = torch.tensor([1.0, 3, 2, 5, 4, 1], dtype=F64)
NAMES = ["Ann", "Bob", "Cyd", "Dan"]


def nll(x):
    """Gaussian differences of precision k: the covariance is known in closed form."""
    return 0.5 * (RIGHT * (x[FIRST] - x[SECOND] - RIGHT).square()).sum()


def fitted(function, start, group, **kwargs):
    return mid.infer(function, mid.fit(function, start, group).point, group, **kwargs)


@pytest.fixture(name="plain", scope="module")
def _plain():
    return fitted(nll, torch.zeros(4, dtype=F64), mid.Translation())


@pytest.fixture(name="blocks", scope="module")
def _blocks():
    def both(point):
        return nll(point["skill"]) + 0.5 * (point["home"] - 2).square() + 0.5 * (point["c"] - 1).square().sum()

    start = {"skill": torch.zeros(4, dtype=F64), "home": torch.zeros((), dtype=F64), "c": torch.zeros(2, 2, dtype=F64)}
    return fitted(both, start, mid.Product(skill=mid.Translation()), names={"skill": NAMES, "c": ["u", "v"]})


# --------------------------------------------------------------------------------------------------------------- tables


def test_a_table_of_one_block_has_one_row_per_item(plain):
    rows = plain.table(names=NAMES)
    assert [row["item"] for row in rows] == NAMES
    assert [row["estimate"] for row in rows] == plain.estimate().tolist()
    assert [row["standard_error"] for row in rows] == plain.standard_errors().tolist()
    assert [row["quasi_standard_error"] for row in rows] == plain.quasi_variances().standard_errors.tolist()
    assert [row["item"] for row in plain.table()] == [0, 1, 2, 3]


def test_a_table_of_several_blocks_says_which(blocks):
    rows = blocks.table()
    assert [row["block"] for row in rows] == ["skill"] * 4 + ["home"] + ["c"] * 4
    assert [row["item"] for row in rows] == [*NAMES, "home", "u[0]", "u[1]", "v[0]", "v[1]"]
    assert "quasi_standard_error" not in rows[4]
    alone = blocks.table(names=["a", "b", "c", "d"], block="skill")
    assert [row["item"] for row in alone] == ["a", "b", "c", "d"]
    assert "block" not in alone[0]


def test_pools_are_reported_one_by_one(plain):
    apart = torch.tensor([0, 1, 0, 1, 0, 0, 2])

    def pools(x):
        return nll(x[apart == 0]) + (x[1] - x[3] - 1).square()

    estimate = fitted(pools, torch.zeros(7, dtype=F64), mid.Translation(blocks=apart))
    quasi = estimate.quasi_variances()
    torch.testing.assert_close(quasi.variances[apart == 0], plain.quasi_variances().variances)
    assert quasi.variances[apart > 0].isnan().all()
    assert quasi.worst_errors == pytest.approx(plain.quasi_variances().worst_errors)
    assert estimate.table()[0]["quasi_standard_error"] == pytest.approx(plain.table()[0]["quasi_standard_error"])

    section = lambda x: x - x[[0, 3, 0, 3, 0, 0, 6]]  # noqa: E731  # one that has a difference of pools
    for pairs in (estimate.pairwise(), estimate.pairwise(section=section)):
        within = apart[:, None] == apart
        for numbers in (pairs.value, pairs.standard_error, *pairs.simultaneous_interval(), pairs.adjusted_p_values()):
            assert torch.equal(numbers.isfinite(), within)
        torch.testing.assert_close(pairs.standard_error[0, 2], plain.pairwise().standard_error[0, 1])
        assert [(row["item"], row["other"]) for row in pairs.table()][:3] == [(0, 2), (0, 4), (0, 5)]
        assert len(pairs.table()) == 7
    torch.testing.assert_close(estimate.pairwise().standard_error[1, 3], torch.tensor(0.5**0.5, dtype=F64))

    members = estimate.point + torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=F64)
    ensemble = mid.Ensemble(members, mid.Translation(blocks=apart))
    assert ensemble.pairwise().value[0, 1].isnan()
    torch.testing.assert_close(
        ensemble.quasi_variances().variances[apart == 0],
        mid.Ensemble(members[:, apart == 0], mid.Translation()).quasi_variances().variances,
    )


def test_rows_of_a_batch_are_pools(plain):
    estimate = fitted(lambda x: nll(x[0]) + nll(x[1]), torch.zeros(2, 4, dtype=F64), mid.Translation())
    torch.testing.assert_close(estimate.pairwise().standard_error[4:, 4:], plain.pairwise().standard_error)
    assert estimate.pairwise().value[0, 4].isnan()


def test_items_and_coefficients_are_contrasts(plain, blocks):
    wanted = plain.contrast(lambda x: x[1] - x[3])
    named = fitted(nll, torch.zeros(4, dtype=F64), mid.Translation(), names=NAMES)
    for contrast in (
        named.contrast("Bob", "Dan"),
        named.contrast(1, minus=-1),
        blocks.contrast("Bob", "Dan", block="skill"),
        plain.contrast(torch.tensor([0, 1, 0, -1])),
    ):
        assert float(contrast.standard_error) == pytest.approx(float(wanted.standard_error), rel=1e-6)
    assert plain.contrast(torch.tensor([[0, 1, 0, -1], [1, 0, -1, 0]])).value.shape == (2,)
    with pytest.raises(mid.NotEstimableError, match="not constant on the orbits"):
        plain.contrast(torch.tensor([0, 1, 0, 0]))
    for wrong, message in (("Eve", "`minus` must be the name or index of an item"), (4, "`minus` must be the name")):
        with pytest.raises(ValueError, match=message):
            named.contrast("Ann", wrong)
    with pytest.raises(ValueError, match="4 coefficients"):
        plain.contrast(torch.ones(3))
    with pytest.raises(TypeError, match="with `minus` another one"):
        named.contrast("Ann")
    with pytest.raises(ValueError, match=r"pairwise\(\)"):
        plain.contrast(lambda x: x[:, None] - x)


def test_items_that_are_called_by_numbers_are_found_by_these_numbers(plain):
    years = fitted(nll, torch.zeros(4, dtype=F64), mid.Translation(), names=[2021, 2022, 2023, 2024])
    assert float(years.contrast(2022, 2024).value) == float(plain.contrast(1, 3).value)
    assert float(years.contrast(0, -1).value) == float(plain.contrast(0, 3).value)
    shirts = fitted(nll, torch.zeros(4, dtype=F64), mid.Translation(), names=[0, 9, 10, 1])
    assert float(shirts.contrast("1", 9).value) == float(plain.contrast(3, 1).value)
    assert float(shirts.contrast(0, 3).value) == float(plain.contrast(0, 3).value)
    with pytest.raises(ValueError, match="`minus` is 1, the index of one item and the name of another"):
        shirts.contrast(0, 1)


def test_numbers_without_a_difference_have_no_pairs():
    one = {"skill": torch.zeros(4, dtype=F64), "tie": torch.ones((), dtype=F64)}
    group = mid.Product(skill=mid.Translation())
    estimate = fitted(lambda x: nll(x["skill"]) + (x["tie"] - 1) ** 2, one, group)
    ensemble = mid.Ensemble({name: torch.stack([t, 2 + t, t - 1]) for name, t in one.items()}, group)
    for pairs in (estimate.pairwise, ensemble.pairwise):
        with pytest.raises(ValueError, match=r"two numbers that have a difference, got 1 number\(s\)"):
            pairs("tie")


def test_a_contrast_in_numpy_is_refused_with_what_to_do(plain):
    with pytest.raises(ValueError, match=r"write it in torch, or draw it: fn of sample\(size\)"):
        plain.contrast(lambda x: torch.as_tensor(x.numpy()[1:] - x.numpy()[0]))


def test_draws_have_the_moments_of_the_estimate_and_stay_on_the_section(plain, blocks):
    draws = plain.sample(20_000)
    spread = draws.T.cov()
    errors = plain.standard_errors()
    # a covariance of 20,000 draws is off by no more than 5 / sqrt(20,000) of the product of two deviations
    assert ((spread - plain.covariance()).abs() < 0.04 * errors * errors[:, None]).all()
    assert ((draws.mean(0) - plain.estimate()).abs() < 0.04 * errors).all()
    torch.testing.assert_close(draws.mean(1), torch.zeros(20_000, dtype=F64), rtol=0, atol=1e-12)
    anchored = plain.sample(5, section=mid.Reference(mid.Translation(), 0))
    assert anchored[:, 0].abs().max() < 1e-12
    assert torch.equal(plain.sample(5), plain.sample(5))
    assert blocks.sample(3)["skill"].shape == (3, 4)
    with pytest.raises(ValueError, match="`size` must be at least 1"):
        plain.sample(0)


def test_a_sorted_table_begins_with_the_best(plain):
    scores = [row["estimate"] for row in plain.table(sort=True)]
    assert scores == sorted(scores, reverse=True)
    assert [row["item"] for row in plain.table()] == [0, 1, 2, 3]


def test_adjusted_p_values_are_those_of_the_intervals(plain):
    pairs = plain.pairwise()
    p = pairs.adjusted_p_values()
    for level in (0.5, 0.9, 0.99):
        low, high = pairs.simultaneous_interval(level)
        assert torch.equal((low > 0) | (high < 0), p < 1 - level)
    assert torch.equal(p.diagonal(), torch.ones(4, dtype=F64))
    assert [row["p_value"] for row in pairs.table()] == p[*torch.triu_indices(4, 4, 1)].tolist()
    one = plain.contrast(lambda x: x[0] - x[1])
    assert float(one.adjusted_p_values()) == pytest.approx(one.wald_test().p_value, abs=0.005)


def test_the_section_of_a_table_moves_estimates_and_errors_but_not_quasi_errors(plain):
    first = plain.table(section=mid.Reference(mid.Translation(), 0))
    assert (first[0]["estimate"], first[0]["standard_error"]) == (0, 0)
    assert [row["quasi_standard_error"] for row in first] == pytest.approx(
        [row["quasi_standard_error"] for row in plain.table()]
    )


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["a"], ValueError, "`names` must have one name per item, 4, got 1"),
        ("abcd", TypeError, "`names` must be a list with one name per item, got str"),
        ({"skill": NAMES}, ValueError, "of a tensor point must be a list"),
        (set(NAMES), TypeError, "names"),
        (["a", "b", "a", "c"], ValueError, "names several items a$"),
    ],
)
def test_wrong_names_are_refused(plain, names, error, message):
    with pytest.raises(error, match=message):
        plain.table(names=names)


def test_names_of_dict_points_are_dicts(blocks):
    with pytest.raises(ValueError, match="must be a dict from block to names"):
        blocks.table(names=NAMES)
    with pytest.raises(ValueError, match="`block` must be one of"):
        blocks.table(block="unknown")


def test_errors_use_the_names():
    def two(x):
        return (x[0] - x[2]).square() + (x[1] - x[3]).square()

    with pytest.raises(mid.NotIdentifiableError, match="items Ann, Cyd; items Bob, Dan"):
        mid.infer(two, torch.zeros(4, dtype=F64), mid.Translation(), names=NAMES)


def test_text_is_plain_and_complete(blocks, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    text = str(blocks)
    assert text.isascii()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "Estimate under Product(skill=Translation()), on its canonical section"
    assert lines[1].split() == ["block", "item", "estimate", "standard", "error", "quasi", "standard", "error"]
    assert [line.split()[1] for line in lines[3:7]] == NAMES
    assert "Quasi-standard errors of skill give those of differences to" in text
    assert repr(blocks).count("\n") == 0


def test_names_that_look_like_markup_are_printed_as_they_are(plain):
    estimate = fitted(nll, torch.zeros(4, dtype=F64), mid.Translation(), names=["[red]", "[/b]", "\\", "[0]"])
    assert [line.split()[0] for line in str(estimate).splitlines()[3:7]] == ["[red]", "[/b]", "\\", "[0]"]


def test_long_tables_are_cut_in_the_middle_and_say_so():
    def many(x):
        return 0.5 * (x - torch.arange(100.0, dtype=F64)).square().sum()

    text = str(fitted(many, torch.zeros(100, dtype=F64), mid.Product()))
    assert "... 70 more" in text
    assert text.splitlines()[3].split()[0] == "0"


def test_numbers_are_shown_with_the_digits_that_their_errors_allow():
    def small(x):
        return 0.5 * ((x - 123.456789) / 0.00123).square().sum()

    line = str(fitted(small, torch.full((3,), 123.0, dtype=F64), mid.Product())).splitlines()[3]
    assert line.split()[1:3] == ["123.45679", "0.00123"]


# --------------------------------------------------------------------------------------------------- correlations, pairs


def test_correlations_are_those_of_the_covariance(plain):
    covariance = plain.covariance()
    errors = covariance.diagonal().sqrt()
    torch.testing.assert_close(plain.correlation(), covariance / errors / errors[:, None])
    fixed = plain.correlation(section=mid.Reference(mid.Translation(), 1))
    assert torch.isnan(fixed[1]).all()
    assert (fixed.diagonal()[[0, 2, 3]] == 1).all()


def test_pairs_are_the_contrasts_of_pairs(plain, blocks):
    for pairs in (plain.pairwise(), blocks.pairwise("skill")):
        contrast = plain.contrast(lambda x: x[FIRST] - x[SECOND])
        torch.testing.assert_close(pairs.value[FIRST, SECOND], contrast.value)
        torch.testing.assert_close(pairs.standard_error[FIRST, SECOND], contrast.standard_error)
        torch.testing.assert_close(pairs.value, -pairs.value.mT)
        low, high = pairs.simultaneous_interval(draws=100_000)
        # both simulate the same quantile: sd of a simulated quantile about 0.005
        wanted = contrast.simultaneous_interval(draws=100_000, generator=torch.Generator().manual_seed(7))
        torch.testing.assert_close(low[FIRST, SECOND], wanted[0], rtol=0.02, atol=0.02)
        torch.testing.assert_close(high[FIRST, SECOND], wanted[1], rtol=0.02, atol=0.02)


def test_pairs_are_wider_together_than_alone_and_narrower_than_bonferroni(plain):
    pairs = plain.pairwise()
    low, high = pairs.simultaneous_interval()
    critical = ((high - low) / (2 * pairs.standard_error))[0, 1]
    assert 1.96 < critical < float(torch.special.ndtri(torch.tensor(1 - 0.025 / 6)))


def test_the_table_of_pairs_has_one_row_per_pair(blocks):
    pairs = blocks.pairwise("skill")
    rows = pairs.table()
    assert [(row["item"], row["other"]) for row in rows[:3]] == [("Ann", "Bob"), ("Ann", "Cyd"), ("Ann", "Dan")]
    assert len(rows) == 6
    assert all(row["low"] < row["difference"] < row["high"] for row in rows)
    assert "of 6 pairs differ" in str(pairs)


@pytest.mark.slow
def test_differences_that_depend_on_the_unit_need_a_section():
    target = torch.tensor([-1.0, 0.5, 2.0, 4.0], dtype=F64)

    def shape(x):
        return 50 * (mid.Section(mid.Affine())(x) - mid.Section(mid.Affine())(target)).square().sum()

    estimate = fitted(shape, target * 3 + 1, mid.Affine())
    with pytest.raises(mid.NotEstimableError, match="or say which section="):
        estimate.pairwise()
    pairs = estimate.pairwise(section=mid.Reference(mid.Affine(), (0, 3)))
    assert float(pairs.value[3, 0]) == pytest.approx(1)
    assert math.isclose(float(pairs.standard_error[3, 0]), 0, abs_tol=1e-8)


def test_an_estimate_in_float32_answers_in_float32():
    right = RIGHT.float()

    def single(x):
        return 0.5 * (right * (x[FIRST] - x[SECOND] - right).square()).sum()

    estimate = fitted(single, torch.zeros(4), mid.Translation())
    pairs = estimate.pairwise()
    assert estimate.correlation().dtype == pairs.value.dtype == pairs.simultaneous_interval()[0].dtype == torch.float32
    torch.testing.assert_close(estimate.covariance().double(), torch.linalg.pinv(laplacian()), rtol=1e-4, atol=1e-5)


def laplacian():
    design = torch.eye(4, dtype=F64)[FIRST] - torch.eye(4, dtype=F64)[SECOND]
    return design.mT @ (RIGHT[:, None] * design)


def test_complex_points_have_a_row_for_each_part():
    target = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128)

    def distance(z):
        return 0.5 * torch.view_as_real(z - target).square().sum()

    rows = fitted(distance, torch.ones(2, dtype=torch.complex128), mid.Product(), names=["p", "q"]).table()
    assert [row["item"] for row in rows] == ["p[0]", "p[1]", "q[0]", "q[1]"]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x[0] > x[1],
        lambda x: (x[0] - x[1]).detach(),
        lambda x: x.argsort().double(),
        lambda x: torch.tensor(1.0),
    ],
    ids=["comparison", "detached", "ranks", "constant"],
)
def test_a_function_without_a_derivative_is_refused_not_given_an_error_of_zero(plain, fn):
    with pytest.raises(ValueError, match="`fn` has no autograd graph"):
        plain.contrast(fn)


def test_a_section_without_a_derivative_is_refused(plain):
    with pytest.raises(ValueError, match="`section` has no autograd graph"):
        plain.covariance(section=lambda x: (x - x.mean()).detach())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_errors_are_the_same_where_gradients_are_off(plain, mode):
    wanted = plain.contrast(lambda x: x[0] - x[1]).standard_error
    with mode():
        fresh = mid.infer(nll, plain.point, mid.Translation()) if mode is torch.no_grad else plain
        assert fresh.contrast(lambda x: x[0] - x[1]).standard_error == pytest.approx(float(wanted))
        assert fresh.standard_errors(mid.Reference(mid.Translation(), 1))[0] == pytest.approx(float(wanted))


def test_a_point_of_thousands_of_numbers_is_not_printed():
    inverse = DenseInverse(torch.zeros(0, 0))  # never asked for
    text = str(mid.Estimate(torch.ones(2001, dtype=F64), mid.Product(), None, inverse))
    assert text.splitlines() == [text]
    assert "contrast(fn)" in text


def test_a_negative_quasi_variance_is_said_in_the_text_and_warned_of_in_the_table():
    # item 0 lies half way between the others, so that its differences vary less than those of the others among themselves
    half = torch.cat([torch.full((1, 3), 1 / 3, dtype=F64), torch.eye(3, dtype=F64)])
    covariance = half @ half.mT + 1e-3 * torch.eye(4, dtype=F64)
    estimate = mid.inference.Estimate(
        torch.zeros(4, dtype=F64), mid.Translation(), None, DenseInverse(covariance), NAMES
    )
    text = " ".join(str(estimate).split())  # no warning: they are errors here
    assert "quasi-variance of item(s) Ann is negative" in text
    with pytest.warns(UserWarning, match=r"item\(s\) Ann is negative"):
        rows = estimate.table()
    assert math.isnan(rows[0]["quasi_standard_error"])
