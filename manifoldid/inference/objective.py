"""A negative log-likelihood from outside: checked once, then evaluated with first and second derivatives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldid.errors import NotInvariantError
from manifoldid.groups.base import GaugeGroup, canonicalise, require_group
from manifoldid.invariance import default_tolerance, largest_change, not_invariant
from manifoldid.points import HALF, Point, Weights, blocks_of, detached, map_blocks

Likelihood = Callable[[Any], Tensor]


def prepared(point: Any, group: GaugeGroup, weights: Weights, name: str) -> Point:
    """The canonical representative of `point`, cut from the graph, in its own dtype.

    Raises:
        TypeError: `group` is no group or `point` no point.
        ValueError: The point is empty, in half precision or not finite, or its shapes do not fit.
        DegeneratePointError: It has no representative.
    """
    require_group(group)
    point = map_blocks(torch.clone, detached(group.validate(point, name)))
    blocks = blocks_of(point)
    if not blocks or not any(t.numel() for t in blocks.values()):
        raise ValueError(f"`{name}` must hold at least one number, got an empty point")
    for block, t in blocks.items():
        label = f"{name}[{block!r}]" if block else name
        if t.dtype in HALF:
            raise ValueError(f"`{label}` is {t.dtype}, too coarse for second derivatives; convert it with .double()")
        if not bool(torch.isfinite(t).all()):
            raise ValueError(f"`{label}` must be finite: it has nan or infinite entries")
    form, _ = canonicalise(group, point, weights, name)
    return detached(form.point)


def check_likelihood(nll: Likelihood, point: Point, group: GaugeGroup) -> None:
    """Refuses functions that are no negative log-likelihood of the point.

    Raises:
        TypeError: `nll` cannot be called or returns no floating tensor.
        ValueError: It returns more than one number, none that is finite, or does not depend on the point in torch.
        NotInvariantError: It sees the declared gauge.
    """
    if not callable(nll):
        raise TypeError(f"`nll` must be a function of the point, got {type(nll).__name__}")
    with torch.enable_grad():
        leaf = map_blocks(lambda t: t.detach().clone().requires_grad_(), point)
        value = nll(leaf)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(
            f"`nll` must return a floating tensor with one number, got {getattr(value, 'dtype', type(value).__name__)}"
        )
    if value.numel() != 1:
        raise ValueError(
            f"`nll` must return one number, the sum over all data, got shape {tuple(value.shape)}; use .sum()"
        )
    if not bool(torch.isfinite(value)):
        raise ValueError(f"`nll` must be finite at the point, got {float(value.detach())}")
    if not value.requires_grad:
        raise ValueError(
            "`nll` has no autograd graph to the point: it does not depend on it, or detach(), .item(), numpy, no_grad() or inference_mode() cuts it"
        )
    change = largest_change(nll, point, group, who="`nll`")
    if not change.relative <= default_tolerance(point):
        raise NotInvariantError(not_invariant("`nll`", change, default_tolerance(point), group))
