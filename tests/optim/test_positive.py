"""Locations, scales and slopes of many points that step together in kept memory step as each would alone."""

import pytest
import torch
from torch import nn

import manifoldid as mid
from manifoldid.groups import _in_place

GROUP = mid.LocationScale(locations=("theta",), scales=("sigma",), slopes=("alpha",))
F64 = {"dtype": torch.float64}


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


def points(count, layout):
    """Points with 2 x 3 slopes, in memory row by row, column by column, or one of each."""
    found = []
    for k in range(count):
        alpha = randn(2, 3, seed=k).exp()
        if layout == "columns" or (layout == "both" and k == 1):
            alpha = alpha.T.contiguous().T
        found.append({"theta": randn(5, seed=10 + k) + 3, "sigma": randn(4, seed=20 + k).exp(), "alpha": alpha})
    return [{name: nn.Parameter(t) for name, t in point.items()} for point in found]


def run(all_points, together, by_closure, fused, settled):
    """Five steps; in the second the second point has no gradient."""
    groups = [all_points] if together else [[point] for point in all_points]
    optimizers = [torch.optim.Adam([p for x in some for p in x.values()], lr=0.1, fused=fused) for some in groups]
    for optimizer, some in zip(optimizers, groups, strict=True):
        mid.attach(optimizer, GROUP, some, None if settled else {"theta": torch.ones(5)})
    for step in range(5):

        def backward(step=step):
            for k, point in enumerate(all_points):
                for p in point.values():
                    p.grad = None
                if (step, k) != (1, 1):
                    z = GROUP.canonical(point).point
                    sum((t - 0.1 * k).square().sum() + t.sin().sum() for t in z.values()).backward()
            return torch.zeros(())

        for optimizer in optimizers:
            if by_closure:
                optimizer.step(backward)
            else:
                backward()
                optimizer.step()
            for point in all_points:
                for p in point.values():
                    assert p.grad is None or p.grad.shape == p.shape
    return [{name: p.detach().clone() for name, p in point.items()} for point in all_points]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["rows", "columns", "both"])
@pytest.mark.parametrize("by_closure", [False, True])
def test_points_that_step_together_step_as_each_alone(monkeypatch, layout, by_closure):
    monkeypatch.setattr(_in_place, "_PIECE", 4)  # cut as 1e7 numbers are
    with pytest.warns(mid.DetachedWarning):  # in the second step the second point's own optimiser has nothing to do
        alone = run(points(3, layout), together=False, by_closure=by_closure, fused=False, settled=False)
    for fused in (False, True):
        together = run(points(3, layout), together=True, by_closure=by_closure, fused=fused, settled=True)
        for x, y in zip(together, alone, strict=True):
            for name, t in x.items():
                torch.testing.assert_close(t, y[name], rtol=1e-10, atol=1e-10)
            assert abs(float(x["theta"].mean())) < 1e-14


@pytest.mark.parametrize("count", [1, 2])
def test_memory_is_kept_and_what_does_not_move_keeps_every_bit(count):
    everything = points(count, "rows")
    optimizer = torch.optim.SGD([p for x in everything for p in x.values()], lr=0.1)
    mid.attach(optimizer, GROUP, everything)
    kept, pointers = None, [p.data_ptr() for x in everything for p in x.values()]
    for _ in range(3):
        before = [p.detach().clone() for x in everything for p in x.values()]
        gradients = [torch.zeros_like(p) for p in before]
        for p, g in zip((p for x in everything for p in x.values()), gradients, strict=True):
            p.grad = g
        optimizer.step()
        assert all(p.grad is g for p, g in zip((p for x in everything for p in x.values()), gradients, strict=True))
        (bucket,) = optimizer.manifoldid_attachment.buckets
        memory = {
            (name, kind): t.data_ptr() for name, c in bucket._charts.items() for kind, t in c._memory._buffers.items()
        }
        assert len(memory) >= 2
        assert kept in (None, memory)
        kept = memory
    assert pointers == [p.data_ptr() for x in everything for p in x.values()]
    for p, old in zip((p for x in everything for p in x.values()), before, strict=True):
        torch.testing.assert_close(p.detach(), old, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", ["sigma", "alpha"])
def test_a_slope_that_vanishes_is_named(name):
    (x,) = points(1, "rows")
    optimizer = torch.optim.SGD(x.values(), lr=1.0)
    mid.attach(optimizer, GROUP, x)
    for p in x.values():
        p.grad = torch.zeros_like(p)
    x[name].grad[0] = 1e6
    with pytest.warns(mid.NotInvariantWarning), pytest.raises(mid.DegeneratePointError, match=f"block '{name}'"):
        optimizer.step()


OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1), "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3)}


def spread_of(p):
    return (p.log() - p.log().mean() - torch.arange(3)).square().sum()


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_a_closure_that_raises_leaves_parameters_out_of_their_logarithm(kind):
    p = nn.Parameter(torch.tensor([0.5, 1.0, 2.0], **F64))
    optimizer = OPTIMIZERS[kind]([p])
    mid.attach(optimizer, mid.PositiveScaling(), p)

    def closure(interrupted):
        optimizer.zero_grad()
        loss = spread_of(p)
        loss.backward()
        if interrupted:
            raise KeyboardInterrupt
        return loss.detach()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(lambda: closure(interrupted=True))
    torch.testing.assert_close(p.detach(), torch.tensor([0.5, 1.0, 2.0], **F64))
    torch.testing.assert_close(p.grad, torch.autograd.grad(spread_of(p), p)[0])
    before = float(spread_of(p.detach()))
    optimizer.step(lambda: closure(interrupted=False))
    assert float(spread_of(p.detach())) < before


@pytest.mark.parametrize("end", ["step", "detach"])
def test_after_a_step_that_raises_the_next_call_takes_parameters_out_of_their_logarithm(end):
    p, other = nn.Parameter(torch.tensor([0.5, 1.0, 2.0], **F64)), nn.Parameter(torch.zeros(3, **F64))
    optimizer = torch.optim.Adam([p, other])
    handle = mid.attach(optimizer, mid.PositiveScaling(), p)
    spread_of(p).backward()
    gradient = p.grad.clone()
    other.grad = torch.eye(3, **F64)[0].to_sparse()  # which Adam refuses
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()
    if end == "detach":
        handle.detach()
    else:
        with pytest.raises(RuntimeError, match="now they and their gradients are back"):
            optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.5, 1.0, 2.0], **F64))
    torch.testing.assert_close(p.grad, gradient)
    other.grad = None
    optimizer.step()
    assert float(spread_of(p.detach())) < float(spread_of(torch.tensor([0.5, 1.0, 2.0], **F64)))
