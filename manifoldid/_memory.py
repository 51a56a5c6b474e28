"""Memory that is kept from step to step: at a million numbers fresh pages cost more than the arithmetic that fills them."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Memory:
    """Tensors to write to, each known by a name and good until that name is asked for again."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._buffers: dict[tuple, Tensor] = {}
        self._views: dict[tuple, Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor that holds anything: the same one every time that a name and a shape are asked for.

        Args:
            name: What is kept there; for other shapes it is in the same memory, which has the size of the largest.
            shape: Its shape.
            like: For its device, and its dtype where that is not given.
            dtype: Its dtype.

        Returns:
            A contiguous tensor without derivatives.
        """
        kind, numbers = (name, dtype or like.dtype, like.device), math.prod(shape)
        found = self._views.get((kind, shape))
        if found is not None:
            return found
        with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
            if kind not in self._buffers or self._buffers[kind].numel() < numbers:
                self._buffers[kind] = torch.empty(numbers, dtype=kind[1], device=like.device)
                self._views = {key: view for key, view in self._views.items() if key[0] != kind}
            found = self._views[kind, shape] = self._buffers[kind][:numbers].view(shape)
        return found


class Kept(Generic[Made]):
    """What was made for tensors, one of it for every shape, as long as it is asked for with the same ones."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._known: dict[tuple, tuple[Sequence[Tensor], Made]] = {}

    def of(self, tensors: Sequence[Tensor], make: Callable[[], Made]) -> Made:
        """What `make` has made for these tensors; for other tensors of their shapes it is made again.

        Nothing is kept for tensors that are not contiguous, since what is made of them may not see what is written to them.
        """
        if not all(t.is_contiguous() for t in tensors):
            return make()
        shapes = tuple(t.shape for t in tensors)
        known = self._known.get(shapes)
        if known is None or not all(map(operator.is_, known[0], tensors)):
            known = self._known[shapes] = tensors, make()
        return known[1]
