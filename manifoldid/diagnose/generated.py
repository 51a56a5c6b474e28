"""A gauge group made of vector fields."""

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as fields_of

import torch
from torch import Tensor

from manifoldid._linalg import pushforward
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.least import Modelled, Near, Small, best_start
from manifoldid.groups.base import Canonical, GaugeGroup, same_value
from manifoldid.groups.orbit import least_on_orbit
from manifoldid.points import Point, Weights, blocks_of, concrete, detached, first, flatten, unflatten

_DENSE = 300  # coordinates up to which moves are matrix exponentials
_NOTHING = 1e-12  # of matrices with simple entries
_SAME = 1e-9


class GeneratedGroup(GaugeGroup):
    """The group that complete vector fields generate.

    Coordinates: of affine fields exponential, act(xi, x) = exp(M) x, M = sum xi_k X_k; of linear ones that are closed under
    transposition exp(P) exp(M - P) x with P the symmetric part of M, which reaches all of the group where exp(M) does not (GL, Sp);
    of others the flows one after the other, the first field first.

    Canonical: the representative where |y|^2 / 2 less the logarithm of the factor by which the move multiplies volumes is least.
    So scalings end at root mean square 1, where least norm alone would lead to 0, and moves that keep volumes at the least norm.
    Where the least norm may leave several representatives (rotations, curved orbits), the one towards `like` is taken.
    """

    def __init__(self, fields: Sequence[Field], like: Point, formulas: Sequence[str]):
        """Makes the group.

        Args:
            fields: Fields on flat points, with complete flows, that close under the bracket.
            like: A point, for the shapes of its blocks, and for the direction that decides between representatives.
            formulas: What the fields are, as text.
        """
        self.generators = tuple(fields)
        self.formulas = tuple(formulas)
        self.dim = len(self.generators)
        self.shapes = {name: tuple(t.shape) for name, t in blocks_of(like).items()}
        self.event_dim = min(len(shape) for shape in self.shapes.values())
        self.block_names = () if isinstance(like, Tensor) else tuple(self.shapes)
        self._acts = _Acts.of(self.generators)
        self._matrices = self._acts.matrices
        self.towards = None if self._acts.convex else _unit(flatten(like))

    def batch_ndim(self, x: Point) -> int:
        """See `GaugeGroup.batch_ndim`; blocks may have different numbers of dimensions."""
        name, shape = next(iter(self.shapes.items()))
        return max(0, blocks_of(x)[name].ndim - len(shape))

    # ------------------------------------------------------------------------------------------------ the action

    def act(self, xi: Tensor, x: Point) -> Point:
        return self._on_flat(x, lambda flat: self._moved(xi.to(flat), flat))

    def undo(self, xi: Tensor, x: Point) -> Point:
        return self._on_flat(x, lambda flat: self._moved(-xi.to(flat), flat, backwards=True))

    def _on_flat(self, x: Point, move) -> Point:
        ndim, mine = self.batch_ndim(x), self.own_blocks(x)
        return unflatten(move(flatten(mine, ndim)), mine, ndim)

    def own_blocks(self, x: Point) -> Point:
        """The blocks that the group acts on, in the order of the coordinates of the fields."""
        return x if isinstance(x, Tensor) else {name: x[name] for name in self.block_names}

    def _moved(self, xi: Tensor, flat: Tensor, backwards: bool = False) -> Tensor:
        if self._matrices is not None:
            matrix = torch.einsum("...k,kab->...ab", xi, self._matrices.to(flat))
            extended = torch.cat([flat, torch.ones_like(flat[..., :1])], dim=-1).unsqueeze(-1)
            factors = [matrix]
            if self._acts.polar:
                stretch = 0.5 * (matrix + matrix.mT)
                factors = [stretch, matrix - stretch] if backwards else [matrix - stretch, stretch]
            for factor in factors:
                extended = torch.linalg.matrix_exp(factor) @ extended
            return extended[..., :-1, 0]
        for k in reversed(range(self.dim)) if backwards else range(self.dim):
            flat = self.generators[k].flow(flat, xi[..., k : k + 1])
        return flat

    def vertical_basis(self, x: Point) -> Point:
        ndim, mine = self.batch_ndim(x), self.own_blocks(x)
        rows = self.velocities(flatten(mine, ndim))
        like = {
            name: t.unsqueeze(ndim).expand(*t.shape[:ndim], self.dim, *t.shape[ndim:])
            for name, t in blocks_of(mine).items()
        }
        return unflatten(rows, like[""] if isinstance(mine, Tensor) else like, ndim + 1)

    def velocities(self, flat: Tensor) -> Tensor:
        """The fields at flat points (*batch, N), shape (*batch, dim, N)."""
        return torch.stack([generator(flat) for generator in self.generators], dim=-2)

    def accelerations(self, flat: Tensor, velocities: Tensor) -> Tensor:
        """Second derivatives of exp(sum xi_k X_k) x by xi at 0, shape (*batch, dim, dim, N).

        Those of other coordinates differ by velocities, along which nothing changes where something is least.
        """
        at = flat.unsqueeze(-2).expand_as(velocities)
        rows = [
            f.linear(velocities) if isinstance(f, ClosedField) and f.is_affine else pushforward(f, at, velocities)
            for f in self.generators
        ]
        turned = torch.stack(rows, dim=-3)
        return 0.5 * (turned + turned.transpose(-2, -3))

    @property
    def growth(self) -> Tensor:
        """By how much the logarithm of a volume grows along each field (dim,); zero where that depends on the point."""
        traces = [float(f.diagonal.sum()) if isinstance(f, ClosedField) else 0.0 for f in self.generators]
        known = self.dim == 1 or all(isinstance(f, ClosedField) and f.is_affine for f in self.generators)
        return torch.tensor(traces if known else [0.0] * self.dim, dtype=torch.float64)

    def generator_names(self, x: Point) -> list[str]:
        return list(self.formulas)

    # ------------------------------------------------------------------------------------------------ representatives

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        """See the class.

        Raises:
            DegeneratePointError: Nothing is least on the orbit.
        """
        return self._least(Small(self, weights, x), x, self._acts.convex or self._acts.reductive)

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """See `GaugeGroup.closest`: the lowest of the minima that a search from several moves of `x` finds.

        Raises:
            DegeneratePointError: The distance has no minimum on the orbit.
        """
        return self._least(Near(self, to, weights, x), x, self._acts.straight)

    def _least(self, objective: Modelled, x: Point, one_minimum: bool) -> Canonical:
        search = not one_minimum and concrete(first(x))
        start = best_start(objective.constant(), detached(x)) if search else None
        return least_on_orbit(objective, x, start, additive=self._acts.additive)

    # ------------------------------------------------------------------------------------------------ values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GeneratedGroup) or self.shapes != other.shapes or self.dim != other.dim:
            return False
        return same_value(self.towards, other.towards) and all(map(_same_field, self.generators, other.generators))

    def __hash__(self) -> int:
        return hash((self.formulas, tuple(self.shapes)))

    def __repr__(self) -> str:
        return f"GeneratedGroup({'; '.join(self.formulas)})"

    def __str__(self) -> str:
        return repr(self)


