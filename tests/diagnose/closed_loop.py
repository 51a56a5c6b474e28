"""What comes after a diagnosis: its group in an optimiser and in an ensemble, where it should not be seen."""

import torch

import manifoldid as mid
from manifoldid.groups.orbit import zero_coordinates
from manifoldid.points import map_blocks


def gauge_copies(group, point, count, size):
    """`count` points of the orbit of `point`, stacked: moves by normal coordinates of standard deviation `size`."""
    zero = zero_coordinates(group, point)
    moves = torch.randn(count, *zero.shape, generator=torch.Generator().manual_seed(1), dtype=zero.dtype)
    return map_blocks(lambda *t: torch.stack(t), *(group.act(size * xi, point) for xi in moves))


def assert_adam_does_not_see(group, predict, start, other, *, tolerance, motion=1e-3):
    """25 steps towards the predictions of `other` end at the same ones from `start` and from a gauge copy of it.

    Both numbers are relative to the largest prediction at `start`: `tolerance` is how far apart the ends may be, `motion` how far
    the steps have to lead, since ends that have not moved agree whatever the optimiser does.
    """
    target = predict(other)
    ends = [trained(group, predict, point, target) for point in (start, gauge_copies(group, start, 1, 0.3)[0])]
    here = predict(start)
    size = here.abs().max()
    assert (ends[0] - here).abs().max() > motion * size
    assert (ends[0] - ends[1]).abs().max() < tolerance * size


def trained(group, predict, start, target):
    """The predictions after 25 steps of Adam from `start`, under least squares."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([parameter], lr=1e-2)

    def loss():
        return (predict(parameter) - target).square().sum()

    mid.attach(optimizer, group, parameter, loss=loss)
    for _ in range(25):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return predict(parameter.detach())
