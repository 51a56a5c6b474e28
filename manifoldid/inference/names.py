"""What items are called: in tables, pictures and errors."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manifoldid.errors import listed
from manifoldid.points import Point, blocks_of

Names = Sequence[object] | Mapping[str, Sequence[object]] | None


def checked_names(names: Names, x: Point) -> dict[str, list[str]]:
    """Names by block ('' for a tensor point), one per item (first dimension) of `x`; blocks may be left out.

    Raises:
        TypeError: `names` is text, a set or no sequence.
        ValueError: A block is unknown, a list has the wrong length, or a name occurs twice.
    """
    if names is None:
        return {}
    blocks = blocks_of(x)
    if not isinstance(names, Mapping):
        if len(blocks) > 1:
            raise ValueError(f"`names` of a point with the blocks {list(blocks)} must be a dict from block to names")
        names = {next(iter(blocks)): names}
    unknown = [block for block in names if block not in blocks]
    if unknown and "" in blocks:
        raise ValueError(f"`names` of a tensor point must be a list, one name per item, got a dict from {unknown}")
    if unknown:
        raise ValueError(f"`names` speaks of blocks that the point does not have: {unknown}; it has {list(blocks)}")
    return {block: _checked(of, blocks[block].shape, block) for block, of in names.items()}


def chosen_names(names: Names, given: Mapping[str, list[str]], x: Point, block: str | None) -> Mapping[str, list[str]]:
    """Names by block: those handed in now, for `block` if it is chosen, before those `given` earlier. Errors: `checked_names`."""
    if names is not None and block is not None and not isinstance(names, Mapping):
        names = {block: names}
    return {**given, **checked_names(names, x)}


def _checked(names: Sequence[object], shape: torch.Size, block: str) -> list[str]:
    label = f"names[{block!r}]" if block else "names"
    if isinstance(names, (str, bytes)) or not hasattr(names, "__iter__"):
        raise TypeError(f"`{label}` must be a list with one name per item, got {type(names).__name__}")
    if isinstance(names, (set, frozenset)):
        raise TypeError(f"`{label}` must be a list, in the order of the items: a set has none; use sorted(names)")
    found = [str(name) for name in names]
    items = shape[0] if shape else 1
    if len(found) != items:
        raise ValueError(f"`{label}` must have one name per item, {items}, got {len(found)}")
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise ValueError(f"`{label}` must tell items apart, but names several items {listed(twice)}")
    return found


def item_labels(names: Mapping[str, Sequence[str]], block: str, shape: torch.Size) -> list[str | int]:
    """One label per number of a block of this shape: its name, else its index; `name[1, 2]` inside an item."""
    return [item_label(names, block, index) for index in _indices(shape)]


def item_label(names: Mapping[str, Sequence[str]], block: str, index: Sequence[int]) -> str | int:
    """The label of one number of a block: its item's name, else its index."""
    own = names.get(block)
    if not index:
        return own[0] if own else (block or 0)
    item: str | int = own[index[0]] if own else index[0]
    return item if len(index) == 1 else f"{item}[{', '.join(map(str, index[1:]))}]"


def place_of(label: str | int, called: Sequence[str | int], who: str) -> int:
    """Where an item is among those that are `called` so: by its name, which may be a number, or its index, from the end if negative.

    Args:
        label: What the caller says.
        called: The names.
        who: The argument, for errors.

    Raises:
        ValueError: There is no such item, or a number is the name of one item and the index of another.
    """
    names = list(called)
    if label in names:
        return names.index(label)
    found = {names.index(str(label))} if str(label) in names else set()
    if isinstance(label, int) and not isinstance(label, bool) and -len(names) <= label < len(names):
        found.add(label % len(names))
    if not found:
        raise ValueError(f"`{who}` must be the name or index of an item ({listed(names)}), got {label!r}")
    if len(found) > 1:
        raise ValueError(f"`{who}` is {label!r}, the index of one item and the name of another: say the names, as text")
    return found.pop()


def real_shape(t: Tensor) -> torch.Size:
    """The shape of a block in real numbers: real and imaginary parts side by side."""
    return t.shape + torch.Size((2,) if t.is_complex() else ())


def _indices(shape: torch.Size) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for size in shape:
        found = [(*index, k) for index in found for k in range(size)]
    return found
