"""diagnose -> group -> attach -> ensemble, for every public case whose flows exist for all times."""

import functools
import pickle

import pytest
import torch
from closed_loop import assert_adam_does_not_see, gauge_copies
from public_cases import CASES, CASES_BY_NAME

import manifoldid as mid

pytestmark = pytest.mark.slow

F64 = torch.float64
COMPLETE = [case for case in CASES if case.complete]
complete = pytest.mark.parametrize("name", [case.name for case in COMPLETE])


@functools.cache
def diagnosed(name):
    """A case, a point of it, another, and the group that its diagnosis hands over."""
    case, generator = CASES_BY_NAME[name], torch.Generator().manual_seed(0)
    point = case.sample(generator)
    if name == "power_gauge":  # on the same orbit, where the double exponential of the chart is tame
        point = point**0.5
    diagnosis = mid.diagnose(case.predict, point, sample=lambda: case.sample(generator))
    assert all(g.complete for g in diagnosis.generators)
    return case, point, case.sample(generator), diagnosis.group


@complete
def test_the_group_leaves_predictions_alone_and_has_the_dimension_of_the_orbit(name):
    case, point, _, group = diagnosed(name)
    mid.check_invariance(case.predict, point, group)
    basis = group.vertical_basis(point).reshape(-1, case.size)
    assert (int(torch.linalg.matrix_rank(basis)) if basis.numel() else 0) == case.dim


@complete
def test_the_group_passes_the_conformance_kit(name):
    case, point, _, group = diagnosed(name)
    report = mid.conformance.check_group(group, point, invariant=case.predict)
    assert report.passed, str(report)


@complete
def test_25_steps_of_adam_do_not_see_the_gauge(name):
    case, point, other, group = diagnosed(name)
    assert_adam_does_not_see(group, case.predict, point, other, tolerance=1e-9, motion=1e-6)


@complete
def test_an_ensemble_of_20_gauge_copies_has_no_spread(name):
    _, point, _, group = diagnosed(name)
    members = gauge_copies(group, point, 20, 0.5)
    assert mid.Ensemble(members, group).std().abs().max() < 1e-9 * point.abs().max()


def test_joint_scalings_of_positive_blocks_are_shifts_of_their_logarithms():
    predict = lambda p: torch.cat([p["a"] * p["b"] ** 2, p["free"]])  # noqa: E731
    point = {
        "a": torch.tensor([0.7, 2.0], dtype=F64),
        "b": torch.tensor(1.5, dtype=F64),
        "free": torch.tensor([-1.0], dtype=F64),
    }
    group = mid.diagnose(predict, point).group
    assert isinstance(group, mid.Pointwise)
    assert pickle.loads(pickle.dumps(group)) == group
    mid.check_invariance(predict, point, group)
    members = [{**point, **group.act(xi, point)} for xi in torch.linspace(-2, 2, 5, dtype=F64)[:, None]]
    assert all(float(t.abs().max()) < 1e-12 for t in mid.Ensemble(members, group).std().values())
    signed = mid.diagnose(predict, {**point, "a": torch.tensor([0.7, -2.0], dtype=F64)}).group
    assert type(signed).__name__ == "GeneratedGroup"
