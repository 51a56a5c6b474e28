"""Least squares from many starts at once, and the second solutions that it finds."""

import math

import pytest
import scipy
import torch

from manifoldid.diagnose import diagnose
from manifoldid.diagnose.least_squares import least_squares

F64 = torch.float64
TARGETS = torch.tensor([2.0, -0.5, 3.0], dtype=F64)


def valley(u, of):
    """Rosenbrock's function, with one minimum for each problem, undefined numbers far away as large ones."""
    a, b = u.unbind(-1)
    rest = torch.stack([10 * (b - a * a), TARGETS[of] - a, 0 * a], dim=-1)
    return torch.nan_to_num(rest, nan=1e6, posinf=1e6, neginf=-1e6)


def test_minima_are_reached_to_rounding_and_do_not_depend_on_the_other_starts():
    start = torch.tensor([[-1.2, 1.0], [5.0, -3.0], [3.0, 9.0]], dtype=F64)  # the last one is a minimum
    wanted = torch.stack([TARGETS, TARGETS.square()], dim=1)
    together = least_squares(valley, start, torch.ones(3, dtype=F64), 60)
    assert torch.allclose(together, wanted, rtol=1e-12)
    for k in range(3):
        alone = least_squares(lambda u, of, k=k: valley(u, of + k), start[k : k + 1], torch.ones(1, dtype=F64), 60)
        assert torch.allclose(alone, together[k : k + 1], rtol=1e-12)


def powell(u):
    a, b, c, d = u.unbind(-1)
    return torch.stack([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c).square(), 10**0.5 * (a - d).square()], dim=-1)


def helical_valley(u):
    a, b, c = u.unbind(-1)
    angle = torch.atan2(b, a) / (2 * math.pi)
    return torch.stack([10 * (c - 10 * angle), 10 * (torch.hypot(a, b) - 1), c], dim=-1)


def badly_scaled(u):
    a, b = u.unbind(-1)
    return torch.stack([a - 1e6, b - 2e-6, a * b - 2], dim=-1)


def bard(u):  # a minimum where residuals are not zero
    a, b, c = u.unbind(-1)
    k = torch.arange(1, 16, dtype=F64)
    y = torch.tensor([14, 18, 22, 25, 29, 32, 35, 39, 37, 58, 73, 96, 134, 210, 439], dtype=F64) / 100
    return y - (a[..., None] + k / ((16 - k) * b[..., None] + torch.minimum(k, 16 - k) * c[..., None]))


@pytest.mark.parametrize(
    ("residual", "start"),  # More, Garbow & Hillstrom (1981): problems 13, 7, 4 and 8, with their starts
    [
        (powell, [3.0, -1.0, 0.0, 1.0]),
        (helical_valley, [-1.0, 0.0, 0.0]),
        (badly_scaled, [1.0, 1.0]),
        (bard, [1.0, 1.0, 1.0]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_sums_of_squares_are_as_small_as_those_of_minpack(residual, start):
    start = torch.tensor(start, dtype=F64)
    found = least_squares(lambda u, of: residual(u), start[None], torch.ones(1, dtype=F64), 100)[0]
    u = scipy.optimize.leastsq(  # all of the output: no warning when it goes on to nothing at all
        lambda u: residual(torch.from_numpy(u)).numpy(), start.numpy(), xtol=1e-13, ftol=1e-13, full_output=True
    )[0]
    ours, theirs = (float(residual(v).square().sum()) for v in (found, torch.from_numpy(u)))
    assert ours <= theirs * (1 + 1e-9) + 1e-16  # rounding of residuals of size 1e-8


def together(x):
    return torch.stack([1 / x[0] + 1 / x[1], x[0] * x[1] ** 2])


def one_by_one(x):  # a look at a value, which vmap refuses
    if x[0].detach().item() < 0:
        raise ValueError("negative")
    return together(x)


@pytest.mark.parametrize("predict", [together, one_by_one], ids=lambda f: f.__name__)
def test_second_solutions_are_found_whether_or_not_a_model_takes_many_points_at_once(predict):
    point = torch.tensor([0.7, 1.5], dtype=F64)
    other = (-1.5 + math.sqrt(1.5**2 + 4 * 0.7 * 1.5)) / 2
    diagnosis = diagnose(predict, point, sample=lambda: 0.3 + torch.rand(2, dtype=F64))
    wanted = torch.tensor([0.7 * 1.5**2 / other**2, other], dtype=F64)
    assert any(torch.allclose(s.map(point), wanted, rtol=1e-6) for s in diagnosis.discrete)
