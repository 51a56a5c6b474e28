"""The directions that predictions cannot see to first order: dense null spaces at random points."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.diagnose.probe import Probe

_KEPT, _DROPPED = 1e-12, 1e-8  # a cut lies between: the smallest value that may count, the largest that may be rounding
_ROW_FLOOR = 1e-4  # outputs are brought to one size, but rounding is not blown up


@dataclass(frozen=True)
class LocalNull:
    """What predictions see to first order at one point, in the scaled coordinates x / scale.

    Attributes:
        x: The flat point (n,).
        seen: Orthonormal basis (r, n) of the directions that are seen.
        null: Orthonormal basis (n, d) of those that are not.
        values: Relative singular values, decreasing.
        kept: The smallest singular value that counts, 1 if there is none.
        dropped: The largest that does not, 0 if there is none.
    """

    x: Tensor
    seen: Tensor
    null: Tensor
    values: Tensor
    kept: float
    dropped: float

    @property
    def rank(self) -> int:
        """How many directions are seen."""
        return self.seen.shape[0]


def scale_of(points: Tensor, spans: Iterable[tuple[int, int]]) -> Tensor:
    """The unit of each coordinate (n,), a power of 8: that of its block, unless its size is another by a factor of 30."""
    size = points.abs().mean(0)
    unit = torch.ones_like(size)
    for start, stop in spans:
        inside = size[start:stop]
        positive = inside[inside > 0]
        typical = positive.median() if len(positive) else torch.ones_like(size[0])
        alike = (inside < 30 * typical) & (inside > typical / 30) | (inside == 0)
        unit[start:stop] = torch.where(alike, typical, inside)
    return 8.0 ** torch.round(torch.log(unit) / math.log(8.0))


def typical_units(scale: Tensor, spans: Iterable[tuple[int, int]]) -> Tensor:
    """Units (n,) of the blocks, whatever those of single coordinates: small numbers move as far as the others."""
    return torch.cat([scale[a:b].median().expand(b - a) for a, b in spans])


def local_null(probe: Probe, x: Tensor, scale: Tensor) -> LocalNull:
    """The null space of the derivative of the predictions at `x`.

    Columns are brought to the units `scale` and rows to one size, since neither the units of parameters nor those of outputs
    say anything about identifiability.
    """
    values, jacobian = probe.jacobian(x)
    return null_of(jacobian * scale, x, probe.exact, reference=values)


def null_of(jacobian: Tensor, x: Tensor, exact: bool = True, reference: Tensor | None = None) -> LocalNull:
    """The null space of a scaled Jacobian (p, n) at `x`; `reference`: outputs (p,), to tell zeros from rounding."""
    n = jacobian.shape[1]
    size = jacobian.norm(dim=1, keepdim=True)
    if reference is not None and len(reference) == len(size):
        zero = size[:, 0] <= 1e-15 * reference.abs()
        jacobian = jacobian.masked_fill(zero[:, None], 0.0)
        size = size.masked_fill(zero[:, None], 0.0)
    top = size.max()
    if top == 0:
        eye = torch.eye(n, dtype=torch.float64)
        return LocalNull(x, eye[:0], eye, torch.zeros(n, dtype=torch.float64), 1.0, 0.0)
    jacobian = jacobian / size.clamp_min(_ROW_FLOOR * top)
    if jacobian.shape[0] > 2 * n:  # a QR first: only the triangle has information about columns
        jacobian = torch.linalg.qr(jacobian, mode="r")[1]
    _, s, vh = torch.linalg.svd(jacobian, full_matrices=True)
    values = torch.zeros(n, dtype=torch.float64)
    values[: len(s)] = s / s[0]
    rank = cut(values, exact)
    return LocalNull(
        x,
        vh[:rank],
        vh[rank:].mT.contiguous(),
        values,
        float(values[rank - 1]) if rank else 1.0,
        float(values[rank]) if rank < n else 0.0,
    )


def cut(values: Tensor, exact: bool = True) -> int:
    """How many of the decreasing relative singular values count: those above the widest gap between rounding and sloppiness."""
    kept, dropped = (_KEPT, _DROPPED) if exact else (3e-6, 1e-4)
    floor = 1e-16 if exact else 1e-7
    best, rank = 0.0, len(values)
    if len(values) and values[-1] > dropped:
        return rank
    for r in range(1, len(values)):
        above, below = float(values[r - 1]), float(values[r])
        if above >= kept and below <= dropped:
            ratio = above / max(below, floor)
            if ratio > best:
                best, rank = ratio, r
    return rank


class NullSpaces:
    """Null spaces at as many random points as anyone asks for; points of less than generic rank are passed over.

    Attributes:
        scale: Units (n,) of the coordinates, and
        units: typical ones.
        rank: Generic rank: the largest over the probe points.
        more: How many null directions are left unnamed since they are too many.
        local: The null space at the caller's point.
    """

    def __init__(self, probe: Probe, first: int = 5):
        """Probes `first` random points and the caller's own."""
        self.probe = probe
        points = [probe.draw() for _ in range(first)]
        self.scale = scale_of(torch.stack([*points, probe.point]), probe.spans().values())
        self.units = typical_units(self.scale, probe.spans().values())
        probes = [local_null(probe, x, self.scale) for x in points]
        self.local = local_null(probe, probe.point, self.scale)
        self.rank = max(p.rank for p in [*probes, self.local])
        self.more = 0
        self.all = [*probes, self.local]
        self._regular = [p for p in probes if p.rank == self.rank]
        if self.local.rank == self.rank and (not self._regular or probe.size > 200):
            self._regular.append(self.local)

    @property
    def dim(self) -> int:
        """Dimension of the generic null space, less those directions that are left unnamed."""
        return self.probe.size - self.rank - self.more

    @property
    def dead(self) -> Tensor:
        """Places of coordinates that were set apart since nothing depends on them: none, fields of small models tell them."""
        return torch.zeros(0, dtype=torch.long)

    @property
    def jumping(self) -> Tensor:
        """Places of coordinates that were set apart since predictions only jump along them: none, finite moves tell them."""
        return torch.zeros(0, dtype=torch.long)

    @property
    def left_out(self) -> bool:
        """Whether there were too many candidates for a model of this size: there are not in small ones."""
        return False

    @property
    def kept(self) -> float:
        """The smallest relative singular value that counts, over the regular points."""
        return min((p.kept for p in self.all if p.rank == self.rank), default=1.0)

    @property
    def dropped(self) -> float:
        """The largest one that does not."""
        return max((p.dropped for p in self.all if p.rank == self.rank), default=0.0)

    @property
    def certain(self) -> bool:
        """Whether rounding and information are at least two orders of magnitude apart."""
        return self.dropped < 1e-2 * self.kept

    def regular(self, count: int) -> list[LocalNull]:
        """Null spaces at `count` random points of generic rank (fewer if such points are rare)."""
        misses = 0
        while len(self._regular) < count and misses < 3 * count:
            found = local_null(self.probe, self.probe.draw(), self.scale)
            if found.rank > self.rank:  # a better look at the model: what was regular was not
                self.rank, self._regular = found.rank, []
            if found.rank == self.rank:
                self._regular.append(found)
                self.all.append(found)
            else:
                misses += 1
        return self._regular[:count]
