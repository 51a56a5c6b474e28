"""DTensors: what one rank has of points whose blocks say themselves how they are spread.

A loss of DTensors is one number, and its derivative by what all ranks have is the same on all of them. What the ranks make of it for
their own items adds up. It is therefore shared out among the ranks on the way into their sums, and added up on the way out.
"""

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from manifoldid.distributed.spread import Spread
from manifoldid.errors import listed
from manifoldid.groups import GaugeGroup, Product
from manifoldid.points import (
    Point,
    Weights,
    blocks_of,
    is_dict,
    like_point,
    map_blocks,
    part_of,
    part_of_weights,
    with_part,
)


def is_spread(x: Any) -> bool:
    """Whether a point, or a block of it, is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # whoever has a DTensor has imported it, which takes a while
    if module is None:
        return False
    tensors = x.values() if is_dict(x) else [x]
    return any(isinstance(t, module.DTensor) for t in tensors)


def local_value(t: Tensor) -> Tensor:
    """The values of a tensor that are here, as a plain tensor without derivative that shares its memory."""
    with torch.no_grad():
        return (cast(Any, t).to_local() if is_spread(t) else t).detach().as_subclass(Tensor)


def whole(x: Any) -> Any:
    """A point with all its items on every rank: DTensors are gathered, the rest is as it was."""
    if not is_spread(x):
        return x
    if isinstance(x, Tensor):
        return cast(Any, x).full_tensor()
    return {name: whole(t) for name, t in x.items()}


def like(values: Tensor, x: Tensor) -> Tensor:
    """`values` of the items here as a DTensor where `x` is one."""
    return _together(values, x) if is_spread(x) else values


class Local(NamedTuple):
    """What one rank has of a point."""

    group: GaugeGroup
    """The group, which knows of the other ranks."""
    point: Point
    """The items here, plain tensors that share memory with the point."""
    weights: Weights
    """Their weights."""
    restore: Callable[[Point], Point]
    """Puts the parts of a result, of the point or of one of its batch entries, together to one like the point that came in."""
    frame: Callable[[Tensor], Tensor]
    """Makes of the frame (*batch, dim) of the point here one that is spread as the point is."""
    own_frame: Callable[[Tensor], Tensor]
    """The inverse of `frame`, on any frame."""


def localised(group: GaugeGroup, x: Point, weights: Weights = None) -> Local:
    """The part of a point that is on this rank, with the group that knows of the rest; the point itself without DTensors.

    Args:
        group: The gauge group.
        x: A valid point (*batch, *event) or dict of blocks, plain tensors or DTensors. Items may be spread over ranks, and
            so may batch entries.
        weights: Item weights of all items, or DTensors spread as the items are.

    Raises:
        TypeError: The group needs all items in one place, or a factor of it acts on DTensors and plain tensors together.
        ValueError: A DTensor is a pending sum, or blocks of one factor are spread in ways that do not go together.
    """
    if not is_spread(x):
        return Local(group, x, weights, _same, _same, lambda xi: whole(xi))
    factors = [(of, _Part.of(factor, part_of(x, of), part_of_weights(weights, of))) for factor, of in group.factors()]
    parts = [part for _, part in factors]
    named = {name for of, part in factors for name in ([of] if isinstance(of, str) else blocks_of(part.whole))}
    free = {name: t for name, t in blocks_of(x).items() if name not in named and is_spread(t)}
    point: Point = x if isinstance(x, Tensor) else {**x, **{name: cast(Any, t).to_local() for name, t in free.items()}}
    kept: Any = dict(weights) if is_dict(weights) else {}
    for of, part in factors:
        point = with_part(point, of, part.point)
        kept = part.weights if isinstance(x, Tensor) else _with_weights(kept, of, part.weights)

    def restore(y: Point) -> Point:
        for of, part in factors:
            y = with_part(y, of, part.restore(part_of(y, of)))
        return y if isinstance(y, Tensor) else {**y, **{name: _together(y[name], t) for name, t in free.items()}}

    def scaled(xi: Tensor, ranks: Callable[[_Part], int]) -> Tensor:
        if len(parts) == 1:
            return _shared_out(xi, ranks(parts[0]))
        pieces = xi.split([part.group.dimension(part.point) for part in parts], dim=-1)
        return torch.cat([_shared_out(xi, ranks(part)) for xi, part in zip(pieces, parts, strict=True)], dim=-1)

    over = tuple(sorted({k for part in parts for k in part.over}))
    sample = next((part.sample for part in parts if part.sample is not None), None)

    def frame(xi: Tensor) -> Tensor:
        return xi if sample is None else _frame_beside(scaled(xi, lambda part: part.ranks(part.over)), sample)

    def own_frame(xi: Tensor) -> Tensor:
        if not is_spread(xi):
            return xi
        return scaled(_added_up(xi, over), lambda part: part.ranks(over) // part.ranks(part.over))

    mine = parts[0].group if len(parts) == 1 and group.factors()[0][0] is group else _product(factors)
    return Local(mine, point, kept or None if isinstance(kept, dict) else kept, restore, frame, own_frame)


@dataclass(frozen=True)
class _Part:
    """What one rank has of the blocks of one factor of a group."""

    group: GaugeGroup
    point: Point
    weights: Weights
    whole: Point
    sample: Any = None
    """One of its DTensors."""
    over: tuple[int, ...] = ()
    """The dimensions of the mesh that items are spread over."""

    @staticmethod
    def of(group: GaugeGroup, x: Point, weights: Weights) -> "_Part":
        """The blocks `x` of a factor.

        Raises:
            TypeError: See `localised`.
            ValueError: See `localised`.
        """
        if not is_spread(x):
            return _Part(group, x, weights, x)
        blocks, ndim = cast(dict[str, Any], blocks_of(x)), group.batch_ndim(x)
        over = _mesh_dimensions(group, blocks, ndim)
        sample = next(iter(blocks.values()))
        if not over:
            return _Part(group, map_blocks(lambda t: t.to_local(), x), whole(weights), x, sample)
        shards = Spread(tuple(sample.device_mesh.get_group(k) for k in over))
        spread = {name: t for name, t in blocks.items() if any(t.placements[k].is_shard() for k in over)}
        known: dict[str, Spread | None] = {
            name: replace(shards, items=(t.shape[ndim],)) for name, t in spread.items() if t.ndim == ndim + 1
        }
        shards = known.get("") or replace(shards, blocks={**dict.fromkeys(set(blocks) - set(spread)), **known})
        group = group.with_items(lambda name, values: _at_items_here(values, blocks[name], ndim)).on_shards(shards)
        if isinstance(weights, Tensor):
            weights = _at_items_here(weights, sample, ndim)
        elif weights is not None:
            weights = {name: _at_items_here(w, blocks[name], ndim) for name, w in weights.items()}
        point = {name: t.to_local() if name in spread else _added_up(t, over) for name, t in blocks.items()}
        return _Part(group, like_point(point, x), weights, x, sample, over)

    def ranks(self, over: tuple[int, ...]) -> int:
        """How many ranks there are along dimensions of the mesh."""
        return math.prod(self.sample.device_mesh.size(k) for k in over) if over else 1

    def restore(self, y: Point) -> Point:
        """See `Local.restore`."""
        if self.sample is None:
            return y
        restored = {}
        for name, t in blocks_of(self.whole).items():
            copied = self.over and not any(cast(Any, t).placements[k].is_shard() for k in self.over)
            part = blocks_of(y)[name]
            restored[name] = _together(_shared_out(part, self.ranks(self.over)) if copied else part, t)
        return like_point(restored, y)


def _same(x: Any) -> Any:
    return x


def _product(factors: list[tuple[tuple[str, ...] | str, _Part]]) -> Product:
    own = [part.group for of, part in factors if not isinstance(of, str)]
    return Product(*own, **{of: part.group for of, part in factors if isinstance(of, str)})


def _with_weights(kept: dict[str, Tensor], of: tuple[str, ...] | str, weights: Weights) -> dict[str, Tensor]:
    if weights is None:
        return kept
    return {**kept, of: weights} if isinstance(of, str) else {**kept, **weights}


def _mesh_dimensions(group: GaugeGroup, blocks: dict[str, Any], ndim: int) -> tuple[int, ...]:
    """The dimensions of the mesh that items are spread over; blocks of which all ranks have all items aside."""
    from torch.distributed.tensor import DTensor, Shard

    if plain := [name for name, t in blocks.items() if not isinstance(t, DTensor)]:
        raise TypeError(
            f"{group} acts on DTensors and the plain tensor(s) {listed(plain)} together: make DTensors of these, "
            "torch.distributed.tensor.distribute_tensor(x, mesh, [Replicate()])"
        )
    mesh = next(iter(blocks.values())).device_mesh
    found: set[tuple[int, ...]] = set()
    batches: set[tuple] = set()
    for name, t in blocks.items():
        label = f"`point[{name!r}]`" if name else "`point`"
        if any(p.is_partial() for p in t.placements):
            raise ValueError(f"{label} is a pending sum over ranks ({t.placements}): call redistribute first")
        if t.device_mesh != mesh or any(p.is_shard() and type(p) is not Shard for p in t.placements):
            raise ValueError(
                f"{label} is spread over {t.device_mesh} as {t.placements}: blocks of one group need one mesh, and placements Shard "
                "or Replicate; call redistribute first"
            )
        dims = [p.dim % t.ndim if p.is_shard() else None for p in t.placements]
        found.add(tuple(k for k, dim in enumerate(dims) if dim is not None and dim >= ndim))
        batches.add(tuple(dim if dim is not None and dim < ndim else None for dim in dims))
    found.discard(())
    if len(found) > 1 or len(batches) > 1:
        placements = {name: t.placements for name, t in blocks.items()}
        raise ValueError(
            f"`point` has blocks that are spread in ways which do not go together under {group}: {placements}; spread their items over the "
            "same dimensions of the mesh, or over none, and their batch entries alike: call redistribute first"
        )
    return found.pop() if found else ()


def _added_up(t: Any, over: tuple[int, ...]) -> Tensor:
    """What all ranks have along dimensions of the mesh, of which their own derivatives are parts."""
    from torch.distributed.tensor import Partial

    if not over or not t.requires_grad:
        return t.to_local()
    placements = [Partial() if k in over else p for k, p in enumerate(t.placements)]
    return t.redistribute(placements=t.placements).to_local(
        grad_placements=placements
    )  # which takes the sum of derivatives


def _shared_out(t: Tensor, ranks: int) -> Tensor:
    """`t`, of whose derivative every one of the ranks has the whole, which is about to be added up."""
    if ranks == 1 or not t.requires_grad:
        return t
    t = t.view_as(t)
    t.register_hook(functools.partial(torch.mul, 1 / ranks))
    return t


def _at_items_here(values: Tensor, x: Any, ndim: int) -> Tensor:
    """The entries of `values` (n, ...), along the first dimensions of one point, at the items of the DTensor `x` here; nothing travels."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    def beside(placement: Any) -> Any:
        dim = placement.dim % x.ndim - ndim if placement.is_shard() else -1
        return Shard(dim) if 0 <= dim < values.ndim else Replicate()

    if not isinstance(values, DTensor):
        everything = values.to(x.to_local().device)
        values = DTensor.from_local(everything, x.device_mesh, [Replicate()] * x.device_mesh.ndim, run_check=False)
    return values.redistribute(placements=[beside(p) for p in x.placements]).to_local()


