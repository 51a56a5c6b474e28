"""Finite groups: permutations, signs, and lists of maps. They have no dimension; ensembles are aligned over them."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import scipy  # its submodules load on first use
import torch
from torch import Tensor

from manifoldid.errors import DegeneratePointError
from manifoldid.groups._isometric import IsometricGeometry
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.points import (
    Point,
    Weights,
    blocks_of,
    detached,
    first,
    flat_weights,
    flatten,
    like_point,
    map_blocks,
    unflatten,
)


class _FiniteGroup(GaugeGroup):
    """Groups of dimension 0: they have no coordinates, every point is its own section, and only alignment moves points."""

    def dimension(self, x: Point) -> int:
        return 0

    def act(self, xi: Tensor, x: Point) -> Point:
        """`x`: there are no coordinates."""
        return x

    def undo(self, xi: Tensor, x: Point) -> Point:
        return x

    def vertical_basis(self, x: Point) -> Point:
        ndim = self.batch_ndim(x)
        return map_blocks(lambda t: t.new_zeros(*t.shape[:ndim], 0, *t.shape[ndim:]), x)

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        return Canonical(x, self._no_coordinates(x))

    def _no_coordinates(self, x: Point) -> Tensor:
        t = first(x)
        dtype = t.dtype.to_real() if t.is_complex() else t.dtype
        return torch.zeros(*t.shape[: self.batch_ndim(x)], 0, dtype=dtype, device=t.device)

    @abstractmethod
    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """The image of `x` closest to `to`; which element makes it is not said."""

    def geometry(self, weights: Weights = None) -> "FiniteGeometry":
        return FiniteGeometry(self, weights)


class FiniteGeometry(IsometricGeometry):
    """Metric sum w u v; all vectors are horizontal. Distances are to the closest image."""

    def horizontal(self, x: Point, u: Point) -> Point:
        """See `Geometry.horizontal`: `u`."""
        return u

    def components(self, x: Point, u: Point) -> Point:
        """See `Geometry.components`."""
        return self._weighted(u, x, 0.5)

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """See `Geometry.transport`: `v`."""
        return v


@dataclass(frozen=True, eq=False, repr=False)
class _Along(_FiniteGroup):
    """Finite groups that act along one dimension of a point, of several blocks together where `dim` is a dict."""

    dim: int | Mapping[str, int] = -1  # type: ignore[assignment]  # in the base class, the dimension of the group
    event_dim: int = 0

    def __post_init__(self) -> None:
        dims = self.dim
        if isinstance(dims, Mapping) and dims and all(isinstance(k, str) and type(d) is int for k, d in dims.items()):
            object.__setattr__(self, "dim", dict(dims))
            object.__setattr__(self, "block_names", tuple(dims))
        elif type(dims) is not int:
            raise TypeError(f"`dim` must be a dimension or a dict from names of blocks to dimensions, got {dims!r}")
        if type(self.event_dim) is not int or self.event_dim < 0:
            raise TypeError(f"`event_dim` must be a number of dimensions, got {self.event_dim!r}")

    def batch_ndim(self, x: Point) -> int:
        """How many leading dimensions are batch: one where there is one to spare, unless `event_dim` says otherwise."""
        moving = self._moving(x)
        if self.event_dim:
            return max(0, min(t.ndim for t in moving.values()) - self.event_dim)
        return max(0, min(1, *(t.ndim - self._least(name) for name, t in moving.items())))

    def validate(self, x: Any, name: str = "point") -> Point:
        """See `GaugeGroup.validate`; also that all blocks have the dimension, of one size.

        Raises:
            ValueError: They have not.
        """
        x = super().validate(x, name)
        for block, t in self._moving(x).items():
            if t.ndim < self._least(block):
                label = f"{name}[{block!r}]" if block else name
                raise ValueError(
                    f"`{label}` has no dimension {self._dim_of(block)} (`dim`): its shape is {tuple(t.shape)}"
                )
        sizes = sorted({rows.shape[-2] for rows in self._rows(x)})
        if len(sizes) > 1:
            raise ValueError(f"`{name}` has blocks of different sizes along `dim` of {self}: {sizes}")
        return x

    def _dim_of(self, name: str) -> int:
        return self.dim[name] if isinstance(self.dim, Mapping) else self.dim

    def _least(self, name: str) -> int:
        """The least number of dimensions of one point."""
        d = self._dim_of(name)
        return d + 1 if d >= 0 else -d

    def _place(self, name: str, t: Tensor, ndim: int) -> int:
        d = self._dim_of(name)
        return d + (ndim if d >= 0 else t.ndim)

    def _moving(self, x: Point) -> dict[str, Tensor]:
        """The blocks that are acted on."""
        return {name: t for name, t in blocks_of(x).items() if not self.block_names or name in self.block_names}

    def _rows(self, x: Point) -> list[Tensor]:
        """Every moving block as real rows (*batch, K, m), K along `dim`."""
        ndim = self.batch_ndim(x)
        return [_rows_of(t, self._place(name, t, ndim), ndim) for name, t in self._moving(x).items()]

    def _pair(self, x: Point, to: Point, weights: Weights) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows of `x` and of `to` (*batch, K, m), without derivative, and item weights beside them (K, m)."""
        goal = map_blocks(lambda a, b: a.expand_as(b), to, x)
        rows, others = (torch.cat(self._rows(detached(p)), dim=-1) for p in (x, goal))
        ndim = self.batch_ndim(x)
        if flat_weights(weights, x, ndim) is None:
            return rows, others, None
        parts = []
        for name, t in self._moving(x).items():
            w = weights if isinstance(weights, Tensor) or weights is None else weights.get(name)
            event = t.shape[ndim:] + torch.Size((2,) if t.is_complex() else ())
            flat = rows.new_ones(event) if w is None else flat_weights(w, t, ndim)
            parts.append(
                _rows_of(
                    rows.new_ones(event) if flat is None else flat.reshape(event), self._place(name, t, ndim) - ndim, 0
                )
            )
        return rows, others, torch.cat(parts, dim=-1)


