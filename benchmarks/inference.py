"""Bradley-Terry fits and their uncertainty: beside choix, at a size where nothing dense fits, and the coverage of intervals.

    python benchmarks/inference.py choix       # 200 items, 18,000 pairs; needs the package choix
    python benchmarks/inference.py large       # 100,000 items, 1,000,000 games, and a quarter of it
    python benchmarks/inference.py coverage    # 2,000 simulated leagues, and bootstrap ensembles of 100 of them

Times are processor seconds of one thread, medians of interleaved runs, after a run that warms up. `large` runs each size in a process of
its own, so that the peak memory is its own.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import manifoldid as mid

F64 = torch.float64
GAUGE = mid.Translation()


def bradley_terry(winner: Tensor, loser: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: -torch.nn.functional.logsigmoid(x[winner] - x[loser]).sum()


def bradley_terry_by_rows(winner: Tensor, loser: Tensor) -> Callable[[Tensor], Tensor]:
    """The same: `index_select` is cheaper to differentiate twice than an index in brackets."""
    return lambda x: -torch.nn.functional.logsigmoid(x.index_select(0, winner) - x.index_select(0, loser)).sum()


def played(skill: Tensor, first: Tensor, second: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Winners and losers of games at these skills."""
    won = torch.bernoulli(torch.sigmoid(skill[first] - skill[second]), generator=generator).bool()
    return torch.where(won, first, second), torch.where(won, second, first)


def normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, generator=generator, dtype=F64)


