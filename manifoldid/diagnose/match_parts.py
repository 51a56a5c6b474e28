"""A group of the catalogue on parts of one vector, read off the fields: which coordinates move together, and how.

Fields fall into clusters that move coordinates of their own; every cluster is one factor. Within a cluster that mixes
coordinates, those that are mixed with each other are the rows of a matrix, and a row moves like the first one (x -> x B) or like
its dual (x -> -x B').
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import scipy  # its submodules load on first use
import torch
from torch import Tensor

import manifoldid.groups as catalogue
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.groups import GaugeGroup, Parts, Product

F = TypeVar("F", bound=Field)

_SAME = 1e-9


@dataclass
class _Factors:
    """Factors of a product, and where their blocks lie in the vector."""

    joint: list[GaugeGroup] = field(default_factory=list)  # groups that name their blocks
    single: dict[str, GaugeGroup] = field(default_factory=dict)  # groups on the tensor of one block
    places: dict[str, Tensor] = field(default_factory=dict)
    units: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)  # by numbers of weights

    def block(self, name: str, places: Tensor) -> str:
        """A new block, its name made unique by a number."""
        unique = name if name not in self.places else f"{name}{len(self.places)}"
        self.places[unique] = places
        return unique

    def group(self) -> GaugeGroup:
        """All of it as one group on vectors."""
        for units in self.units.values():
            incoming = self.block("incoming", torch.stack([plus for plus, _ in units]))
            outgoing = self.block("outgoing", torch.stack([minus for _, minus in units], dim=1))
            self.joint.append(catalogue.Rescaling(incoming=(incoming,), outgoing=(outgoing,)))
        alone = len(self.joint) == 1 and not self.single
        return Parts(self.joint[0] if alone else Product(*self.joint, **self.single), **self.places)


def group_on_parts(fields: list[Field], positive: Tensor) -> GaugeGroup | None:
    """The group that affine fields on a vector suggest; None if they suggest none.

    Args:
        fields: The fields.
        positive: Coordinates (n,) that are positive at all points.

    Returns:
        A proposal: whether it has the orbits of the fields is for the caller to see.
    """
    affine = [f for f in fields if isinstance(f, ClosedField) and f.is_affine]
    if len(affine) < len(fields):
        return None
    found = _Factors()
    for cluster in clusters(affine):
        if not (_add_elementwise(found, cluster, positive) or _add_matrix(found, cluster)):
            return None
    return found.group()


def clusters(fields: Sequence[F]) -> list[list[F]]:
    """Fields that move common coordinates, directly or through others; fields without a formula move all."""
    moved = [f.moved_rows() if isinstance(f, ClosedField) else torch.ones(f.size, dtype=torch.bool) for f in fields]
    table = scipy.sparse.csr_matrix(torch.stack(moved).numpy())
    _, label = scipy.sparse.csgraph.connected_components(table.astype(np.float64) @ table.T, directed=False)
    return [[f for f, own in zip(fields, label, strict=True) if own == k] for k in range(label.max() + 1)]


def _add_elementwise(found: _Factors, cluster: list[ClosedField], positive: Tensor) -> bool:
    """A cluster of one constant, one scaling, or both."""
    constants = [f.constant for f in cluster if not len(f.rows) and f.constant is not None]
    scalings = [f.diagonal for f in cluster if len(f.rows) and f.is_diagonal and f.constant is None]
    if len(constants) + len(scalings) < len(cluster) or len(constants) > 1 or len(scalings) > 1:
        return False
    if any(len(v[v != 0].abs().unique()) > 1 for v in (*constants, *scalings)):
        return False  # units of their own
    one = constants[0] if constants else torch.zeros_like(scalings[0])
    size = scalings[0] if scalings else torch.zeros_like(one)
    if not scalings:
        found.single[found.block("shifted", _places(one != 0))] = catalogue.Translation()
        return bool((one[one != 0] == one[one != 0][0]).all())
    if not constants:
        plus, minus = _places(size > 0), _places(size < 0)
        if len(plus) and len(minus):
            found.units.setdefault((len(plus), len(minus)), []).append((plus, minus))
            return True
        moved = _places(size != 0)
        kind = catalogue.PositiveScaling if bool(positive[moved].all()) else catalogue.Scaling
        found.single[found.block("scaled", moved)] = kind()
        return True
    return _add_location_scale(found, one, size)


def _add_location_scale(found: _Factors, one: Tensor, size: Tensor) -> bool:
    size = size * torch.sign(size[one != 0][0])
    if bool((size[one != 0] <= 0).any()) or len(one[one != 0].unique()) > 1:
        return False
    location = found.block("location", _places(one != 0))
    scales, slopes = _places((one == 0) & (size > 0)), _places(size < 0)
    if not len(scales) and not len(slopes):
        found.single[location] = catalogue.Affine()
        return True
    found.joint.append(
        catalogue.LocationScale(
            locations=(location,),
            scales=(found.block("scale", scales),) if len(scales) else (),
            slopes=(found.block("slope", slopes),) if len(slopes) else (),
        )
    )
    return True


def _add_matrix(found: _Factors, cluster: list[ClosedField]) -> bool:
    """A cluster that acts on the rows of one matrix, or of two as on factors of a product."""
    rows = _rows(cluster)
    if rows is None:
        return False
    k, count = rows.shape[1], len(cluster)
    maps, constants = _action(cluster, rows)
    alike = ((maps - maps[0]).abs() < _SAME).flatten(1).all(1)
    dual = ((maps + maps[0].mT).abs() < _SAME).flatten(1).all(1)
    moved = bool(constants.any())
    if moved and bool((constants != constants[0]).any()):
        return False
    if bool(alike.all()):
        kinds = {
            (False, k * (k - 1) // 2): catalogue.Orthogonal,
            (True, k * (k + 1) // 2): catalogue.RigidMotion,
            (True, k * (k + 1) // 2 + 1): catalogue.Similarity,
        }
        kind = kinds.get((moved, count))
        if kind is not None:
            found.single[found.block("rows", rows)] = kind()
        return kind is not None
    if moved or count != k * k or not bool((alike | dual).all()):
        return False
    first, second = found.block("U", rows[alike]), found.block("V", rows[~alike])
    found.joint.append(catalogue.GeneralLinear(first, second))
    return True


def mixes_factors(cluster: list[Field]) -> bool:
    """Whether the fields are all of GL(k) on the rows of two factors of a product, wherever their entries lie."""
    affine = [f for f in cluster if isinstance(f, ClosedField) and f.is_affine]
    found = _Factors()
    return len(affine) == len(cluster) and _add_matrix(found, affine) and bool(found.joint)


def _rows(cluster: list[ClosedField]) -> Tensor | None:
    """Coordinates (m, k) that are mixed with each other, row by row; None if rows have different lengths."""
    n = cluster[0].size
    pairs = torch.cat([torch.stack([f.rows, f.columns]) for f in cluster], dim=1).numpy()
    graph = scipy.sparse.csr_matrix((np.ones(pairs.shape[1]), tuple(pairs)), shape=(n, n))
    _, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    moved = torch.stack([f.moved_rows() for f in cluster]).any(0).nonzero()[:, 0]
    rows: dict[int, list[int]] = {}
    for i in moved.tolist():
        rows.setdefault(int(label[i]), []).append(i)
    lengths = {len(row) for row in rows.values()}
    return torch.tensor(list(rows.values())) if len(lengths) == 1 and lengths != {1} else None


def _action(cluster: list[ClosedField], rows: Tensor) -> tuple[Tensor, Tensor]:
    """What the fields do to each row: matrices (m, fields, k, k) and constants (m, fields, k)."""
    m, k = rows.shape
    place = torch.full((cluster[0].size,), -1)
    place[rows.reshape(-1)] = torch.arange(m * k)
    maps = torch.zeros(m, len(cluster), k, k, dtype=torch.float64)
    constants = torch.zeros(m, len(cluster), k, dtype=torch.float64)
    for j, f in enumerate(cluster):
        to, source = place[f.rows], place[f.columns]
        maps[to // k, j, to % k, source % k] = f.entries
        if f.constant is not None:
            constants[:, j] = f.constant[rows]
    return maps, constants


def _places(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, 0]