@dataclass(frozen=True, eq=False, repr=False)
class Permutation(_Along):
    """Items along a dimension may change places: hidden units, mixture components, factors (label switching).

    A finite group: sections leave points alone, ensembles and distances align over it (optimal assignment).

    Args:
        dim: The dimension that is permuted; a dict from names of blocks to dimensions where several tensors are permuted together,
            `{"w": 0, "b": 0, "v": -1}` for hidden units. Negative ones count from the end, others from the first dimension of one
            point.
        event_dim: How many trailing dimensions make one point; 0 means all but the first, as in an ensemble (M, ...), or all where
            there are no more than `dim` needs.
    """

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """The permutation of `x` closest to `to`, by scipy's linear_sum_assignment."""
        rows, goal, w = self._pair(x, to, weights)
        gain = rows @ (goal if w is None else goal * w).mT
        if w is not None:  # how much an item weighs depends on where it is put
            gain = gain - 0.5 * rows.square() @ w.mT
        order = _assignment(gain)
        ndim = self.batch_ndim(x)
        y = {name: _taken(t, order, self._place(name, t, ndim), ndim) for name, t in self._moving(x).items()}
        return Canonical(like_point({**blocks_of(x), **y}, x), self._no_coordinates(x))


@dataclass(frozen=True, eq=False, repr=False)
class SignFlip(_Along):
    """Items along a dimension may change their sign: factors, eigenvectors, hidden units of odd activations.

    A finite group: sections leave points alone, ensembles and distances align over it.

    Args:
        dim: The dimension whose items have a sign each; a dict from names of blocks to dimensions where several tensors change sign
            together, `{"w": 0, "b": 0, "v": -1}` for tanh units. Negative ones count from the end, others from the first dimension of
            one point.
        event_dim: How many trailing dimensions make one point; 0 means all but the first, as in an ensemble (M, ...), or all where
            there are no more than `dim` needs.
    """

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """`x` with the signs that make its items point the way of those of `to`."""
        rows, goal, w = self._pair(x, to, weights)
        along = (rows * goal if w is None else rows * goal * w).sum(-1)
        signs = torch.where(along < 0, -torch.ones_like(along), torch.ones_like(along))
        ndim, y = self.batch_ndim(x), {}
        for name, t in self._moving(x).items():
            place = self._place(name, t, ndim)
            y[name] = t * signs[(..., *(None,) * (place - ndim), slice(None), *(None,) * (t.ndim - place - 1))]
        return Canonical(like_point({**blocks_of(x), **y}, x), self._no_coordinates(x))


