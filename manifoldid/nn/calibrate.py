"""`calibrate`: the only writer of the frame of a `GaugeFix(over="batch")` head."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from manifoldid.distributed import default_group, gathered, is_spread
from manifoldid.groups import PositiveScaling
from manifoldid.groups.base import GaugeGroup, canonicalise
from manifoldid.nn.gauge_fix import GaugeFix, columns

Model = TypeVar("Model", bound=nn.Module)


def calibrate(
    model: Model,
    loader: Iterable[Any],
    forward: Callable[[Model, Any], Any] | None = None,
    process_group: Any = "default",
) -> Model:
    """Computes the frames of all `GaugeFix(over="batch")` heads of a model over a reference population, and stores them.

    Exact, and the same for any batching: the outputs before the head are collected in float64. The model runs in evaluation
    mode without gradients; modes of all modules and the states of the random generators are restored.

    Where `torch.distributed` is initialised, every rank gives its part of the population (none is allowed), and all ranks store the
    frame of the whole: one exchange per head, of the number of examples and two sums per column. An error on one rank is an error
    on all. Nothing travels when the heads are used.

    Args:
        model: A network with one or more such heads, or such a head itself (the batches are then its inputs). Heads after
            one another are calibrated in the order in which they are called.
        loader: Batches of the reference population, one pass per head: a `DataLoader`, a list. A batch may be a tensor, a
            tuple whose first entry is the input, or a dict of keyword arguments.
        forward: `forward(model, batch)`, when a batch is something else: for a network of pairs, the call on single items. (Over
            pairs an item would count as often as it is compared.)
        process_group: The ranks that hold replicas of this model; the default group of `torch.distributed` where there is one. None is
            this process alone: for ensembles that have a member on every rank.

    Returns:
        The model, for chaining.

    Raises:
        TypeError: `model` is no module.
        ValueError: The model has no such head, the loader is empty (on all ranks), a head is not called, outputs are not finite, or
            the ranks hold different models.
        RuntimeError: Another rank failed.
        DegeneratePointError: The outputs over the population have no representative (all equal, under Affine).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a module, got {type(model).__name__}; calibrate the networks of an ensemble one by one"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        # Inside: its forward is collective (buffers are broadcast), and ranks may have different numbers of batches.
        ranks = model.process_group if process_group == "default" else process_group
        calibrate(model.module, loader, forward, ranks)
        return model
    heads = {name: m for name, m in model.named_modules() if isinstance(m, GaugeFix) and m.over == "batch"}
    if not heads:
        raise ValueError("`model` has no GaugeFix(over='batch') head to calibrate; over='last' needs no calibration")
    batches = loader if hasattr(loader, "__len__") or len(heads) == 1 else list(loader)
    run = forward or _forward
    left = dict(heads)
    ranks = default_group() if process_group == "default" else process_group
    with _evaluation(model), torch.no_grad(), torch.random.fork_rng():
        while left:
            if ranks is None:
                name, points, weights = _outputs(model, batches, left, run)
            else:
                name, points, weights = _outputs_of_all(model, batches, left, run, ranks)
            head = left.pop(name)
            form, _ = canonicalise(head.group, points, weights, f"outputs before {name or 'the head'}")
            head.set_frame(form.xi[0] if points.shape[0] == 1 else form.xi)
    return model


def _outputs(
    model: Any, batches: Iterable[Any], heads: dict[str, GaugeFix], run: Callable[[Any, Any], Any]
) -> tuple[str, Tensor, None]:
    """The head that is called first, and what comes before it: one point over all examples per column, (k, N)."""
    outputs, order, empty = _collect(model, batches, heads, run)
    if empty:
        raise ValueError("`loader` is empty: calibration needs a reference population")
    if not order:
        raise ValueError(f"`model` does not call its head(s) {sorted(heads)} on these batches")
    return order[0], torch.cat([columns(batch).double() for batch in outputs[order[0]]], dim=-1), None


def _outputs_of_all(
    model: Any, batches: Iterable[Any], heads: dict[str, GaugeFix], run: Callable[[Any, Any], Any], ranks: Any
) -> tuple[str, Tensor, Tensor]:
    """The same over the examples of all ranks: four items of every rank stand for all of its examples, with their weight."""
    failure, part = None, None
    try:
        if not _is_empty(batches):
            name, points, _ = _outputs(model, batches, heads, run)
            part = (name, points.shape[-1], _summary(points, heads[name].group).cpu())
    except Exception as error:
        failure = error
    print_of_model = [float(p.detach().double().sum()) for p in model.parameters() if not is_spread(p)]
    found = gathered((part, None if failure is None else repr(failure), print_of_model), ranks)
    if failure is not None:
        raise failure
    for rank, (_, other, _) in enumerate(found):
        if other is not None:
            raise RuntimeError(f"calibration failed on rank {rank}: {other}")
    if any(other != print_of_model for _, _, other in found):
        raise ValueError(
            "`model` has other parameters on other ranks: a frame over all of them belongs to none; calibrate replicas of one model, or "
            "with process_group=None each for itself"
        )
    parts = [part for part, _, _ in found if part is not None]
    if not parts:
        raise ValueError("`loader` is empty on all ranks: calibration needs a reference population")
    if len({(name, items.shape[0]) for name, _, items in parts}) > 1:
        raise ValueError("`model` calls its heads in another order, or with other columns, on other ranks")
    weights = torch.cat([torch.full((items.shape[-1],), n / items.shape[-1]) for _, n, items in parts])
    return parts[0][0], torch.cat([items for _, _, items in parts], dim=-1), weights.double()


def _is_empty(batches: Any) -> bool:
    return hasattr(batches, "__len__") and not len(batches)


def _summary(points: Tensor, group: GaugeGroup) -> Tensor:
    """Four items (k, 4) with the mean and the standard deviation of all, or of their logarithms: what frames are made of."""
    if points.shape[-1] < 4:
        return points
    positive = isinstance(group, PositiveScaling)
    if positive and not bool((points > 0).all()):
        return points.amin(-1, keepdim=True).expand(-1, 4)  # refused by the group
    values = points.log() if positive else points
    middle, spread = values.mean(-1, keepdim=True), values.std(-1, correction=0, keepdim=True)
    items = torch.cat([middle - spread, middle + spread] * 2, dim=-1)
    return items.exp() if positive else items


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _collect(
    model: nn.Module, batches: Iterable[Any], heads: dict[str, GaugeFix], run: Callable[[Any, Any], Any]
) -> tuple[dict[str, list[Tensor]], list[str], bool]:
    """Inputs of the heads over all batches, the heads in the order of their first call, and whether there were no batches."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in heads}
    order: list[str] = []
    empty = True
    with ExitStack() as stack:
        for name, head in heads.items():

            def remember(_: nn.Module, args: tuple, name: str = name) -> None:
                outputs[name].append(args[0].detach())
                if name not in order:
                    order.append(name)

            stack.callback(head.register_forward_pre_hook(remember).remove)
        for batch in batches:
            empty = False
            run(model, batch)
    return outputs, order, empty


@contextmanager
def _evaluation(model: nn.Module):
    """Evaluation mode, without the warning of heads that are just being calibrated."""
    modes = {module: module.training for module in model.modules()}
    warned = {m: m._warned for m in model.modules() if isinstance(m, GaugeFix) and m.over == "batch"}
    try:
        model.eval()
        for head in warned:
            head._warned = True
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for head, before in warned.items():
            head._warned = before
