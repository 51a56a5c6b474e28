"""Linear contrasts by name: the difference of two items, or a vector of coefficients, as functions of a point."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from manifoldid.inference.names import place_of
from manifoldid.points import flatten

Linear = Callable[[Any], Any] | Tensor | str | int


def as_function(
    fn: Linear, minus: str | int | None, labels: Callable[[], Sequence[str | int]], numbers: Callable[[Any], Tensor]
) -> Callable[[Any], Any]:
    """What users hand in to `contrast`, as a function of the point.

    Args:
        fn: A function, returned as it is; coefficients (n,) or (k, n); or an item, by name or index.
        minus: The item that is subtracted from it.
        labels: Gives the names of the n numbers that are compared.
        numbers: Takes a point to these numbers.

    Raises:
        TypeError: `fn` and `minus` do not fit together.
        ValueError: An item is unknown, or coefficients have the wrong shape.
    """
    if callable(fn) and minus is None:
        return fn
    called = list(labels())
    if isinstance(fn, Tensor) and minus is None:
        if fn.ndim not in (1, 2) or fn.shape[-1] != len(called):
            raise ValueError(f"`fn` must have {len(called)} coefficients, one per number, got shape {tuple(fn.shape)}")
        return lambda x: torch.as_tensor(fn).to(flatten(numbers(x))) @ flatten(numbers(x))
    if isinstance(fn, str | int) and minus is not None:
        i, j = place_of(fn, called, "fn"), place_of(minus, called, "minus")
        return lambda x: flatten(numbers(x))[i] - flatten(numbers(x))[j]
    raise TypeError(
        "`fn` must be a function of the point, a tensor of coefficients, or the name of an item with `minus` another one, got "
        f"{type(fn).__name__}{'' if minus is None else f' and minus={minus!r}'}"
    )
