"""The base class of gauge groups: the action alone suffices, everything else has a default derived from it.

A group of your own needs `dim` and `act`::

    class AsinhShift(GaugeGroup):
        dim = 1
        def act(self, xi, x):
            return torch.sinh(torch.asinh(x) + xi)

Vertical basis, undoing a move, the canonical representative and the closest representative then come from autodiff and
least squares (`groups/orbit.py`). Closed forms may override them one by one; the conformance kit compares the two.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from manifoldid.errors import DegeneratePointError, listed
from manifoldid.points import (
    Point,
    Shards,
    Weights,
    as_point,
    blocks_of,
    cast_like,
    compute_point,
    concrete,
    event_numel,
    first,
    is_dict,
    map_blocks,
)

if TYPE_CHECKING:
    from manifoldid.groups.geometry import Geometry


_MOST_IN_CODE, _MOST_IN_WORDS = 1000, 12  # numbers of a tensor that a repr, and a message, writes out


class Canonical(NamedTuple):
    """A representative of an orbit and the way to it."""

    point: Point
    """The representative, shaped like the point it stands for."""
    xi: Tensor
    """Its moving frame (*batch, dim): `act(xi, point)` is the original point."""
    regular: Tensor | None = None
    """Whether the orbit has a representative (*batch, 1 or one per block); None means always."""

    @property
    def verdict(self) -> Tensor:
        """`regular`, true where it is None."""
        return torch.ones_like(self.xi[..., :1], dtype=torch.bool) if self.regular is None else self.regular


Settler = Callable[[Point], Canonical | None]
"""See `GaugeGroup.settler`."""


class GaugeGroup(ABC):
    """A group that acts on points and leaves the likelihood unchanged.

    Attributes:
        dim: Dimension of the group, where it does not depend on the point.
        event_dim: How many trailing dimensions make one point; those before them are batch.
        flat: Whether the canonical section is itself horizontal, so that optimising on it is optimising on the quotient.
        arithmetic: Whether ensembles are averaged entry by entry on the section; else by the Frechet mean of the quotient.
        block_names: For groups on dict points, the blocks they act on; () acts on a tensor, or on all blocks of a dict.
        positive: Blocks ('' for a tensor point) whose entries are positive and are stepped in their logarithm.
        defect: What is wrong with a point without a representative, completing "the point ...".
        reference_defect: The same where `Reference` has no representative.
        closest_defect: The same where `Section(group, at=...)` has none.
        shards: How sums over the items on this rank become sums over all items; None when all items are here.
    """

    dim: int = 0
    event_dim: int = 1
    flat: bool = False
    arithmetic: bool = False
    block_names: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    defect: str = "has no representative on its orbit"
    reference_defect: str = "has no representative with these reference values"
    closest_defect: str = (
        "has no representative closest to `at`: the distance to `at` has no minimum on its orbit; choose another `at`"
    )
    shards: Shards | None = None

    # ------------------------------------------------------------------------------------------------ the action

    @abstractmethod
    def act(self, xi: Tensor, x: Point) -> Point:
        """The point that the group element with coordinates `xi` makes of `x`.

        Args:
            xi: Coordinates around the identity (*batch, dim); `act(0, x) == x`.
            x: A point (*batch, *event), or a dict of blocks.

        Returns:
            A point shaped like `x`.
        """

    def dimension(self, x: Point) -> int:
        """Number of coordinates `xi` of the group that acts on `x`."""
        del x
        return self.dim

    def undo(self, xi: Tensor, x: Point) -> Point:
        """The inverse move: `undo(xi, act(xi, x)) == x`.

        The default tries the coordinates -xi, right for exponential coordinates, and corrects them by Gauss-Newton.

        Raises:
            DegeneratePointError: No move of the group undoes `xi` at `x` (incomplete action), when values can be looked at.
        """
        from manifoldid.groups.orbit import undo_by_least_squares

        return undo_by_least_squares(self, xi, x)

    def vertical_basis(self, x: Point) -> Point:
        """Velocities of the orbit through `x`, one per coordinate of the group; shape (*batch, dim, *event).

        The default is the derivative of `act` at the identity, by forward-mode autodiff.
        """
        from manifoldid.groups.orbit import velocities

        return velocities(self, x)

    def generator_names(self, x: Point) -> list[str]:
        """One name per coordinate, used in messages."""
        return [f"generator {k} of {type(self).__name__}" for k in range(self.dimension(x))]

    # -------------------------------------------------------------------------------------------- representatives

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        """The canonical representative of the orbit of `x` and its frame, values unchecked.

        The default is the representative of least weighted Euclidean norm.

        Raises:
            DegeneratePointError: The norm has no minimum on the orbit, when values can be looked at.
        """
        return self.closest(x, map_blocks(torch.zeros_like, x), weights)

    def settler(self, weights: Weights = None) -> Settler | None:
        """What puts points that are close to the canonical section back on it, in place: a few reductions and passes.

        Optional, for points that an optimiser has just moved; `canonical` is accurate from anywhere. Who moves points keeps it from step
        to step: what it knows of weights, labels and shapes is found and checked once.

        Args:
            weights: Item weights, or None.

        Returns:
            A function of a point (*batch, n), or a dict of blocks, contiguous, which it overwrites; its value is the canonical form,
            with that point itself, or None, with every point still on its orbit, where there is no short cut. None if there
            never is.
        """
        del weights
        return None

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """The representative of the orbit of `x` closest to the point `to` in the weighted Euclidean norm, values unchecked.

        Raises:
            DegeneratePointError: The distance has no minimum on the orbit, when values can be looked at.
        """
        from manifoldid.groups.orbit import closest_by_newton

        return closest_by_newton(self, x, to, weights)

    def reference_frame(self, x: Point, index: Any) -> Canonical:
        """The representative on which reference items have fixed values (`Reference`), values unchecked.

        Raises:
            TypeError: The group has no reference items.
        """
        raise TypeError(
            f"{type(self).__name__} has no reference items; "
            "use mid.Section(group) or mid.Section(group, at=point) for another representative"
        )

    def geometry(self, weights: Weights = None) -> "Geometry":
        """The invariant metric of the group, weighted by items, and what follows from it (`groups/geometry.py`).

        The default is the invariant metric that is Euclidean at the canonical representative.
        """
        from manifoldid.groups.geometry import Geometry

        return Geometry(self, weights)

    # ------------------------------------------------------------------------------------------------ shards

    def on_shards(self, shards: Shards) -> "GaugeGroup":
        """The same group on points of which every rank has some items (`manifoldid.distributed.sharded`).

        Raises:
            TypeError: The group needs all items in one place.
        """
        del shards
        raise TypeError(
            f"{self} cannot act on items that are spread over ranks (Translation, Scaling, PositiveScaling, Affine, Shift, LocationScale "
            "and products of them can): gather the point first, x.full_tensor() of a DTensor"
        )

    def across(self, sums: Tensor) -> Tensor:
        """Sums over the items here, added over all ranks; `sums` itself when all items are here."""
        return sums if self.shards is None else self.shards.sum(sums)

    def on_items(self, rows: dict[str, Tensor]) -> "GaugeGroup":
        """The same group on some items of a point alone, for steps that touch no others.

        Args:
            rows: Indices into the first dimension of every block; the block of a tensor point is called ''.

        Raises:
            TypeError: The group needs all items.
        """
        del rows
        raise TypeError(
            f"{self} cannot act on some items of a point alone, which are what sparse gradients move: use dense gradients "
            "(nn.Embedding(sparse=False))"
        )

    def with_items(self, of: Callable[[str, Tensor], Tensor]) -> "GaugeGroup":
        """The same group, with what it has been told of every item (labels, directions) told of some of them.

        Args:
            of: Takes the name of a block ('' of a tensor point) and values at its items, shaped like the first dimensions of one
                point there; returns those at the items that are wanted.
        """
        del of
        return self

    # ------------------------------------------------------------------------------------------------ shapes

    def batch_ndim(self, x: Point) -> int:
        """How many leading dimensions of `x` are batch."""
        mine = [t.ndim for name, t in blocks_of(x).items() if not self.block_names or name in self.block_names]
        return max(0, min(mine) - self.event_dim)

    def entry_weights(self, weights: Weights, x: Point) -> Weights:
        """Item weights of `x` as `points.flat_weights` reads them: (n,) along the first dimension of a point, or one per entry.

        Groups whose items lie along another dimension spread their weights over the entries.
        """
        del x
        return weights

    def regular_columns(self) -> "list[tuple[GaugeGroup, str]]":
        """What the columns of `Canonical.regular` speak of: a group, and which of its blocks in words."""
        return [(self, "")]

    def factors(self) -> "list[tuple[GaugeGroup, tuple[str, ...] | str]]":
        """The group as independent factors, each with the block (a name) or blocks (a tuple) of a dict point it acts on."""
        return [(self, self.block_names)]

    def validate(self, x: Any, name: str = "point") -> Point:
        """`x` as a point of this group: a floating tensor or a dict with the right blocks and dimensions.

        Raises:
            TypeError: `x` is no point, or `event_dim` of the group is no integer.
            ValueError: Blocks are missing, or a tensor has too few dimensions.
        """
        x = as_point(x, name)
        if not isinstance(self.event_dim, int):
            raise TypeError(
                f"`event_dim` of {type(self).__name__} must be an integer, the dimensions of one point in every block, "
                f"got {type(self.event_dim).__name__}"
            )
        if self.block_names:
            if not is_dict(x):
                wanted = ", ".join(self.block_names)
                raise ValueError(
                    f"`{name}` must be a dict with the blocks {wanted} of {type(self).__name__}, got a tensor"
                )
            missing = [block for block in self.block_names if block not in x]
            if missing:
                raise ValueError(
                    f"`{name}` lacks the blocks {listed(missing)} that {self} acts on; it has {sorted(x.keys())}"
                )
        for block, t in blocks_of(x).items():
            if t.ndim < self.event_dim and (not self.block_names or block in self.block_names):
                label = f"{name}[{block!r}]" if block else name
                raise ValueError(
                    f"`{label}` must have at least {self.event_dim} dimension(s), the items last, got shape {tuple(t.shape)}"
                )
        return x

    # ------------------------------------------------------------------------------------------------ values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GaugeGroup) or type(self) is not type(other) or self.shards != other.shards:
            return False
        return same_value(_fields(self), _fields(other))

    def __hash__(self) -> int:
        return hash((type(self), tuple(_hashable(value) for value in _fields(self).values())))

    def __repr__(self) -> str:
        return code_of(self) if self.shards is None else f"sharded({code_of(self)})"

    def __str__(self) -> str:
        """As the repr, with long tensors (block labels) counted instead of listed: for messages."""
        return code_of(self, _MOST_IN_WORDS) if self.shards is None else f"sharded({code_of(self, _MOST_IN_WORDS)})"


def checked(form: Canonical, group: GaugeGroup, x: Point, name: str = "point", defect: str = "defect") -> Canonical:
    """`form` itself, a representative of `x`, after a look at its values in eager mode.

    Args:
        form: The representative to look at.
        group: Its group.
        x: The point that it represents.
        name: How the caller calls `x`.
        defect: Which text of the group says what is wrong: `defect`, `reference_defect` or `closest_defect`.

    Returns:
        `form`.

    Raises:
        ValueError: The point has entries that are not finite.
        DegeneratePointError: A point has no representative; batch entries (and blocks) are named.
    """
    if not concrete(form.xi):
        return form
    irregular = form.regular is not None and not bool(form.regular.all())
    if not irregular and bool(torch.isfinite(form.xi).all()):
        return form
    if not all(bool(torch.isfinite(t).all()) for t in blocks_of(x).values()):
        raise ValueError(f"`{name}` must be finite: it has nan or infinite entries")
    if group.shards is not None and not bool(torch.isfinite(form.xi).all()):
        raise ValueError(
            f"`{name}` must be finite, and so must sums over all ranks: items of another rank are nan or infinite, or so large that sums "
            "overflow"
        )
    bad = ~form.regular if form.regular is not None and irregular else ~torch.isfinite(form.xi)
    column = int(bad.flatten(0, -2).any(0).nonzero()[0]) if bad.ndim > 1 else int(bad.nonzero()[0])
    owner, label = group.regular_columns()[column] if irregular else (group, "")
    entries = [tuple(entry) for entry in bad[..., column].nonzero().tolist()] if bad.ndim > 1 else []
    where = f" at batch index {listed([e[0] if len(e) == 1 else e for e in entries])}" if entries else ""
    label = f" in {label}" if label else ""
    raise DegeneratePointError(f"`{name}`{where}{label} {getattr(owner, defect)}")


def canonicalise(group: GaugeGroup, x: Any, weights: Weights = None, name: str = "point") -> tuple[Canonical, Point]:
    """The canonical representative of a point from outside, checked and computed in at least float32.

    Returns:
        The canonical form in the computing dtype, and the validated point in the caller's dtype.

    Raises:
        TypeError: `x` is no point.
        ValueError: Shapes or blocks do not fit, or entries are not finite.
        DegeneratePointError: A point has no representative, or nothing of it is identifiable.
    """
    x = group.validate(x, name)
    check_quotient(group, x, name)
    return checked(group.canonical(compute_point(x), weights), group, x, name), x


def require_group(group: object) -> None:
    """Refuses what is no gauge group.

    Raises:
        TypeError: `group` is no group.
    """
    if isinstance(group, type) and issubclass(group, GaugeGroup):
        raise TypeError(
            f"`group` must be a gauge group, such as mid.Translation(), got the class {group.__name__}; "
            "did you forget the parentheses?"
        )
    if not isinstance(group, GaugeGroup):
        raise TypeError(f"`group` must be a gauge group, such as mid.Translation(), got {type(group).__name__}")


def require_one_place(group: GaugeGroup) -> None:
    """Refuses reference items of points that are spread over ranks.

    Raises:
        TypeError: They are.
    """
    if group.shards is not None:
        raise TypeError(
            f"Reference needs all items in one place, but those of {group} are spread over ranks; use Section"
        )


_COLUMN = "did you mean over='batch' (GaugeFix), or x.squeeze(-1) with the items last?"


def check_quotient(group: GaugeGroup, x: Point, name: str = "point", column: str = _COLUMN) -> None:
    """Refuses points of which nothing is identifiable; `column` is what to do about one of shape (n, 1).

    Raises:
        DegeneratePointError: The group has at least as many dimensions as one point has numbers.
    """
    mine = {k: t for k, t in blocks_of(x).items() if not group.block_names or k in group.block_names}
    partition = getattr(group, "partition", None)
    if partition is not None and partition.blind:
        return  # under compile or export nobody knows how many blocks there are
    ndim, dimension = group.batch_ndim(x), group.dimension(x)
    numbers = event_numel(mine, ndim)
    if group.shards is not None:
        spread = event_numel({k: t for k, t in mine.items() if group.shards.on(k) is not None}, ndim)
        numbers += (
            int(group.shards.count(spread, torch.empty((), dtype=torch.float64, device=first(x).device))) - spread
        )
    elif any(factor.shards is not None for factor, _ in group.factors()):
        return  # the factors of a product, some of which are here and some are not, are left to themselves
    if dimension and numbers <= dimension:
        shapes = {k: tuple(t.shape) for k, t in mine.items()} if is_dict(x) else tuple(first(x).shape)
        hint = ""
        if partition is not None:
            hint = ": every block has one item" if numbers == partition.count else ": no block has enough items"
        elif hasattr(group, "blocks"):  # a group on items, of which there are one or two
            hint = f"; {column}"
        raise DegeneratePointError(
            f"`{name}` of shape {shapes} has {numbers} number(s) per point and {type(group).__name__} has dimension "
            f"{dimension}: nothing identifiable is left{hint}"
        )


def same_dtype(form: Canonical, like: Point) -> Canonical:
    """`form` in the dtypes of `like`."""
    return Canonical(cast_like(form.point, like), form.xi.to(_real(first(like).dtype)), form.regular)


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


# ---------------------------------------------------------------------------------------------------- value semantics


def _fields(value: object) -> dict[str, object]:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    return {key: item for key, item in vars(value).items() if not key.startswith("_")}


def same_value(a: object, b: object) -> bool:
    """Equality of values that may contain tensors."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.detach().cpu(), b.detach().cpu())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_value(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same_value(s, t) for s, t in zip(a, b, strict=True))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return bool(a == b)


