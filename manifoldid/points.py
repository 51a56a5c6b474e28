"""Points: a floating tensor, or a dict of tensors when one group acts on several tensors together.

The leading `batch_ndim` dimensions of every block are batch, the rest is one point. This module is the only one that knows
about the blocks of a dict: everything else maps over blocks or works on the flat vector of a point.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from manifoldid.errors import listed

if TYPE_CHECKING:
    # Whether a point is a tensor or a dict is a matter of the group, which no checker can follow; public functions that
    # give back what they take say so with `AnyPoint`.
    Point = Any
    Weights = Any
else:
    Point = Tensor | Mapping[str, Tensor]
    Weights = Tensor | Mapping[str, Tensor] | None
AnyPoint = TypeVar("AnyPoint", bound=Tensor | Mapping[str, Tensor])

HALF = (torch.float16, torch.bfloat16)
# What distributions and factorisations raise outside of their domain.
OUT_OF_DOMAIN = (ValueError, torch.linalg.LinAlgError)


@runtime_checkable
class Shards(Protocol):
    """How numbers of the items on one rank become numbers of all items; `manifoldid.distributed` has the one there is.

    All methods are collective: every rank calls them, in the same order, and gets the same answer.
    """

    def sum(self, sums: Tensor) -> Tensor:
        """`sums` over the items here, added over all ranks; differentiable."""
        ...

    def largest(self, values: Tensor) -> Tensor:
        """The largest of `values` over all ranks, entry by entry, without derivative."""
        ...

    def count(self, items: int, like: Tensor) -> Tensor:
        """How many items all ranks have together, of which `items` are here; a number in the dtype of `like`."""
        ...

    def union(self, labels: Tensor) -> Tensor:
        """The labels (k,) that occur on any rank, sorted."""
        ...

    def rows(self, values: Tensor) -> Tensor:
        """`values`, of one shape on all ranks, one behind the other (ranks, *shape), without derivative."""
        ...

    def on(self, block: str) -> "Shards | None":
        """The same for one block of a dict point; None where every rank has all items of it."""
        ...

    def share(self, block: str) -> float:
        """What the items of a block on this rank count in sums over ranks: 1, or of a block that all ranks have, 1 / ranks."""
        ...


def is_dict(x: object) -> bool:
    """Whether `x` is a dict point (a dict, a `ParameterDict`, any mapping of names to tensors)."""
    return isinstance(x, (Mapping, torch.nn.ParameterDict))


def as_point(x: Any, name: str = "point") -> Point:
    """`x` itself if it is a point: a floating or complex tensor, or a mapping of names to such tensors.

    Raises:
        TypeError: `x` is neither, or a tensor holds integers.
    """
    if is_dict(x):
        return {str(key): _floating(value, f"{name}[{key!r}]") for key, value in x.items()}
    return _floating(x, name)


def _floating(x: Any, name: str) -> Tensor:
    if not isinstance(x, Tensor):
        inner = isinstance(getattr(x, "point", None), Tensor | Mapping)
        remedy = "did you mean its `.point`?" if inner else "torch.as_tensor makes one of a list or an array"
        raise TypeError(f"`{name}` must be a tensor or a dict of tensors, got {type(x).__name__}; {remedy}")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(
            f"`{name}` must be a floating tensor, got dtype {x.dtype}; convert it with .double() or .float()"
        )
    return x


def blocks_of(x: Point) -> dict[str, Tensor]:
    """The blocks of a point by name; a tensor point is one block called ''."""
    return {"": x} if isinstance(x, Tensor) else {name: x[name] for name in x}


def like_point(blocks: Mapping[str, Tensor], x: Point) -> Point:
    """`blocks`, as a tensor where `x` is a tensor and as a dict where `x` is a dict."""
    return blocks[""] if isinstance(x, Tensor) else dict(blocks)


def map_blocks(function: Callable[..., Tensor], x: Point, *others: Point) -> Point:
    """`function` applied to corresponding blocks of points of the same kind."""
    if isinstance(x, Tensor):
        return function(x, *others)
    return {name: function(x[name], *(other[name] for other in others)) for name in x}


def first(x: Point) -> Tensor:
    """Some block of `x`, to read dtype and device from."""
    return x if isinstance(x, Tensor) else next(iter(x.values()))


def compute_point(x: Point) -> Point:
    """`x` in the dtype that computations use: half precision is widened to float32."""
    return map_blocks(lambda t: t.float() if t.dtype in HALF else t, x)


def cast_like(x: Point, like: Point) -> Point:
    """`x` in the dtypes of `like`."""
    return map_blocks(lambda t, s: t.to(s.dtype), x, like)


def detached(x: Point) -> Point:
    """`x` cut from the autograd graph, as plain tensors (a `Parameter` or a subclass becomes a `Tensor`)."""
    return map_blocks(lambda t: t.detach().as_subclass(Tensor), x)


def own_copy(value: Any) -> Any:
    """A copy of a tensor, or dict of tensors, that the caller may change later; cut from the graph. Anything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return {name: own_copy(t) for name, t in value.items()} if is_dict(value) else value


