"""Identifiable models, sloppy ones among them, are never called gauge."""

import pytest
import torch

from manifoldid.diagnose import diagnose

pytestmark = pytest.mark.slow

F64 = torch.float64


# Six parameters and more: second solutions are counted for up to five, which takes a second each


def linear(generator):
    n = int(torch.randint(6, 9, (1,), generator=generator))
    design = torch.randn(2 * n, n, generator=generator, dtype=F64) * torch.logspace(0, -3, n, dtype=F64)
    return lambda x: design @ x, torch.randn(n, generator=generator, dtype=F64)


def logistic(generator):
    n = int(torch.randint(6, 8, (1,), generator=generator))
    design = torch.randn(3 * n, n, generator=generator, dtype=F64)
    return lambda x: torch.nn.functional.logsigmoid(design @ x), torch.randn(n, generator=generator, dtype=F64)


def exponentials(generator):
    times = torch.linspace(0, 4, 25, dtype=F64)
    rates = torch.tensor([0.4, 1.0, 2.2], dtype=F64) + 0.1 * torch.rand(3, generator=generator, dtype=F64)
    return lambda x: (x[:3, None] * torch.exp(-x[3:, None] * times)).sum(0), torch.cat(
        [torch.ones(3, dtype=F64), rates]
    )


def network(generator):
    inputs = 2 * torch.randn(80, 2, generator=generator, dtype=F64)
    start = torch.randn(12, generator=generator, dtype=F64)
    return lambda x: torch.tanh(inputs @ x[:6].reshape(2, 3) + x[6:9]) @ x[9:12], start


def anchored_comparisons(generator):
    i, j = torch.combinations(torch.arange(6)).T
    scale = 10 ** (2 * torch.rand(6, generator=generator, dtype=F64))
    return (
        lambda x: torch.cat([torch.sigmoid(x[i] / scale[i] - x[j] / scale[j]), x[:1]]),
        scale * torch.randn(6, generator=generator, dtype=F64),
    )


def powers(generator):
    t = torch.linspace(0.2, 3, 15, dtype=F64)
    curve = lambda x: x[0] * t ** x[1] + x[2]  # noqa: E731
    return lambda x: torch.stack([curve(x[:3]), curve(x[3:])]), 0.3 + torch.rand(6, generator=generator, dtype=F64)


KINDS = (linear, logistic, exponentials, network, anchored_comparisons, powers)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_fifty_random_identifiable_models_are_not_called_gauge(kind):
    for seed in range(50):
        predict, point = kind(torch.Generator().manual_seed(seed))
        diagnosis = diagnose(predict, point)
        assert (diagnosis.dim, diagnosis.algebra, diagnosis.identifiable) == (0, "trivial", True), seed


@pytest.mark.parametrize("ratio", [1e-2, 1e-5, 1e-7])
def test_a_sloppy_direction_is_weak_and_not_null(ratio):
    diagnosis = diagnose(
        lambda x: torch.stack([x[0] + x[1], ratio * (x[0] - x[1])]),
        torch.tensor([1.0, 2.0], dtype=F64),
    )
    assert diagnosis.dim == 0
    assert bool(diagnosis.weak) == (ratio < 1e-3)
