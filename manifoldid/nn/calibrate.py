"""`calibrate`: the only writer of the frame of a `GaugeFix(over="batch")` head."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from manifoldid.distributed import sharded
from manifoldid.distributed.dtensors import is_spread
from manifoldid.distributed.spread import default_group, rows_of_all
from manifoldid.groups.base import canonicalise
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
    frame of the whole. Per head travel four numbers a rank, that all are ready for it, and the sums of the frame, a few numbers a
    column (all-reduced, on the device of the model, which the process group must serve). An error on one rank is an error on all.
    Nothing travels when the heads are used.

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
        TypeError: `model` is no module, or cannot be called with a batch (say how with `forward`).
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
                found = _outputs(model, batches, left, run)
                if found is None:
                    raise ValueError("`loader` is empty: calibration needs a reference population")
                (name, points), group = found, left[found[0]].group
            else:
                name, points = _outputs_of_all(model, batches, left, run, ranks)
                group = sharded(left[name].group, ranks)  # the sums of the frame are sums over all ranks
            form, _ = canonicalise(group, points, None, f"outputs before {name or 'the head'}")
            left.pop(name).set_frame(form.xi[0] if points.shape[0] == 1 else form.xi)
    return model


def _outputs(
    model: Any, batches: Iterable[Any], heads: dict[str, GaugeFix], run: Callable[[Any, Any], Any]
) -> tuple[str, Tensor] | None:
    """The head that is called first, and what comes before it: one point over all examples per column, (k, N); None for no batches."""
    outputs, order, empty = _collect(model, batches, heads, run)
    if empty:
        return None
    if not order:
        raise ValueError(f"`model` does not call its head(s) {sorted(heads)} on these batches")
    return order[0], torch.cat([columns(batch).double() for batch in outputs[order[0]]], dim=-1)


def _outputs_of_all(
    model: Any, batches: Iterable[Any], heads: dict[str, GaugeFix], run: Callable[[Any, Any], Any], ranks: Any
) -> tuple[str, Tensor]:
    """The same for the examples here, (k, 0) where there are none, once all ranks are known to be ready for the same head."""
    names, failure, name, points = sorted(heads), None, "", None
    try:
        if (found := _outputs(model, batches, heads, run)) is not None:
            name, points = found
    except Exception as error:
        failure = error
    own = (
        failure is not None,
        0 if points is None else 1 + names.index(name),
        0 if points is None else points.shape[0],
    )
    device = next(iter(heads.values())).frame.device
    rows = rows_of_all(torch.tensor([*own, _print_of(model)], dtype=torch.float64, device=device), ranks)
    failed, called, widths, prints = rows.T.tolist()
    if failure is not None:
        raise failure
    if any(failed):
        raise RuntimeError(f"calibration failed on rank {failed.index(1.0)}, which says why")
    if len({repr(number) for number in prints}) > 1:  # nan, of a model that is refused below, is nan everywhere
        raise ValueError(
            "`model` has other parameters on other ranks: a frame over all of them belongs to none; calibrate replicas of one model, or "
            "with process_group=None each for itself"
        )
    calls = {(int(index), int(width)) for index, width in zip(called, widths, strict=True) if index}
    if not calls:
        raise ValueError("`loader` is empty on all ranks: calibration needs a reference population")
    if len(calls) > 1:
        raise ValueError("`model` calls its heads in another order, or with other columns, on other ranks")
    ((index, width),) = calls
    return names[index - 1], torch.zeros(width, 0, dtype=torch.float64, device=device) if points is None else points


def _print_of(model: nn.Module) -> float:
    """A number that replicas of one model share; parameters that are spread over ranks do not count."""
    sums = [p.detach().double().sum() for p in model.parameters() if not is_spread(p)]
    return float(sum(total * math.cos(k) for k, total in enumerate(sums)))


def _forward(model: nn.Module, batch: Any) -> Any:
    args, named = ((), batch) if isinstance(batch, Mapping) else ((_input(batch),), {})
    try:
        return model(*args, **named)
    except TypeError as error:
        raise TypeError(
            f"{error}. `calibrate` hands a {type(model).__name__} {'the batch by its keys' if named else 'one input per batch'}; where "
            "it takes something else, pass forward=lambda model, batch: model(*batch), or what fits your batches"
        ) from error


def _input(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (tuple, list)) else batch


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
