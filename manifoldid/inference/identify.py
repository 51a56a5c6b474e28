"""Directions that the information does not see beyond the declared gauge, and how to name them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manifoldid.errors import listed
from manifoldid.groups.base import GaugeGroup
from manifoldid.groups.orbit import moved, zero_coordinates
from manifoldid.inference.names import item_labels, real_shape
from manifoldid.points import Point, blocks_of, flatten, unflatten

_SAME = 1e-6  # rows of null directions that are closer move together
_CLUSTERS = 100  # components that are told apart


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


def null_message(
    beyond: Tensor,
    gauge: Tensor,
    unit: Tensor,
    x: Point,
    group: GaugeGroup,
    names: Mapping[str, Sequence[str]],
    who: str = "`nll`",
) -> str:
    """What a `NotIdentifiableError` says.

    Args:
        beyond: Orthonormal columns (N, m), the null directions orthogonal to the gauge, in units of `unit`.
        gauge: Orthonormal columns (N, k) of the gauge, in the same units.
        unit: The unit (N,) of every number of the point.
        x: The point.
        group: The declared gauge.
        names: What items are called, by block.
        who: What does not see them.
    """
    places, advice = [], []
    free = column_space(torch.cat([gauge, beyond], -1) * unit[:, None])
    for (name, part), own in zip(
        blocks_of(unflatten(free.mT, x)).items(), blocks_of(unflatten(beyond.mT, x)).values(), strict=True
    ):
        rows, own_rows = _rows(part), _rows(own)
        if not len(rows):
            continue
        label = f"block {name!r}" if name else "the point"
        called = item_labels(names, name, real_shape(blocks_of(x)[name]) or torch.Size((1,)))
        hit = [
            called[k]
            for k in (own_rows.norm(dim=-1) > _SAME * float(own_rows.norm(dim=-1).max())).nonzero()[:, 0].tolist()
        ]
        if not hit:
            continue
        rows = rows / rows.norm(dim=-1).max()
        labels = _clusters(rows)
        parts = max(labels) + 1
        if -1 not in labels and parts == column_space(rows.mT).shape[-1] and len(rows) > 1:
            members = [
                [called[k] for k, own_label in enumerate(labels) if own_label == c] for c in range(min(parts, 3))
            ]
            shown = "; ".join(f"items {listed(items)}" for items in members)
            alone = parts == len(rows) and f"{label}: items {listed(hit)}, each by itself"
            places.append(alone or f"{label}: {parts} component(s) move freely ({shown})")
            inside = "mid.Translation()" if parts == 1 else f"mid.Translation(blocks=torch.tensor({_short(labels)}))"
            advice.append(f"mid.Product({name}={inside})" if name else inside)
        else:
            places.append(f"{label}: items {listed(hit)}")
    beside = " beside it" if isinstance(x, dict) and group.generator_names(x) else ""
    how = f"declare {', '.join(advice)}{beside}" if advice else "declare it with mid.Shift(directions)"
    return (
        f"{who} does not see {beyond.shape[-1]} direction(s) beyond the gauge {group}, in {' and in '.join(places)}. If that "
        f"is meant, {how}; else collect data that connect them, or drop collinear and unused parameters (of separated data mid.fit says who "
        "runs away). mid.diagnose names the freedom"
    )


def _rows(part: Tensor) -> Tensor:
    """Directions (m, *event) as one row (m,) per number."""
    real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
    return real.reshape(len(real), -1).mT


def _clusters(rows: Tensor) -> list[int]:
    """Labels of equal rows, numbered by first appearance; rows that are zero, or beyond a hundred clusters, have the label -1."""
    labels = rows.new_full((len(rows),), -1, dtype=torch.long)
    for label in range(_CLUSTERS):
        left = ((labels < 0) & (rows.norm(dim=-1) > _SAME)).nonzero()[:, 0]
        if not len(left):
            break
        labels[left[(rows[left] - rows[left[0]]).norm(dim=-1) < _SAME]] = label
    return labels.tolist()


def _short(labels: list[int]) -> str:
    return str(labels) if len(labels) <= 24 else f"[{', '.join(map(str, labels[:24]))}, ...]"
