"""Attached steps of parameters that lie in memory in unusual ways, and of none at all."""

import pytest
import torch

import manifoldid as mid


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
def test_blocks_that_are_not_contiguous_move_along_when_a_row_overflows():
    group = mid.LocationScale(("theta", "beta"), scales=("sigma",))
    start = {"theta": torch.randn(3, 40), "beta": torch.randn(3, 5), "sigma": torch.rand(3, 2) + 1}
    points = []
    for layout in (lambda t: t, lambda t: t.mT.contiguous().mT):
        p = {n: torch.nn.Parameter(layout(t.clone()) if n == "theta" else t.clone()) for n, t in start.items()}
        optimizer = torch.optim.SGD(p.values(), lr=1.0)
        mid.attach(optimizer, group, p)
        for t in p.values():
            t.grad = torch.zeros_like(t)
        p["theta"].grad[1, 3] = 1e22
        optimizer.step()
        points.append(p)
    assert not points[1]["theta"].is_contiguous()
    for n in start:
        torch.testing.assert_close(points[1][n].detach(), points[0][n].detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "group",
    [mid.Translation(), mid.Scaling(), mid.Affine(), mid.Shift(torch.ones(1, 5))],
    ids=lambda g: type(g).__name__,
)
def test_no_points_are_no_error(group):
    p = torch.nn.Parameter(torch.randn(0, 5))
    optimizer = torch.optim.Adam([p])
    mid.attach(optimizer, group, p)
    p.grad = torch.zeros_like(p)
    optimizer.step()