class Finite(_FiniteGroup):
    """The finite group generated by maps: the other branch of a likelihood, the symmetries that `diagnose` finds.

    Sections leave points alone, ensembles and distances align over all images that the maps and their compositions make of a
    point. Images that are not finite (outside the domain of a map) are left out.

    Args:
        *maps: Functions of one point that return another one, shaped alike; their compositions must be finitely many.
        event_dim: How many trailing dimensions make one point; 0 means all but the first, as in an ensemble (M, ...), and one for
            vectors.
        blocks: Names of the blocks that the maps act on, for dict points in a `Product`; default all.

    Raises:
        TypeError: A map is no function.
    """

    maps: tuple[Callable[[Point], Point], ...]

    def __init__(self, *maps: Callable[[Point], Point], event_dim: int = 0, blocks: tuple[str, ...] = ()):
        if not all(callable(one) for one in maps):
            raise TypeError("`Finite` takes functions of a point")
        object.__setattr__(self, "maps", tuple(maps))
        object.__setattr__(self, "event_dim", event_dim)
        object.__setattr__(self, "block_names", tuple(blocks))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: make a new one instead of setting `{name}`")

    def __repr__(self) -> str:
        parts = [repr(one) for one in self.maps]
        parts += [f"event_dim={self.event_dim}"] if self.event_dim else []
        parts += [f"blocks={self.block_names}"] if self.block_names else []
        return f"Finite({', '.join(parts)})"

    def __str__(self) -> str:
        """As the repr, with maps by what they do where they say it (those of `diagnose` do)."""
        return f"Finite({'; '.join(map(_in_words, self.maps))})"

    def images_by_map(self, x: Point) -> list[tuple[str, Point]]:
        """The image of one point, as a member of an ensemble is one, under each map, and the map in words."""
        members = map_blocks(lambda t: t[None], x)
        ndim = self.batch_ndim(members)
        return [(_in_words(one), map_blocks(lambda t: t[0], self._mapped(one, members, ndim))) for one in self.maps]

    def batch_ndim(self, x: Point) -> int:
        """How many leading dimensions are batch: one, as in an ensemble, unless `event_dim` says otherwise."""
        least = min(t.ndim for name, t in blocks_of(x).items() if not self.block_names or name in self.block_names)
        return max(0, least - self.event_dim) if self.event_dim else min(1, max(0, least - 1))

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """The image of `x` closest to `to` under the maps and their compositions.

        Raises:
            DegeneratePointError: The maps make more than 500 images of a point: they generate no finite group.
        """
        ndim = self.batch_ndim(x)
        w = flat_weights(weights, x, ndim)
        images = torch.stack([flatten(image, ndim) for image in self.images(x)])
        rest = (images - flatten(map_blocks(lambda a, b: a.expand_as(b), to, x), ndim)).detach()
        square = (rest.square() if w is None else rest.square() * w).sum(-1)
        square = torch.where(torch.isfinite(square), square, torch.full_like(square, torch.inf))
        best = square.argmin(0)
        chosen = images.gather(0, best[None, ..., None].expand(1, *images.shape[1:]))[0]
        return Canonical(unflatten(chosen, x, ndim), self._no_coordinates(x))

    def images(self, x: Point) -> list[Point]:
        """Different images of the points `x` (*batch, *event) under the group, `x` itself first."""
        ndim, images, new = self.batch_ndim(x), [x], [x]
        known = _comparable(x, ndim)[None]
        while new:
            candidates = [self._mapped(one, y, ndim) for y in new for one in self.maps]
            new = []
            for y in candidates:
                vector = _comparable(y, ndim)
                if not _among(vector, known):
                    images.append(y)
                    new.append(y)
                    known = torch.cat([known, vector[None]])
            if len(images) > _MOST_IMAGES:
                raise DegeneratePointError(
                    f"`maps` make more than {_MOST_IMAGES} images of a point: they do not generate a finite group; "
                    "a continuous symmetry is a GaugeGroup with `act`"
                )
        return images

    @staticmethod
    def _mapped(one: Callable[[Point], Point], x: Point, ndim: int) -> Point:
        """A map of single points on every point of a batch."""
        if ndim == 0:
            return _completed(one(x), x)
        count = first(x).shape[0]
        entries = [Finite._mapped(one, map_blocks(lambda t, k=k: t[k], x), ndim - 1) for k in range(count)]
        return map_blocks(lambda *ts: torch.stack(ts), *entries)


