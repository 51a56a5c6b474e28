import re

import pytest
import torch
from cases import CASES, ON_TENSORS, AsinhShift, positive, randn

import manifoldid as mid
from manifoldid.points import map_blocks

WEIGHTED = [*(name for name in ON_TENSORS if name != "custom"), "product", "shift-dict"]


def cast(x, dtype):
    return map_blocks(lambda t: t.to(dtype.to_complex() if t.is_complex() else dtype), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "batch"),  # the kit compares float32 with float64 in every run, so that one float32 sample will do
    [(torch.float64, ()), (torch.float32, (2, 3))],
    ids=str,
)
@pytest.mark.parametrize("name", CASES)
def test_every_group_passes(name, dtype, batch):
    case = CASES[name]
    report = mid.conformance.check_group(case.group, cast(case.point(*batch), dtype))
    assert report.passed, str(report)
    assert report.ran >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTED)
def test_every_group_passes_with_weights(name):
    group, sample = CASES[name].group, CASES[name].sample
    weights = map_blocks(lambda t: torch.linspace(0.5, 2.0, t.shape[0], dtype=t.abs().dtype), sample)
    report = mid.conformance.check_group(group, sample, weights=weights)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ON_TENSORS if name != "custom"])
def test_every_quotient_manifold_passes(name):
    report = mid.conformance.check_manifold(mid.QuotientManifold(CASES[name].group), CASES[name].sample)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["translation", "scaling", "positive-scaling", "affine-blocks"])
def test_every_weighted_quotient_manifold_passes(name):
    case = CASES[name]
    report = mid.conformance.check_manifold(mid.QuotientManifold(case.group, case.weights), case.sample)
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_samples_of_any_batch_and_dtype_will_do(batch, dtype):
    report = mid.conformance.check_manifold(mid.QuotientManifold(mid.Affine()), randn(*batch, 7, dtype=dtype))
    assert report.passed, str(report)


@pytest.mark.slow
def test_a_group_that_gives_only_its_action_passes():
    report = mid.conformance.check_group(AsinhShift(), randn(6))
    assert report.passed, str(report)
    assert report.ran >= 20


def test_geoopts_own_manifolds_can_be_checked():
    import geoopt

    assert mid.conformance.check_manifold(geoopt.Euclidean(ndim=1), randn(7)).passed
    sphere = mid.conformance.check_manifold(geoopt.Sphere(), torch.nn.functional.normalize(randn(7), dim=0))
    # acos loses half of the digits at 0, and expmap divides 0 by 0 there (GEOMETRY, trap 9)
    assert "distance_is_a_metric" in sphere.failures
    assert "steps_of_zero_length_have_finite_derivatives" in sphere.failures
    assert "metric_is_invariant" in sphere.skipped


def test_the_report_counts_what_ran_and_says_why_not():
    report = mid.conformance.check_group(mid.Translation(), randn(7))
    assert bool(report)
    assert report.ran + len(report.skipped) == len(report.outcomes)
    assert report.skipped["declared_invariant_is_invariant"] == "no `invariant` was given"
    assert re.match(r"Translation\(\): passed \(\d+ checks ran, 1 skipped\)", str(report))


def test_the_report_of_a_failure_says_where_to_look():
    class Wrong(mid.Translation):
        def undo(self, xi, x):
            return x

    report = mid.conformance.check_group(Wrong(), randn(7))
    assert not report
    assert "FAILED undo_is_the_inverse: undo(xi, act(xi, x)) is not x: off by" in str(report)
    assert "look at `undo`" in str(report)


def test_declared_invariants_are_tested():
    def gaps(x):
        return x[..., 1:] - x[..., :-1]

    assert mid.conformance.check_group(mid.Translation(), randn(7), invariant=gaps).passed
    report = mid.conformance.check_group(mid.Affine(), randn(7), invariant=gaps)
    assert "declared_invariant_is_invariant" in report.failures


def test_exceptions_of_the_group_are_findings():
    class Raises(mid.GaugeGroup):
        dim = 1

        def act(self, xi, x):
            raise RuntimeError("out of cheese")

    report = mid.conformance.check_group(Raises(), randn(5))
    assert set(report.failures) == {"act_returns_a_point"}
    assert "raises RuntimeError: out of cheese" in report.failures["act_returns_a_point"]


def hostile(act, dim=1):
    """A group with somebody's idea of an action."""
    return type("Hostile", (mid.GaugeGroup,), {"dim": dim, "act": lambda self, xi, x: act(xi, x)})()


def _counting():
    calls = []

    def act(xi, x):
        calls.append(1)
        return x + xi * len(calls)

    return act


