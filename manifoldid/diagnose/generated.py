"""A gauge group made of vector fields."""

from collections.abc import Sequence
from dataclasses import fields as fields_of
from dataclasses import is_dataclass

import torch
from torch import Tensor

from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.groups.base import GaugeGroup, same_value
from manifoldid.points import Point, blocks_of, flatten, unflatten

_DENSE = 300  # coordinates up to which moves are matrix exponentials


class GeneratedGroup(GaugeGroup):
    """The group that complete vector fields generate.

    Coordinates: of affine fields exponential, act(xi, x) = exp(sum xi_k X_k) x; of others the flows one after the other, the
    first field first. Only the coordinates near 0 matter to the rest of the library.
    """

    def __init__(self, fields: Sequence[Field], like: Point, formulas: Sequence[str]):
        """Makes the group.

        Args:
            fields: Fields on flat points, with complete flows, that close under the bracket.
            like: A point, for the shapes of its blocks.
            formulas: What the fields are, as text.
        """
        self.generators = tuple(fields)
        self.formulas = tuple(formulas)
        self.dim = len(self.generators)
        self.shapes = {name: tuple(t.shape) for name, t in blocks_of(like).items()}
        self.event_dim = min(len(shape) for shape in self.shapes.values())
        self.block_names = () if isinstance(like, Tensor) else tuple(self.shapes)
        self._matrices = self._dense_matrices()

    def batch_ndim(self, x: Point) -> int:
        """See `GaugeGroup.batch_ndim`; blocks may have different numbers of dimensions."""
        name, shape = next(iter(self.shapes.items()))
        return max(0, blocks_of(x)[name].ndim - len(shape))

    def act(self, xi: Tensor, x: Point) -> Point:
        ndim = self.batch_ndim(x)
        mine = x if isinstance(x, Tensor) else {name: x[name] for name in self.block_names}
        flat = flatten(mine, ndim)
        return unflatten(self._moved(xi.to(flat), flat), mine, ndim)

    def _moved(self, xi: Tensor, flat: Tensor) -> Tensor:
        if self._matrices is not None:
            matrix = torch.einsum("...k,kab->...ab", xi, self._matrices.to(flat))
            extended = torch.cat([flat, torch.ones_like(flat[..., :1])], dim=-1)
            return (torch.linalg.matrix_exp(matrix) @ extended.unsqueeze(-1))[..., :-1, 0]
        for k, generator in enumerate(self.generators):
            flat = generator.flow(flat, xi[..., k : k + 1])
        return flat

    def generator_names(self, x: Point) -> list[str]:
        return list(self.formulas)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GeneratedGroup) or self.shapes != other.shapes or self.dim != other.dim:
            return False
        return all(map(_same_field, self.generators, other.generators))

    def __hash__(self) -> int:
        return hash((self.formulas, tuple(self.shapes)))

    def __repr__(self) -> str:
        return f"GeneratedGroup({'; '.join(self.formulas)})"

    def _dense_matrices(self) -> Tensor | None:
        """The affine fields as matrices (k, n + 1, n + 1); None if flows one after the other are better."""
        matrices = affine_matrices(self.generators)
        if matrices is None:
            return None
        separate = all(isinstance(f, ClosedField) and f.separate_terms() is not None for f in self.generators)
        products = torch.einsum("iab,jbc->ijac", matrices, matrices)
        abelian = float((products - products.transpose(0, 1)).abs().max()) < 1e-12
        return None if separate and abelian else matrices


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
