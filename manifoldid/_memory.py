"""Memory that is kept from step to step: at a million numbers fresh pages cost more than the arithmetic that fills them."""

import torch
from torch import Tensor


class Memory:
    """Tensors to write to, each known by a name and good until it is asked for again."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._kept: dict[str, Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor that holds anything: the same one as before, unless its kind has changed.

        Args:
            name: What is kept there.
            shape: Its shape.
            like: For its device, and its dtype where that is not given.
            dtype: Its dtype.

        Returns:
            A contiguous tensor without derivatives.
        """
        dtype, found = dtype or like.dtype, self._kept.get(name)
        if found is None or found.shape != shape or found.dtype != dtype or found.device != like.device:
            with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
                found = self._kept[name] = torch.empty(shape, dtype=dtype, device=like.device)
        return found