def _together(y: Tensor, x: Any) -> Tensor:
    """Parts of a result, of the DTensor `x` or of one of its batch entries, as a DTensor that is spread as `x` is."""
    from torch.distributed.tensor import DTensor, Shard

    lost = x.ndim - y.ndim  # batch dimensions over which `y` is a mean
    placements = [Shard(p.dim % x.ndim - lost) if p.is_shard() else p for p in x.placements]
    over = {p.dim for p in placements if p.is_shard()}
    shape = torch.Size(x.shape[dim + lost] if dim in over else size for dim, size in enumerate(y.shape))
    return DTensor.from_local(y, x.device_mesh, placements, run_check=False, shape=shape, stride=_contiguous(shape))


def _frame_beside(xi: Tensor, x: Any) -> Tensor:
    """The frame (*batch, dim) of the DTensor `x`: the same on all ranks that share its batch entries."""
    from torch.distributed.tensor import DTensor, Replicate

    placements = [p if p.is_shard() and p.dim % x.ndim < xi.ndim - 1 else Replicate() for p in x.placements]
    shape = torch.Size((*x.shape[: xi.ndim - 1], xi.shape[-1]))
    return DTensor.from_local(xi, x.device_mesh, placements, run_check=False, shape=shape, stride=_contiguous(shape))


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    strides, size = [], 1
    for n in reversed(shape):
        strides.append(size)
        size *= max(n, 1)
    return tuple(reversed(strides))
