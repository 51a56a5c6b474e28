"""Matrix completion 300 x 200 of rank 5 from 30 % of the entries: steps to tolerance, plain and attached, by balance of the start.

    python benchmarks/completion.py

A start (c A, B / c) is the same model for every c. Attached to `GeneralLinear` the run does not know c; a plain optimiser does.
Optimisers and learning rates are the same on both sides; they were chosen for the plain optimiser at c = 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

import manifoldid as mid

ROWS, COLUMNS, RANK, SEEN = 300, 200, 5, 0.3
TOLERANCE, MOST = 1e-6, 10_000
OPTIMISERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "Adam, lr 1e-2": lambda parameters: Adam(parameters, lr=1e-2),
    "SGD, lr 20": lambda parameters: SGD(parameters, lr=20.0),
    "SGD, lr 5, momentum .9": lambda parameters: SGD(parameters, lr=5.0, momentum=0.9),
}


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrix, which entries are seen, and a start."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = normal(ROWS, RANK) @ normal(COLUMNS, RANK).mT / RANK**0.5
    seen = torch.rand(ROWS, COLUMNS, generator=generator, dtype=torch.float64) < SEEN
    return target, seen, 0.1 * normal(ROWS, RANK), 0.1 * normal(COLUMNS, RANK)


def steps(make: Callable[[list[Tensor]], Optimizer], balance: float, attached: bool) -> int:
    """Steps until the mean squared error on the seen entries is below the tolerance; `MOST` if it is not."""
    target, seen, a, b = problem()
    a, b = torch.nn.Parameter(balance * a), torch.nn.Parameter(b / balance)
    optimizer = make([a, b])
    if attached:
        mid.attach(optimizer, mid.GeneralLinear("A", "B"), {"A": a, "B": b})
    for k in range(MOST):
        optimizer.zero_grad()
        loss = (a @ b.mT - target)[seen].square().mean()
        loss.backward()
        if loss.item() < TOLERANCE:
            return k
        optimizer.step()
    return MOST


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'optimiser':24}{'balance c':>10}{'plain':>8}{'attached':>10}{'ratio':>8}")
    for name, make in OPTIMISERS.items():
        for balance in (1.0, 10.0, 30.0):
            plain, attached = steps(make, balance, attached=False), steps(make, balance, attached=True)
            print(f"{name:24}{balance:>10g}{plain:>8}{attached:>10}{plain / attached:>8.1f}")


if __name__ == "__main__":
    main()
