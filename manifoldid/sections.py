"""Sections: one representative per orbit, and the frame that carries a point to it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from manifoldid.distributed.dtensors import Local, is_spread, local_value, localised
from manifoldid.groups import GaugeGroup
from manifoldid.groups._items import ItemGroup
from manifoldid.groups.base import (
    Canonical,
    canonicalise,
    check_quotient,
    checked,
    code_of,
    require_group,
    same_dtype,
    same_value,
)
from manifoldid.groups.orbit import batch_shape
from manifoldid.points import (
    AnyPoint,
    Point,
    Weights,
    as_point,
    cast_like,
    compute_point,
    detached,
    is_dict,
    map_blocks,
    own_copy,
)


class _Immutable:
    """A value: fields set once, compared and printed by them."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: make a new one instead of setting `{name}`")

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and same_value(vars(self), vars(other))

    def __hash__(self) -> int:
        return hash((type(self), tuple(vars(self))))

    def __repr__(self) -> str:
        return code_of(self)


class _AnySection(_Immutable):
    """What every section does; a subclass says which representative it takes."""

    group: GaugeGroup

    def _on(self, here: Local) -> "_AnySection":
        """The same section, for the items on this rank."""
        raise NotImplementedError

    @property
    def _item_weights(self) -> Weights:
        return None

    @property
    def defect(self) -> str:
        """Which text of the group says why a point has no representative."""
        return "defect"

    def canonical_form(self, x: Point, blocks: Any = None) -> Canonical:
        """Representative, frame and verdict in the dtype of the computation (float32 for half precision), values unchecked."""
        raise NotImplementedError

    def __call__(self, x: AnyPoint, blocks: Any = None) -> AnyPoint:
        """The representative of the orbit of `x`.

        Args:
            x: A point (*batch, *event), or a dict of blocks.
            blocks: Labels (n,) of a ragged partition that changes from call to call (prompts); replaces `blocks` of the group.

        Returns:
            A point shaped like `x`, differentiable in `x`; `section(g.x) == section(x)`.

        Raises:
            TypeError: `x` is no point, or the group takes no blocks.
            ValueError: Shapes do not fit, or entries are not finite.
            DegeneratePointError: A point has no representative. Values are looked at in eager mode only: under compile,
                export and vmap a degenerate point gives a zeroed row.
        """
        x, form = self._form(x, blocks)
        return same_dtype(form, x).point

    def frame(self, x: Point, blocks: Any = None) -> Tensor:
        """The moving frame xi (*batch, dim): `group.act(xi, section(x)) == x`. Arguments and errors as in a call."""
        x, form = self._form(x, blocks)
        return same_dtype(form, x).xi

    def carry(self, xi: Tensor, y: AnyPoint, blocks: Any = None) -> AnyPoint:
        """The move that takes x to section(x), `xi = section.frame(x)`, applied to another point.

        Args:
            xi: A frame (*batch, dim).
            y: Another point, with other items if the group does not tell them apart.
            blocks: Labels of the items of `y`, as in a call.

        Returns:
            A point shaped like `y`.

        Raises:
            TypeError: `y` is no point.
            ValueError: Shapes do not fit.
        """
        group = _with_blocks(self.group, blocks)
        y = group.validate(y, "y")
        dimension = group.dimension(y)
        if not isinstance(xi, Tensor):
            raise TypeError(f"`xi` must be a tensor, the frame of a point, got {type(xi).__name__}")
        if xi.shape[-1:] != (dimension,):
            raise ValueError(f"`xi` must have shape (*batch, {dimension}) for {group}, got {tuple(xi.shape)}")
        batch = batch_shape(group, y)
        if any(s != t and 1 not in (s, t) for s, t in zip(xi.shape[-2::-1], batch[::-1], strict=False)):
            raise ValueError(
                f"`xi` has the batch shape {tuple(xi.shape[:-1])}, `y` has {tuple(batch)}: one frame per point of `y`"
            )
        here = localised(group, y)
        moved = here.group.undo(compute_point(here.own_frame(xi)), compute_point(here.point))
        return here.restore(cast_like(moved, here.point))

    def _form(self, x: Point, blocks: Any) -> tuple[Point, Canonical]:
        group = _with_blocks(self.group, blocks)
        x = group.validate(x)
        check_quotient(group, x)
        if not is_spread(x):
            form = self.canonical_form(compute_point(x), blocks)
            return x, checked(form, group, x, defect=self.defect)
        here = localised(group, x, self._item_weights)
        form = checked(
            self._on(here).canonical_form(compute_point(here.point)), here.group, here.point, defect=self.defect
        )
        form = same_dtype(form, here.point)
        return x, Canonical(here.restore(form.point), here.frame(form.xi))


