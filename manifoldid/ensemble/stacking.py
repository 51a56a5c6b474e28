"""Many models of one architecture as one: their numbers stacked, their calls and their optimiser vectorised over members."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state
from torch.optim import Optimizer

from manifoldid.errors import listed

State = dict[str, Tensor]


class _WithLoss(nn.Module):
    """A network and its loss as one module, so that `loss` sees the network itself, with its methods and parts."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Tensor]):
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)


def with_loss(model: nn.Module, loss: Any) -> nn.Module:
    """A module that maps a batch to the loss of `model`.

    Raises:
        TypeError: `loss` is no function.
    """
    if not callable(loss):
        raise TypeError(f"`loss` must be a function loss(model, batch), got {type(loss).__name__}")
    return _WithLoss(model, loss)


def made(make_model: Any, seeds: Sequence[int]) -> list[nn.Module]:
    """One new model per seed; sets the global random generator.

    Raises:
        TypeError: `make_model` is no function, or makes something else.
        ValueError: It returns one model twice.
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            f"`make_model` must be a function that makes a new model, got {type(make_model).__name__}; "
            "a single model cannot be initialised again: lambda: MyModel(...)"
        )
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(make_model())
    if not all(isinstance(model, nn.Module) for model in models):
        raise TypeError(f"`make_model` must make an nn.Module, got {type(models[0]).__name__}")
    if len({id(model) for model in models}) < len(models):
        raise ValueError("`make_model` returned the same model twice: it must make a new one at every call")
    return models


def stacked_state(models: list[nn.Module]) -> tuple[State, State]:
    """Parameters and buffers of all models, (M, *shape) by name; puts the models in training mode.

    Raises:
        ValueError: Models have different shapes; the member is named.
    """
    shapes = [{n: tuple(t.shape) for n, t in (*m.named_parameters(), *m.named_buffers())} for m in models]
    for k, other in enumerate(shapes):
        if other != shapes[0]:
            names = sorted(n for n in other.keys() | shapes[0].keys() if other.get(n) != shapes[0].get(n))
            raise ValueError(
                f"`make_model` made models of different shapes: member {k} differs from member 0 in {listed(names)}"
            )
    for model in models:
        model.train()
    parameters, buffers = stack_module_state(models)
    return {n: t.detach() for n, t in parameters.items()}, {n: t.detach().clone() for n, t in buffers.items()}


def is_trained(model: nn.Module, name: str) -> bool:
    """Whether the parameter called `name` is not frozen."""
    return model.get_parameter(name).requires_grad


def architecture(models: list[nn.Module]) -> nn.Module:
    """The architecture; its own numbers are never used."""
    return copy.deepcopy(models[0])


@torch.no_grad()
def write_back(models: list[nn.Module], state: State) -> None:
    """Copies stacked numbers into the models, and puts them in evaluation mode."""
    for k, model in enumerate(models):
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, t in state.items():
            own[name].copy_(t[k])
        model.eval()


def vectorised(function: Callable[..., Any], randomness: str, in_dims: Any = 0) -> Callable[..., Any]:
    """`function` over the first dimension of its arguments, with torch's errors in other words."""
    mapped = torch.func.vmap(function, in_dims=in_dims, randomness=randomness)

    def call(*args: Any) -> Any:
        try:
            return mapped(*args)
        except RuntimeError as error:
            if "vmap" not in str(error).lower():
                raise
            raise ValueError(
                "`make_model` or `loss` has an operation that cannot be vectorised over members (data-dependent control flow, "
                ".item(), writing into a tensor that members share); rewrite it with torch.where, or train the members one by one. "
                f"torch says: {str(error).splitlines()[0]}"
            ) from error

    return call


def checked_optimizer(optimizer: Any) -> Optimizer:
    """`optimizer` itself.

    Raises:
        TypeError: It is no torch optimiser.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"`optimizer` must make a torch optimiser of a list of parameters, got {type(optimizer).__name__} from it: "
            "optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)"
        )
    return optimizer


def refuse_coupling(make_optimizer: Callable[[list[nn.Parameter]], Optimizer], parameters: list[nn.Parameter]) -> None:
    """Two trial runs that differ in the gradients of member 0: no other member may move otherwise.

    Raises:
        ValueError: One does, or a step needs a closure; the optimiser is named.
    """
    runs = []
    for factor in (1.0, 3.0):
        copies = [nn.Parameter(p.detach().clone()) for p in parameters]
        draw = torch.Generator().manual_seed(0)
        optimizer = checked_optimizer(make_optimizer(copies))
        for _ in range(2):
            for p in copies:
                p.grad = torch.randn(p.shape, generator=draw).to(p)
                p.grad[0] *= factor
            try:
                optimizer.step()
            except TypeError as error:
                raise ValueError(
                    f"`optimizer` makes a {type(optimizer).__name__}, whose step needs a closure: it searches along one line for all "
                    "members together; take an element-wise one, such as torch.optim.AdamW"
                ) from error
        runs.append((optimizer, copies))
    for p, q in zip(runs[0][1], runs[1][1], strict=True):
        if not torch.equal(p[1:], q[1:]):
            raise ValueError(
                f"`optimizer` makes a {type(runs[0][0]).__name__} that couples the members: when the gradient of member 0 changes, "
                "others move otherwise; take an element-wise one, such as torch.optim.AdamW, without clipping by a total norm"
            )
