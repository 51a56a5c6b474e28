import pytest
from wrong import GROUPS, wrong_manifolds

import manifoldid as mid

pytestmark = pytest.mark.slow

MANIFOLDS = wrong_manifolds()


@pytest.mark.parametrize("name", GROUPS)
def test_every_wrong_group_is_caught_by_the_check_meant_for_it(name):
    wrong = GROUPS[name]
    report = mid.conformance.check_group(wrong.subject, wrong.sample, invariant=wrong.invariant)
    assert not report.passed
    assert wrong.caught_by in report.failures, str(report)


@pytest.mark.parametrize("name", MANIFOLDS)
def test_every_wrong_manifold_is_caught_by_the_check_meant_for_it(name):
    wrong = MANIFOLDS[name]
    report = mid.conformance.check_manifold(wrong.subject, wrong.sample)
    assert wrong.caught_by in report.failures, str(report)


def test_what_is_wrong_in_one_place_is_not_reported_everywhere():
    wrong = GROUPS["undo-twice"]
    report = mid.conformance.check_group(wrong.subject, wrong.sample)
    assert set(report.failures) == {"undo_is_the_inverse"}
