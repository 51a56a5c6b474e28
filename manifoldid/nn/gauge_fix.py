"""`GaugeFix`: the head that puts the outputs of a network on a section."""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manifoldid.errors import UncalibratedWarning
from manifoldid.groups._items import ItemGroup
from manifoldid.groups.base import GaugeGroup
from manifoldid.points import HALF, Weights, as_point, concrete
from manifoldid.sections import Section


class GaugeFix(nn.Module):
    """Puts network outputs on the canonical section of a gauge.

    `over="last"`: every row (*batch, n) of the output is a point, its last dimension the items (logits, the responses to one
    prompt). No state, the same in training and evaluation. `head(x, blocks=labels)` takes ragged prompts, all responses to a
    prompt in one call. A vector (N,) without blocks is one point: of the rewards of N prompts it would remove the mean, and with it
    the mean margin of `head(model(chosen)) - head(model(rejected))`.

    `over="batch"`: the examples are the items: outputs (N,) or (N, 1), one number per example. Training and evaluation apply
    the stored frame, the identity until `calibrate` has computed it over a reference population, so that differences of two
    separate calls are exact. Outputs (N, k) have k columns, each with a frame of its own. There is no frame per forward
    call: a network that is called once per item would have every margin centred to zero.

    Half precision is computed in float32 and returned in its dtype; autocast is switched off inside.

    Args:
        group: The gauge group: of one row for `over="last"`, on items for `over="batch"`.
        weights: Item weights (n,), for `over="last"` only.
        over: Which dimension holds the items.

    Raises:
        TypeError: `group` is no group, or `over="batch"` is given one that does not act on items.
        ValueError: `over` is unknown, or weights or blocks are given with `over="batch"`.
    """

    def __init__(self, group: GaugeGroup, weights: Weights = None, over: Literal["last", "batch"] = "last"):
        super().__init__()
        self.section = Section(group, weights)
        self.over = over
        if over not in ("last", "batch"):
            raise ValueError(f"`over` must be 'last' or 'batch', got {over!r}")
        if over == "last":
            return
        if not isinstance(group, ItemGroup):
            raise TypeError(
                f"`over='batch'` needs a group on items, such as mid.Translation() or mid.Affine(), got {group}"
            )
        if group.blocks is not None:
            raise ValueError(
                "`blocks` name items, but with over='batch' the items are whatever examples come: leave them out"
            )
        if weights is not None:
            raise ValueError(
                "`weights` name items, but with over='batch' the items are whatever examples come: leave them out"
            )
        self.register_buffer("frame", torch.zeros(group.dimension(torch.zeros(3))))
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))
        self._warned = False

    @property
    def group(self) -> GaugeGroup:
        """The gauge group."""
        return self.section.group

    def forward(self, x: Tensor, blocks: Any = None) -> Tensor:
        """The outputs on the section.

        Args:
            x: Outputs of the network, (*batch, n) for `over="last"`, (N,) or (N, k) for `over="batch"`.
            blocks: Labels (n,) of a ragged partition of the last dimension, for this call (`over="last"`).

        Returns:
            A tensor shaped like `x`, in its dtype.

        Raises:
            ValueError: Shapes do not fit.
            DegeneratePointError: A row has no representative (`over="last"`; values are looked at in eager mode only).

        Warns:
            UncalibratedWarning: Once, in evaluation, when `calibrate` has not been called.
        """
        x = as_point(x, "x")
        with torch.autocast(device_type=x.device.type, enabled=False):
            if self.over == "last":
                return self.section(x, blocks=blocks)
            if blocks is not None:
                raise ValueError("`blocks` belong to over='last'; with over='batch' the examples are the items")
            return self._apply_frame(x)

    def _apply_frame(self, x: Tensor) -> Tensor:
        if not self.training and concrete(self.calibrated) and not self._warned and not bool(self.calibrated):
            self._warned = True
            warnings.warn(
                f"{self!r} is evaluated before mid.nn.calibrate(model, loader): outputs still have the origin and unit of this "
                "network",
                UncalibratedWarning,
                stacklevel=5,  # _apply_frame, forward, and two frames of nn.Module
            )
        points = columns(x)
        if self.frame.ndim == 2 and points.shape[0] != self.frame.shape[0]:
            raise ValueError(
                f"`x` has {points.shape[0]} column(s), but the head was calibrated with {self.frame.shape[0]}"
            )
        wide = points.float() if points.dtype in HALF else points
        frame = self.frame.to(wide.dtype)
        fixed = self.group.undo(frame if frame.ndim == 2 else frame.expand(points.shape[0], -1), wide)
        return fixed.mT.reshape(x.shape).to(x.dtype)

    def set_frame(self, xi: Tensor) -> None:
        """Stores a frame (dim,) or (k, dim), for outputs with k columns; `calibrate` calls it.

        Raises:
            ValueError: The shape does not fit.
        """
        if xi.ndim not in (1, 2) or xi.shape[-1] != self.frame.shape[-1]:
            raise ValueError(
                f"`xi` must have shape ({self.frame.shape[-1]},) or (k, {self.frame.shape[-1]}), got {tuple(xi.shape)}"
            )
        self.frame = xi.detach().to(device=self.frame.device, dtype=self.frame.dtype).clone()
        self.calibrated = torch.ones_like(self.calibrated)

    def extra_repr(self) -> str:
        """The arguments, for `print(model)`."""
        weights = ", weights=..." if self.section.weights is not None else ""
        return f"{self.group!r}{weights}" + ("" if self.over == "last" else ", over='batch'")

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}frame")
        if self.over == "batch" and isinstance(stored, Tensor) and stored.shape[-1:] == self.frame.shape[-1:]:
            self.frame = self.frame.new_zeros(stored.shape)  # it may be calibrated with more columns
        super()._load_from_state_dict(state_dict, prefix, *args)


def columns(x: Tensor) -> Tensor:
    """Outputs (N,) or (N, k) as points over examples (k, N).

    Raises:
        ValueError: They have another number of dimensions.
    """
    if x.ndim not in (1, 2):
        raise ValueError(
            f"`x` must have shape (N,) or (N, k) with over='batch', one row per example, got {tuple(x.shape)}"
        )
    return x[None] if x.ndim == 1 else x.mT