def clocked(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


# ---------------------------------------------------------------------------------------------------- beside choix


def beside_choix(items: int = 200, pairs: int = 18_000, repeats: int = 9) -> None:
    import choix  # pyrefly: ignore[missing-import] (an extra of its own: bench)

    generator = torch.Generator().manual_seed(0)
    first, second = torch.triu_indices(items, items, 1)
    chosen = torch.randperm(len(first), generator=generator)[:pairs]
    winner, loser = played(normal(items, generator), first[chosen], second[chosen], generator)
    start, data = torch.zeros(items, dtype=F64), list(zip(winner.tolist(), loser.tolist(), strict=True))

    def all_of_it(nll: Callable[[Tensor], Tensor]) -> None:
        estimate = mid.infer(nll, mid.fit(nll, start, GAUGE).point, GAUGE)
        estimate.covariance()
        estimate.quasi_variances()

    runs: dict[str, Callable[[], object]] = {"choix.ilsr_pairwise": lambda: choix.ilsr_pairwise(items, data)}
    for idiom, nll in (
        ("x[i]", bradley_terry(winner, loser)),
        ("index_select", bradley_terry_by_rows(winner, loser)),
    ):
        runs[f"fit, {idiom}"] = partial(mid.fit, nll, start, GAUGE)
        runs[f"fit, covariance, quasi-variances, {idiom}"] = partial(all_of_it, nll)
    theirs = torch.tensor(choix.ilsr_pairwise(items, data), dtype=F64)
    all_of_it(nll)
    difference = float((mid.fit(nll, start, GAUGE).point - theirs).abs().max())
    seconds = torch.tensor([[clocked(run) for run in runs.values()] for _ in range(repeats)]).median(0).values
    print(f"{items} items, {pairs:,} pairs; estimates differ by {difference:.0e}")
    for name, took in zip(runs, seconds, strict=True):
        print(f"  {name:48}{took * 1e3:8.1f} ms{took / seconds[0]:8.2f} x choix")


# ---------------------------------------------------------------------------------------------------- large


def league(items: int, games: int) -> Callable[[Tensor], Tensor]:
    """Random games, and a ring in which everybody wins and loses once: without it some win all, and there is no maximum."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(items, (games - items,), generator=generator)
    second = (first + 1 + torch.randint(items - 1, (games - items,), generator=generator)) % items
    winner, loser = played(normal(items, generator), first, second, generator)
    ring = torch.arange(items)
    return bradley_terry(torch.cat([winner, ring]), torch.cat([loser, (ring + 1) % items]))


def large(items: int, games: int) -> tuple[float, float]:
    """Processor seconds of one value and gradient, and of the fit; prints what it took."""
    torch.set_num_threads(1)
    mid.fit(league(10, 60), torch.zeros(10, dtype=F64), GAUGE)
    nll, start = league(items, games), torch.zeros(items, dtype=F64)
    leaf = start.clone().requires_grad_()

    def gradient() -> None:
        torch.autograd.grad(nll(leaf), leaf)

    before = [clocked(gradient) for _ in range(5)]
    found: list[mid.FitResult] = []
    took = clocked(lambda: found.append(mid.fit(nll, start, GAUGE, tolerance=1e-8)))
    one = statistics.median(before + [clocked(gradient) for _ in range(5)])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{items:,} items, {games:,} games: converged={found[0].converged} in {found[0].iterations} steps, {took:.2f} s = {took / one:.0f} "
        f"values and gradients, peak {memory:.2f} GB"
    )
    start_of_contrast = time.process_time()
    contrast = mid.infer(nll, found[0].point, GAUGE).contrast(lambda x: x[0] - x[1])
    print(
        f"  a contrast with its standard error, {contrast}: {(time.process_time() - start_of_contrast) / one:.0f} more"
    )
    return one, took


def both_sizes() -> None:
    took = []
    for items, games in ((25_000, 250_000), (100_000, 1_000_000)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            took.append(pool.apply(large, (items, games))[1])
    print(f"a problem of 4 times the size takes {took[1] / took[0]:.1f} times as long")


# ---------------------------------------------------------------------------------------------------- coverage


def coverage(leagues: int = 2_000, with_bootstrap: int = 100, size: int = 50) -> None:
    """How often 95 % intervals of contrasts cover the truth: 8 teams, 12 games of each pair."""
    generator = torch.Generator().manual_seed(0)
    first, second = (side.repeat(12) for side in torch.triu_indices(8, 8, 1))
    skill = torch.linspace(-1, 1, 8, dtype=F64)
    left, right = torch.triu_indices(8, 8, 1)
    truth = skill[left] - skill[right]

    def differences(x: Tensor) -> Tensor:
        return x[left] - x[right]

    hits, ensemble_hits, fewer = torch.zeros(2), torch.zeros(2), 0
    for k in range(leagues):
        winner, loser = played(skill, first, second, generator)
        nll = bradley_terry(winner, loser)
        try:
            fit = mid.fit(nll, torch.zeros(8, dtype=F64), GAUGE)
        except mid.UnboundedEstimateError:
            fewer += 1
            continue
        low, high = mid.infer(nll, fit.point, GAUGE).contrast(differences).interval(0.95)
        hits += torch.tensor([float(((low <= truth) & (truth <= high)).sum()), len(truth)])
        if k < with_bootstrap:
            ensemble = _bootstrap(fit.point, first, second, size, seed=k)
            spread = ensemble.contrast(differences).standard_error
            covered = (differences(fit.point) - truth).abs() <= 1.959964 * spread
            ensemble_hits += torch.tensor([float(covered.sum()), len(truth)])
    print(f"{leagues - fewer:,} leagues ({fewer} more had no maximum): 95 % intervals cover {hits[0] / hits[1]:.1%}")
    print(
        f"{with_bootstrap} bootstrap ensembles of {size}: estimate +- 1.96 spreads covers {ensemble_hits[0] / ensemble_hits[1]:.1%}"
    )


def _bootstrap(point: Tensor, first: Tensor, second: Tensor, size: int, seed: int) -> mid.Ensemble:
    """The parametric bootstrap: leagues played again at the estimated skills."""

    def again(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return played(point, first, second, generator)

    return mid.Ensemble.from_bootstrap(
        lambda x, data: bradley_terry(*data)(x),
        again,
        size,
        point,
        GAUGE,
        failures="drop",
        generator=torch.Generator().manual_seed(seed),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("choix", "large", "coverage"), nargs="*")
    parser.add_argument("--leagues", type=int, default=2_000)
    parser.add_argument("--ensembles", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = {
        "choix": beside_choix,
        "large": both_sizes,
        "coverage": lambda: coverage(arguments.leagues, arguments.ensembles),
    }
    for what in arguments.what or runs:
        runs[what]()


if __name__ == "__main__":
    main()
