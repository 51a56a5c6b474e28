"""Points whose items are spread over the ranks of `torch.distributed`: each rank keeps its items, only sums travel.

A gauge distributes for free: what a rank must know of the items of the others is one number per dimension of the group. Groups
reduce over items in one place (`Measure`), and are handed the sum over ranks from here. `DTensor` points, which are what FSDP2
makes of parameters, say themselves how they are spread; for plain shards, `sharded` does::

    group = mid.distributed.sharded(mid.Translation())        # items on all ranks of the default process group
    mid.attach(optimizer, group, my_scores)                   # my_scores: the items of this rank
    mid.Section(group)(my_scores)

Every call with such a point is collective: all ranks make it, in the same order, and all get an error when the point is not
finite or degenerate anywhere. A rank that does not take part is an error on the others after the timeout of the process group.

What travels are sums and largest values, as tensors on the device of the point: the backend of the process group has to serve it
(gloo for CPU, nccl for CUDA). After the first, a step of an attached optimiser moves dim G numbers for Translation, Scaling,
PositiveScaling and Affine, with item weights and blocks, too; LocationScale and sections take several passes for their accurate sums.
Labels of blocks are exchanged as objects, when a group is made for shards or blocks are given to a call; nccl asks for
`torch.cuda.set_device` before.

Limits. LocationScale takes plain shards, no DTensors. Other groups (Shift, rotations, GL(r)) need all items in one place: replicate
their parameters, which step alike on all ranks under DDP. `Ensemble.covariance`, contrasts, tables and quasi-variances speak of the
items here for plain shards, of all items for DTensors. `Reference` names items by their place among all, and needs them in one place.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from manifoldid.groups import GaugeGroup
from manifoldid.points import Point, Weights, blocks_of, is_dict, part_of_weights

Value = TypeVar("Value")

_ABSENT = (
    "another rank failed, or did not make this call within the timeout of the process group: a point whose items are spread over "
    "ranks needs all of them (their own errors say more; torch.distributed says: {})"
)


def sharded(group: GaugeGroup, process_group: "dist.ProcessGroup | None" = None) -> GaugeGroup:
    """The gauge group, on points of which every rank has some items: plain tensors (*batch, items here).

    Use it wherever a group is taken: `Section`, `attach`, `Ensemble`, inside `Product`. Results are the shards of what the
    whole point would give. `blocks` and item weights are those of the items here; a block may have items on several ranks. A
    rank may have no items at all, as a tensor (*batch, 0). Not needed for DTensors.

    Args:
        group: Translation, Scaling, PositiveScaling, Affine or LocationScale, or a product of them. Every block of LocationScale is
            spread, each with a number of items of its own (none, on some ranks).
        process_group: The ranks that have the items; None is the default group.

    Returns:
        A group of the same kind. It cannot be pickled, as process groups cannot.

    Raises:
        TypeError: The group needs all items in one place.
        RuntimeError: `torch.distributed` is not initialised.
    """
    if not isinstance(group, GaugeGroup):
        raise TypeError(f"`group` must be a gauge group, such as mid.Translation(), got {group!r}")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("`sharded` needs a process group: call torch.distributed.init_process_group first")
    return group.on_shards(Spread((process_group or dist.group.WORLD,)))


def default_group() -> Any:
    """The default process group; None when `torch.distributed` is not initialised."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