_MOST_IMAGES = 500


def _in_words(one: Callable[[Point], Point]) -> str:
    """What a map does, or what it is called."""
    return getattr(one, "formula", "") or getattr(one, "__name__", "") or repr(one)


def _completed(y: Point, x: Point) -> Point:
    if isinstance(x, Tensor):
        return y
    given = blocks_of(y)
    return {name: given.get(name, t) for name, t in x.items()}


def _comparable(x: Point, ndim: int) -> Tensor:
    """`x` flat and without derivative; entries that are not finite count as equal to one another."""
    vector = flatten(x, ndim).detach()
    return torch.where(torch.isfinite(vector), vector, torch.full_like(vector, torch.inf))


def _among(vector: Tensor, known: Tensor) -> bool:
    """Whether `vector` (*batch, N) is one of `known` (k, *batch, N) up to rounding."""
    tolerance = torch.finfo(vector.dtype).eps ** 0.5
    size = torch.where(torch.isfinite(vector), vector.abs(), torch.zeros_like(vector)).amax() if vector.numel() else 0.0
    close = torch.isclose(vector, known, rtol=tolerance, atol=tolerance * float(size))
    return bool(close.flatten(1).all(1).any())


def _rows_of(t: Tensor, place: int, ndim: int) -> Tensor:
    """`t` as real rows (*batch, K, m), K its dimension `place`."""
    if t.is_complex():
        t = torch.view_as_real(t.resolve_conj())
    moved = t.movedim(place, ndim)
    return moved.flatten(ndim + 1) if moved.ndim > ndim + 1 else moved[..., None]


def _assignment(gain: Tensor) -> Tensor:
    """For gains (*batch, K, K) of putting item i to place j, the items (*batch, K) at the places of largest total gain."""
    table = torch.nan_to_num(gain).double().reshape(-1, *gain.shape[-2:]).cpu().numpy()
    places = [torch.from_numpy(scipy.optimize.linear_sum_assignment(one, maximize=True)[1]) for one in table]
    items = torch.stack(places).argsort(-1) if places else torch.zeros(0, gain.shape[-1], dtype=torch.long)
    return items.reshape(gain.shape[:-1]).to(gain.device)


def _taken(t: Tensor, order: Tensor, place: int, ndim: int) -> Tensor:
    """The items `order` (*batch, K) of dimension `place`."""
    moved = t.movedim(place, ndim)
    index = order[(..., *(None,) * (moved.ndim - ndim - 1))].expand_as(moved)
    return moved.gather(ndim, index).movedim(ndim, place)
