"""Products of groups that act on different blocks of a dict point."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldid.groups._euclidean import safe_root
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.geometry import Check, Geometry, unchecked
from manifoldid.points import (
    Point,
    Shards,
    Weights,
    as_point,
    blocks_of,
    first,
    flat_weights,
    flatten,
    is_dict,
    like_point,
    map_blocks,
    part_of,
    part_of_weights,
    unflatten,
)


class Product(GaugeGroup):
    """Independent groups on the blocks of a dict point; a block that is not named is left alone.

    Canonical: every factor's own. Coordinates: those of the factors one after the other, groups that name their own blocks
    first. `Product()` is the trivial group, on any point.

    Args:
        *groups: Groups that name their own blocks (`Shift` on dicts, `LocationScale`, `GeneralLinear`, other products).
        **by_block: A group for the tensor in each named block.

    Raises:
        TypeError: A factor is no group, or a positional group does not name its blocks.
        ValueError: Two factors name the same block.
    """

    groups: tuple[GaugeGroup, ...]
    by_block: dict[str, GaugeGroup]
    _factors: tuple[tuple[GaugeGroup, tuple[str, ...] | str], ...]

    def __init__(self, *groups: GaugeGroup, **by_block: GaugeGroup):
        for group in (*groups, *by_block.values()):
            if not isinstance(group, GaugeGroup):
                raise TypeError(f"`Product` takes groups, got {type(group).__name__}; did you forget the parentheses?")
        factors: list[tuple[GaugeGroup, tuple[str, ...] | str]] = []
        for group in groups:
            if not group.block_names and not isinstance(group, Product):
                raise TypeError(f"`Product` needs the block of {group!r} by name: mid.Product(block={group!r})")
            factors += group.factors()
        for name, group in by_block.items():
            if group.block_names or isinstance(group, Product):
                raise TypeError(
                    f"`Product` takes {group!r}, which names its own blocks, without a name: mid.Product({group!r})"
                )
            factors.append((group, name))
        names = [name for _, of in factors for name in ((of,) if isinstance(of, str) else of)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`Product` has two groups on the block(s) {twice}: one tensor can follow one group only")
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "by_block", dict(by_block))
        object.__setattr__(self, "_factors", tuple(factors))
        object.__setattr__(self, "block_names", tuple(names))
        object.__setattr__(self, "flat", all(group.flat for group, _ in factors))
        object.__setattr__(self, "arithmetic", all(group.arithmetic for group, _ in factors))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: make a new one instead of setting `{name}`")

    def __repr__(self) -> str:
        parts = [repr(group) for group in self.groups] + [f"{name}={group!r}" for name, group in self.by_block.items()]
        return f"Product({', '.join(parts)})"

    def __str__(self) -> str:
        """See the base class."""
        parts = [str(group) for group in self.groups] + [f"{name}={group}" for name, group in self.by_block.items()]
        return f"Product({', '.join(parts)})"

    def factors(self) -> list[tuple[GaugeGroup, tuple[str, ...] | str]]:
        return list(self._factors)

    def on_shards(self, shards: Shards) -> "Product":
        own = {name: (group, shards.on(name)) for name, group in self.by_block.items()}
        return Product(
            *(
                group.on_shards(shards) if any(shards.on(name) for name in group.block_names) else group
                for group in self.groups
            ),
            **{name: group if of is None else group.on_shards(of) for name, (group, of) in own.items()},
        )

    # ------------------------------------------------------------------------------------------------ shapes

    def dimension(self, x: Point) -> int:
        return sum(group.dimension(part_of(x, of)) for group, of in self._factors)

    def batch_ndim(self, x: Point) -> int:
        ndims = {group.batch_ndim(part_of(x, of)) for group, of in self._factors}
        if len(ndims) > 1:
            shapes = {name: tuple(x[name].shape) for name in self.block_names}
            raise ValueError(f"`point` has blocks with different numbers of batch dimensions under {self}: {shapes}")
        return ndims.pop() if ndims else 0

    def validate(self, x: Any, name: str = "point") -> Point:
        x = as_point(x, name)
        if self._factors and not is_dict(x):
            raise ValueError(
                f"`{name}` must be a dict with the blocks {', '.join(self.block_names)} of {self}, got a tensor"
            )
        missing = [block for block in self.block_names if block not in x]
        if missing:
            raise ValueError(f"`{name}` lacks the blocks {missing} that {self} acts on; it has {sorted(x.keys())}")
        for group, of in self._factors:
            group.validate(part_of(x, of), f"{name}[{of!r}]" if isinstance(of, str) else name)
        return x

    def entry_weights(self, weights: Weights, x: Point) -> Weights:
        """See `GaugeGroup.entry_weights`: those of the factors."""
        if weights is None or isinstance(weights, Tensor):
            return weights
        spread = dict(weights)
        for group, of in self._factors:
            part = group.entry_weights(part_of_weights(weights, of), part_of(x, of))
            spread.update({of: part} if isinstance(part, Tensor) and isinstance(of, str) else part or {})
        return spread

    def regular_columns(self) -> list[tuple[GaugeGroup, str]]:
        """See `GaugeGroup.regular_columns`: the columns of the factors, with the name of the block."""
        columns = []
        for group, of in self._factors:
            for owner, label in group.regular_columns():
                columns.append(
                    (owner, ", ".join(filter(None, [f"block {of!r}" if isinstance(of, str) else "", label])))
                )
        return columns

    # ------------------------------------------------------------------------------------------------ the action

    def _each(self, xi: Tensor, x: Point):
        """(group, of, its coordinates, its part of `x`) for every factor."""
        start = 0
        for group, of in self._factors:
            part = part_of(x, of)
            size = group.dimension(part)
            yield group, of, xi[..., start : start + size], part
            start += size

    def act(self, xi: Tensor, x: Point) -> Point:
        return _with(x, {of: group.act(s, part) for group, of, s, part in self._each(xi, x)})

    def undo(self, xi: Tensor, x: Point) -> Point:
        return _with(x, {of: group.undo(s, part) for group, of, s, part in self._each(xi, x)})

    def vertical_basis(self, x: Point) -> Point:
        ndim, dim = self.batch_ndim(x), self.dimension(x)
        basis = {n: t.new_zeros(*t.shape[:ndim], dim, *t.shape[ndim:]) for n, t in blocks_of(x).items()}
        start = 0
        for group, of in self._factors:
            part = part_of(x, of)
            size = group.dimension(part)
            for name, rows in _named(group.vertical_basis(part), of).items():
                before, after = basis[name].narrow(ndim, 0, start), basis[name].narrow(ndim, 0, dim - start - size)
                basis[name] = torch.cat([before, rows, after], dim=ndim)
            start += size
        return basis if is_dict(x) else basis[""]

    # -------------------------------------------------------------------------------------------- representatives

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        return self._joined(x, lambda group, of, part: group.canonical(part, part_of_weights(weights, of)))

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        return self._joined(
            x, lambda group, of, part: group.closest(part, part_of(to, of), part_of_weights(weights, of))
        )

    def _joined(self, x: Point, form_of) -> Canonical:
        forms = [(group, of, form_of(group, of, part_of(x, of))) for group, of in self._factors]
        if not forms:
            t = first(x)
            return Canonical(x, t.new_zeros(0, dtype=t.dtype.to_real() if t.is_complex() else t.dtype))
        xi = torch.cat([form.xi for _, _, form in forms], dim=-1)
        regular = torch.cat([_mask(group, form) for group, _, form in forms], dim=-1)
        return Canonical(_with(x, {of: form.point for _, of, form in forms}), xi, regular)

    def reference_frame(self, x: Point, index: Any) -> Canonical:
        """There is none; see `GaugeGroup.reference_frame`.

        Raises:
            TypeError: A section of a product is a dict of sections.
        """
        name, group = next(iter(self.by_block.items()), ("block", None))
        raise TypeError(
            "Product has no reference items; its blocks have: hand in a dict as `section`, "
            f"{{{name!r}: mid.Reference(mid.{group!r}, index)}}"
            if group is not None
            else "Product has no reference items; use mid.Section(group), or a dict of the sections of single blocks"
        )

    def geometry(self, weights: Weights = None) -> "ProductGeometry":
        return ProductGeometry(self, weights)

    def generator_names(self, x: Point) -> list[str]:
        names = []
        for group, of in self._factors:
            own = group.generator_names(part_of(x, of))
            names += [f"{name} of {of!r}" for name in own] if isinstance(of, str) else own
        return names


class ProductGeometry(Geometry):
    """The factors' geometries side by side; blocks that no factor names are Euclidean."""

    def __init__(self, group: Product, weights: Weights):
        super().__init__(group, weights)
        self.parts = [(f.geometry(part_of_weights(weights, of)), of) for f, of in group.factors()]
        self.isometric = all(geometry.isometric for geometry, _ in self.parts)

    def remembering(self) -> "ProductGeometry":
        """See `Geometry.remembering`: every factor does."""
        return self._with_parts(lambda geometry: geometry.remembering())

    def stepping(self) -> "ProductGeometry":
        """See `Geometry.stepping`: every factor is."""
        return self._with_parts(lambda geometry: geometry.stepping())

    def _with_parts(self, change: Callable[[Geometry], Geometry]) -> "ProductGeometry":
        other = copy.copy(self)
        other.parts = [(change(geometry), of) for geometry, of in self.parts]
        return other

    def _each(self, x: Point, operation: Callable[[Geometry, tuple[str, ...] | str], Point]) -> Point:
        return _with(x, {of: operation(geometry, of) for geometry, of in self.parts})

    def _free(self, x: Point) -> Point:
        """The blocks that no factor names."""
        return {n: t for n, t in blocks_of(x).items() if n not in self.group.block_names}

    def _sum(self, x: Point, value: Callable[[Geometry, tuple[str, ...] | str], Tensor], u: Point, v: Point) -> Tensor:
        """Sum of a value over the factors, plus <u, v> over the free blocks."""
        ndim, free = self.group.batch_ndim(x), self._free(x)
        total = first(x).real.new_zeros(())
        for geometry, of in self.parts:
            total = total + value(geometry, of)
        if not free:
            return total
        product = flatten(map_blocks(torch.mul, self._free(u), self._free(v)), ndim)
        w = flat_weights(self._free_weights(free), free, ndim)
        return total + (product if w is None else product * w).sum(-1)

    def _free_weights(self, free: Point) -> Weights:
        if isinstance(self.weights, Tensor):
            return {"": self.weights} if "" in free else None  # the trivial group on a tensor
        if self.weights is None:
            return None
        return {name: w for name, w in self.weights.items() if name in free} or None

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """See `Geometry.inner`."""
        return self._sum(x, lambda g, of: g.inner(part_of(x, of), part_of(u, of), part_of(v, of)), u, v)

    def horizontal(self, x: Point, u: Point) -> Point:
        """See `Geometry.horizontal`."""
        return self._each(u, lambda g, of: g.horizontal(part_of(x, of), part_of(u, of)))

    def gradient(self, x: Point, derivative: Point) -> Point:
        """See `Geometry.gradient`."""
        return self._each(
            self._free_scaled(derivative, x, -1.0), lambda g, of: g.gradient(part_of(x, of), part_of(derivative, of))
        )

    def components(self, x: Point, u: Point) -> Point:
        """See `Geometry.components`."""
        return self._each(self._free_scaled(u, x, 0.5), lambda g, of: g.components(part_of(x, of), part_of(u, of)))

    def _free_scaled(self, u: Point, x: Point, power: float) -> Point:
        free = self._free(u)
        ndim = self.group.batch_ndim(x)
        w = flat_weights(self._free_weights(free), free, ndim) if free else None
        if w is None:
            return u
        return like_point({**blocks_of(u), **unflatten(flatten(free, ndim) * w**power, free, ndim)}, u)

    def retract(self, x: Point, u: Point) -> Point:
        """See `Geometry.retract`."""
        return self._each(map_blocks(torch.add, x, u), lambda g, of: g.retract(part_of(x, of), part_of(u, of)))

    def follow(self, x: Point, y: Point, check: Check = unchecked) -> Point:
        """See `Geometry.follow`."""
        for values in self._free(y).values():
            check(values)
        return self._each(y, lambda g, of: g.follow(part_of(x, of), part_of(y, of), check))

    def exp(self, x: Point, u: Point) -> Point:
        """See `Geometry.exp`."""
        return self._each(map_blocks(torch.add, x, u), lambda g, of: g.exp(part_of(x, of), part_of(u, of)))

    def log(self, x: Point, y: Point) -> Point:
        """See `Geometry.log`."""
        return self._each(map_blocks(torch.sub, y, x), lambda g, of: g.log(part_of(x, of), part_of(y, of)))

    def dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.dist`: the root of the sum of squared distances."""
        return safe_root(self.squared_dist(x, y))

    def squared_dist(self, x: Point, y: Point) -> Tensor:
        """See `Geometry.squared_dist`."""
        u = map_blocks(torch.sub, y, x)
        return self._sum(x, lambda g, of: g.squared_dist(part_of(x, of), part_of(y, of)), u, u)

    def align(self, x: Point, to: Point) -> Point:
        """See `Geometry.align`."""
        return self._each(x, lambda g, of: g.align(part_of(x, of), part_of(to, of)))

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """See `Geometry.transport`."""
        return self._each(v, lambda g, of: g.transport(part_of(x, of), part_of(y, of), part_of(v, of)))


def _mask(group: GaugeGroup, form: Canonical) -> Tensor:
    if form.regular is not None:
        return form.regular
    return torch.ones(*form.xi.shape[:-1], len(group.regular_columns()), dtype=torch.bool, device=form.xi.device)


def _named(y: Point, of: tuple[str, ...] | str) -> dict[str, Tensor]:
    return {of: y} if isinstance(of, str) else dict(y)


def _with(x: Point, parts: dict) -> Point:
    """`x` with the blocks of `parts` replaced."""
    if not parts:
        return x
    new = {name: t for of, y in parts.items() for name, t in _named(y, of).items()}
    return {name: new.get(name, t) for name, t in x.items()}
