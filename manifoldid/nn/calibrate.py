"""`calibrate`: the only writer of the frame of a `GaugeFix(over="batch")` head."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from manifoldid.groups.base import canonicalise
from manifoldid.nn.gauge_fix import GaugeFix, columns

Model = TypeVar("Model", bound=nn.Module)


def calibrate(model: Model, loader: Iterable[Any], forward: Callable[[Model, Any], Any] | None = None) -> Model:
    """Computes the frames of all `GaugeFix(over="batch")` heads of a model over a reference population, and stores them.

    Exact, and the same for any batching: the outputs before the head are collected in float64. The model runs in evaluation
    mode without gradients; modes of all modules and the states of the random generators are restored.

    Args:
        model: A network with one or more such heads, or such a head itself (the batches are then its inputs). Heads after
            one another are calibrated in the order in which they are called.
        loader: Batches of the reference population, one pass per head: a `DataLoader`, a list. A batch may be a tensor, a
            tuple whose first entry is the input, or a dict of keyword arguments.
        forward: `forward(model, batch)`, when a batch is something else: for a network of pairs, the call on single items. (Over
            pairs an item would count as often as it is compared.)

    Returns:
        The model, for chaining.

    Raises:
        TypeError: `model` is no module.
        ValueError: The model has no such head, the loader is empty, a head is not called, or outputs are not finite.
        DegeneratePointError: The outputs over the population have no representative (all equal, under Affine).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a module, got {type(model).__name__}; calibrate the networks of an ensemble one by one"
        )
    heads = {name: m for name, m in model.named_modules() if isinstance(m, GaugeFix) and m.over == "batch"}
    if not heads:
        raise ValueError("`model` has no GaugeFix(over='batch') head to calibrate; over='last' needs no calibration")
    batches = loader if hasattr(loader, "__len__") or len(heads) == 1 else list(loader)
    run = forward or _forward
    left = dict(heads)
    with _evaluation(model), torch.no_grad(), torch.random.fork_rng():
        while left:
            outputs, order = _collect(model, batches, left, run)
            if not order:
                raise ValueError(f"`model` does not call its head(s) {sorted(left)} on these batches")
            name = order[0]
            points = torch.cat([columns(batch).double() for batch in outputs[name]], dim=-1)
            form, _ = canonicalise(left[name].group, points, None, f"outputs before {name or 'the head'}")
            left.pop(name).set_frame(form.xi[0] if points.shape[0] == 1 else form.xi)
    return model


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _collect(
    model: nn.Module, batches: Iterable[Any], heads: dict[str, GaugeFix], run: Callable[[Any, Any], Any]
) -> tuple[dict[str, list[Tensor]], list[str]]:
    """Inputs of the heads over all batches, and the heads in the order of their first call."""
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
    if empty:
        raise ValueError("`loader` is empty: calibration needs a reference population")
    return outputs, order


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