@dataclass(frozen=True)
class Spread:
    """The `Shards` of items over the ranks of process groups, one per dimension of a mesh that they are spread over."""

    process_groups: tuple[Any, ...]
    items: tuple[int, ...] | None = None
    """Items of every rank, or of all of them together, once they are known to stay; else they are counted every time."""

    def sum(self, sums: Tensor) -> Tensor:
        """See `Shards.sum`."""
        for process_group in self.process_groups:
            sums = _Sum.apply(sums, process_group)
        return sums

    def largest(self, values: Tensor) -> Tensor:
        """See `Shards.largest`."""
        for process_group in self.process_groups:
            values = _reduced(values.detach(), process_group, dist.ReduceOp.MAX)
        return values

    def count(self, items: int, like: Tensor) -> Tensor:
        """See `Shards.count`."""
        dtype = like.dtype.to_real() if like.is_complex() else like.dtype
        if self.items is not None:
            return like.new_full((), sum(self.items), dtype=dtype)  # no copy from the host, which might be waited for
        return self.sum(like.new_full((), items, dtype=torch.float64)).to(dtype)

    def union(self, labels: Tensor) -> Tensor:
        """See `Shards.union`."""
        found = labels.tolist()
        for process_group in self.process_groups:
            found = sorted(set().union(*gathered(found, process_group)))
        return torch.tensor(found, dtype=labels.dtype, device=labels.device)

    def keeping(self, x: Tensor) -> "Spread":
        """The same, for points that keep their items on this rank, those of `x` (*batch, items): counted once."""
        sizes = torch.tensor([x.shape[-1]], dtype=torch.int64, device=x.device)
        for process_group in self.process_groups:
            sizes = rows_of_all(sizes, process_group).flatten()
        return replace(self, items=tuple(sizes.tolist()))


