"""Many pairs of factors in one bucket, as the adapters of a network are, step as each of them alone."""

import warnings

import pytest
import torch
from cases import randn
from torch import nn

import manifoldid as mid
from manifoldid._linalg import sylvester_by_system
from manifoldid.groups._sylvester import Sylvester

COUNT, STEPS = 20, 8
LAYOUTS = {
    "rows last": (mid.GeneralLinear("A", "B"), (24, 8), (12, 8)),
    "the layout of PEFT": (mid.GeneralLinear("A", "B", rank_dims=(0, -1)), (8, 24), (12, 8)),
    "an odd number of rows": (mid.GeneralLinear("A", "B"), (23, 8), (11, 8)),
    "few columns": (mid.GeneralLinear("A", "B"), (24, 3), (12, 3)),
    "one column": (mid.GeneralLinear("A", "B"), (24, 1), (12, 1)),
    "one column, in the layout of PEFT": (mid.GeneralLinear("A", "B", rank_dims=(0, -1)), (1, 24), (12, 1)),
    "rows first, and one of them": (mid.GeneralLinear("A", "B", rank_dims=(0, 0)), (1, 24), (1, 12)),
    "many columns": (mid.GeneralLinear("A", "B"), (24, 20), (30, 20)),
    "heads, which are batch": (mid.GeneralLinear("A", "B"), (2, 12, 4), (2, 6, 4)),
}


def pairs(layout, dtype=torch.float64, count=COUNT):
    """`count` points; the noise of a step is about a hundredth of their entries."""
    group, *shapes = LAYOUTS[layout]
    values = [[randn(*shape, seed=2 * k + j).to(dtype) for j, shape in enumerate(shapes)] for k in range(count)]
    return group, [{"A": nn.Parameter(a), "B": nn.Parameter(b)} for a, b in values]


def give_gradients(points, step, without=None):
    for k, x in enumerate(points):
        for j, p in enumerate(x.values()):
            p.grad = randn(*p.shape, seed=1000 * step + 2 * k + j).to(p.dtype)
        if k == without:
            x["A"].grad = None


def run(group, points, make, together, weights=None):
    """All values after every step of attached optimisers: one of all points, or one a point."""
    optimizers = [
        make([p for x in chosen for p in x.values()]) for chosen in ([points] if together else [[x] for x in points])
    ]
    for k, x in enumerate(points):
        mid.attach(optimizers[0 if together else k], group, x, weights=weights)
    path = []
    for step in range(STEPS):
        give_gradients(points, step, without=3 if step == 5 else None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mid.NotInvariantWarning)  # the gradient is that of no loss
            warnings.simplefilter("ignore", mid.DetachedWarning)  # an optimiser of the one point that does not move
            for optimizer in optimizers:
                optimizer.step()
        path.append([{n: p.detach().clone() for n, p in x.items()} for x in points])
    return path


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [adam, sgd])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_together_as_alone(layout, make, dtype):
    paths = [run(*pairs(layout, dtype), make, together) for together in (True, False)]
    # L is found from Gram matrices of up to 24 rows with a condition of some hundreds, and 8 steps add up.
    tolerance = 2e4 * torch.finfo(dtype).eps
    for together, alone in zip(*paths, strict=True):
        for x, y in zip(together, alone, strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_weights_count_together_as_alone():
    group, points = pairs("rows last")
    weights = {"A": torch.linspace(0.5, 2, 24).double(), "B": torch.linspace(1, 3, 12).double()}
    alone = run(group, pairs("rows last")[1], adam, False, weights)
    for x, y in zip(run(group, points, adam, True, weights)[-1], alone[-1], strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_step_keeps_the_balance_that_attach_made_to_first_order(layout):
    """A'A - B'B is zero at the start; what a step of size u leaves of it is u^2, what an unattached one leaves is u."""
    found = []
    for attached in (True, False):
        group, points = pairs(layout)
        optimizer = torch.optim.SGD([p for x in points for p in x.values()], lr=1e-6)
        for x in points:
            handle = mid.attach(optimizer, group, x)
            if not attached:
                handle.detach()
        give_gradients(points, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mid.NotInvariantWarning)
            optimizer.step()
        squares = [[t.mT @ t for t in group.factors_of({n: p.detach() for n, p in x.items()})] for x in points]
        found.append(max(float((a - b).abs().max()) for a, b in squares))
    assert found[0] < 1e-4 * found[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_the_same_where_nobody_may_wait_for_eigenvectors(layout, monkeypatch):
    """As on accelerators: Sylvester's equations as linear systems."""
    group, points = pairs(layout, count=3)
    path = run(group, points, adam, True)
    monkeypatch.setattr(Sylvester, "__call__", lambda self, squares, right: sylvester_by_system(*squares, right))
    other = run(group, pairs(layout, count=3)[1], adam, True)
    for x, y in zip(path[-1], other[-1], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_what_is_not_finite_is_named_before_anything_is_written():
    group, points = pairs("rows last")
    optimizer = torch.optim.SGD([p for x in points for p in x.values()], lr=0.01)
    for x in points:
        mid.attach(optimizer, group, x)
    give_gradients(points, 0)
    plain = points[4]["A"].detach() - 0.01 * points[4]["A"].grad
    points[7]["B"].grad[2, 1] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mid.NotInvariantWarning)
        with pytest.raises(ValueError, match=r"params.*after this step.*learning rate"):
            optimizer.step()
    torch.testing.assert_close(points[4]["A"].detach(), plain)


def test_blocks_that_the_group_does_not_name_step_beside_the_pairs():
    group, points = pairs("rows last", count=4)
    alone = run(group, pairs("rows last", count=4)[1], adam, True)
    free = [{**x, "C": nn.Parameter(randn(3))} for x in points]
    beside = run(group, free, adam, True)
    assert not torch.equal(free[0]["C"].detach(), randn(3))
    for x, y in zip(beside[-1], alone[-1], strict=True):
        torch.testing.assert_close({n: x[n] for n in y}, y)


def test_addresses_that_change_between_steps_are_followed():
    """`.data =`, as in loading a model: what is kept from step to step is no view of the parameters."""
    ends = []
    for moved in (False, True):
        group, points = pairs("rows last", count=8)
        optimizer = adam([p for x in points for p in x.values()])
        for x in points:
            mid.attach(optimizer, group, x)
        for step in range(4):
            give_gradients(points, step)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", mid.NotInvariantWarning)
                optimizer.step()
            for x in points if moved else []:
                x["A"].data = x["A"].data.clone()
        ends.append(points)
    for x, y in zip(*ends, strict=True):
        torch.testing.assert_close(x["A"].detach(), y["A"].detach(), rtol=0, atol=1e-12)
