"""Which generators turn: combinations of affine fields whose flows are periodic."""

import torch
from torch import Tensor

from manifoldid.diagnose.classify import rotations_of
from manifoldid.diagnose.fields import ClosedField, Field


def compact_combinations(fields: list[Field]) -> Tensor:
    """Rows (k, g): combinations of commuting affine fields whose flows are rotations."""
    g = len(fields)
    turning = [
        k
        for k, f in enumerate(fields)
        if isinstance(f, ClosedField) and f.is_affine and len(f.rows) and not f.is_diagonal
    ]
    if not turning:
        return torch.zeros(0, g, dtype=torch.float64)
    affine = [f for f in fields if isinstance(f, ClosedField) and f.is_affine]
    used = torch.stack([f.moved_rows() for f in affine]).any(0)
    for f in affine:
        used[f.columns] = True
    index = used.nonzero()[:, 0]
    if len(index) > 400:
        return torch.zeros(0, g, dtype=torch.float64)
    matrices = [_augmented(fields[k], index) for k in turning]
    commute = all(float((a @ b - b @ a).abs().max()) < 1e-9 for a in matrices for b in matrices)
    if commute and len(affine) == g:
        matrices, turning = [_augmented(f, index) for f in affine], list(range(g))
    rows = rotations_of(matrices) if commute else torch.cat([_lone(matrices, k) for k in range(len(matrices))])
    full = torch.zeros(len(rows), g, dtype=torch.float64)
    full[:, turning] = rows
    return full


def _lone(matrices: list[Tensor], k: int) -> Tensor:
    rows = rotations_of([matrices[k]])
    return (
        rows @ torch.eye(len(matrices), dtype=torch.float64)[k : k + 1]
        if len(rows)
        else torch.zeros(0, len(matrices), dtype=torch.float64)
    )


def _augmented(field: Field, index: Tensor) -> Tensor:
    """[[B, b], [0, 0]] on the coordinates `index`."""
    assert isinstance(field, ClosedField)
    matrix = torch.zeros(len(index) + 1, len(index) + 1, dtype=torch.float64)
    matrix[:-1, :-1] = field.matrix()[index][:, index]
    if field.constant is not None:
        matrix[:-1, -1] = field.constant[index]
    return matrix
