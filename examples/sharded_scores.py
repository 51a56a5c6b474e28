"""Twenty million scores on two ranks, of which only differences mean anything: one number travels for the gauge.

    torchrun --nproc-per-node 2 examples/sharded_scores.py

How often was each of n products chosen? A score x_i per product, P(i) = exp(x_i) / sum_j exp(x_j): x and x + b are the same
model. Every rank keeps its own products. The likelihood needs the sum over j, one number; the gauge needs the mean of the
scores, one number. `distributed.sharded` tells the group so, `attach` does the rest, with any torch optimiser.

`--check` compares with one process that holds everything.
"""

import argparse
import datetime
import os
import time

import torch
import torch.distributed as dist

import manifoldid as mid


def products(n: int, rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """True scores, how often each product was chosen, and where training starts, for the products of one rank."""
    low, high = n * rank // ranks, n * (rank + 1) // ranks
    generator = torch.Generator().manual_seed(rank)
    truth = torch.randn(high - low, generator=generator)
    chosen = torch.poisson(50 * truth.exp(), generator=generator)
    return truth, chosen, 10 + 0.1 * torch.randn(high - low, generator=generator)


def train(x: torch.nn.Parameter, chosen: torch.Tensor, group: mid.GaugeGroup, total, steps: int) -> float:
    """Maximum likelihood by Adam; `total` adds over all products. Returns seconds per step."""
    optimizer = torch.optim.Adam([x], lr=0.1, fused=True)
    mid.attach(optimizer, group, x)
    choices, count = total(chosen.sum(dtype=torch.float64)), total(torch.tensor(float(len(x)), dtype=torch.float64))
    start = time.perf_counter()
    for _ in range(steps):
        with torch.no_grad():
            strength = x.exp()
            probability = strength / total(strength.sum(dtype=torch.float64)).float()
            x.grad = (probability - chosen / choices.float()) * count.float()
        optimizer.step()
    return (time.perf_counter() - start) / steps


def summed(value: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks."""
    value = value.clone()
    dist.all_reduce(value)
    return value


def main() -> None:
    """Runs on every rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=int, default=20_000_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--check", action="store_true", help="compare with one process that holds all scores")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        raise SystemExit("start it with torchrun --nproc-per-node 2 examples/sharded_scores.py")
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=5))
    rank, ranks = dist.get_rank(), dist.get_world_size()

    truth, chosen, start = products(arguments.scores, rank, ranks)
    scores = torch.nn.Parameter(start)
    seconds = train(scores, chosen, mid.distributed.sharded(mid.Translation()), summed, arguments.steps)

    mean = summed(scores.detach().sum(dtype=torch.float64)) / arguments.scores
    centred = truth - (summed(truth.sum(dtype=torch.float64)) / arguments.scores).float()
    error = (summed((scores.detach() - centred).square().sum(dtype=torch.float64)) / arguments.scores).sqrt()
    if rank == 0:
        print(f"{arguments.scores:,} scores on {ranks} ranks, {seconds:.3f} s a step")
        print(f"mean of all scores {float(mean):+.1e}; root mean square distance from the truth {float(error):.3f}")
    if arguments.check:
        everything = [products(arguments.scores, other, ranks) for other in range(ranks)]
        alone = torch.nn.Parameter(torch.cat([start for _, _, start in everything]))
        train(
            alone, torch.cat([chosen for _, chosen, _ in everything]), mid.Translation(), lambda t: t, arguments.steps
        )
        low = arguments.scores * rank // ranks
        apart = float((alone.detach()[low : low + len(scores)] - scores.detach()).abs().max())
        print(f"rank {rank}: largest difference from one process {apart:.1e}")
        if apart > 1e-4:  # float32, Adam: a few roundings a step
            raise SystemExit(f"rank {rank} is {apart:.1e} away from one process")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
