"""What users hand in as members of an ensemble: stacked, and refused where no statistic could be made of it."""

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from manifoldid.distributed.dtensors import is_spread
from manifoldid.errors import listed
from manifoldid.groups import Translation
from manifoldid.groups.base import GaugeGroup
from manifoldid.points import HALF, Point, blocks_of, is_dict, map_blocks


def stacked(members: Any) -> Point:
    """Members as one point with a leading dimension: from a stacked tensor or dict, or a list of tensors or dicts.

    Raises:
        TypeError: They are of mixed or other kinds.
        ValueError: There are fewer than two, or their shapes or blocks differ.
    """
    if isinstance(members, Tensor):
        return _plain(members)
    if is_dict(members):
        return {k: _plain(v) for k, v in members.items()}
    if not isinstance(members, (list, tuple)):
        raise TypeError(
            f"`members` must be a stacked tensor, or a list of tensors or dicts, got {type(members).__name__}{_remedy(members)}"
        )
    if len(members) < 2:
        raise ValueError(f"`members` must be at least two, got {len(members)}: one member has no spread")
    if all(isinstance(m, Tensor) for m in members):
        return _stack(members, "members")
    strange = [m for m in members if not isinstance(m, (dict, Tensor)) and not hasattr(m, "keys")]
    if strange or any(isinstance(m, Tensor) for m in members):
        kinds = " and ".join(sorted({type(m).__name__ for m in members}))
        remedy = _remedy(strange[0]) if strange else ""
        raise TypeError(f"`members` must be all tensors or all dicts of tensors, got a list of {kinds}{remedy}")
    names = list(members[0].keys())
    for k, m in enumerate(members):
        if set(m.keys()) != set(names):
            raise ValueError(f"`members[{k}]` has the blocks {sorted(m.keys())}, members[0] has {sorted(names)}")
    return {name: _stack([m[name] for m in members], f"members[...][{name!r}]") for name in names}


def member(members: Point, k: int) -> Point:
    """The point of one member, a view."""
    return map_blocks(lambda t: t.narrow(0, k, 1).squeeze(0), members)  # t[k] of a DTensor is newer than torch 2.6


def _stack(tensors: list[Tensor] | tuple[Tensor, ...], name: str) -> Tensor:
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        raise ValueError(
            f"`{name}` have different shapes: {listed(sorted(shapes))}; say with observed= who saw which items"
        )
    return torch.stack([_plain(t) for t in tensors])


def _plain(t: Tensor) -> Tensor:
    """`t` cut from the graph, no parameter; a DTensor stays one."""
    return t.detach() if is_spread(t) else t.detach().as_subclass(Tensor)


def _remedy(member: object) -> str:
    if isinstance(member, nn.Module):
        return "; call the models and stack what they emit: torch.stack([model(x) for model in models])"
    if hasattr(member, "__array__") or isinstance(member, (list, tuple)):
        return "; torch.as_tensor makes a tensor of an array or of a list of numbers"
    return ""


def require_finite(members: Point, hint: str) -> None:
    """Refuses members (M, *event) with nan or infinite entries; members that are spread over ranks are left to the alignment.

    Raises:
        ValueError: There are some; the first member and item are named.
    """
    for name, t in blocks_of(members).items():
        if is_spread(t) or bool(torch.isfinite(t).all()):
            continue
        bad = (~torch.isfinite(t)).nonzero()
        item = bad[0, 1:].tolist()
        where = f"item {item[0] if len(item) == 1 else tuple(item)}" + (f" of block {name!r}" if name else "")
        raise ValueError(
            f"`members` must be finite: member {int(bad[0, 0])} has {t[tuple(bad[0])].item()} at {where} "
            f"({len(bad)} such entries){hint}"
        )


def warn_of_rounding(members: Point, aligned: Point, group: GaugeGroup) -> None:
    """Warns where the digits that half precision has dropped at a large common shift are as large as what alignment leaves.

    A float has a relative rounding error of about a quarter of `eps` (root mean square).
    """
    if not (isinstance(members, Tensor) and members.dtype in HALF and isinstance(group, Translation)):
        return
    wide, rest = members.float(), cast(Tensor, aligned).float()
    size, spread = float(wide.square().mean().sqrt()), float(rest.var(0).mean().sqrt())
    rounding = torch.finfo(members.dtype).eps / 4 * size
    if rounding > spread / 2:
        warnings.warn(
            f"`members` are {members.dtype} numbers of size {size:.3g}, rounded by about {rounding:.2g} each, and the standard deviation "
            f"that is left without the gauge is {spread:.2g}: it measures the rounding; emit the outputs in float32",
            stacklevel=3,  # the caller of Ensemble
        )


PADDING = "; leave padding out: members[:, real] with blocks=real.nonzero()[:, 0], where the mask real (prompts, k) is True for an item"