class Section(_AnySection):
    """The canonical representative of every orbit, or with `at` the one closest to a given point.

    Args:
        group: The gauge group.
        weights: Item weights (n,), only ratios matter, 0 allowed (an item that does not define the origin); a dict for dict
            points.
        at: A point; then the section takes the representative closest to it: in the weighted Euclidean norm, except for groups whose
            metric is another one. `PositiveScaling` measures logarithms; `LocationScale` and `Rescaling` take the closest one in
            their invariant metric (scales and slopes by logarithms; the balance of `at` in every unit); `GeneralLinear` takes the
            balance of `at`, rotated to it. What all have in common: the section at `at` maps `at` to itself.

    Raises:
        TypeError: `group` is no group.
    """

    weights: Weights
    at: Point | None

    def __init__(self, group: GaugeGroup, weights: Weights = None, at: Point | None = None):
        require_group(group)
        self._set(group=group, weights=own_copy(weights), at=None if at is None else own_copy(as_point(at, "at")))

    @property
    def defect(self) -> str:
        """See the base class."""
        return "defect" if self.at is None else "closest_defect"

    def _on(self, here: Local) -> "Section":
        at = None if self.at is None else map_blocks(local_value, here.beside(self.at))
        return Section(here.group, here.weights, at)

    @property
    def _item_weights(self) -> Weights:
        return self.weights

    def canonical_form(self, x: Point, blocks: Any = None) -> Canonical:
        """See the base class."""
        group = _with_blocks(self.group, blocks)
        if self.at is None:
            return group.canonical(x, self.weights)
        return group.closest(x, _beside(self.at, x), self.weights)


class Reference(_AnySection):
    """The representative on which reference items have fixed values.

    Translation: x[index] = 0. Scaling and PositiveScaling: x[index] = 1. Affine: index (i, j), x[i] = 0 and x[j] = 1.
    With blocks: a sequence with one of these per block. Shift: one flat index per direction, for dict points a dict from
    block names to indices.

    Args:
        group: The gauge group.
        index: The reference items.

    Raises:
        TypeError: `group` is no group.
    """

    index: Any

    def __init__(self, group: GaugeGroup, index: Any):
        require_group(group)
        self._set(group=group, index=index.tolist() if isinstance(index, Tensor) else index)

    @property
    def defect(self) -> str:
        """See the base class."""
        return "reference_defect"

    def _on(self, here: Local) -> "Reference":
        return Reference(here.group, self.index)

    def canonical_form(self, x: Point, blocks: Any = None) -> Canonical:
        """See the base class."""
        return _with_blocks(self.group, blocks).reference_frame(x, self.index)


SectionLike = _AnySection | Mapping[str, _AnySection] | Callable[[Point], Point] | None


def as_section(section: SectionLike, group: GaugeGroup, weights: Weights = None) -> Callable[[Point], Point]:
    """What users hand in as `section=`, as a function of points.

    Args:
        section: None (canonical), a section, a dict of sections for the blocks of a dict point, or any callable.
        group: The gauge group of the points.
        weights: Item weights of the canonical section.

    Returns:
        A callable that takes points to points. Whether a callable of the user is constant on orbits is not checked here.

    Raises:
        TypeError: `section` is none of these.
        ValueError: A dict names a block that no factor of the group acts on.
    """
    if section is None:
        return Section(group, weights)
    if isinstance(section, Mapping):
        return _BlockSections(dict(section), group, weights)
    if not callable(section):
        kind = "the group: take mid.Section(group)" if isinstance(section, GaugeGroup) else type(section).__name__
        hint = "; statistics are over the members already, there is no dim" if isinstance(section, int) else ""
        raise TypeError(f"`section` must be a section, a dict of sections or a callable, got {kind}{hint}")
    return section


class _BlockSections(_Immutable):
    """Sections of single blocks of a dict point; the other factors of the group take their canonical section."""

    by_block: dict[str, Callable]
    canonical: Section

    def __init__(self, by_block: dict[str, Callable], group: GaugeGroup, weights: Weights):
        names = {of for _, of in group.factors() if isinstance(of, str)}
        unknown = sorted(set(by_block) - names)
        if unknown:
            raise ValueError(
                f"`section` names the blocks {unknown}, but {group} has a group of its own on {sorted(names)}"
            )
        self._set(by_block=by_block, canonical=Section(group, weights))

    def __call__(self, x: Point) -> Point:
        if not is_dict(x):
            raise ValueError("`section` is a dict of sections, so the point must be a dict of tensors")
        y = dict(self.canonical(x))
        for name, section in self.by_block.items():
            y[name] = section(x[name])
        return y


def _with_blocks(group: GaugeGroup, blocks: Any) -> GaugeGroup:
    if blocks is None:
        return group
    if not isinstance(group, ItemGroup):
        raise TypeError(f"`blocks` needs a group on items (Translation, Scaling, PositiveScaling, Affine), not {group}")
    return group.with_blocks(blocks)


def _beside(at: Point, x: Point) -> Point:
    def block(a: Tensor, t: Tensor) -> Tensor:
        return torch.broadcast_to(a.to(dtype=t.dtype, device=t.device), t.shape)

    if isinstance(x, Tensor):
        return block(at, x)
    return {name: block(at[name], t) if name in at else detached(t) for name, t in x.items()}


__all__ = ["Reference", "Section", "SectionLike", "as_section", "canonicalise"]
