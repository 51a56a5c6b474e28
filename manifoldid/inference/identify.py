"""Directions that the information does not see beyond the declared gauge, and how to name them."""

import torch
from torch import Tensor

from manifoldid.errors import listed
from manifoldid.groups.base import GaugeGroup
from manifoldid.groups.orbit import moved, zero_coordinates
from manifoldid.points import Point, blocks_of, flatten, unflatten


def vertical_rows(group: GaugeGroup, x: Point) -> Tensor:
    """Velocities (k, N) of all group elements of all batch entries, beside `flatten(x)`."""
    zero = zero_coordinates(group, x)
    if zero.numel() == 0:
        return flatten(x).new_zeros(0, flatten(x).shape[-1])

    def orbit(xi: Tensor) -> Tensor:
        return flatten(moved(group, xi.reshape(zero.shape), x))

    return torch.func.jacfwd(orbit)(zero.flatten()).mT.detach()


def column_space(matrix: Tensor) -> Tensor:
    """An orthonormal basis (N, rank) of the columns of `matrix`."""
    if matrix.shape[-1] == 0:
        return matrix
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    cut = values > max(matrix.shape) * torch.finfo(values.dtype).eps * values[:1]
    return left[:, cut]


def complement(basis: Tensor) -> Tensor:
    """An orthonormal basis (N, N - k) of what is orthogonal to the orthonormal columns (N, k)."""
    if basis.shape[-1] == 0:
        return torch.eye(len(basis), dtype=basis.dtype, device=basis.device)
    return torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[-1] :]


def null_message(null: Tensor, extra: int, x: Point, group: GaugeGroup) -> str:
    """What a `NotIdentifiableError` says.

    Args:
        null: Columns (N, m) that span all null directions, the gauge among them.
        extra: How many of them are beyond the gauge.
        x: The point.
        group: The declared gauge.
    """
    places, advice = [], []
    basis = column_space(null)
    for name, part in blocks_of(unflatten(basis.mT, x)).items():
        rows = (torch.view_as_real(part.resolve_conj()) if part.is_complex() else part).flatten(1).mT
        label = f"block {name!r}" if name else "the point"
        size = rows.norm(dim=-1)
        hit = (size > 1e-6).nonzero()[:, 0].tolist()
        if not hit:
            continue
        labels = _clusters(rows, hit)
        parts = max(labels) + 1
        if len(hit) == len(rows) and parts == column_space(rows.mT).shape[-1] and len(rows) > 1:
            groups = [[k for k, c in enumerate(labels) if c == part_] for part_ in range(min(parts, 3))]
            shown = "; ".join(f"items {listed(items)}" for items in groups)
            places.append(f"{label}: {parts} component(s) move freely against each other ({shown})")
            inside = "mid.Translation()" if parts == 1 else f"mid.Translation(blocks=torch.tensor({_short(labels)}))"
            advice.append(f"mid.Product({name}={inside})" if name else inside)
        else:
            places.append(f"{label}: items {listed(hit)}")
    how = f"declare {', '.join(advice)}" if advice else "declare it with mid.Shift(directions)"
    return (
        f"`nll` does not see {extra} direction(s) beyond the gauge {group!r}, in {' and in '.join(places)}. If that is "
        f"meant, {how}; else collect data that connect them, or drop collinear and unused parameters. mid.diagnose names the freedom"
    )


def _clusters(rows: Tensor, hit: list[int]) -> list[int]:
    """Labels of equal rows, numbered by first appearance; rows that are zero take the label of none, -1."""
    labels, centres = [-1] * len(rows), []
    for k in hit:
        found = next((c for c, row in enumerate(centres) if float((rows[k] - row).norm()) < 1e-6), None)
        if found is None:
            centres.append(rows[k])
            found = len(centres) - 1
        labels[k] = found
    return labels


def _short(labels: list[int]) -> str:
    return str(labels) if len(labels) <= 24 else f"[{', '.join(map(str, labels[:24]))}, ...]"
