"""DTensors: what one rank has of points whose blocks say themselves how they are spread.

A loss of DTensors is one number, and its derivative by what all ranks have is the same on all of them. What the ranks make of it for
their own items adds up. Numbers that all ranks have therefore change from one kind to the other where they enter sums over ranks, and where they
leave them: `_parted` and `_Joined`, whose derivatives are right to any order.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from manifoldid.distributed.spread import Linear, Spread
from manifoldid.errors import listed
from manifoldid.groups import GaugeGroup, Product
from manifoldid.points import (
    Point,
    Weights,
    blocks_of,
    check_weights,
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
    """The part of any frame, plain or not, that belongs to the point here."""
    beside: Callable[[Point], Point]
    """The part of another point, plain or not, that belongs to the point here."""


def localised(group: GaugeGroup, x: Point, weights: Weights = None) -> Local:
    """The part of a point that is on this rank, with the group that knows of the rest; the point itself without DTensors.

    Args:
        group: The gauge group.
        x: A valid point (*batch, *event) or dict of blocks, plain tensors or DTensors. Items may be spread over ranks, and
            so may batch entries.
        weights: Item weights of all items, or DTensors spread as the items are.

    Raises:
        TypeError: The group needs all items in one place, or a factor of it acts on DTensors and plain tensors together.
        ValueError: A DTensor is a pending sum, blocks are spread in ways that do not go together, or weights do not fit.
    """
    if not is_spread(x):
        return Local(group, x, weights, _same, _same, whole, _same)
    if is_dict(x) and isinstance(weights, Tensor):
        if len(x) > 1:
            raise ValueError(f"`weights` of a dict point must be a dict over its blocks {sorted(x)}, got a tensor")
        weights = {next(iter(x)): weights}
    given = group.factors() or [(group, ())]  # the trivial group has none
    factors = [(of, _Part.of(factor, part_of(x, of), part_of_weights(weights, of))) for factor, of in given]
    parts = [part for _, part in factors]
    batches = {part.batch for part in parts}
    if len(batches) > 1:
        placements = {name: getattr(t, "placements", "plain") for name, t in blocks_of(x).items()}
        raise ValueError(f"`point` has batch entries that are {_APART}: {placements}")
    named = {name for of, part in factors for name in ([of] if isinstance(of, str) else of or blocks_of(part.whole))}
    free = {name: t for name, t in blocks_of(x).items() if name not in named and is_spread(t)}
    point: Point = x if isinstance(x, Tensor) else {**x, **{name: _part_of(t) for name, t in free.items()}}
    kept: Any = {}
    for of, part in factors:
        point = with_part(point, of, part.point)
        if isinstance(x, Tensor):
            kept = part.weights
        elif part.weights is not None:
            kept.update({of: part.weights} if isinstance(of, str) else part.weights)
    sample = next((part.sample for part in parts if part.sample is not None), None)

    def restore(y: Point) -> Point:
        for of, part in factors:
            y = with_part(y, of, part.restore(part_of(y, of)))
        return y if isinstance(y, Tensor) else {**y, **{name: _together(y[name], t) for name, t in free.items()}}

    def each(xi: Tensor, convert: Callable[["_Part", Tensor], Tensor]) -> Tensor:
        sizes = [part.group.dimension(part.point) for part in parts]
        pieces = [convert(part, piece) for part, piece in zip(parts, xi.split(sizes, dim=-1), strict=True)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def frame(xi: Tensor) -> Tensor:
        return xi if sample is None else _frame_beside(each(xi, lambda part, piece: part.joined(piece)), sample)

    def own_frame(xi: Tensor) -> Tensor:
        if sample is None:
            return whole(xi)
        offset = group.batch_ndim(x) - (xi.ndim - 1)
        return each(_here(xi, sample, offset, xi.ndim - 1), lambda part, piece: part.parted(piece))

    return Local(
        parts[0].group if given[0][0] is group else _product(factors),
        point,
        kept if isinstance(x, Tensor) else kept or None,
        restore,
        frame,
        own_frame,
        lambda y: map_blocks(
            lambda t, like: _here(t, like, like.ndim - t.ndim) if is_spread(like) else t, y, _blocks_like(y, x)
        ),
    )


@dataclass(frozen=True)
class _Part:
    """What one rank has of the blocks of one factor of a group."""

    group: GaugeGroup
    point: Point
    weights: Weights
    whole: Point
    sample: Any = None
    """One of its DTensors."""
    shards: Spread | None = None
    """Over which ranks its items are spread."""
    copied: tuple[str, ...] = ()
    """Blocks of which all of these ranks have all items."""
    batch: tuple[int | None, ...] | None = None
    """The batch dimension that is spread over each dimension of the mesh; None where none is."""

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
        over, batch = _mesh_dimensions(group, blocks, ndim)
        sample = next(iter(blocks.values()))
        if not over:
            return _Part(group, map_blocks(_part_of, x), whole(weights), x, sample, batch=batch)
        shards = Spread(tuple(sample.device_mesh.get_group(k) for k in over))
        copied = tuple(name for name, t in blocks.items() if not any(t.placements[k].is_shard() for k in over))
        known: dict[str, Spread | None] = {
            name: replace(shards, items=(t.shape[ndim],))
            for name, t in blocks.items()
            if name not in copied and t.ndim == ndim + 1
        }
        shards = known.get("") or replace(shards, blocks={**dict.fromkeys(copied), **known})
        group = group.with_items(lambda name, values: _here(values, blocks[name], ndim)).on_shards(shards)
        for name, w in blocks_of(weights).items() if weights is not None else ():
            if isinstance(w, Tensor) and name in blocks:
                check_weights(w, blocks[name].shape[ndim:])
        if weights is not None:
            weights = map_blocks(lambda w, t: _here(w, t, ndim), weights, _blocks_like(weights, x))
        part = _Part(group, x, weights, x, sample, shards, copied, batch)
        point = {name: part.parted(_part_of(t)) if name in copied else _part_of(t) for name, t in blocks.items()}
        return replace(part, point=like_point(point, x))

    def parted(self, t: Tensor) -> Tensor:
        """What all ranks have, for what every rank makes of it: derivatives by it are parts."""
        return t if self.shards is None or not t.requires_grad else _parted(t, self.shards)

    def joined(self, t: Tensor) -> Tensor:
        """What all ranks have made, each of its own parts, as one number of which all ranks know the whole derivative."""
        return t if self.shards is None or not t.requires_grad else _Joined.apply(t, self.shards)

    def restore(self, y: Point) -> Point:
        """See `Local.restore`."""
        if self.sample is None:
            return y
        parts = {name: self.joined(t) if name in self.copied else t for name, t in blocks_of(y).items()}
        return map_blocks(_together, like_point(parts, y), _blocks_like(y, self.whole))


def _parted(t: Tensor, shards: Spread) -> Tensor:
    """The identity, from numbers whose derivatives all ranks know to numbers of whose derivatives every rank has a part."""
    return Linear.apply(t, _view, shards.sum)


class _Joined(torch.autograd.Function):
    """The identity, on numbers that are the same on all ranks: the inverse of `_parted`."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, shards: Spread) -> Tensor:
        ctx.shards = shards
        return _view(t)

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor, None]:
        return _parted(derivatives[0], ctx.shards) / ctx.shards.ranks, None


