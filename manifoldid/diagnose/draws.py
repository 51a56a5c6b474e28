"""What `sample` draws: points, or points with inputs at which the model is looked at."""

import inspect
from typing import Any

import torch


class Draws:
    """The caller's `sample`, a function of nothing or of a generator, whose draws are points or pairs (point, inputs)."""

    def __init__(self, sample: Any, generator: torch.Generator):
        """Draws once, to see what comes; this draw is the first that is handed out.

        Args:
            sample: The function.
            generator: What it is handed if it has an argument without a default.

        Raises:
            TypeError: It is no function.
        """
        if not callable(sample):
            raise TypeError(f"`sample` must be a function that draws points, got {type(sample).__name__}")
        self._sample, self._arguments = sample, (generator,) if required_arguments(sample) else ()
        self._first: Any = sample(*self._arguments)
        self.varies_inputs = isinstance(self._first, (tuple, list)) and len(self._first) == 2
        self.first_inputs = self._first[1] if self.varies_inputs else None

    def point(self) -> Any:
        """A point."""
        drawn, self._first = self._first, None
        drawn = self._sample(*self._arguments) if drawn is None else drawn
        return drawn[0] if self.varies_inputs else drawn

    def inputs(self) -> Any:
        """Inputs."""
        return self._sample(*self._arguments)[1]


def required_arguments(function: Any) -> int:
    """How many positional arguments without a default a function has; 0 if it does not say."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty and p.kind in kinds for p in parameters)