def _hashable(value: object) -> object:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return tuple(value)
    if isinstance(value, (list, tuple)):
        return len(value)
    return value


def code_of(value: object, largest: int = _MOST_IN_CODE) -> str:
    """`value` as the code that makes it, fields that are None, False or () left out, tensors of more numbers by their shape."""
    arguments = [f"{key}={_code(item, largest)}" for key, item in _fields(value).items() if not _is_default(item)]
    return f"{type(value).__name__}({', '.join(arguments)})"


def _is_default(item: object) -> bool:
    return item is None or item is False or (isinstance(item, tuple) and not item)


def _code(item: object, largest: int = _MOST_IN_CODE) -> str:
    if isinstance(item, Tensor):
        dtype = "" if item.dtype in (torch.int64, torch.float32) else f", dtype={item.dtype}"
        if item.numel() > largest:
            return f"<tensor of shape {tuple(item.shape)}{dtype}>"
        return f"torch.tensor({item.detach().tolist()}{dtype})"
    if isinstance(item, dict):
        return "{" + ", ".join(f"{key!r}: {_code(value, largest)}" for key, value in item.items()) + "}"
    if isinstance(item, tuple):
        return "(" + ", ".join(_code(value, largest) for value in item) + ("," if len(item) == 1 else "") + ")"
    if isinstance(item, list):
        return "[" + ", ".join(_code(value, largest) for value in item) + "]"
    name = getattr(item, "__name__", "").removeprefix("special_")
    for module, prefix in ((torch, "torch."), (torch.special, "torch.special.")):
        if name and getattr(module, name, None) is item:
            return prefix + name
    return str(item) if isinstance(item, GaugeGroup) and largest < _MOST_IN_CODE else repr(item)