def _same_field(first: Field, second: Field) -> bool:
    if type(first) is not type(second) or not is_dataclass(first):
        return first is second
    return all(same_value(getattr(first, f.name), getattr(second, f.name)) for f in fields_of(first))


def affine_matrices(fields: Sequence[Field]) -> Tensor | None:
    """Affine fields B x + b as matrices [[B, b], [0, 0]] (k, n + 1, n + 1); None if some are not affine, or n is large."""
    rows = []
    for field in fields:
        if not isinstance(field, ClosedField) or not field.is_affine or field.size > _DENSE:
            return None
        matrix = torch.zeros(field.size + 1, field.size + 1, dtype=torch.float64)
        matrix[:-1, :-1] = field.matrix()
        if field.constant is not None:
            matrix[:-1, -1] = field.constant
        rows.append(matrix)
    return torch.stack(rows) if rows else None


def _unit(flat: Tensor) -> Tensor | None:
    """The direction of a flat point, None for 0."""
    length = flat.detach().norm()
    return flat.detach() / length if float(length) > 0 else None


@dataclass(frozen=True)
class _Acts:
    """How fields act, as far as that says what can be left out.

    Attributes:
        matrices: Affine fields as matrices (dim, N + 1, N + 1); None if some are not, or their flows are cheaper.
        additive: Whether coordinates of moves one after the other add up.
        straight: Whether points move along straight lines in xi: any squared distance is a parabola.
        convex: Whether norm and volume are convex along the moves, so that nothing has to decide between representatives.
        reductive: Whether they are convex up to rotations (Kempf and Ness): the linear parts are closed under transposition.
        polar: Whether moves are a turn and then a stretch: of linear fields that are reductive, not all of them turns or stretches.
    """

    matrices: Tensor | None
    additive: bool
    straight: bool
    convex: bool
    reductive: bool
    polar: bool

    @staticmethod
    def of(fields: Sequence[Field]) -> "_Acts":
        matrices = affine_matrices(fields)
        if matrices is None:
            return _Acts(None, len(fields) == 1, False, False, False, False)
        products = torch.einsum("iab,jbc->ijac", matrices, matrices)
        abelian = float((products - products.transpose(0, 1)).abs().max()) < _NOTHING
        straight = float(products.abs().max()) < _NOTHING
        separate = all(isinstance(f, ClosedField) and f.separate_terms() is not None for f in fields)
        linear = matrices[:, :-1, :-1]
        symmetric = float((linear - linear.mT).abs().max()) < _NOTHING
        turns = float((linear + linear.mT).abs().max()) < _NOTHING
        reductive = _closed_under_transposition(linear.flatten(1), linear.mT.flatten(1))
        return _Acts(
            matrices=None if separate and abelian else matrices,
            additive=abelian or len(fields) == 1,
            straight=straight,
            convex=straight or symmetric,
            reductive=reductive,
            polar=reductive and not (abelian or symmetric or turns or bool(matrices[:, :-1, -1].any())),
        )


def _closed_under_transposition(linear: Tensor, turned: Tensor) -> bool:
    _, s, basis = torch.linalg.svd(linear, full_matrices=False)
    basis = basis[s > _SAME * s.max()]
    return float((turned - turned @ basis.mT @ basis).norm()) <= _SAME * float(turned.norm())
