"""How much faster one vectorised run of 32 members is than 32 runs: `python -m benchmarks.train_ensemble`.

Both kinds of run take turns, so that other load on the machine falls on both; the ratio of the medians is printed.
"""

import argparse
import statistics
import time

import torch
from torch import nn

import manifoldid as mid

FEATURES, HIDDEN, EXAMPLES, BATCH = 8, 64, 2048, 32


def make_model():
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))


def loss(model, batch):
    better, worse = batch
    return nn.functional.softplus(model(worse) - model(better)).mean()


def optimizer(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, EXAMPLES, FEATURES, generator=generator)
    swap = (x[:, :1].sin() < y[:, :1].sin()).expand_as(x)
    return torch.where(swap, y, x), torch.where(swap, x, y)


def together(size, steps):
    return mid.train_ensemble(
        make_model, loss, data=data(), size=size, steps=steps, optimizer=optimizer, batch_size=BATCH, progress=False
    )


def one_by_one(seeds, steps):
    """The same members by a plain training loop."""
    better, worse = data()
    models = []
    for seed in seeds:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = make_model()
        stepper, order = optimizer(model.parameters()), torch.Generator().manual_seed(seed)
        per_pass = EXAMPLES // BATCH
        permutation = torch.arange(EXAMPLES)
        for step in range(steps):
            if step % per_pass == 0:
                permutation = torch.randperm(EXAMPLES, generator=order)
            index = permutation[step % per_pass * BATCH :][:BATCH]
            stepper.zero_grad()
            loss(model, (better[index], worse[index])).backward()
            stepper.step()
        models.append(model)
    return models


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained = together(arguments.size, arguments.steps)
    fast, slow = [], []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        together(arguments.size, arguments.steps)
        middle = time.perf_counter()
        models = one_by_one(trained.seeds, arguments.steps)
        fast.append(middle - start)
        slow.append(time.perf_counter() - middle)
    x = data()[0][:100]
    apart = max(float((a(x) - b(x)).detach().abs().max()) for a, b in zip(trained, models, strict=True))
    ratio = statistics.median(fast) / statistics.median(slow)
    print(f"{arguments.size} members, hidden {HIDDEN}, batch {BATCH}, {arguments.steps} steps, one thread")
    print(f"one vectorised run takes {ratio:.3f} of the time of {arguments.size} runs ({1 / ratio:.1f} times faster)")
    print(f"largest difference of an output between the two kinds of run: {apart:.1e}")


if __name__ == "__main__":
    main()
