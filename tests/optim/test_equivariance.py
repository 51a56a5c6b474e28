"""`attach` for every group of the table and every optimiser that only steps: x0 and g.x0 are one run."""

import pytest
import torch
from cases import CASES
from test_attach import OPTIMISERS
from torch import Tensor, nn

import manifoldid as mid
from manifoldid.groups.orbit import moved, zero_coordinates
from manifoldid.points import Point, blocks_of, flatten, map_blocks

pytestmark = pytest.mark.slow

STEPS = 10  # 25 for the groups of the core, in test_attach
VARIANTS = ("sgd", "adam-foreach", "amsgrad", "lbfgs")  # of others here; test_attach has them all
FEW = ("momentum", "adam", "rprop", "lbfgs-wolfe")  # for groups without closed forms, which are Newton iterations


def _pairs():
    for name, row in CASES.items():
        for optimiser in FEW if name == "custom" else [o for o in OPTIMISERS if o not in VARIANTS]:
            complex_fused = row.name == "phase" and optimiser == "adam-fused"  # torch has no such kernel
            if row.group.dimension(row.sample) and not complex_fused:
                yield name, optimiser


def run(group: mid.GaugeGroup, start: Point, target: Tensor, make) -> tuple[Point, float]:
    """The representative after an attached run towards `target`, and how much of the way was made."""
    point = map_blocks(lambda t: nn.Parameter(t.clone(memory_format=torch.contiguous_format)), start)
    optimiser = make(list(blocks_of(point).values()))
    mid.attach(optimiser, group, point)
    section, losses = mid.Section(group), []

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (flatten(section(point), group.batch_ndim(point)) - target).square().sum() / 2
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for _ in range(STEPS):
        optimiser.step(closure)
    return map_blocks(torch.Tensor.detach, section(point)), 1 - losses[-1] / losses[0]


@pytest.mark.parametrize(("name", "optimiser"), list(_pairs()))
def test_runs_from_x_and_from_gx_are_the_same(name, optimiser):
    group, x = CASES[name].group, CASES[name].sample
    zero = zero_coordinates(group, x)
    g = 0.4 * torch.randn(zero.shape, generator=torch.Generator().manual_seed(5), dtype=zero.dtype)
    near = map_blocks(lambda t: t * (1 + 0.1 * torch.arange(t.numel(), dtype=zero.dtype).cos().reshape(t.shape)), x)
    target = flatten(mid.Section(group)(near), group.batch_ndim(x))
    (one, way), (two, _) = (run(group, start, target, OPTIMISERS[optimiser]) for start in (x, moved(group, g, x)))
    assert way != 0  # it does move
    for key, t in blocks_of(one).items():
        torch.testing.assert_close(blocks_of(two)[key], t, rtol=1e-9, atol=1e-9)