def flatten(x: Point, batch_ndim: int = 0) -> Tensor:
    """All numbers of one point in one real vector, in the order of the blocks; shape (*batch, N).

    A complex block contributes its real and imaginary parts side by side.
    """
    rows = [
        _real(t).flatten(batch_ndim) if t.ndim > batch_ndim else _real(t).reshape(*t.shape, -1)
        for t in blocks_of(x).values()
    ]
    if len(rows) == 1:
        return rows[0]
    batch = torch.broadcast_shapes(*(row.shape[:-1] for row in rows))
    if not batch:  # torch drops the derivative by a block (0,), of a rank without items, but not by one of shape (1, 0)
        return torch.cat([row[None] for row in rows], dim=-1)[0]
    return torch.cat([row.expand(*batch, row.shape[-1]) for row in rows], dim=-1)


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def unflatten(vector: Tensor, like: Point, batch_ndim: int = 0) -> Point:
    """The inverse of `flatten`; the batch dimensions are those of `vector` (..., N), the event shapes those of `like`."""
    pieces, start = {}, 0
    for name, t in blocks_of(like).items():
        event = t.shape[batch_ndim:] + torch.Size((2,) if t.is_complex() else ())
        size = event.numel()
        piece = vector[..., start : start + size].reshape(vector.shape[:-1] + event)
        pieces[name] = torch.complex(piece[..., 0], piece[..., 1]) if t.is_complex() else piece
        start += size
    return like_point(pieces, like)


def event_numel(x: Point, batch_ndim: int = 0) -> int:
    """How many real numbers one point has."""
    return sum(t.shape[batch_ndim:].numel() * (2 if t.is_complex() else 1) for t in blocks_of(x).values())


def flat_weights(weights: Weights, x: Point, batch_ndim: int = 0, shards: Shards | None = None) -> Tensor | None:
    """Item weights as a vector (N,) beside `flatten(x)`, normalised to mean 1 per block; None when all are equal.

    `weights` has shape (n,) over the items of a block (its first event dimension), or is a dict of such tensors.

    Raises:
        ValueError: A shape does not fit, a weight is negative or not finite, all are zero, or a block is unknown.
    """
    if weights is None:
        return None
    blocks = blocks_of(x)
    by_block = dict(weights) if is_dict(weights) else {"": weights}
    if isinstance(weights, Tensor) and not isinstance(x, Tensor):
        if len(blocks) > 1:
            raise ValueError(f"`weights` of a dict point must be a dict over its blocks {sorted(blocks)}, got a tensor")
        by_block = {next(iter(blocks)): weights}
    unknown = set(by_block) - set(blocks)
    if unknown:
        raise ValueError(
            f"`weights` names blocks that the point does not have: {sorted(unknown)}; it has {sorted(blocks)}"
        )
    pieces = []
    for name, t in blocks.items():
        event = t.shape[batch_ndim:]
        w = by_block.get(name)
        w = (
            t.new_ones(event, dtype=_real_dtype(t))
            if w is None
            else _expanded(item_weights(w, event, t, None if shards is None else shards.on(name)), event)
        )
        pieces.append(w.reshape(-1).repeat_interleave(2) if t.is_complex() else w.reshape(-1))
    return torch.cat(pieces)


