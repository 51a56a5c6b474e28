"""Numerics used in more than one place."""

from collections.abc import Callable

import torch
from torch import Tensor

from manifoldid.points import Point, map_blocks


def pushforward(function: Callable[..., Point], at: Point, velocity: Point) -> Point:
    """The derivative of `function` at `at` along `velocity`, by reverse over reverse.

    Forward mode would be one pass, but fewer operations of users' functions have it, and its first use warns.

    Args:
        function: A function of a point; returns a point.
        at: Where.
        velocity: In which direction, shaped like `at`.

    Returns:
        A point shaped like the result of `function`.
    """
    value, pull = torch.func.vjp(function, at)
    _, pull_again = torch.func.vjp(lambda w: pull(w)[0], map_blocks(torch.zeros_like, value))
    return pull_again(velocity)[0]


def widened(x: Point) -> Point:
    """`x` in float64 where it is float32 and the device has float64: differences of almost equal points need it."""

    def wide(t: Tensor) -> Tensor:
        if t.device.type == "mps":
            return t
        return t.to({torch.float32: torch.float64, torch.complex64: torch.complex128}.get(t.dtype, t.dtype))

    return map_blocks(wide, x)
