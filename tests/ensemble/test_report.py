"""What an ensemble shows: names, text, pictures, quasi-variances, pairs."""

import math

import numpy as np
import pytest
import torch

import manifoldid as mid

F64 = torch.float64
NAMES = ["Ann", "Bob", "Cyd", "Dan"]


def members(size=40):
    noise = torch.randn(size, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    origin = torch.randn(size, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    return torch.arange(4, dtype=F64) + noise * torch.tensor([0.1, 0.2, 0.3, 0.4]) + 10 * origin


@pytest.fixture(name="ensemble")
def _ensemble():
    return mid.Ensemble(members(), mid.Translation(), names=NAMES)


def test_quasi_variances_are_those_of_the_covariance_in_any_gauge(ensemble):
    quasi = ensemble.quasi_variances()
    torch.testing.assert_close(quasi.variances, mid.quasi_variances(torch.cov(members().mT)).variances)
    # the noise is independent: quasi-variances are close to its variances, whatever the origin
    torch.testing.assert_close(quasi.standard_errors, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64), rtol=0.4, atol=0)


def test_too_few_members_for_quasi_variances_are_refused():
    # three members span two dimensions of the three contrasts of four items
    with pytest.raises(ValueError, match="rank-deficient"):
        mid.Ensemble(members(3), mid.Translation()).quasi_variances()


def test_pairs_are_contrasts_of_the_members(ensemble):
    pairs = ensemble.pairwise()
    contrast = ensemble.contrast(lambda x: x[3] - x[1])
    torch.testing.assert_close(pairs.value[3, 1], contrast.value)
    torch.testing.assert_close(pairs.standard_error[3, 1], contrast.standard_error)
    assert pairs.table()[0]["item"] == "Ann"
    with pytest.raises(mid.NotEstimableError, match="or say which section="):
        mid.Ensemble(members(), mid.Affine()).pairwise()


def test_text_is_a_plain_table(ensemble):
    text = str(ensemble)
    assert text.isascii()
    lines = text.splitlines()
    assert lines[0] == "Ensemble of 40 members under Translation()"
    assert [line.split()[0] for line in lines[3:7]] == NAMES
    assert "members" not in lines[1]


def test_names_given_to_the_table_come_before_those_of_the_ensemble(ensemble):
    assert [row["item"] for row in ensemble.table()] == NAMES
    assert [row["item"] for row in ensemble.table(["a", "b", "c", "d"])] == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="`names` must have one name per item, 4, got 1"):
        mid.Ensemble(members(), mid.Translation(), names=["a"])


def test_a_table_of_several_blocks_says_which():
    both = {"skill": members(), "home": torch.randn(40, generator=torch.Generator().manual_seed(2), dtype=F64)}
    ensemble = mid.Ensemble(both, mid.Product(skill=mid.Translation()), names={"skill": NAMES})
    rows = ensemble.table()
    assert [(row["block"], row["item"]) for row in rows] == [*(("skill", name) for name in NAMES), ("home", "home")]
    assert [row["item"] for row in ensemble.table(["a", "b", "c", "d"], block="skill")] == ["a", "b", "c", "d"]
    assert "home" in str(ensemble)
    with pytest.raises(ValueError, match="must be a dict from block to names"):
        ensemble.table(NAMES)
    with pytest.raises(ValueError, match="have the blocks"):
        ensemble.table(block="away")


def test_items_that_one_member_saw_have_a_mean_and_no_deviation():
    observed = torch.ones(3, 4, dtype=torch.bool)
    observed[1:, 3] = False
    ensemble = mid.Ensemble(members(3), mid.Translation(), observed=observed)
    row = ensemble.table()[3]
    assert (row["members"], row["standard_deviation"]) == (1, None)
    assert math.isfinite(row["mean"])
    assert str(ensemble).splitlines()[1].split() == ["item", "mean", "standard", "deviation", "members"]


def test_the_picture_shows_members_as_they_came_and_aligned(ensemble):
    axes = ensemble.plot(order=False)
    before, after = (np.asarray(container.lines[0].get_xdata()) for container in axes.containers[:2])
    torch.testing.assert_close(torch.tensor(before), members().mean(0))
    torch.testing.assert_close(torch.tensor(after), ensemble.mean())
    assert [text.get_text() for text in axes.get_yticklabels()] == NAMES
    assert ensemble.plot(axes) is axes


def test_the_largest_mean_is_drawn_on_top(ensemble):
    axes = ensemble.plot()
    order = ensemble.mean().argsort(descending=True)
    assert [text.get_text() for text in axes.get_yticklabels()] == [NAMES[k] for k in order]
    for values, container in zip((members(), ensemble.aligned), axes.containers, strict=True):
        torch.testing.assert_close(torch.tensor(np.asarray(container.lines[0].get_xdata())), values.mean(0)[order])


def test_what_a_member_did_not_see_is_not_drawn():
    observed = torch.ones(40, 4, dtype=torch.bool)
    observed[3, 2] = False
    values = members().masked_fill(~observed, 1e6)
    axes = mid.Ensemble(values, mid.Translation(), observed=observed).plot()
    assert axes.get_xlim()[1] < 1e3


def test_a_complex_number_is_one_row_with_a_real_deviation():
    z = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    ensemble = mid.Ensemble(z, mid.Phase(), names=["x", "y", "z"])
    rows = ensemble.table()
    assert [row["item"] for row in rows] == ["x", "y", "z"]
    assert [row["mean"] for row in rows] == ensemble.mean().tolist()
    assert [row["standard_deviation"] for row in rows] == ensemble.std().tolist()
    assert "j" in str(ensemble).splitlines()[3]