class _Sum(torch.autograd.Function):
    """The sum over ranks. A loss is the sum of the losses of all ranks, so its derivative is a sum over ranks, too."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, process_group: Any) -> Tensor:
        ctx.process_group = process_group
        return _reduced(sums, process_group, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(derivatives[0], ctx.process_group), None


def _reduced(values: Tensor, process_group: Any, operation: Any) -> Tensor:
    """`values` reduced over the ranks, a new tensor.

    Raises:
        RuntimeError: Another rank failed or did not take part.
    """
    result = values.clone(memory_format=torch.contiguous_format)
    try:
        dist.all_reduce(result, op=operation, group=process_group)
    except RuntimeError as error:
        raise RuntimeError(_ABSENT.format(error)) from error
    return result


def rows_of_all(row: Tensor, process_group: Any) -> Tensor:
    """`row` (k,) of every rank, in the order of the ranks: (ranks, k) on its device, by one sum over the ranks.

    Raises:
        RuntimeError: Another rank failed or did not take part.
    """
    rows = row.new_zeros(dist.get_world_size(process_group), row.shape[0])
    rows[dist.get_rank(process_group)] = row
    return _reduced(rows, process_group, dist.ReduceOp.SUM)


def gathered(value: Value, process_group: Any) -> list[Value]:
    """`value` (any object) of every rank, in the order of the ranks.

    Raises:
        RuntimeError: Another rank failed or did not take part.
    """
    values: list[Any] = [None] * dist.get_world_size(process_group)
    try:
        dist.all_gather_object(values, value, group=process_group)
    except RuntimeError as error:
        raise RuntimeError(_ABSENT.format(error)) from error
    return values


# --------------------------------------------------------------------------------------------------------- DTensors


def whole(x: Any) -> Any:
    """A point with all its items on every rank: DTensors are gathered, the rest is as it was."""
    if not is_spread(x):
        return x
    if isinstance(x, Tensor):
        return cast(Any, x).full_tensor()
    return {name: whole(t) for name, t in x.items()}


def like(values: Tensor, x: Tensor) -> Tensor:
    """`values` of the items here as a DTensor where `x` is one."""
    return _restorer(x)(values) if is_spread(x) else values


class Local(NamedTuple):
    """What one rank has of a point."""

    group: GaugeGroup
    """The group, which knows of the other ranks."""
    point: Point
    """The items here, plain tensors that share memory with the point."""
    weights: Weights
    """Their weights."""
    restore: Callable[[Point], Point]
    """Puts shards of a result together to a point like the one that came in."""


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


def localised(group: GaugeGroup, x: Point, weights: Weights = None) -> Local:
    """The part of a point that is on this rank, with the group that knows of the rest; the point itself without DTensors.

    Args:
        group: The gauge group.
        x: A valid point (*batch, *event) or dict of blocks, plain tensors or DTensors. Items may be spread over ranks, and
            so may batch entries.
        weights: Item weights of all items, or DTensors spread as the items are.

    Raises:
        TypeError: The group needs all items in one place.
        ValueError: A DTensor is a pending sum.
    """
    if not is_spread(x):
        return Local(group, x, weights, lambda y: y)
    if isinstance(x, Tensor):
        return _localised(group, x, weights)
    parts, own, by_block, back = dict(x), [], {}, {}
    kept = dict(weights or {})
    for factor, of in group.factors():
        if not isinstance(of, str):
            names = of or tuple(x)
            if not is_spread({name: x[name] for name in names}):
                own.append(factor)
                continue
            raise TypeError(
                f"{factor} cannot act on the DTensors {sorted(names)}: it needs all items in one place; gather them first, "
                "x.full_tensor()"
            )
        local = localised(factor, x[of], part_of_weights(weights, of))
        parts[of], by_block[of], back[of] = local.point, local.group, local.restore
        if local.weights is not None:
            kept[of] = local.weights
    from manifoldid.groups import Product  # the only group with factors on named blocks

    free = {name: _restorer(t) for name, t in x.items() if name not in back and is_spread(t)}
    parts.update({name: x[name].to_local() for name in free})
    back.update(free)

    def restore(y: Point) -> Point:
        return {name: back[name](t) if name in back else t for name, t in y.items()}

    return Local(Product(*own, **by_block), parts, kept or None, restore)


def _localised(group: GaugeGroup, x: Any, weights: Weights) -> Local:
    """`localised` for one DTensor."""
    if any(placement.is_partial() for placement in x.placements):
        raise ValueError(f"`point` is a pending sum over ranks ({x.placements}): call redistribute first")
    ndim = group.batch_ndim(x)
    over = [k for k, p in enumerate(x.placements) if p.is_shard() and p.dim % x.ndim >= ndim]
    if over:
        if group.event_dim != 1:
            group.on_shards(Spread(()))  # raises
        blocks = getattr(group, "blocks", None)
        shards = Spread(tuple(x.device_mesh.get_group(k) for k in over), (x.shape[-1],))
        if blocks is not None:
            group = group.with_blocks(_here(blocks, x))  # pyrefly: ignore [missing-attribute]
        group = group.on_shards(shards)
        weights = _here(weights, x) if isinstance(weights, Tensor) else weights
    elif isinstance(weights, Tensor) and is_spread(weights):
        weights = whole(weights)
    return Local(group, x.to_local(), weights, _restorer(x))


def _here(values: Tensor, x: Any) -> Tensor:
    """The entries of `values` (n,) that belong to the items of the DTensor `x` on this rank; nothing travels."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placements = [Shard(0) if p.is_shard() and p.dim % x.ndim == x.ndim - 1 else Replicate() for p in x.placements]
    if not isinstance(values, DTensor):
        whole = values.to(x.to_local().device)
        values = DTensor.from_local(whole, x.device_mesh, [Replicate()] * len(placements), run_check=False)
    return values.redistribute(placements=placements).to_local()


def _restorer(x: Any) -> Callable[[Tensor], Tensor]:
    """Puts local items (those of `x`, or of one of its batch entries) together to a DTensor that is spread as `x` is."""
    from torch.distributed.tensor import DTensor, Shard

    def restore(y: Tensor) -> Tensor:
        lost = x.ndim - y.ndim  # batch dimensions over which `y` is a mean
        placements = [Shard(p.dim % x.ndim - lost) if p.is_shard() else p for p in x.placements]
        shape = torch.Size((*y.shape[:-1], x.shape[-1])) if lost else x.shape
        return DTensor.from_local(y, x.device_mesh, placements, run_check=False, shape=shape, stride=_contiguous(shape))

    return restore


def spread_frame(xi: Tensor, x: Any) -> Tensor:
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


def kept(group: GaugeGroup, x: Point) -> GaugeGroup:
    """`group`, of one factor, for points that keep their items on this rank, as parameters do: they are counted once."""
    if not isinstance(group.shards, Spread) or group.shards.items is not None or len(blocks_of(x)) > 1:
        return group  # blocks have numbers of items of their own, which are counted every time
    return group.on_shards(group.shards.keeping(next(iter(blocks_of(x).values()))))


__all__ = ["sharded"]
