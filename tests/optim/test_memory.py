"""What a step attached to a group of ours asks of the allocator: nothing of the size of a point, once its scratch memory is there."""

import pytest
import torch
from cases import randn
from torch import nn
from torch.profiler import ProfilerActivity, profile

import manifoldid as mid

SIZE = 1 << 14  # numbers of a block
LABELS, ORDERED = torch.arange(SIZE) % 16, torch.arange(SIZE) // 1024
VECTOR, ROWS, MATRIX = {"": (SIZE,)}, {"": (SIZE // 64, 64)}, {"": (SIZE // 8, 8)}
PAIR = {"A": (SIZE // 8, 8), "B": (SIZE // 16, 8)}
NETWORK = {"w": (128, 127), "b": (128,), "v": (64, 128)}
IRT = {"z": (SIZE,), "y": (SIZE // 2,), "s": (SIZE // 2,), "q": (SIZE,)}
CASES = {
    "Translation": (mid.Translation(), VECTOR),
    "Translation of rows": (mid.Translation(), ROWS),
    "Translation, blocks": (mid.Translation(LABELS), VECTOR),
    "Translation, blocks in order": (mid.Translation(ORDERED), VECTOR),
    "Scaling": (mid.Scaling(), VECTOR),
    "Scaling, blocks": (mid.Scaling(LABELS), VECTOR),
    "PositiveScaling": (mid.PositiveScaling(), VECTOR),
    "PositiveScaling of rows": (mid.PositiveScaling(), ROWS),
    "PositiveScaling, blocks": (mid.PositiveScaling(LABELS), VECTOR),
    "Affine": (mid.Affine(), VECTOR),
    "Affine of rows": (mid.Affine(), ROWS),
    "Affine, blocks": (mid.Affine(LABELS), VECTOR),
    "Affine, blocks in order": (mid.Affine(ORDERED), VECTOR),
    "Affine, common scale": (mid.Affine(LABELS, common_scale=True), VECTOR),
    "Shift by numbers": (mid.Shift({"theta": 1, "beta": -1}), {"theta": (SIZE,), "beta": (SIZE,)}),
    "Shift by directions": (mid.Shift(randn(2, SIZE)), VECTOR),
    "Shift by long directions": (mid.Shift(randn(2, 8 * SIZE)), {"": (8 * SIZE,)}),
    "LocationScale": (mid.LocationScale(("z", "y"), scales=("s",), slopes=("q",)), IRT),
    "Rescaling": (mid.Rescaling(("w", "b"), ("v",)), NETWORK),
    "GeneralLinear": (mid.GeneralLinear("A", "B"), PAIR),
    "GeneralLinear, PEFT": (mid.GeneralLinear("A", "B", rank_dims=(0, -1)), {**PAIR, "A": (8, SIZE // 8)}),
    "Orthogonal": (mid.Orthogonal(), MATRIX),
    "RigidMotion": (mid.RigidMotion(), MATRIX),
    "Similarity": (mid.Similarity(), MATRIX),
    "Phase": (mid.Phase(), VECTOR),
}


def made(case, count=1, dtype=torch.float32, with_weights=False, fused=False, layout=lambda t: t):
    """An attached optimiser whose scratch memory is there."""
    group, shapes = CASES[case]
    dtype = torch.complex64 if case == "Phase" else dtype
    points, weights = [], None
    for k in range(count):
        values = {name: randn(*shape, seed=9 * k + j) for j, (name, shape) in enumerate(shapes.items())}
        values = {name: t.exp() if name in group.positive else t for name, t in values.items()}
        points.append({name: nn.Parameter(layout((0.9 * t).to(dtype))) for name, t in values.items()})
    if with_weights:
        one = {name: t[0] if case.endswith("of rows") else t for name, t in points[0].items()}
        turned = {name for name, d in zip(group.block_names, getattr(group, "rank_dims", ()), strict=False) if d == 0}
        items = {name: t.shape[-1 if name in turned else 0] for name, t in one.items()}
        weights = {name: 0.5 + torch.arange(n) % 3 for name, n in items.items()}
        weights = weights.get("", weights)
    optimizer = torch.optim.SGD(
        [p for point in points for p in point.values()], lr=1e-3, fused=fused, foreach=not fused
    )
    for point in points:
        mid.attach(optimizer, group, point.get("", point), weights=weights)
    for point in points:
        for p in point.values():
            p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
    return optimizer


def largest_request(step):
    """Bytes of the largest piece of memory that is asked for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    requests = [e.nbytes() for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(requests, default=0)


def holders(p):
    """How many tensors and storages refer to the memory of `p`."""
    return torch._C._storage_Use_Count(p.untyped_storage()._cdata)


def test_requests_are_seen():
    assert largest_request(lambda: torch.ones(SIZE)) == 4 * SIZE
    x = torch.ones(SIZE)
    assert largest_request(lambda: x.mul_(2).sum(-1)) < SIZE


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_weights", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("count", [1, 3], ids=["one", "several"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_asks_for_no_memory_of_the_size_of_a_point(case, count, with_weights, dtype):
    optimizer = made(case, count, dtype, with_weights)
    assert largest_request(optimizer.step) < SIZE  # a quarter of a block in float32


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
@pytest.mark.parametrize("case", ["Translation of rows", "PositiveScaling of rows", "Orthogonal"])
@pytest.mark.parametrize("count", [1, 3], ids=["one", "several"])
def test_a_step_of_parameters_that_are_not_contiguous_asks_for_none_either(case, count):
    optimizer = made(case, count, layout=lambda t: t.mT.contiguous().mT)
    assert not any(p.is_contiguous() for p in optimizer.param_groups[0]["params"])
    assert largest_request(optimizer.step) < SIZE


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
@pytest.mark.parametrize("with_weights", [False, True], ids=["", "weights"])
@pytest.mark.parametrize(
    "case", ["Affine, blocks", "LocationScale", "Rescaling", "GeneralLinear", "Similarity", "Phase"]
)
def test_members_that_come_and_go_ask_for_none_either(case, with_weights):
    optimizer = made(case, 3, with_weights=with_weights)
    first = optimizer.param_groups[0]["params"][: len(CASES[case][1])]
    grads = [p.grad for p in first]
    requests = []
    for step in range(6):
        for p, grad in zip(first, grads, strict=True):
            p.grad = grad if step % 2 else None
        requests.append(largest_request(optimizer.step))
    assert max(requests[2:]) < SIZE


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
def test_a_closure_after_which_some_do_not_move_asks_for_none():
    optimizer = made("Orthogonal", 3)
    *_, last = optimizer.param_groups[0]["params"]

    def closure():
        last.grad = None
        return torch.zeros(())

    optimizer.step(closure)
    assert largest_request(lambda: optimizer.step(closure)) < SIZE


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
@pytest.mark.parametrize("case", ["Affine", "Orthogonal"])
def test_memory_of_a_parameter_is_held_by_nobody_else_after_a_step(case):
    """So that it is free when the parameter leaves it: `p.data = p.data.half()`, a model put aside on another device."""
    optimizer = made(case)
    (p,) = optimizer.param_groups[0]["params"]
    lone = nn.Parameter(p.detach().clone())
    optimizer.step()
    assert holders(p) == holders(lone)


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
@pytest.mark.parametrize("case", ["Affine", "Orthogonal"])
def test_a_step_that_a_gradient_scaler_may_skip_asks_for_none_either(case):
    optimizer = made(case, fused=True)
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    optimizer.grad_scale, optimizer.found_inf = (
        torch.ones(()),
        torch.ones(()),
    )  # as GradScaler does for fused optimisers
    optimizer.step()
    assert largest_request(optimizer.step) < SIZE
    for p, start in zip(optimizer.param_groups[0]["params"], before, strict=True):
        assert torch.equal(p, start)
