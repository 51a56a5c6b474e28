"""The group of the catalogue that generates the same orbits as the fields that were found, or one made of these fields.

Candidates are proposed from the shape of the point and the supports of the fields; each is compared by its vertical space at
several points and by finite moves, so that a wrong proposal costs time and nothing else.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

import manifoldid.groups as catalogue
from manifoldid._linalg import derivative_along
from manifoldid.diagnose.chart import TableField
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.generated import GeneratedGroup
from manifoldid.diagnose.match_parts import group_on_parts
from manifoldid.diagnose.match_pointwise import logarithmic_group, pointwise_group, tabulated_group
from manifoldid.diagnose.moves import relative_change
from manifoldid.diagnose.probe import Probe
from manifoldid.groups import GaugeGroup, Product, Shift
from manifoldid.groups.orbit import batch_shape, moved, zero_coordinates
from manifoldid.points import Point, blocks_of, flatten, unflatten

_SAME = 1e-7
_INDEPENDENT = 1e-7  # what is left of a column of length 1 without those before it
_MANY = 100  # fields beyond which a QR decomposition has to do
MOST_GENERATORS = 80  # of a group made of fields
_MOST_COMPARED = 4000


def match_group(
    probe: Probe, fields: list[Field], formulas: list[str], points: list[Tensor], reach: float, apart: Tensor
) -> GaugeGroup | None:
    """The group of complete fields that close under the bracket.

    Args:
        probe: The model.
        fields: The fields.
        formulas: What they are, as text.
        points: Flat generic points.
        reach: Size of the coordinates of finite moves by which a proposal is tested.
        apart: Mask (n,) of coordinates that count for nothing: fields leave them alone. Groups of the catalogue may move them, but
            for shifts: a mean is one of numbers that count.

    Returns:
        A group of the catalogue if one has the same orbits, otherwise a `GeneratedGroup`; None if no group acts.
    """
    if not fields:
        return Product()
    matcher = _Matcher(probe, fields, points[:2], reach, apart)
    if isinstance(fields[0], TableField):
        tabulated = tabulated_group(fields[0], probe.like)
        return tabulated if tabulated is not None and matcher.same(tabulated) else None
    if len(fields) <= _MOST_COMPARED:
        for group in matcher.whole():
            if matcher.same(group):
                return group
    if len(fields) > MOST_GENERATORS:
        return None
    generated = GeneratedGroup(fields, probe.like, formulas)
    return generated if matcher.invariant(generated) else None


class _Matcher:
    """Compares proposed groups with the fields."""

    def __init__(self, probe: Probe, fields: list[Field], points: list[Tensor], reach: float, apart: Tensor):
        self.probe, self.fields, self.points, self.reach = probe, fields, points, reach
        self.live = (~apart).double()
        self.like = probe.like
        self.spans = [self._orthonormal(torch.stack([f(x) for f in fields], dim=1)) for x in points]
        self.rank = max(span.shape[1] for span in self.spans)
        self.positive = {name: all(bool((x[a:b] > 0).all()) for x in points) for name, (a, b) in probe.spans().items()}
        closed = [f for f in fields if isinstance(f, ClosedField)]
        self.constants = [f.constant for f in closed if f.is_affine and not len(f.rows) and f.constant is not None]
        self.diagonals = [
            f.diagonal for f in closed if f.is_affine and f.is_diagonal and len(f.rows) and f.constant is None
        ]

    @staticmethod
    def _orthonormal(columns: Tensor) -> Tensor:
        columns = columns / columns.norm(dim=0).clamp_min(1e-300)
        if columns.shape[1] > _MANY:
            q, r = torch.linalg.qr(columns)
            if bool((r.diagonal().abs() > _INDEPENDENT).all()) and len(q) >= len(r):
                return q
        u, s, _ = torch.linalg.svd(columns, full_matrices=False)
        return u[:, s > 1e-9 * s[0]]

    # ------------------------------------------------------------------------------------------------ comparison

    def same(self, group: GaugeGroup) -> bool:
        """Whether the group has the orbits of the fields."""
        return self.inside(group) == self.rank and self.invariant(group)

    def inside(self, group: GaugeGroup) -> int:
        """Orbit dimension of a group whose velocities are combinations of the fields; -1 if they are not."""
        ranks = []
        for x, span in zip(self.points, self.spans, strict=True):
            point = unflatten(x, self.like)
            try:
                group.validate(point)
                if not self._random_velocity_inside(group, point, span):
                    return -1
                basis = _rows(group, point) * self.live
            except (TypeError, ValueError, RuntimeError):
                return -1
            within = basis @ span
            if float((basis - within @ span.mT).norm()) > _SAME * float(basis.norm()):
                return -1
            lengths = within.norm(dim=1, keepdim=True).clamp_min(1e-300)
            unit = within / lengths
            unit = torch.linalg.qr(unit.mT, mode="r")[1] if len(unit) > _MANY else unit
            ranks.append(int(torch.linalg.matrix_rank(unit, rtol=1e-8)))
        return max(ranks)

    def _random_velocity_inside(self, group: GaugeGroup, point: Point, span: Tensor) -> bool:
        """Whether one random velocity is a combination of the fields: what most proposals fail, without their whole basis."""
        zero = zero_coordinates(group, point)
        xi = torch.randn(zero.shape, generator=self.probe.generator, dtype=torch.float64)
        velocity = self.live * derivative_along(lambda c: _flat(moved(group, c, point), self.like), zero, xi)
        rest = velocity - span @ (span.mT @ velocity)
        return float(rest.norm()) <= _SAME * float(velocity.norm())

    def invariant(self, group: GaugeGroup) -> bool:
        """Whether finite moves of the group leave predictions alone."""
        for x in self.points:
            point, before = unflatten(x, self.like), self.probe.values(x)
            shape = zero_coordinates(group, point).shape
            xi = self.reach * torch.randn(shape, generator=self.probe.generator, dtype=torch.float64)
            after = self.probe.values(_flat(moved(group, xi, point), self.like))
            if not relative_change(before, after) < 1e-7:
                return False
        return True

    # ------------------------------------------------------------------------------------------------ proposals

    def whole(self) -> Iterator[GaugeGroup]:
        """Groups on the whole point, simple ones first."""
        only_constants = len(self.constants) == len(self.fields)
        if only_constants and not bool(self.live.all()):
            yield self._shift()
            return
        if isinstance(self.like, Tensor):
            yield from self.on_tensor("", self.like)
            if only_constants:
                yield self._shift()
            if self.like.ndim == 1 and not self.like.is_complex():
                proposals = (
                    pointwise_group(self.fields, self.points),
                    group_on_parts(self.fields, torch.stack(self.points).gt(0).all(0)),
                )
                yield from (group for group in proposals if group is not None)
            return
        yield from self.joint(self.like)
        yield from self._products(self.like)
        if only_constants:
            yield self._shift()
        if len(self.diagonals) == len(self.fields) <= MOST_GENERATORS:
            logarithmic = logarithmic_group(self.diagonals, blocks_of(self.like), self.positive)
            yield from () if logarithmic is None else (logarithmic,)

    def _shift(self) -> Shift:
        """The shifts along the constants."""
        if isinstance(self.like, Tensor):
            return Shift(torch.stack(self.constants).reshape(-1, *self.like.shape))
        return Shift([self._direction(c) for c in self.constants])

    def _products(self, like: Point) -> Iterator[GaugeGroup]:
        """A product of factors on disjoint blocks."""
        factors: list[tuple[int, GaugeGroup | None, str, GaugeGroup]] = []
        for group in self.joint(like):
            dimension = self.inside(group)
            if dimension > 0:
                factors.append((dimension, group, "", group))
        for name, t in blocks_of(like).items():
            for group in self.on_tensor(name, t):
                product = Product(**{name: group})
                dimension = self.inside(product)
                if dimension > 0:
                    factors.append((dimension, None, name, group))
                    break
        chosen, used, total = [], set(), 0
        for dimension, joint, name, group in sorted(factors, key=lambda f: -f[0]):
            blocks = set(joint.block_names) if joint is not None else {name}
            if blocks & used:
                continue
            chosen.append((joint, name, group))
            used |= blocks
            total += dimension
        if total == self.rank and chosen:
            own = [joint for joint, _, _ in chosen if joint is not None]
            by_block = {name: group for joint, name, group in chosen if joint is None}
            yield Product(*own, **by_block)

    def on_tensor(self, name: str, t: Tensor) -> Iterator[GaugeGroup]:
        """Groups on one tensor."""
        if t.is_complex():
            yield from _made("Phase")
            return
        if t.ndim == 2:
            for kind in ("Similarity", "RigidMotion", "Orthogonal"):
                yield from _made(kind)
        scaling = "PositiveScaling" if self.positive[name] else "Scaling"
        if t.ndim != 1:  # every row is a point
            yield from itertools.chain(_made("Affine"), _made("Translation"), _made(scaling))
            return
        if t.shape[0] > 2:  # of fewer items Affine leaves nothing
            yield from _made("Affine")
        yield from _made("Translation")
        yield from _made(scaling)
        for labels in self._partitions(name):
            if int(labels.max()) > 0:
                if int(labels.bincount().min()) > 2:
                    yield from _made("Affine", labels)
                    yield from _made("Affine", labels, common_scale=True)
                yield from _made("Translation", labels)
                yield from _made(scaling, labels)

    def _partitions(self, name: str) -> Iterator[Tensor]:
        """Labels of items by the fields that move them, for constants and for scalings."""
        start, stop = self.probe.spans()[name]
        for vectors in (self.constants, self.diagonals):
            mine = [v[start:stop] for v in vectors if bool(v[start:stop].any())]
            if mine:
                table = torch.stack(mine) != 0
                if bool((table.sum(0) == 1).all()):
                    yield table.long().argmax(0)

    def joint(self, like: Point) -> Iterator[GaugeGroup]:
        """Groups that act on several blocks of a dict together."""
        blocks = blocks_of(like)
        yield from self._location_scale()
        matrices = [name for name, t in blocks.items() if t.ndim >= 2 and not t.is_complex()]
        for a, b in itertools.combinations(matrices, 2):
            for dims in itertools.product((-1, 0), repeat=2):
                ranks = [t.shape[-1 if dim else -2] for t, dim in zip((blocks[a], blocks[b]), dims, strict=True)]
                if blocks[a].shape[:-2] == blocks[b].shape[:-2] and ranks[0] == ranks[1]:
                    yield from _made("GeneralLinear", a, b, rank_dims=dims)
        yield from self._rescalings(blocks)
        for c in self.constants:
            if len(self._direction(c)) > 1:  # on one block it is a group on a tensor
                yield Shift([self._direction(c)])

    def _location_scale(self) -> Iterator[GaugeGroup]:
        """Constant 1 on the locations, x on locations and scales, -x on slopes."""
        spans = self.probe.spans()
        for c, d in itertools.product(self.constants, [*self.diagonals, *(-d for d in self.diagonals)]):
            parts: dict[str, list[str]] = {"locations": [], "scales": [], "slopes": []}
            for name, (a, b) in spans.items():
                one, size = c[a:b], d[a:b]
                if bool((one == one[0]).all()) and bool((size == size[0]).all()):
                    key = {(True, 1): "locations", (False, 1): "scales", (False, -1): "slopes"}
                    kind = key.get((bool(one[0] != 0), int(torch.sign(size[0]))))
                    if kind:
                        parts[kind].append(name)
            if parts["locations"]:
                yield from _made("LocationScale", **{key: tuple(names) for key, names in parts.items()})

    def _rescalings(self, blocks: dict[str, Tensor]) -> Iterator[GaugeGroup]:
        """x on the incoming weights of a unit, -x on its outgoing ones."""
        spans = self.probe.spans()
        incoming, outgoing = set(), set()
        for d in self.diagonals:
            signed = {name: d[a:b].sum() for name, (a, b) in spans.items() if bool(d[a:b].any())}
            plus = {name for name, s in signed.items() if s > 0}
            minus = {name for name, s in signed.items() if s < 0}
            if plus and minus:
                incoming, outgoing = incoming | plus, outgoing | minus
        if incoming and outgoing and not incoming & outgoing:
            yield from _made("Rescaling", incoming=tuple(sorted(incoming)), outgoing=tuple(sorted(outgoing)))
            yield from _made("Rescaling", incoming=tuple(sorted(outgoing)), outgoing=tuple(sorted(incoming)))

    def _direction(self, c: Tensor) -> dict[str, Tensor | float]:
        direction: dict[str, Tensor | float] = {}
        for name, t in blocks_of(unflatten(c, self.like)).items():
            if bool(t.any()):  # a tensor of no dimension says that the parameter is a scalar: (M,) are then M members
                alike = t.ndim > 0 and bool((t == t.reshape(-1)[0]).all())
                direction[name] = float(t.reshape(-1)[0]) if alike else t
        return direction


def _rows(group: GaugeGroup, point: Point) -> Tensor:
    """Velocities (k, n) of all coordinates, those of every entry of a batch among them."""
    basis, ndim = blocks_of(group.vertical_basis(point)), group.batch_ndim(point)
    count = batch_shape(group, point).numel()
    columns = []
    for name, t in blocks_of(point).items():
        width = t.numel() * (2 if t.is_complex() else 1)
        if group.block_names and name not in group.block_names:
            columns.append(torch.zeros(1, width, dtype=torch.float64))
            continue
        rows = torch.view_as_real(basis[name]) if t.is_complex() else basis[name]
        rows = rows.reshape(count, rows.shape[ndim], width // count)
        columns.append(torch.block_diag(*rows))
    height = max(len(c) for c in columns)
    return torch.cat([c.expand(height, -1) for c in columns], dim=1)


def _flat(point: Point, like: Point) -> Tensor:
    return flatten(point if isinstance(like, Tensor) else {name: point[name] for name in like})


def _made(kind: str, *arguments: object, **named: object) -> Iterator[GaugeGroup]:
    """The group of the catalogue, if its arguments make sense."""
    try:
        yield getattr(catalogue, kind)(*arguments, **named)
    except (AttributeError, TypeError, ValueError):
        return
