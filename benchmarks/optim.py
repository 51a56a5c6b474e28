"""What a step costs: bare fused Adam, attached fused Adam, geoopt's RiemannianAdam on the quotient and on a sphere.

    python -m benchmarks.optim                       # the table; with part of the name of a shape: only these rows
    pytest benchmarks --benchmark-only --jaxtyping-packages=    # the same steps one by one, by pytest-benchmark

Every row is one run: its contestants take turns, step by step, and a number is the median of a contestant's steps. One thread;
the time is that of the process, so that a busy machine changes it less. What comes out, and why: benchmarks/README.md.
"""

import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import geoopt
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import manifoldid as mid

Step = Callable[[], object]
BUDGET, FEWEST, MOST = 1.0, 5, 100  # seconds a contestant has, and how many steps that may be


class Shape(NamedTuple):
    """How many parameters of what shape."""

    count: int
    shape: tuple[int, ...]


SHAPES = {
    "1 x 1e7": Shape(1, (10_000_000,)),
    "1 x 1e6": Shape(1, (1_000_000,)),
    "1 x (1e5, 64)": Shape(1, (100_000, 64)),
    "1,000 x 64": Shape(1000, (64,)),
    "100 x (768, 8)": Shape(100, (768, 8)),
    "1 x (1e5, 8)": Shape(1, (100_000, 8)),
}
MILLION = "1 x 1e6"
ITEMS = {"Translation": mid.Translation(), "Scaling": mid.Scaling(), "Affine": mid.Affine()}
GROUPS: dict[str, mid.GaugeGroup] = {
    **ITEMS,
    "LocationScale": mid.LocationScale(locations=("theta",), slopes=("alpha",)),
    "GeneralLinear": mid.GeneralLinear("A", "B"),
    "PositiveScaling": mid.PositiveScaling(),
    "Shift": mid.Shift({"theta": 1, "alpha": 1}),
    "Orthogonal": mid.Orthogonal(),
    "Similarity": mid.Similarity(),
    "Translation(blocks=)": mid.Translation(torch.arange(1_000_000) % 1000),
    "Affine(blocks=)": mid.Affine(torch.arange(1_000_000) % 1000),
    "Affine(blocks=), in order": mid.Affine(torch.arange(1_000_000) // 1000),
}
LORA, POINTS = "100 x (768, 8)", "1 x (1e5, 8)"
ONCE = {  # groups with one shape
    "GeneralLinear": LORA,  # 50 pairs of factors
    "PositiveScaling": MILLION,
    "Shift": MILLION,
    "Orthogonal": POINTS,
    "Similarity": POINTS,
    "Translation(blocks=)": MILLION,
    "Affine(blocks=)": MILLION,
    "Affine(blocks=), in order": MILLION,
}
HEADER = """| group | shape | bare | attached | quotient | sphere | attached / bare | sphere / attached | quotient / sphere |
|---|---|---:|---:|---:|---:|---:|---:|---:|"""
CELLS = [
    (group, shape)
    for group, shape in itertools.product(GROUPS, SHAPES)
    if (ONCE[group] == shape if group in ONCE else shape not in (LORA, POINTS))
]


# ---------------------------------------------------------------------------------------------------- contestants


def tensors(shape: Shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape.shape, generator=generator) for _ in range(shape.count)]


def points(group: str, shape: Shape) -> list[dict[str, nn.Parameter]]:
    """The points that a group acts on; those of one tensor are called x."""
    values = tensors(shape)
    if group not in ("GeneralLinear", "LocationScale", "Shift"):
        return [{"x": nn.Parameter(t.exp() if GROUPS[group].positive else t)} for t in values]
    if group == "GeneralLinear":
        return [{"A": nn.Parameter(a), "B": nn.Parameter(b)} for a, b in zip(values[::2], values[1::2], strict=True)]
    halves = [t.chunk(2, dim=-1) for t in values]
    return [{"theta": nn.Parameter(a.clone()), "alpha": nn.Parameter(b.exp())} for a, b in halves]


def prepared(optimizer: Optimizer) -> Step:
    """A step with a fixed gradient, after a first one that makes the optimiser's state."""
    generator = torch.Generator().manual_seed(1)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mid.NotInvariantWarning)  # the gradient is that of no loss
        optimizer.step()
    return optimizer.step


