"""The arguments of `Reference` for groups on items: one reference item (or pair) per block."""

from typing import Any

from torch import Tensor

from manifoldid.groups._items import ItemGroup
from manifoldid.groups.base import require_one_place


def reference_items(group: ItemGroup, index: Any, items: int, each: int) -> list[list[int]]:
    """Reference items in the order of the blocks, as `each` lists of one index per block.

    Args:
        group: The group, with or without blocks.
        index: An int (`each` = 1) or a tuple of `each` ints; with blocks, a sequence of these, one per block in any order.
        items: How many items there are.
        each: How many reference items a block needs.

    Raises:
        TypeError: `index` is not made of integers, or the items are spread over ranks.
        ValueError: There are too few or too many, an index is out of range, or a block has none or two.
    """
    require_one_place(group)
    if isinstance(index, Tensor):
        index = index.tolist()
    if group.block_count > 1 and not isinstance(index, (list, tuple)):
        raise ValueError(f"`index` of Reference must be a list, one entry per block of {group}, got {index!r}")
    entries = [index] if group.block_count == 1 and not _is_nested(index, each) else list(index)
    entries = [tuple(entry) if isinstance(entry, (tuple, list)) else (entry,) for entry in entries]
    wanted = "one item" if each == 1 else f"{each} items (i, j)"
    if len(entries) != group.block_count or any(len(entry) != each for entry in entries):
        raise ValueError(
            f"`index` of Reference needs {wanted} for each of {group.block_count} block(s), got the index {index!r}"
        )
    for entry in entries:
        for item in entry:
            if not isinstance(item, int) or isinstance(item, bool):
                name = ": a section does not know names, use names.index(...)" if isinstance(item, str) else ""
                raise TypeError(f"`index` of Reference must be made of integers, got {item!r}{name}")
            if not -items <= item < items:
                raise ValueError(f"`index` of Reference is {item}, but the point has {items} items")
        if len({item % items for item in entry}) < each:
            raise ValueError(f"`index` of Reference needs different items, got {entry!r}")
    if group.blocks is None:
        return [list(column) for column in zip(*entries, strict=True)]
    of_block = {}
    for entry in entries:
        blocks = {int(group.blocks[item]) for item in entry}
        if len(blocks) > 1 or next(iter(blocks)) in of_block:
            raise ValueError(
                f"`index` of Reference needs {wanted} in every block, got {index!r} for labels {group.block_labels}"
            )
        of_block[blocks.pop()] = entry
    return [list(column) for column in zip(*(of_block[label] for label in group.block_labels or []), strict=True)]


def _is_nested(index: Any, each: int) -> bool:
    return isinstance(index, (list, tuple)) and (each == 1 or (len(index) > 0 and isinstance(index[0], (list, tuple))))
