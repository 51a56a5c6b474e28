"""Names of the coordinates of a flat point, as code that a person would write."""

from collections.abc import Iterable

from manifoldid.points import Point, blocks_of


class Labels:
    """Names of the coordinates of a flat point."""

    def __init__(self, spans: dict[str, tuple[int, int]], shapes: dict[str, tuple[int, ...]]):
        """Stores where each block lies and what its shape is.

        Args:
            spans: Start and end of each block in the flat vector.
            shapes: Shape of each block, (..., 2) for complex ones.
        """
        self.spans, self.shapes = spans, shapes

    def block_of(self, index: int) -> str:
        """The block that a coordinate belongs to."""
        return next(name for name, (start, stop) in self.spans.items() if start <= index < stop)

    def of(self, block: str) -> str:
        """A block as it is written: in quotation marks if it begins like a number, as names of layers may."""
        return f"'{block}'" if block[:1].isdigit() else block or "x"

    def name(self, index: int) -> str:
        """The coordinate as code: x[3], theta[2], W[0, 1]."""
        block = self.block_of(index)
        inside = index - self.spans[block][0]
        place: list[int] = []
        for size in reversed(self.shapes[block]):
            inside, last = divmod(inside, size)
            place.insert(0, last)
        return f"{self.of(block)}[{', '.join(map(str, place))}]" if place else self.of(block)

    def listed_by_block(self, indices: Iterable[int]) -> str:
        """Coordinates of any blocks, each block after the other."""
        by_block: dict[str, list[int]] = {}
        for i in sorted(indices):
            by_block.setdefault(self.block_of(i), []).append(i)
        return ", ".join(self.listed(inside) for inside in by_block.values())

    def listed(self, indices: list[int]) -> str:
        """Several coordinates of one block: x[0:3], x[1, 4], all of x."""
        block = self.block_of(indices[0])
        start, stop = self.spans[block]
        label = self.of(block)
        if len(indices) == stop - start:
            return label
        if len(indices) == 1:
            return self.name(indices[0])
        inside = [i - start for i in indices]
        shape = self.shapes[block]
        if len(shape) == 2:
            rows, columns = sorted({i // shape[1] for i in inside}), sorted({i % shape[1] for i in inside})
            if len(rows) * len(columns) == len(inside) and (len(rows) == shape[0] or len(columns) == shape[1]):
                whole_rows = len(columns) == shape[1]
                chosen = _range(rows if whole_rows else columns)
                if chosen:
                    return f"{label}[{chosen}]" if whole_rows else f"{label}[:, {chosen}]"
        step = inside[1] - inside[0]
        if len(shape) < 2 and len(inside) > 2 and step > 1 and inside == list(range(inside[0], inside[-1] + 1, step)):
            end = "" if inside[-1] + step > stop - start - 1 else inside[-1] + 1
            return f"{label}[{inside[0]}:{end}:{step}]"
        if inside == list(range(inside[0], inside[-1] + 1)):
            flat = f"{label}.flatten()" if len(self.shapes[block]) > 1 else label
            return f"{flat}[{inside[0]}:{inside[-1] + 1}]"
        if len(indices) <= 4:
            return ", ".join(self.name(i) for i in indices)
        return f"{self.name(indices[0])}, {self.name(indices[1])}, ... ({len(indices)} of {label})"


def _range(values: list[int]) -> str:
    """Consecutive numbers as a slice."""
    if len(values) == 1:
        return str(values[0])
    return f"{values[0]}:{values[-1] + 1}" if values == list(range(values[0], values[-1] + 1)) else ""


def labels_of(like: Point) -> Labels:
    """Names of the coordinates of points shaped like `like`."""
    spans, shapes, start = {}, {}, 0
    for name, t in blocks_of(like).items():
        shapes[name] = (*t.shape, 2) if t.is_complex() else tuple(t.shape)
        size = t.numel() * (2 if t.is_complex() else 1)
        spans[name] = (start, start + size)
        start += size
    return Labels(spans, shapes)
