"""Contrasts: intervals, simultaneous intervals, Wald tests, correlations."""

import math

import pytest
import torch

import manifoldid as mid
from manifoldid.inference import Contrast

F64 = torch.float64
SPREAD = torch.tensor([[4.0, 1, 0], [1, 9, -2], [0, -2, 1]], dtype=F64)
VALUE = torch.tensor([2.0, -3, 1], dtype=F64)
PAIRS = torch.tensor([[1.0, -1, 0], [0, 1, -1], [1, 0, -1]], dtype=F64)  # of rank two


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=atol)


def test_a_number_has_the_error_and_interval_of_its_variance():
    one = Contrast(torch.tensor(2.0), torch.tensor([[4.0]]))
    assert one.standard_error == 2
    assert one.standard_error.shape == ()
    low, high = one.interval(0.6826894921370859)
    close(torch.stack([low, high]), [0.0, 4.0], atol=1e-6)


def test_correlations_are_one_on_the_diagonal_and_nan_without_variance():
    correlation = Contrast(VALUE, SPREAD).correlation
    close(correlation[0], [1, 1 / 6, 0])
    close(correlation[1, 2], -2 / 3)
    fixed = Contrast(VALUE[:2], torch.diag(torch.tensor([4.0, 0], dtype=F64))).correlation
    assert fixed[0, 0] == 1
    assert torch.isnan(fixed[1]).all()


# ------------------------------------------------------------------------------------------------------------ Wald tests


def test_a_wald_test_is_the_squared_mahalanobis_distance():
    test = Contrast(VALUE, SPREAD).wald_test()
    statistic = float(VALUE @ torch.linalg.solve(SPREAD, VALUE))
    assert test.statistic == pytest.approx(statistic)
    assert test.degrees_of_freedom == 3
    # chi-squared with three degrees of freedom: erfc(r) + 2 / sqrt(pi) r exp(-r^2), r^2 = statistic / 2
    r = math.sqrt(statistic / 2)
    assert test.p_value == pytest.approx(math.erfc(r) + 2 / math.sqrt(math.pi) * r * math.exp(-r * r))


def test_the_wald_test_of_one_number_is_the_two_sided_test():
    test = Contrast(torch.tensor(2.0), torch.tensor([[1.0]])).wald_test()
    assert (test.statistic, test.degrees_of_freedom) == (4, 1)
    assert test.p_value == pytest.approx(math.erfc(2 / math.sqrt(2)))
    far = Contrast(torch.tensor(8.1, dtype=torch.float64), torch.eye(1, dtype=torch.float64)).wald_test()
    assert far.p_value == pytest.approx(math.erfc(8.1 / math.sqrt(2)), rel=1e-12, abs=0)


def test_contrasts_that_depend_on_each_other_count_once():
    both = Contrast(PAIRS[:2] @ VALUE, PAIRS[:2] @ SPREAD @ PAIRS[:2].mT).wald_test()
    three = Contrast(PAIRS @ VALUE, PAIRS @ SPREAD @ PAIRS.mT).wald_test()
    assert three.degrees_of_freedom == both.degrees_of_freedom == 2
    assert three.statistic == pytest.approx(both.statistic)


def test_a_null_value_that_contradicts_a_relation_is_refused():
    three = Contrast(PAIRS @ VALUE, PAIRS @ SPREAD @ PAIRS.mT)
    assert three.wald_test(torch.tensor([1.0, 1, 2])).degrees_of_freedom == 2
    with pytest.raises(ValueError, match=r"`null` contradicts 1 linear relation"):
        three.wald_test(1.0)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_units_do_not_decide_a_wald_test(unit):
    scale = torch.tensor([1.0, unit, 1.0], dtype=F64)
    test = Contrast(VALUE * scale, SPREAD * scale * scale[:, None]).wald_test()
    assert test.degrees_of_freedom == 3
    assert test.statistic == pytest.approx(Contrast(VALUE, SPREAD).wald_test().statistic)


def test_wald_tests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="`null` must be a number or have the shape"):
        Contrast(VALUE, SPREAD).wald_test(torch.zeros(2))
    with pytest.raises(ValueError, match="zero"):
        Contrast(VALUE, torch.zeros_like(SPREAD)).wald_test()


# ---------------------------------------------------------------------------------------------- simultaneous intervals


def half_width(contrast, **kwargs):
    low, high = contrast.simultaneous_interval(**kwargs)
    return (high - low) / (2 * contrast.standard_error)


def test_independent_contrasts_get_the_interval_of_sidak():
    critical = half_width(Contrast(torch.zeros(5, dtype=F64), torch.diag(torch.arange(1.0, 6, dtype=F64))), level=0.9)
    sidak = torch.special.ndtri(torch.tensor(0.5 + 0.5 * 0.9**0.2, dtype=F64))
    # the quantile of 100,000 draws: its own error is sqrt(.9 .1 / 1e5) / density = 0.003
    close(critical, sidak.expand(5), atol=0.015)


def test_all_pairs_of_equal_items_get_the_studentised_range():
    i, j = torch.triu_indices(4, 4, offset=1)
    design = torch.eye(4, dtype=F64)[i] - torch.eye(4, dtype=F64)[j]
    critical = half_width(Contrast(torch.zeros(6, dtype=F64), design @ design.mT))
    close(critical, torch.full((6,), 3.633 / math.sqrt(2), dtype=F64), atol=0.03)  # Tukey's q for 4 means, infinite df


def test_one_contrast_alone_gets_its_own_interval():
    one = Contrast(torch.tensor(1.0, dtype=F64), torch.tensor([[4.0]], dtype=F64))
    close(torch.stack(one.simultaneous_interval()), torch.stack(one.interval()), atol=0.05)


def test_simulation_is_repeatable_and_leaves_the_global_generator_alone():
    contrast = Contrast(VALUE, SPREAD)
    state = torch.get_rng_state()
    first, second = contrast.simultaneous_interval(draws=1000), contrast.simultaneous_interval(draws=1000)
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert torch.equal(state, torch.get_rng_state())
    other = contrast.simultaneous_interval(draws=1000, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(torch.stack(first), torch.stack(other))


@pytest.mark.parametrize("arguments", [{"level": 0.0}, {"level": 95.0}, {"draws": 10}])
def test_levels_and_draws_are_checked(arguments):
    with pytest.raises(ValueError, match=r"`level`|`draws`"):
        Contrast(VALUE, SPREAD).simultaneous_interval(**arguments)


def test_estimates_and_ensembles_give_the_same_kind():
    def nll(x):
        return 0.5 * (x[:, None] - x - 1).square().sum()

    estimate = mid.infer(nll, mid.fit(nll, torch.zeros(3, dtype=F64), mid.Translation()).point, mid.Translation())
    members = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    ensemble = mid.Ensemble(members, mid.Translation())
    assert type(estimate.contrast(lambda x: x[0] - x[1])) is type(ensemble.contrast(lambda x: x[0] - x[1])) is Contrast
    assert repr(Contrast(torch.zeros(9), torch.eye(9))).endswith("... 9 in all])")
