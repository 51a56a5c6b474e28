"""TrustRegion: the interface of a torch optimiser, the steps of `fit`."""

import copy
import itertools

import pytest
import torch

import manifoldid as mid

F64 = torch.float64
FIRST, SECOND = torch.triu_indices(5, 5, offset=1)
WON = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3], dtype=F64)


def nll(x):
    gap = x[FIRST] - x[SECOND]
    return -(WON * torch.nn.functional.logsigmoid(gap) + 4 * torch.nn.functional.logsigmoid(-gap)).sum()


def run(start, group, loss=nll, steps=50, **kwargs):
    parameter = torch.nn.Parameter(start.clone())
    optimizer = mid.TrustRegion(parameter, group, **kwargs)
    for _ in range(steps):
        optimizer.step(lambda: loss(parameter))
        if optimizer.stopped:
            break
    return parameter.detach(), optimizer


def test_it_ends_where_fit_ends():
    x, optimizer = run(torch.zeros(5, dtype=F64), mid.Translation())
    assert optimizer.converged
    assert "vanishes" in optimizer.stopped
    expected = mid.fit(nll, torch.zeros(5, dtype=F64), mid.Translation()).point
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


def test_a_closure_written_for_lbfgs_works():
    parameter = torch.nn.Parameter(torch.zeros(5, dtype=F64))
    optimizer = mid.TrustRegion([parameter], mid.Translation())

    def closure():
        optimizer.zero_grad()
        loss = nll(parameter)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(10)]
    assert losses[0] == pytest.approx(float(nll(torch.zeros(5, dtype=F64))))
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(losses))
    assert optimizer.converged


def test_runs_from_one_orbit_are_one_run():
    start = torch.tensor([1.0, -2, 0.5, 0, 3], dtype=F64)
    for steps in (1, 3):
        torch.testing.assert_close(
            run(start, mid.Translation(), steps=steps)[0],
            run(start + 100, mid.Translation(), steps=steps)[0],
            rtol=0,
            atol=1e-10,
        )


def test_blocks_and_curved_gauges_work():
    target = torch.arange(12, dtype=F64).reshape(4, 3).sin()
    u, s, v = torch.linalg.svd(target, full_matrices=False)
    best = (u[:, :2] * s[:2]) @ v[:2]
    point = {"A": torch.nn.Parameter(u[:, :2] + 0.1), "B": torch.nn.Parameter(v[:2].mT.clone() - 0.1)}
    optimizer = mid.TrustRegion(point, mid.GeneralLinear("A", "B"))
    for _ in range(60):
        optimizer.step(lambda: (point["A"] @ point["B"].mT - target).square().sum())
    assert optimizer.converged
    torch.testing.assert_close((point["A"] @ point["B"].mT).detach(), best, rtol=0, atol=1e-8)


def test_a_saddle_is_left():
    x, optimizer = run(torch.zeros(3, dtype=F64), mid.Product(), lambda x: (x.square() - 1).square().sum())
    assert optimizer.converged
    torch.testing.assert_close(x.abs(), torch.ones(3, dtype=F64), rtol=0, atol=1e-8)


def test_a_state_dict_continues_the_run():
    parameter = torch.nn.Parameter(torch.zeros(5, dtype=F64))
    optimizer = mid.TrustRegion(parameter, mid.Translation())
    for _ in range(2):
        optimizer.step(lambda: nll(parameter))
    state, value = copy.deepcopy(optimizer.state_dict()), parameter.detach().clone()
    optimizer.step(lambda: nll(parameter))
    other = torch.nn.Parameter(value)
    resumed = mid.TrustRegion(other, mid.Translation())
    resumed.load_state_dict(state)
    resumed.step(lambda: nll(other))
    torch.testing.assert_close(other.detach(), parameter.detach(), rtol=0, atol=1e-14)


def test_float32_parameters_converge():
    x, optimizer = run(torch.zeros(5), mid.Translation(), lambda x: nll(x.double()).float())
    assert optimizer.converged
    assert x.dtype == torch.float32


def test_a_loss_that_sees_the_gauge_warns_once():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2, 4], dtype=F64))
    optimizer = mid.TrustRegion(parameter, mid.Translation())
    with pytest.warns(mid.NotInvariantWarning, match="orbit"):
        optimizer.step(lambda: (parameter - 1).square().sum())
    optimizer.step(lambda: (parameter - 1).square().sum())


@pytest.mark.parametrize(
    ("closure", "error", "text"),
    [
        (None, TypeError, "closure"),
        (lambda: 1.0, TypeError, "floating tensor"),
        (lambda: torch.zeros(2, dtype=F64), ValueError, "one number"),
        (lambda: torch.tensor(torch.nan, dtype=F64), ValueError, "finite"),
        (lambda: torch.tensor(1.0, dtype=F64), ValueError, "graph"),
    ],
)
def test_closures_that_return_no_loss_are_refused_and_nothing_moves(closure, error, text):
    parameter = torch.nn.Parameter(torch.tensor([-1.0, 0, 1], dtype=F64))
    with pytest.raises(error, match=text):
        mid.TrustRegion(parameter, mid.Translation()).step(closure)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-1.0, 0, 1], dtype=F64), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        (torch.zeros(3), ValueError, "requires grad"),
        (torch.nn.Parameter(torch.zeros(3).half()), ValueError, "coarse"),
        ([torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))], TypeError, "named_parameters"),
        (torch.nn.Parameter(torch.zeros(1)), mid.DegeneratePointError, "nothing identifiable"),
    ],
)
def test_parameters_that_are_no_point_are_refused(params, error, text):
    with pytest.raises(error, match=text):
        mid.TrustRegion(params, mid.Translation())
