"""infer: uncertainty on the quotient."""

import warnings

import pytest
import torch

import manifoldid as mid

F64 = torch.float64
FIRST, SECOND = torch.triu_indices(4, 4, offset=1)
RIGHT = torch.tensor([1.0, 3, 2, 5, 4, 1], dtype=F64)


def nll(x):
    """Gaussian differences of precision k: the covariance is known in closed form."""
    return 0.5 * (RIGHT * (x[FIRST] - x[SECOND] - RIGHT).square()).sum()


def terms(x):
    return 0.5 * (RIGHT * (x[FIRST] - x[SECOND] - RIGHT).square())


@pytest.fixture(name="estimate", scope="module")
def _estimate():
    return mid.infer(nll, mid.fit(nll, torch.zeros(4, dtype=F64), mid.Translation()).point, mid.Translation())


def laplacian():
    design = torch.zeros(6, 4, dtype=F64)
    design[range(6), FIRST] = 1
    design[range(6), SECOND] = -1
    return design, design.mT @ (RIGHT[:, None] * design)


def test_the_covariance_is_the_pseudo_inverse_of_the_laplacian(estimate):
    torch.testing.assert_close(estimate.covariance(), torch.linalg.pinv(laplacian()[1]), rtol=0, atol=1e-10)


def test_a_contrast_has_the_same_error_in_every_section(estimate):
    contrast = estimate.contrast(lambda x: x[2] - x[0])
    errors = estimate.standard_errors(section=mid.Reference(mid.Translation(), 0))
    torch.testing.assert_close(contrast.standard_error, errors[2])
    assert errors[0] == 0


def test_the_sandwich_is_the_product_of_its_three_parts():
    point = mid.fit(nll, torch.zeros(4, dtype=F64), mid.Translation()).point
    robust = mid.infer(nll, point, mid.Translation(), nll_terms=terms).covariance()
    design, matrix = laplacian()
    scores = (RIGHT * (point[FIRST] - point[SECOND] - RIGHT))[:, None] * design
    bread = torch.linalg.pinv(matrix)
    torch.testing.assert_close(robust, bread @ scores.mT @ scores @ bread, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="sum"):
        mid.infer(nll, point, mid.Translation(), nll_terms=lambda x: terms(x) / 6)


@pytest.mark.filterwarnings("default")
def test_too_few_clusters_are_refused_or_warned_of():
    group = mid.Translation()
    point = mid.fit(nll, torch.zeros(4, dtype=F64), group).point

    def clustered(clusters):
        return lambda x: torch.zeros(clusters, dtype=F64).index_add(0, torch.arange(6) % clusters, terms(x))

    with pytest.raises(ValueError, match="got 1 term: one has no spread"):
        mid.infer(nll, point, group, nll_terms=clustered(1))
    with pytest.warns(UserWarning, match="3 terms for 3 free numbers"):
        few = mid.infer(nll, point, group, nll_terms=clustered(3))
    with pytest.raises(ValueError, match="a sandwich more terms"):
        few.quasi_variances()
    with pytest.raises(ValueError, match="3 terms for 3 free numbers"):
        mid.infer(nll, point, group, nll_terms=clustered(3), information="scores")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mid.infer(nll, point, group, nll_terms=clustered(3), information="observed")
        mid.infer(nll, point, group, nll_terms=terms)


def test_a_likelihood_with_the_wrong_sign_is_suspected():
    with pytest.raises(mid.UnboundedEstimateError, match="or `nll` is a log-likelihood, with the sign missing"):
        mid.fit(lambda x: -nll(x), torch.arange(4, dtype=F64), mid.Translation())


def test_what_sees_the_gauge_is_refused(estimate):
    with pytest.raises(mid.NotEstimableError, match="`fn`"):
        estimate.contrast(lambda x: x[0])
    with pytest.raises(mid.NotEstimableError, match="`section`"):
        estimate.estimate(section=lambda x: 2 * x)


def test_a_point_that_is_no_optimum_is_refused():
    with pytest.raises(mid.NotConvergedError, match="standard errors from the optimum"):
        mid.infer(nll, torch.zeros(4, dtype=F64), mid.Translation())


def test_pools_that_never_met_are_named_and_their_group_is_suggested():
    def two(x):
        return (x[0] - x[2]).square() + (x[1] - x[3]).square()

    with pytest.raises(mid.NotIdentifiableError, match=r"2 component.*blocks=torch.tensor\(\[0, 1, 0, 1\]\)"):
        mid.infer(two, torch.zeros(4, dtype=F64), mid.Translation())


def test_a_parameter_that_nothing_depends_on_is_named_by_block():
    def dead(point):
        return nll(point["skill"]) + 0 * point["unused"]

    group = mid.Product(skill=mid.Translation())
    start = {"skill": torch.zeros(4, dtype=F64), "unused": torch.zeros((), dtype=F64)}
    with pytest.raises(mid.NotIdentifiableError, match="in block 'unused': items 0"):
        mid.infer(dead, mid.fit(dead, start, group).point, group)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_units_do_not_decide_what_is_identifiable(unit):
    def scaled(point):
        return nll(point["skill"]) + 0.5 * (point["slope"] / unit - 1).square().sum()

    group = mid.Product(skill=mid.Translation())
    point = {"skill": mid.fit(nll, torch.zeros(4, dtype=F64), mid.Translation()).point}
    errors = mid.infer(scaled, {**point, "slope": torch.full((2,), unit, dtype=F64)}, group).standard_errors()
    torch.testing.assert_close(errors["slope"], torch.full((2,), unit, dtype=F64))


def test_a_table_has_one_row_per_item(estimate):
    rows = estimate.table(names=list("abcd"))
    assert [row["item"] for row in rows] == list("abcd")
    assert set(rows[0]) == {"item", "estimate", "standard_error", "quasi_standard_error"}
    with pytest.raises(ValueError, match="names"):
        estimate.table(names=["a"])


def test_columns_that_are_all_but_collinear_are_answered_and_reported():
    design = torch.randn(40, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    design[:, 2] = design[:, 0] + 1e-4 * design[:, 2]

    def nll(x):
        return 0.5 * (design @ x - 1).square().sum()

    estimate = mid.infer(nll, mid.fit(nll, torch.zeros(3, dtype=F64), mid.Product()).point, mid.Product())
    (direction,) = estimate.weak
    assert float(direction[1].abs() / direction.norm()) < 1e-3
    assert float(direction[0] + direction[2]) == pytest.approx(0, abs=1e-3 * float(direction.norm()))
    expected = torch.linalg.inv(design.mT @ design).diagonal().sqrt()
    torch.testing.assert_close(estimate.standard_errors(), expected, rtol=1e-6, atol=0)
    assert "identified but hardly" in str(estimate)


def test_a_plain_estimate_has_no_weak_direction(estimate):
    assert estimate.weak == []
