"""Attached steps on an accelerator are those on the CPU; its half runs where there is one, the other half shows that the checks work."""

import warnings

import pytest
import torch
import torch.distributed as dist
from cases import randn
from pretend import CASES, COMPLEX, SHARDED
from torch import nn

import manifoldid as mid

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
DEVICES = ["cpu", CUDA]
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def members(name, count, device, dtype=torch.float64):
    _, shapes, _ = CASES[name]
    dtype = dtype.to_complex() if name in COMPLEX else dtype
    values = [
        {n: randn(*shape, seed=10 * k + j).exp() for j, (n, shape) in enumerate(shapes.items())} for k in range(count)
    ]
    return [{n: nn.Parameter(t.to(device, dtype)) for n, t in x.items()} for x in values]


def attached(name, points, group=None):
    """A fused Adam on these points, after a first step."""
    own, _, weights = CASES[name]
    optimizer = torch.optim.Adam([p for x in points for p in x.values()], lr=0.01, fused=name not in COMPLEX)
    for x in points:
        mid.attach(optimizer, group or own, x.get("", x), weights=weights)
    step(optimizer, 0)
    return optimizer


def step(optimizer, number):
    parameters = optimizer.param_groups[0]["params"]
    for k, p in enumerate(parameters):
        p.grad = randn(*p.shape, seed=100 * number + k).to(p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mid.NotInvariantWarning)  # the gradient is that of no loss
        optimizer.step()


def three_steps(optimizer, device):
    for _ in range(3):
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_cpu(name, count, device):
    ends = []
    for where in ("cpu", device):
        points = members(name, count, where)
        optimizer = attached(name, points)
        for k in range(1, 5):
            step(optimizer, k)
        ends.append([{n: p.detach().cpu() for n, p in x.items()} for x in points])
    for x, y in zip(*ends, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", CASES)
def test_no_step_but_the_first_waits(name, device):
    optimizer = attached(name, members(name, 3, device, torch.float32))
    parameters = optimizer.param_groups[0]["params"]
    for p in parameters:
        p.grad = torch.ones_like(p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["affine", "general linear", "rasch"])
def test_what_is_not_finite_is_an_error_in_this_step_or_a_later_one(name, device):
    optimizer = attached(name, members(name, 3, device))
    optimizer.param_groups[0]["params"][0].grad.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"finite|representative"):
        three_steps(optimizer, device)


@pytest.mark.parametrize("device", DEVICES)
def test_a_process_group_of_the_device_serves_sharded_points(device, tmp_path):
    """One rank: what is asked of nccl is what it can do. (Two ranks by gloo: tests/distributed.)"""
    dist.init_process_group(BACKENDS[device], init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for name in SHARDED:
            group = CASES[name][0]
            whole, shards = members(name, 1, device), members(name, 1, device)
            optimizers = [attached(name, whole), attached(name, shards, mid.distributed.sharded(group))]
            for optimizer in optimizers:
                step(optimizer, 1)
            for n, p in whole[0].items():
                torch.testing.assert_close(shards[0][n].detach(), p.detach(), rtol=1e-9, atol=1e-9)
        network = nn.Sequential(nn.Linear(3, 1), mid.nn.GaugeFix(mid.Affine(), over="batch")).to(device)
        population = [randn(8, 3, seed=k).float().to(device) for k in range(2)]
        mid.nn.calibrate(network, population)
        together = network(torch.cat(population)).detach()
        torch.testing.assert_close(together.mean().cpu(), torch.tensor(0.0), rtol=0, atol=1e-5)
    finally:
        dist.destroy_process_group()