def _view(t: Tensor) -> Tensor:
    return t.view_as(t)


def _same(x: Any) -> Any:
    return x


def _blocks_like(y: Point, x: Point) -> Point:
    """The blocks of `x` that `y` has."""
    return x if isinstance(y, Tensor) else {name: x[name] for name in y}


def _product(factors: list[tuple[tuple[str, ...] | str, _Part]]) -> Product:
    """The factors in their order."""
    return Product(*(Product(**{of: part.group}) if isinstance(of, str) else part.group for of, part in factors))


_APART = (
    "spread in ways that do not go together: spread items over the same dimensions of the mesh, or over none, and batch entries of all "
    "blocks alike; call redistribute first"
)


def _mesh_dimensions(
    group: GaugeGroup, blocks: dict[str, Any], ndim: int
) -> tuple[tuple[int, ...], tuple[int | None, ...] | None]:
    """The dimensions of the mesh that items are spread over, those of blocks that all ranks have aside; see `_Part.batch`."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    if plain := [name for name, t in blocks.items() if not isinstance(t, DTensor)]:
        raise TypeError(
            f"{group} acts on DTensors and the plain tensor(s) {listed(plain)} together: make DTensors of these, "
            "torch.distributed.tensor.distribute_tensor(x, mesh, [Replicate()])"
        )
    mesh = next(iter(blocks.values())).device_mesh
    found: set[tuple[int, ...]] = set()
    batches: set[tuple[int | None, ...]] = set()
    for name, t in blocks.items():
        label = f"`point[{name!r}]`" if name else "`point`"
        if any(p.is_partial() for p in t.placements):
            raise ValueError(f"{label} is a pending sum over ranks ({t.placements}): call redistribute first")
        if t.device_mesh != mesh or any(type(p) not in (Shard, Replicate) for p in t.placements):
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
        raise ValueError(f"`point` has blocks that under {group} are {_APART}: {placements}")
    batch = batches.pop()
    return found.pop() if found else (), None if all(dim is None for dim in batch) else batch


def _here(values: Tensor, x: Any, offset: int, dims: int | None = None) -> Tensor:
    """The entries of `values` that belong to the DTensor `x` here; of plain ones, which all ranks have, nothing travels.

    Args:
        values: A tensor whose dimension k lies beside dimension k + `offset` of `x`, plain or on the mesh of `x`.
        x: The tensor.
        offset: See above.
        dims: How many of its dimensions do so; None for all.

    Raises:
        ValueError: It is on another mesh.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    count = values.ndim if dims is None else dims

    def beside(placement: Any) -> Any:
        dim = placement.dim % x.ndim - offset if placement.is_shard() else -1
        return Shard(dim) if 0 <= dim < count and values.shape[dim] == x.shape[dim + offset] else Replicate()

    if not isinstance(values, DTensor):
        everything = values.to(x.to_local().device)
        layout = _Layout(x.device_mesh, (Replicate(),) * x.device_mesh.ndim, values.shape)
        values = layout.joining(everything)
    mesh = cast(Any, values).device_mesh
    if mesh != x.device_mesh:
        raise ValueError(f"a tensor on {mesh} is to go with one on {x.device_mesh}: gather it first, full_tensor()")
    return _Layout(x.device_mesh, tuple(beside(p) for p in x.placements), values.shape).parting(values)


