"""`train_ensemble`: many members of one architecture, trained in one vectorised run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.optim import Optimizer

from manifoldid.ensemble.ensemble import Ensemble
from manifoldid.ensemble.progress import counted
from manifoldid.ensemble.stacking import (
    State,
    architecture,
    checked_optimizer,
    is_trained,
    made,
    refuse_coupling,
    stacked_state,
    vectorised,
    with_loss,
    write_back,
)
from manifoldid.errors import NotConvergedError, listed
from manifoldid.groups.base import GaugeGroup
from manifoldid.points import Weights

_LOOK_EVERY = 20  # steps between two looks at the losses, which on an accelerator wait for it


@dataclass(frozen=True)
class TrainedEnsemble:
    """Networks that were trained side by side. `trained(x)` are the outputs of all of them, (M, ...).

    Attributes:
        models: The networks, in evaluation mode, each a module of its own: calibrate, save or deploy them one by one.
        losses: The loss of every member at every step, (steps, M).
        seeds: The seed of every member: of its initial values, and of the order in which it saw the data.
    """

    models: list[nn.Module]
    losses: Tensor
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.models)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.models)

    def __getitem__(self, k: int) -> nn.Module:
        return self.models[k]

    def __repr__(self) -> str:
        name = type(self.models[0]).__name__
        return f"<{len(self)} trained {name}, mean loss {float(self.losses[-1].mean()):.4g}>"

    @torch.no_grad()
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The outputs of all members for the same inputs, stacked along a new first dimension; without gradients.

        Raises:
            ValueError: The network has operations that cannot be vectorised over members.
        """
        base, (parameters, buffers) = architecture(self.models), stack_module_state(self.models)
        base.eval()

        def outputs(parameters: State, buffers: State) -> Any:
            return functional_call(base, (parameters, buffers), inputs, named)

        return vectorised(outputs, "same")(parameters, buffers)

    def ensemble(self, group: GaugeGroup, *inputs: Any, weights: Weights = None) -> Ensemble:
        """The outputs for `inputs` as an ensemble of points, one member a network.

        Args:
            group: The gauge group of the outputs.
            *inputs: What a network is called with. Outputs (N, 1), one number per example, become points (N,).
            weights: Item weights.

        Returns:
            An `Ensemble`: means, deviations and contrasts that do not depend on the origin of any member.

        Raises:
            ValueError: As calling this object, and as `Ensemble`.
        """
        outputs = self(*inputs)
        if isinstance(outputs, Tensor) and outputs.ndim == 3 and outputs.shape[-1] == 1:
            outputs = outputs.squeeze(-1)
        return Ensemble(outputs, group, weights)


