"""One-dimensional gauges whose field is a short formula after multiplication by a function.

If the null space is a line, its direction nu(x) is known at every point up to a factor. Multiplying by m(x) / nu_i(x), m a
monomial, leaves a vertical field with m in row i; it is a closed form if its other rows are short sums of monomials. Short
sums are found by trying all of up to two terms at once, which dense least squares over collinear monomials cannot do.
"""

import torch
from torch import Tensor

from manifoldid.diagnose.generators import Search
from manifoldid.diagnose.libraries import Polynomials

_POINTS = 60
_FIT = 1e-9


def add_ratio(search: Search) -> bool:
    """Adds the shortest such field if the null space is a line and nothing else was found; returns whether it did."""
    n = search.nulls.probe.size
    if search.dim != 1 or search.fields or not 2 <= n <= 6:
        return False
    points = search.nulls.regular(_POINTS)
    x = torch.stack([p.x for p in points])
    if len(points) < _POINTS or bool((x == 0).any()):
        return False
    direction = torch.stack([p.null[:, 0] * search.nulls.scale for p in points])
    family = Polynomials(n, 3 if n <= 4 else 2, logs=True)
    exponents = family._exponents()
    logs = torch.cat([x, torch.log(x.abs())], dim=1)
    features = torch.stack([logs[:, list(e)].prod(1) for e in exponents], dim=1)  # (K, M)
    size = direction.abs().mean(0)
    best: tuple[int, Tensor] | None = None
    for i in range(n):
        if float(direction[:, i].abs().min()) < 1e-9 * float(size.max()):
            continue
        for k in range(len(exponents)):
            table = _rows(features, features[:, k : k + 1] * direction / direction[:, i : i + 1], i, k, best)
            if table is not None and (best is None or table[0] < best[0]):
                best = table
    if best is None:
        return False
    found = family.field(best[1].reshape(-1))
    if not search._holds(found, best[0]):
        return False
    search.fields.append(found)
    return True


def _rows(
    features: Tensor, targets: Tensor, pivot: int, monomial: int, best: tuple[int, Tensor] | None
) -> tuple[int, Tensor] | None:
    """Number of terms and coefficients (n, M) of the targets (K, n) as short sums, or None if one is not short enough."""
    n = targets.shape[1]
    coefficients = torch.zeros(n, features.shape[1], dtype=torch.float64)
    coefficients[pivot, monomial] = 1.0
    terms = 1
    for j in range(n):
        if j == pivot or float(targets[:, j].norm()) < 1e-9 * float(targets.norm()):
            continue
        row = short_sum(features, targets[:, j])
        if row is None:
            return None
        coefficients[j], terms = row, terms + int((row != 0).sum())
        if best is not None and terms >= best[0]:
            return None
    return terms, coefficients


def short_sum(features: Tensor, target: Tensor) -> Tensor | None:
    """Coefficients (M,) of `target` (K,) as a sum of at most two columns of `features` (K, M), None if there is none."""
    length = features.norm(dim=0)
    unit, y = features / length, target / target.norm()
    c = unit.mT @ y
    single = int(c.abs().argmax())
    chosen = [[single]]
    if 1 - float(c[single] ** 2) > 1e-12:
        rho = unit.mT @ unit
        determinant = 1 - rho.square()
        explained = (c[:, None] ** 2 + c[None] ** 2 - 2 * rho * c[:, None] * c[None]) / determinant.clamp_min(1e-8)
        explained = explained.masked_fill(determinant < 1e-8, -1.0).triu(1)
        place = torch.topk(explained.flatten(), 3).indices
        chosen = [[int(k) // len(c), int(k) % len(c)] for k in place]
    for columns in chosen:
        solution = torch.linalg.lstsq(unit[:, columns], y[:, None]).solution[:, 0]
        if float((unit[:, columns] @ solution - y).norm()) < _FIT:
            row = torch.zeros(len(c), dtype=torch.float64)
            row[columns] = solution * target.norm() / length[columns]
            return torch.where(row.abs() > 1e-9 * row.abs().max(), _simple(row), torch.zeros_like(row))
    return None


def _simple(row: Tensor) -> Tensor:
    near = torch.round(row * 12) / 12
    return torch.where((near - row).abs() < 1e-8, near, row)