def flat_shares(x: Point, batch_ndim: int = 0, shards: Shards | None = None) -> Tensor | None:
    """What the entries of `flatten(x)` count in sums over ranks (N,), see `Shards.share`; None where all of them count once."""
    if shards is None or all(shards.share(name) == 1 for name in blocks_of(x)):
        return None
    return torch.cat(
        [
            t.new_full((event_numel(t, batch_ndim),), shards.share(name), dtype=_real_dtype(t))
            for name, t in blocks_of(x).items()
        ]
    )


def _real_dtype(t: Tensor) -> torch.dtype:
    return t.dtype.to_real() if t.is_complex() else t.dtype


def _expanded(w: Tensor, event: torch.Size) -> Tensor:
    if not event:  # one number is one item
        return w.reshape(())
    return w.reshape(w.shape + (1,) * (len(event) - w.ndim)).expand(event)


def item_weights(weights: Tensor, event: torch.Size, like: Tensor, shards: Shards | None = None) -> Tensor:
    """`weights` (n,) on the device and in the real dtype of `like`, normalised to mean 1 (over the items of all `shards`).

    Raises:
        TypeError: `weights` is no tensor.
        ValueError: The shape is not (n,), a weight is complex, negative or not finite, or all are zero.
    """
    if not isinstance(weights, Tensor):
        raise TypeError(
            "`weights` must be a tensor (n,) of item weights, or for a dict point a dict of them, got "
            f"{type(weights).__name__}; torch.as_tensor makes one of a list or an array"
        )
    check_weights(weights, event)
    if weights.is_complex():
        raise ValueError(f"`weights` must be real, got dtype {weights.dtype}")
    w = weights.detach().to(device=like.device, dtype=_real_dtype(like))
    unusable = ~torch.isfinite(w) | (w < 0)
    sums = torch.stack([w.sum(), unusable.sum().to(w.dtype)])
    total, wrong = sums if shards is None else shards.sum(sums)
    if concrete(w):
        if bool(wrong > 0):
            here = unusable.flatten().nonzero()[:, 0].tolist()
            raise ValueError(
                f"`weights` must be finite and not negative; see item(s) {listed(here) or 'of another rank'}"
            )
        if not bool(total > 0):
            raise ValueError("`weights` are all zero: at least one item must define the origin")
    return w * ((w.numel() if shards is None else shards.count(w.numel(), w)) / total)


def check_weights(weights: Tensor, event: torch.Size) -> None:
    """Refuses weights of the wrong shape for the items of a block.

    Raises:
        ValueError: The shape is neither (n,) nor that of the block.
    """
    items = event[0] if event else 1
    if tuple(weights.shape) not in ((items,), tuple(event)):
        raise ValueError(
            f"`weights` must have shape ({items},), one weight per item, got {tuple(weights.shape)}: they say which items define the "
            "origin; weights of observations go into the loss"
        )


def part_of(x: Point, of: tuple[str, ...] | str) -> Point:
    """What of `x` one factor of a group acts on, `of` as in `GaugeGroup.factors`: one block, the dict of several, or () for all."""
    if isinstance(of, str):
        return x[of]
    return x if isinstance(x, Tensor) or not of else {name: x[name] for name in of}


def with_part(x: Point, of: tuple[str, ...] | str, part: Point) -> Point:
    """`x` with `part` in place of `part_of(x, of)`."""
    return part if isinstance(x, Tensor) else {**x, **({of: part} if isinstance(of, str) else part)}


def part_of_weights(weights: Weights, of: tuple[str, ...] | str) -> Weights:
    """The weights of one factor of a group, `of` as in `part_of`."""
    if weights is None or isinstance(weights, Tensor) or not of:
        return weights
    if isinstance(of, str):
        return weights.get(of)
    return {name: weights[name] for name in of if name in weights} or None


def concrete(x: Tensor) -> bool:
    """Whether the values of `x` may be looked at: False under torch.compile, export, vmap and on fake or meta tensors."""
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return False
        x = torch._C._functorch.get_unwrapped(x)
    return not isinstance(x, torch._subclasses.FakeTensor)


def is_wrapped(x: Tensor) -> bool:
    """Whether `x` belongs to a trace or to a transform of torch.func, which what is made of it must not outlive."""
    return not concrete(x) or torch._C._functorch.is_functorch_wrapped_tensor(x)
