"""`check_group` and `check_manifold`: the cases, and which checks run on them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from manifoldid.conformance.case import Case, as_float64, normal, normal_vector
from manifoldid.conformance.group_checks import GROUP_CHECKS, act_returns_a_point, sample_has_a_representative
from manifoldid.conformance.manifold_checks import MANIFOLD_CHECKS, ManifoldSpace, sample_is_on_the_manifold
from manifoldid.conformance.runner import Check, Report, Skip, run_checks
from manifoldid.conformance.space_checks import SPACE_CHECKS
from manifoldid.groups.base import GaugeGroup, checked
from manifoldid.groups.geometry import Geometry
from manifoldid.points import Point, Weights, blocks_of, map_blocks


def check_group(
    group: GaugeGroup,
    sample: Point,
    *,
    invariant: Callable[[Point], Any] | None = None,
    weights: Weights = None,
) -> Report:
    """Whether a gauge group, and the geometry that follows from it, keep what they promise.

    Runs in double precision on the sample and on points near it: laws of the action, vertical space and dimension,
    representatives and frames, the invariant metric, projection, gradient, distance, geodesics, retraction, transport, alignment,
    batches, float32, and 20 steps of Adam from x and from g.x.

    Args:
        group: The group; only `act` (and `dim`) has to be your own.
        sample: A generic point of it, a tensor or a dict of tensors: no zeros, no ties, inside of the domain.
        invariant: Optional function of one point that the gauge must not change (what the likelihood sees).
        weights: Positive item weights for the metric.

    Returns:
        The report: `.passed`, `.ran`, `.skipped`, `.failures`; `str(report)` says what to look at.

    Raises:
        TypeError: `group` is no group.
    """
    if not isinstance(group, GaugeGroup):
        hint = "; did you forget the parentheses?" if isinstance(group, type) else ""
        raise TypeError(f"`group` must be a gauge group, got {group!r}{hint}")
    case = _group_case(group, sample, invariant, weights)
    return run_checks(
        (*GROUP_CHECKS, *SPACE_CHECKS), case, repr(group), needed=(act_returns_a_point, sample_has_a_representative)
    )


def check_manifold(manifold: Any, sample: Tensor, *, invariant: Callable[[Tensor], Any] | None = None) -> Report:
    """Whether a geoopt manifold keeps geoopt's contract, and a quotient the laws of its geometry.

    Args:
        manifold: A `QuotientManifold`, a subclass of it, or any `geoopt.Manifold`.
        sample: A generic point on it (for a quotient: any representative).
        invariant: Optional function that is constant on orbits.

    Returns:
        The report, as from `check_group`.

    Raises:
        TypeError: `manifold` is no geoopt manifold.
    """
    if not isinstance(manifold, torch.nn.Module) or not isinstance(getattr(manifold, "ndim", None), int):
        raise TypeError(f"`manifold` must be a geoopt manifold, got {type(manifold).__name__}")
    case = _manifold_case(manifold, sample, invariant)
    checks = (*MANIFOLD_CHECKS, *SPACE_CHECKS)
    return run_checks(checks, case, repr(manifold), needed=(sample_is_on_the_manifold,))


def parametrize_with_checks(subjects: Iterable[tuple[Any, Any]]) -> Any:
    """A decorator for pytest: one test per check of every group or manifold.

    Use it as::

        @mid.conformance.parametrize_with_checks([(MyGauge(), sample)])
        def test_conformance(check):
            check()

    Args:
        subjects: Pairs of a group or manifold and a sample of it.

    Returns:
        The decorator, which gives the test an argument `check`: a function without arguments that raises for a failure and skips
        where the check does not apply.
    """
    import pytest

    tests, names = [], []
    for subject, sample in subjects:
        is_group = isinstance(subject, GaugeGroup)
        for one in (*(GROUP_CHECKS if is_group else MANIFOLD_CHECKS), *SPACE_CHECKS):
            tests.append(_Test(one, subject, sample))
            names.append(f"{type(subject).__name__}-{one.name}")
    return pytest.mark.parametrize("check", tests, ids=names)


class _Test:
    """One check on one subject, as a function without arguments."""

    def __init__(self, one: Check, subject: Any, sample: Any):
        self.one, self.subject, self.sample = one, subject, sample

    def __call__(self) -> None:
        import pytest

        group = self.subject if isinstance(self.subject, GaugeGroup) else None
        case = (
            _manifold_case(self.subject, self.sample, None)
            if group is None
            else _group_case(group, self.sample, None, None)
        )
        try:
            self.one.run(case)
        except (Skip, NotImplementedError) as reason:
            pytest.skip(str(reason))

    def __repr__(self) -> str:
        return f"<{self.one.name} of {self.subject!r}>"


# -------------------------------------------------------------------------------------------------------------- cases


class _GroupSpace:
    """The geometry of a group, with the two numbers that the checks need besides."""

    def __init__(self, geometry: Geometry):
        self._geometry = geometry
        self.isometric = geometry.isometric
        self.batch_ndim = geometry.group.batch_ndim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._geometry, name)

    def squares(self, x: Point, u: Point) -> Point:
        """Squares of the components of `u` in the invariant frame."""
        return map_blocks(lambda t: t.abs().square(), self._geometry.components(x, u))


def _group_case(group: GaugeGroup, sample: Any, invariant: Any, weights: Weights) -> Case:
    x = as_float64(group.validate(sample, "sample"))
    perturb = _perturbation(lambda y: _is_regular(group, y), x)
    space = _GroupSpace(group.geometry(weights).remembering())  # a check writes to none of its points
    return Case(group, space, x, perturb(x, 1), perturb(x, 2), invariant, group, perturb, normal_vector)


def _manifold_case(manifold: Any, sample: Any, invariant: Any) -> Case:
    x = as_float64(sample)
    group = getattr(manifold, "group", None)
    space = ManifoldSpace(manifold)

    def tangent(x: Tensor, seed: int) -> Tensor:
        return manifold.proju(x, normal_vector(x, seed)) if group is None else normal_vector(x, seed)

    def onto(y: Tensor) -> Tensor:
        return manifold.projx(y) if group is None else y

    inside = (lambda y: True) if group is None else (lambda y: _is_regular(group, y))
    shift = _perturbation(inside, x)

    def perturb(x: Tensor, seed: int) -> Tensor:
        return onto(shift(x, seed))

    return Case(group, space, x, perturb(x, 1), perturb(x, 2), invariant, manifold, perturb, tangent)


def _is_regular(group: GaugeGroup, y: Point) -> bool:
    try:
        checked(group.canonical(y), group, y)
    except Exception:  # whatever a wrong group raises: the checks will say so
        return False
    return True


def _perturbation(inside: Callable[[Point], bool], sample: Point) -> Callable[[Point, int], Point]:
    """Relative changes of up to 30 %, less where that would leave the domain."""

    def changed(x: Point, seed: int, amount: float) -> Point:
        blocks = {
            name: t * (1 + amount * torch.tanh(normal(t, seed + 50 * k)))
            for k, (name, t) in enumerate(blocks_of(x).items())
        }
        return blocks[""] if isinstance(x, Tensor) else blocks

    amounts, seeds = (0.3, 0.1, 0.03, 0.01), (1, 2, *range(20, 26))  # every seed that a check perturbs with
    amount = next((a for a in amounts if all(inside(changed(sample, seed, a)) for seed in seeds)), amounts[-1])
    return lambda x, seed: changed(x, seed, amount)