def _together(y: Tensor, x: Any) -> Tensor:
    """Parts of a result, of the DTensor `x` or of one of its batch entries, as a DTensor that is spread as `x` is."""
    from torch.distributed.tensor import Shard

    lost = x.ndim - y.ndim  # batch dimensions over which `y` is a mean
    placements = tuple(Shard(p.dim % x.ndim - lost) if p.is_shard() else p for p in x.placements)
    over = {p.dim for p in placements if p.is_shard()}
    shape = torch.Size(x.shape[dim + lost] if dim in over else size for dim, size in enumerate(y.shape))
    return _Layout(x.device_mesh, placements, shape).joining(y)


def _frame_beside(xi: Tensor, x: Any) -> Tensor:
    """The frame (*batch, dim) of the DTensor `x`: the same on all ranks that share its batch entries."""
    from torch.distributed.tensor import Replicate

    placements = tuple(p if p.is_shard() and p.dim % x.ndim < xi.ndim - 1 else Replicate() for p in x.placements)
    return _Layout(x.device_mesh, placements, torch.Size((*x.shape[: xi.ndim - 1], xi.shape[-1]))).joining(xi)


def _part_of(x: Any) -> Tensor:
    """The part of a DTensor that is here; shares its memory."""
    return _Layout(x.device_mesh, x.placements, x.shape).parting(x) if x.requires_grad else x.to_local()


class _Layout(NamedTuple):
    """How a DTensor is spread, or is to be.

    Torch's own ways to a DTensor and back change how derivatives are spread without a derivative of their own.
    """

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size

    def joining(self, y: Tensor) -> Tensor:
        """The DTensor that is made of the parts `y`, differentiable."""
        return Linear.apply(y, self._join, self._part)

    def parting(self, x: Tensor) -> Tensor:
        """The part of the DTensor `x` that is here, differentiable; the adjoint of `joining`."""
        return Linear.apply(x, self._part, self._join)

    def _join(self, y: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        stride = _contiguous(self.shape)
        return DTensor.from_local(y, self.mesh, self.placements, run_check=False, shape=self.shape, stride=stride)

    def _part(self, x: Any) -> Tensor:
        return x.redistribute(self.mesh, self.placements).to_local()


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    strides, size = [], 1
    for n in reversed(shape):
        strides.append(size)
        size *= max(n, 1)
    return tuple(reversed(strides))