def train_ensemble(
    make_model: Callable[[], nn.Module],
    loss: Callable[[Any, Any], Tensor],
    *,
    data: Any,
    size: int = 32,
    steps: int = 1000,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> TrainedEnsemble:
    """Trains `size` networks at once: one forward, one backward and one optimiser step for all of them.

    The members are those of `size` runs one after the other. Member k has a seed s_k, drawn from `generator`, and is

        torch.manual_seed(s_k); model = make_model()                          # its initial values
        order = torch.Generator().manual_seed(s_k)                            # its own order of the data
        torch.randperm(N, generator=order)[: batch_size], [batch_size : 2 * batch_size], ...   # an incomplete batch is left out

    with a new permutation after every pass; without `batch_size` every step takes all the data in their order. Dropout draws another
    mask for every member (from the same seeds, in another order than runs one by one would). Networks are in training mode;
    buffers that are written in place (batch norm) belong to each member. The state of the global random generators is restored.

    Args:
        make_model: Makes one network; called `size` times.
        loss: `loss(model, batch)`, a scalar: a mean over the batch. Data-dependent control flow (`if`, `.item()`) cannot be vectorised.
        data: A tensor with examples along the first dimension, or a tuple, list or dict of such tensors; a batch has the same form.
        size: How many members.
        steps: How many optimiser steps.
        optimizer: Makes a torch optimiser of a list of parameters, which are stacked: (size, *shape). It must treat every number, or
            every member, by itself; one that does not (LBFGS, clipping by a total norm, Adafactor) is refused. Default Adam(lr=1e-3).
        batch_size: Examples per step; default all.
        generator: Source of the seeds; default a private one seeded with 0.
        progress: Whether to show a progress bar (on the standard error).

    Returns:
        The trained networks: `trained(x)` for all outputs, `trained.ensemble(group, x)` for an `Ensemble`, or iterate over them.

    Raises:
        TypeError: An argument is of the wrong kind, or `make_model` or `loss` return something else.
        ValueError: Sizes do not fit, models differ, the optimiser couples members, or something cannot be vectorised.
        NotConvergedError: The loss of a member is not finite; it is named.
    """
    count = _examples(data)
    _check_sizes(size, steps, batch_size, count)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seeds = torch.randint(2**62, (size,), generator=generator, device=generator.device).tolist()
    make_optimizer = _adam if optimizer is None else optimizer
    with torch.random.fork_rng():
        models = made(make_model, seeds)
        base, (parameters, buffers) = with_loss(architecture(models), loss), stacked_state(models)
        leaves = {
            name: nn.Parameter(t, t.is_floating_point() and is_trained(models[0], name))
            for name, t in parameters.items()
        }
        trained = [p for p in leaves.values() if p.requires_grad]
        if not trained:
            raise ValueError("`make_model` makes models without parameters to train")
        if size > 1:
            refuse_coupling(make_optimizer, trained)
        stepper = checked_optimizer(make_optimizer(trained))

        def one(parameters: State, buffers: State, batch: Any) -> Tensor:
            return functional_call(base, {f"model.{n}": t for n, t in (parameters | buffers).items()}, (batch,))

        together = vectorised(one, "different", (0, 0, None if batch_size is None else 0))
        torch.manual_seed(seeds[0])  # of dropout
        record: list[Tensor] = []
        for step, batch in enumerate(_batches(data, count, batch_size, seeds, counted(steps, "training", progress))):
            losses = together(leaves, buffers, batch)
            _check_losses(losses, size) if step == 0 else None
            stepper.zero_grad()
            losses.sum().backward()
            stepper.step()
            record.append(losses.detach())
            if step % _LOOK_EVERY == 0 or step == steps - 1:
                _look(record[-_LOOK_EVERY:], step)
    write_back(models, {**leaves, **buffers})
    return TrainedEnsemble(models, torch.stack(record), seeds)


def _adam(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


# -------------------------------------------------------------------------------------------------------------- data


def _leaves(data: Any) -> list[Any]:
    if isinstance(data, dict):
        return list(data.values())
    return list(data) if isinstance(data, (tuple, list)) else [data]


def _examples(data: Any) -> int:
    leaves = _leaves(data)
    if not leaves or not all(isinstance(t, Tensor) and t.ndim for t in leaves):
        kinds = ", ".join(type(t).__name__ for t in leaves) or "nothing"
        raise TypeError(
            f"`data` must be a tensor, or a tuple, list or dict of tensors with examples first, got {kinds}"
        )
    sizes = [len(t) for t in leaves]
    if len(set(sizes)) > 1 or not sizes[0]:
        raise ValueError(f"`data` must have as many examples in every tensor, at least one, got {sizes}")
    return sizes[0]


def _rows(data: Any, index: Tensor) -> Any:
    if isinstance(data, dict):
        return {name: t[index.to(t.device)] for name, t in data.items()}
    if isinstance(data, (tuple, list)):
        return type(data)(t[index.to(t.device)] for t in data)
    return data[index.to(data.device)]


def _batches(
    data: Any, count: int, batch_size: int | None, seeds: Sequence[int], steps: Iterator[int]
) -> Iterator[Any]:
    """One batch per step: all the data, or (size, batch_size, ...) with the examples that it is the turn of, member by member."""
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    per_pass = 1 if batch_size is None else count // batch_size
    permutations = torch.empty(0)
    for step in steps:
        if batch_size is None:
            yield data
            continue
        if step % per_pass == 0:
            permutations = torch.stack([torch.randperm(count, generator=order) for order in orders])
        start = step % per_pass * batch_size
        yield _rows(data, permutations[:, start : start + batch_size])


# -------------------------------------------------------------------------------------------------------- verdicts


def _check_sizes(size: int, steps: int, batch_size: int | None, count: int) -> None:
    if size < 1 or steps < 1:
        raise ValueError(f"`size` and `steps` must be at least 1, got {size} and {steps}")
    if batch_size is not None and not 1 <= batch_size <= count:
        raise ValueError(f"`batch_size` must be between 1 and the number of examples, {count}, got {batch_size}")


def _check_losses(losses: Any, size: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (size,):
        shape = tuple(losses.shape[1:]) if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(
            f"`loss` must return a scalar for one model and one batch, got {shape}: take the mean over the batch"
        )
    if not losses.requires_grad:
        raise ValueError("`loss` does not depend on the parameters of the model: it has no gradient")


def _look(recent: list[Tensor], step: int) -> None:
    bad = ~torch.isfinite(torch.stack(recent))
    if not bool(bad.any()):
        return
    row = int(bad.any(1).nonzero()[0])
    members = bad[row].nonzero()[:, 0].tolist()
    raise NotConvergedError(
        f"`loss` of member(s) {listed(members)} is not finite at step {step - len(recent) + 1 + row}: the learning rate is too large, "
        "or the loss is not defined on some batch"
    )