HOSTILE = {
    "raises": (lambda xi, x: {}["oops"], "act(xi, x) raises KeyError"),
    "no-return": (lambda xi, x: None, "got NoneType; is there a `return`?"),
    "another-kind": (lambda xi, x: {"x": x + xi}, "act must return a tensor like `x`, got dict"),
    "array": (lambda xi, x: (x + xi).numpy(), "act must return a tensor like `x`, got ndarray"),
    "shape": (lambda xi, x: (x + xi)[..., :-1], "act turns shape (6,) into (5,)"),
    "complex": (lambda xi, x: torch.complex(x + xi, x), "act turns dtype torch.float64 into torch.complex128"),
    "integer": (lambda xi, x: (x + xi).round().long(), "act turns dtype torch.float64 into torch.int64"),
    "single": (lambda xi, x: (x + xi).float(), "act turns dtype torch.float64 into torch.float32"),
    "in-place": (lambda xi, x: x.add_(xi), "act writes to its arguments"),
    "writes-to-coordinates": (lambda xi, x: x + xi.mul_(2), "act writes to its arguments"),
    "item": (lambda xi, x: x + xi.item(), "computed outside of torch"),
    "numpy": (lambda xi, x: torch.from_numpy(x.numpy() + xi.numpy()), "act has no derivative by xi"),
    "data": (lambda xi, x: x + xi.data, "computed outside of torch"),
    "nan": (lambda xi, x: (x + xi).sqrt(), "is the sample inside of the domain"),
    "forgetful": (_counting(), "act gives another result in a second call"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_what_an_action_does_wrong_is_one_readable_line(name):
    act, message = HOSTILE[name]
    sample = randn(6)
    report = mid.conformance.check_group(hostile(act), sample)
    assert set(report.failures) == {"act_returns_a_point"}
    assert message in report.failures["act_returns_a_point"]
    assert f"skipped {len(report.skipped)} checks: act_returns_a_point failed" in str(report)
    assert torch.equal(sample, randn(6))


def test_a_forgotten_dimension_is_named():
    report = mid.conformance.check_group(hostile(lambda xi, x: x + xi, dim=0), randn(6))
    assert "`dim` of Hostile is 0" in report.failures["act_returns_a_point"]


def test_a_sample_without_quotient_is_a_finding():
    report = mid.conformance.check_group(mid.Affine(), torch.ones(5))
    assert "constant" in report.failures["sample_has_a_representative"]


@pytest.mark.parametrize("subject", [mid.Affine, torch.zeros(3), None])
def test_what_is_no_group_or_manifold_is_refused(annotations_unchecked, subject):
    with pytest.raises(TypeError, match="`group` must be a gauge group"):
        mid.conformance.check_group(subject, randn(5))
    with pytest.raises(TypeError, match="`manifold` must be a geoopt manifold"):
        mid.conformance.check_manifold(subject, randn(5))


def test_the_sample_is_not_written_to():
    sample = positive(7)
    before = sample.clone()
    mid.conformance.check_group(mid.PositiveScaling(), sample)
    assert torch.equal(sample, before)


def test_checks_do_not_touch_the_global_generator():
    state = torch.random.get_rng_state()
    mid.conformance.check_group(mid.Scaling(), randn(7))
    assert torch.equal(torch.random.get_rng_state(), state)


@mid.conformance.parametrize_with_checks([(mid.Scaling(), randn(7)), (mid.Product(), randn(7))])
def test_checks_run_as_tests_of_their_own(check):
    check()


@pytest.mark.parametrize(
    ("group", "sample"), [(mid.Permutation(), (1.0, 1.05, 1.1, 2.0)), (mid.SignFlip(), (0.01, -1.0, 2.0))]
)
def test_images_nearer_than_a_move_are_no_finding(group, sample):
    report = mid.conformance.check_group(group, torch.tensor(sample, dtype=torch.float64))
    assert report.passed, str(report)


class OnTwoTurns(mid.GaugeGroup):
    """SO(3) on one vector: turns about it leave it alone."""

    dim = 3

    def act(self, xi, x):
        a, b, c = xi.unbind(-1)
        zero = torch.zeros_like(a)
        rows = [torch.stack(row, -1) for row in ((zero, -c, b), (c, zero, -a), (-b, a, zero))]
        return (torch.linalg.matrix_exp(torch.stack(rows, -2)) @ x.unsqueeze(-1)).squeeze(-1)


def dimension_finding(group, sample):
    report = mid.conformance.check_group(group, torch.tensor(sample, dtype=torch.float64))
    return report.failures.get("dimension_is_that_of_the_orbit", "")


@pytest.mark.slow
def test_moves_that_leave_a_generic_point_alone_are_no_finding_and_singular_samples_and_idle_coordinates_are():
    class Idle(mid.GaugeGroup):
        dim = 2

        def act(self, xi, x):
            return x + xi.sum(-1, keepdim=True)

    assert not dimension_finding(OnTwoTurns(), (1.0, 2.0, 3.0))
    assert "not generic" in dimension_finding(OnTwoTurns(), (0.0, 0.0, 0.0))
    assert "`dim` is too large" in dimension_finding(Idle(), (1.0, 2.0, 4.0))
