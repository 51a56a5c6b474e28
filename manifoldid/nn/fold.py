"""`fold`: a head inside the linear layer before it."""

import torch
from torch import Tensor, nn

from manifoldid.groups import Affine, PositiveScaling, Scaling, Translation
from manifoldid.nn.gauge_fix import GaugeFix
from manifoldid.points import item_weights


def fold(linear: nn.Linear, head: GaugeFix) -> nn.Linear:
    """A new linear layer that computes `head(linear(x))`, for deployment.

    Args:
        linear: The layer before the head; not changed.
        head: A calibrated `GaugeFix(over="batch")`, or `GaugeFix(Translation(...), over="last")`, whose centring is linear.

    Returns:
        A new `nn.Linear` with a bias, on the same device and in the same dtype; outputs equal to rounding.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: The head is not calibrated, is not linear in its inputs, or its columns do not fit the layer.
    """
    if not isinstance(linear, nn.Linear) or not isinstance(head, GaugeFix):
        raise TypeError(
            f"`fold` takes an nn.Linear and a GaugeFix, got {type(linear).__name__} and {type(head).__name__}"
        )
    weight = linear.weight.detach().double()
    bias = weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.detach().double()
    weight, bias = (_fold_frame if head.over == "batch" else _fold_centring)(weight, bias, head)
    folded = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype)
    with torch.no_grad():
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)
    return folded.requires_grad_(linear.weight.requires_grad).train(linear.training)


def _fold_frame(weight: Tensor, bias: Tensor, head: GaugeFix) -> tuple[Tensor, Tensor]:
    if not bool(head.calibrated):
        raise ValueError("`head` is not calibrated: call mid.nn.calibrate(model, loader) first")
    group, frame = head.group, head.frame.double()
    if not isinstance(group, (Translation, Scaling, PositiveScaling, Affine)):
        raise ValueError(f"`head` of {group} is not an affine map of its inputs and cannot be folded")
    rows = frame.expand(weight.shape[0], -1) if frame.ndim == 1 else frame
    if rows.shape[0] != weight.shape[0]:
        raise ValueError(f"`head` has {rows.shape[0]} column(s), `linear` has {weight.shape[0]} outputs")
    zero = group.undo(rows, torch.zeros_like(bias)[:, None])
    unit = group.undo(rows, torch.ones_like(bias)[:, None]) - zero
    return unit * weight, unit[:, 0] * bias + zero[:, 0]


def _fold_centring(weight: Tensor, bias: Tensor, head: GaugeFix) -> tuple[Tensor, Tensor]:
    group = head.group
    if not isinstance(group, Translation):
        raise ValueError(f"`head` of {group} over='last' is not linear in its inputs; only Translation can be folded")
    section = head.section
    if section.weights is not None:
        item_weights(section.weights, bias.shape, bias)  # the shape must fit the outputs of the layer
    return section(weight.mT).mT, section(bias)