def bare(group: str, shape: str) -> Step:
    return prepared(Adam([p for point in points(group, SHAPES[shape]) for p in point.values()], fused=True))


def attached(group: str, shape: str) -> Step:
    all_points = points(group, SHAPES[shape])
    optimizer = Adam([p for point in all_points for p in point.values()], fused=True)
    for point in all_points:
        mid.attach(optimizer, GROUPS[group], point.get("x", point))
    return prepared(optimizer)


def quotient(group: str, shape: str) -> Step:
    parameters = [mid.parameter(t, GROUPS[group]) for t in tensors(SHAPES[shape])]
    return prepared(geoopt.optim.RiemannianAdam(parameters))


def sphere(group: str, shape: str) -> Step:
    del group
    normed = [t / t.norm(dim=-1, keepdim=True) for t in tensors(SHAPES[shape])]
    parameters = [geoopt.ManifoldParameter(t, manifold=geoopt.Sphere()) for t in normed]  # pyrefly: ignore[unexpected-keyword]
    return prepared(geoopt.optim.RiemannianAdam(parameters))


def contestants(group: str) -> dict[str, Callable[[str, str], Step]]:
    """Who takes part; geoopt has one tensor to a parameter, which pairs and dicts are not."""
    if group in ITEMS:
        return {"bare": bare, "attached": attached, "quotient": quotient, "sphere": sphere}
    return {"bare": bare, "attached": attached}


# ---------------------------------------------------------------------------------------------------- the table


def medians(steps: dict[str, Step]) -> dict[str, float]:
    """Median seconds of every contestant's step. They take turns; who has used its time leaves, the slow ones first."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(MOST):
        for name, step in steps.items():
            if turn < FEWEST or sum(times[name]) < BUDGET:
                before = time.process_time()
                step()
                times[name].append(time.process_time() - before)
    return {name: statistics.median(taken) for name, taken in times.items()}


def rows(chosen: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    for group, shape in CELLS:
        if chosen in shape or chosen == group:
            yield group, shape, medians({name: make(group, shape) for name, make in contestants(group).items()})


def main(chosen: str = "") -> None:
    torch.set_num_threads(1)
    print(HEADER)
    ratios, before = [], ""
    for group, shape, taken in rows(chosen):
        ratio = taken["attached"] / taken["bare"]
        if group in ITEMS:
            ratios.append(ratio)
        cells = [group if group != before else "", shape]
        cells += [
            f"{1e3 * taken[name]:.3g}" if name in taken else "" for name in ("bare", "attached", "quotient", "sphere")
        ]
        cells += [f"{ratio:.2f}"]
        if "sphere" in taken:
            cells += [f"{taken['sphere'] / taken['attached']:.1f}", f"{taken['quotient'] / taken['sphere']:.2f}"]
        print(
            f"| {' | '.join(cells + [''] * (9 - len(cells)))} |".replace("|  |", "| |").replace("|  |", "| |"),
            flush=True,
        )
        before = group
    if ratios:
        mean = statistics.geometric_mean(ratios)
        print(f"\nAttached over bare, {', '.join(ITEMS)}: geometric mean {mean:.2f}, largest {max(ratios):.2f}.")


# ---------------------------------------------------------------------------------------------------- pytest-benchmark


@pytest.mark.parametrize("contestant", ["bare", "attached", "quotient", "sphere"])
@pytest.mark.parametrize(("group", "shape"), CELLS, ids=[f"{group}, {shape}" for group, shape in CELLS])
def test_step(benchmark, group: str, shape: str, contestant: str) -> None:
    if contestant not in contestants(group):
        pytest.skip("geoopt has one tensor to a parameter")
    benchmark.group = f"{group}, {shape}"
    torch.set_num_threads(1)
    step = contestants(group)[contestant](group, shape)
    before = time.process_time()
    step()
    rounds = int(BUDGET / max(time.process_time() - before, 1e-9))
    benchmark.pedantic(step, rounds=min(max(rounds, FEWEST), MOST))


if __name__ == "__main__":
    main(*sys.argv[1:2])
