"""Readable bases: sparse vectors of a subspace, by linear programming."""

import numpy as np
import scipy  # its submodules load on first use
import torch
from torch import Tensor

from manifoldid.diagnose.fields import snapped

_MOST_PROGRAMS = 40
_NOTHING = 1e-12
_CLEAN = 1e-9


def echelon_basis(basis: Tensor) -> tuple[Tensor, list[int]]:
    """The basis (m, q) of the same space that is the identity on q well-chosen rows, and these rows."""
    matrix = basis.numpy()
    order = np.asarray(scipy.linalg.qr(matrix.T, mode="economic", pivoting=True)[-1])
    rows = sorted(order[: matrix.shape[1]].tolist())
    return torch.from_numpy(np.linalg.solve(matrix[rows].T, matrix.T).T.copy()), rows


def sparse_candidates(space: Tensor, new: Tensor, costs: Tensor, most: int = _MOST_PROGRAMS) -> list[Tensor]:
    """Vectors of a space that are sparse, modulo a subspace.

    Args:
        space: Basis (m, D) of the space.
        new: (q, D): coordinates of the quotient; `new @ z` is what counts of the vector `space @ z`.
        costs: Cost (m,) of a unit of each entry.
        most: How many linear programs are solved at most.

    Returns:
        Vectors (m,), cheapest first; each is the cheapest one with a prescribed value of one functional of the quotient.
    """
    if space.shape[1] == 1:
        return [space[:, 0]]
    q = new.shape[0]
    image = (space * costs[:, None]) @ new.mT  # (m, q)
    echelon, rows = echelon_basis(space * costs[:, None])
    candidates = list((echelon / costs[:, None]).mT) if q == space.shape[1] else []
    cheapest = _Cheapest((space * costs[:, None]).numpy(), echelon.numpy(), rows)
    functionals = [new[0]] if q == 1 else [image[j] @ new for j in _pivots(image, min(most, max(3 * q, 12)))]
    for functional in functionals:
        z = cheapest((functional / functional.norm()).numpy())
        if z is not None:
            candidates.append(space @ z)
    return sorted((c / (c * costs).abs().max() for c in candidates), key=lambda c: float((c * costs).abs().sum()))


def _pivots(image: Tensor, count: int) -> list[int]:
    """Rows of `image` (m, q) that span, and others beside them, without repeating directions."""
    matrix = image.numpy()
    order = np.asarray(scipy.linalg.qr(matrix.T, mode="economic", pivoting=True)[-1])
    size = np.linalg.norm(matrix, axis=1)
    chosen: list[int] = []
    for j in order.tolist():
        if size[j] <= 1e-9 * size.max():
            break
        row = matrix[j] / size[j]
        if all(abs(abs(row @ matrix[k] / size[k]) - 1) > 1e-9 for k in chosen):
            chosen.append(j)
        if len(chosen) == count:
            break
    return chosen


class _Cheapest:
    """z that minimises sum |V z| subject to functional . z = 1, of a matrix V (m, d) and its echelon form."""

    def __init__(self, matrix: np.ndarray, echelon: np.ndarray, rows: list[int]):
        self._back = np.linalg.inv(matrix[rows])  # echelon = matrix @ back
        self._matrix = matrix[np.abs(matrix).max(axis=1) > _NOTHING * np.abs(matrix).max()]
        # many zeros: the solver is faster
        simple = np.where(np.abs(echelon) > _CLEAN * np.abs(echelon).max(), echelon, 0.0)
        self._table = scipy.sparse.csc_matrix(simple[np.abs(simple).max(axis=1) > 0].T)

    def __call__(self, functional: np.ndarray) -> Tensor | None:
        """z (d,), None if the solver gives up."""
        # the dual: the largest t with V'y = t functional, |y| <= 1, has d constraints in place of m; z are its multipliers
        d, m = self._table.shape
        equality = scipy.sparse.hstack([self._table, -(self._back.T @ functional)[:, None]], format="csc")
        price = np.append(np.zeros(m), -1.0)
        bounds = [(-1.0, 1.0)] * m + [(None, None)]
        result = scipy.optimize.linprog(price, A_eq=equality, b_eq=np.zeros(d), bounds=bounds, method="highs-ds")
        if not result.success:
            return None
        return _polished(self._matrix, functional, self._back @ result.eqlin.marginals)


def _polished(weighted: np.ndarray, functional: np.ndarray, z: np.ndarray) -> Tensor:
    """The same vertex to full precision: zeros of the solution are solved for exactly."""
    values = weighted @ z
    zero = np.abs(values) < 1e-6 * np.abs(values).max()
    system = np.concatenate([weighted[zero], functional[None] * np.abs(weighted).max()])
    right = np.zeros(len(system))
    right[-1] = np.abs(weighted).max()
    better = np.linalg.lstsq(system, right, rcond=1e-12)[0]
    close = np.abs(weighted @ better - values).max() < 1e-4 * np.abs(values).max()
    return torch.from_numpy(better if close else z)


def readable(vector: Tensor, costs: Tensor) -> Tensor:
    """`vector` scaled so that its typical entry is 1, rounding zeroed, simple fractions exact."""
    size = vector.abs() * costs
    vector = torch.where(size > 1e-7 * size.max(), vector, torch.zeros_like(vector))
    used = vector[vector != 0]
    unit = used.abs().median()
    lead = used.sum() if float(used.sum().abs()) > 1e-6 * float(used.abs().sum()) else used[0]
    vector = vector / (unit * torch.sign(lead))
    values, where = torch.unique(vector, return_inverse=True)
    return torch.tensor([snapped(v) for v in values.tolist()], dtype=torch.float64)[where]
