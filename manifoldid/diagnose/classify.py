"""The name of a Lie algebra, from its structure constants.

Names: `trivial`, `R`, `R^k`, `so(k)`, `sl(k)`, `gl(k)`, `aff(1)`, `e(k)`, `sim(k)`, direct sums with ` + `, semidirect
products `gl(2) x| R^2`, else `unknown(dim=k)`. A one-dimensional summand whose flow is periodic is `so(2)`: its algebra is
that of a line, but its action is a rotation.
"""

from dataclasses import dataclass

import scipy  # its submodules load on first use
import torch
from torch import Tensor

_TOLERANCE = 1e-7
_ROUNDING = 1e-9  # beside the numbers that something was computed from
_REAL = 1e-6  # imaginary parts below it are rounding


@dataclass(frozen=True)
class LieAlgebra:
    """Structure constants (g, g, g) of a basis: [X_i, X_j] = sum_k c[i, j, k] X_k, the basis being that of some space (g, N).

    Attributes:
        constants: The structure constants.
        basis: The rows express the basis in the fields that were found.
    """

    constants: Tensor
    basis: Tensor

    @property
    def dim(self) -> int:
        """Dimension."""
        return self.constants.shape[0]

    def adjoint(self) -> Tensor:
        """ad(X_i) as matrices (g, g, g): ad[i] @ y are the coordinates of [X_i, y]."""
        return self.constants.mT.contiguous()

    def killing(self) -> Tensor:
        """The Killing form (g, g)."""
        ad = self.adjoint()
        return torch.einsum("iab,jba->ij", ad, ad)

    def derived(self) -> Tensor:
        """Orthonormal basis (d, g) of [g, g]."""
        return _span(self.constants.reshape(-1, self.dim))

    def centre(self) -> Tensor:
        """Orthonormal basis (z, g) of the centre."""
        return _kernel(self.constants.permute(1, 2, 0).reshape(-1, self.dim))

    def restricted(self, rows: Tensor) -> "LieAlgebra":
        """The subalgebra that the rows (d, g) span."""
        brackets = torch.einsum("ai,bj,ijk->abk", rows, rows, self.constants)
        inverse = torch.linalg.pinv(rows)
        return LieAlgebra(_without_rounding(brackets @ inverse, self.constants), rows @ self.basis)

    def quotient(self, ideal: Tensor) -> "LieAlgebra":
        """The quotient by an ideal (rows)."""
        rest = _kernel(ideal)
        brackets = torch.einsum("ai,bj,ijk->abk", rest, rest, self.constants)
        return LieAlgebra(_without_rounding(brackets @ rest.mT, self.constants), rest @ self.basis)


def name_algebra(constants: Tensor, compact: Tensor | None = None, overlap: "Overlap | None" = None) -> str:
    """The canonical name of the algebra with these structure constants.

    Args:
        constants: (g, g, g).
        compact: Rows (k, g) that span the commuting combinations whose flows are rotations; used for abelian summands.
        overlap: Tells whether two ideals (rows in the original basis) move common coordinates; without it they do not.

    Returns:
        The name.
    """
    g = constants.shape[0]
    if g == 0:
        return "trivial"
    algebra = LieAlgebra(constants, torch.eye(g, dtype=constants.dtype))
    abelian, rest = _split_abelian(algebra)
    ideals = [ideal for part in _parts(algebra) for ideal in _ideals(part)] if len(rest) else []
    names = _merge_rotations([(_name_ideal(ideal), ideal) for ideal in ideals], overlap)
    circles = (
        0 if compact is None or not len(compact) or not len(abelian) else _circles(algebra, abelian, rest, compact)
    )
    return _sum_of(names, len(abelian) - circles, circles)


class Overlap:
    """Which coordinates the fields move: (g, n) bool."""

    def __init__(self, moved: Tensor):
        """Stores the table."""
        self.moved = moved

    def __call__(self, first: Tensor, second: Tensor) -> bool:
        """Whether two ideals, rows over the g fields, move a common coordinate."""
        a, b = ((self.moved[(rows.abs() > 1e-6).any(0)]).any(0) for rows in (first, second))
        return bool((a & b).any())


def _sum_of(names: list[str], lines: int, circles: int) -> str:
    named = []
    for name in names:
        if name.startswith("sl(") and name.endswith(")") and lines:  # sl(k) + R is gl(k)
            name, lines = "gl" + name[2:], lines - 1
        named.append(name)
    named.sort(key=lambda name: (-_dim_of(name), name))
    named += ["so(2)"] * circles
    if lines:
        named.append("R" if lines == 1 else f"R^{lines}")
    return " + ".join(named)


def _dim_of(name: str) -> int:
    total = 0
    for part in name.split(" x| "):
        inside = (
            part[part.find("(") + 1 : part.find(")")]
            if "(" in part
            else part.removeprefix("R").removeprefix("^") or "1"
        )
        k = int(inside.removeprefix("dim=") or 1)
        kind = part.split("(")[0]
        dims = {
            "gl": k * k,
            "sl": k * k - 1,
            "so": k * (k - 1) // 2,
            "e": k * (k + 1) // 2,
            "sim": k * (k + 1) // 2 + 1,
            "aff": 2,
        }
        total += dims.get(kind, k)
    return total


def _split_abelian(algebra: LieAlgebra) -> tuple[Tensor, Tensor]:
    """The largest abelian direct summand (rows), and a complementary ideal that contains [g, g]."""
    centre, derived = algebra.centre(), algebra.derived()
    if not len(derived):
        return torch.eye(algebra.dim, dtype=torch.float64), torch.zeros(0, algebra.dim, dtype=torch.float64)
    # the part of the centre outside of [g, g]
    outside = centre - centre @ derived.mT @ derived
    _, s, vh = torch.linalg.svd(outside, full_matrices=False) if len(centre) else (None, torch.zeros(0), outside)
    directions = vh[s > _TOLERANCE] if len(centre) else outside
    if not len(directions):
        return torch.zeros(0, algebra.dim, dtype=torch.float64), torch.eye(algebra.dim, dtype=torch.float64)
    # central elements that represent them, and the orthogonal complement of `directions`, which contains [g, g]
    summand = torch.linalg.lstsq(outside.mT, directions.mT).solution.mT @ centre
    return summand, _kernel(directions)


def _parts(algebra: LieAlgebra) -> list[LieAlgebra]:
    """Ideals that sets of basis elements span, without their abelian summands: smaller problems for `_ideals`."""
    linked = algebra.constants.abs() > _ROUNDING * algebra.constants.abs().max()
    graph = linked.any(2) | linked.any(1) | linked.any(0)
    _, label = scipy.sparse.csgraph.connected_components((graph | graph.mT).numpy(), directed=False)
    eye, found = torch.eye(algebra.dim, dtype=torch.float64), []
    for k in range(label.max() + 1):
        part = algebra.restricted(eye[torch.from_numpy(label == k)])
        _, rest = _split_abelian(part)
        if len(rest):
            found.append(part.restricted(rest))
    return found


def _ideals(algebra: LieAlgebra) -> list[LieAlgebra]:
    """The indecomposable ideals of an algebra without abelian summand: eigenspaces of the centroid."""
    g = algebra.dim
    ad = algebra.adjoint()
    eye = torch.eye(g, dtype=torch.float64)
    # T [x, y] = [T x, y] = [x, T y]: T commutes with every ad(x); the first half follows by antisymmetry
    rows = torch.cat([torch.kron(eye, a.contiguous()) - torch.kron(a.mT.contiguous(), eye) for a in ad])
    centroid = _kernel(rows)
    if len(centroid) <= 1:
        return [algebra]
    weights = torch.cos(torch.arange(1, len(centroid) + 1, dtype=torch.float64) ** 2)
    generic = (weights[:, None] * centroid).sum(0).reshape(g, g).mT  # column-major
    # Nilpotent elements (of e(3), say, rotations to translations) are the kernel of the trace form. They make eigenvalues defective,
    # which rounding splits by its square root or worse, but they make no ideals: the rank of the form says how many there are.
    elements = centroid.reshape(-1, g, g)
    count = _rank(torch.einsum("aij,bji->ab", elements, elements))
    if count == 1:
        return [algebra]
    ideals = []
    for values in _clusters(torch.linalg.eigvals(generic), count):
        value = values.mean()
        if abs(value.imag) <= _REAL:
            ideals.append(algebra.restricted(_invariant_space(generic, value, len(values))))
        elif value.imag > 0:  # the conjugate cluster spans the same real space
            ideals.append(algebra.restricted(_invariant_space(generic, value, 2 * len(values))))
    return ideals


def _clusters(values: Tensor, count: int) -> list[Tensor]:
    """`values`, complex, in at most `count` groups: as tight ones as there are."""
    size = float(values.abs().max())
    found: list[Tensor] = []
    for exponent in range(-14, 1):
        found, left = [], values
        while len(left):
            near = left[:1]
            while len(grown := left[(left[:, None] - near).abs().amin(1) <= 10.0**exponent * size]) > len(near):
                near = grown
            left = left[(left[:, None] - near).abs().amin(1) > 10.0**exponent * size]
            found.append(near)
        if len(found) <= count:
            break
    return found


def _invariant_space(matrix: Tensor, value: Tensor, count: int) -> Tensor:
    """The generalised real eigenspace (count, g) of an eigenvalue and its conjugate."""
    eye = torch.eye(len(matrix), dtype=torch.float64)
    a, b = float(value.real), float(value.imag)
    factor = matrix - a * eye if abs(b) <= _REAL else (matrix - a * eye) @ (matrix - a * eye) + b * b * eye
    power = factor / torch.linalg.matrix_norm(factor, 2).clamp_min(1e-300)
    for _ in range(3):
        power = power @ power
    _, _, vh = torch.linalg.svd(power)
    return vh[len(matrix) - count :]


def _merge_rotations(ideals: list[tuple[str, LieAlgebra]], overlap: Overlap | None) -> list[str]:
    """so(4) is so(3) + so(3); it is meant where both move the same coordinates."""
    names, waiting = [], []
    for name, ideal in ideals:
        if name == "so(3)" and overlap is not None:
            partner = next((w for w in waiting if overlap(w.basis, ideal.basis)), None)
            if partner is not None:
                waiting.remove(partner)
                names.append("so(4)")
            else:
                waiting.append(ideal)
        else:
            names.append(name)
    return names + ["so(3)"] * len(waiting)


def _name_ideal(ideal: LieAlgebra) -> str:
    g = ideal.dim
    unknown = f"unknown(dim={g})"
    killing = torch.linalg.eigvalsh(0.5 * (ideal.killing() + ideal.killing().mT))
    size, rounding = killing.abs().max(), 1e-7 * ideal.constants.abs().max() ** 2
    if size > rounding and bool((killing.abs() > 1e-6 * size).all()):
        return _name_simple(g, int((killing > 0).sum())) or unknown
    translations = _abelian_radical(ideal)
    if translations is None:
        return unknown
    return _name_semidirect(ideal, translations) or unknown


def _name_simple(g: int, positive: int) -> str | None:
    """so(k): negative definite Killing form; sl(k): k(k+1)/2 - 1 positive directions."""
    for k in range(2, 12):
        if g == k * k - 1 and positive == k * (k + 1) // 2 - 1:
            return f"sl({k})"
        if g == k * (k - 1) // 2 and positive == 0:
            return f"so({k})"
    return None


def _abelian_radical(ideal: LieAlgebra) -> Tensor | None:
    """The nilradical (rows) if it is abelian and not everything."""
    # an element of the radical is nilpotent if its ad is: the radical of the trace form of the adjoint representation,
    # intersected with its kernel on [g, g]; for algebras r x| R^m this is R^m
    derived = ideal.derived()
    form = ideal.killing() @ derived.mT  # Killing-orthogonal to [g, g]: the radical
    radical = _kernel(form.mT, _ROUNDING * float(ideal.constants.square().max()))
    part = _intersection(radical, derived)
    if not len(part):
        return None
    brackets = torch.einsum("ai,bj,ijk->abk", part, part, ideal.constants)
    return part if float(brackets.abs().max()) < 1e-6 * float(ideal.constants.abs().max()) else None


def _name_semidirect(ideal: LieAlgebra, translations: Tensor) -> str | None:
    m = len(translations)
    rest = ideal.quotient(translations)
    complement = _kernel(translations)
    ad = torch.einsum("ai,ijk->ajk", complement, ideal.constants)  # (q, g, g): rows j -> [X, e_j]
    action = torch.einsum("bj,ajk,ck->abc", translations, ad, translations)  # (q, m, m)
    faithful = _rank(action.reshape(len(complement), -1)) == len(complement)
    if not faithful:
        return None
    acting = name_algebra(rest.constants, compact=_rotating(action, rest))
    if m == 1:
        return "aff(1)" if acting in ("R", "so(2)") else None
    if acting == f"so({m})":
        return f"e({m})"
    if acting == f"so({m}) + R" and _has_identity(action):
        return f"sim({m})"
    return f"{acting} x| R^{m}"


def _rotating(action: Tensor, rest: LieAlgebra) -> Tensor:
    """Rows (k, q): commuting combinations that act with imaginary eigenvalues, for q <= 2 (so(2), and so(2) + R)."""
    q, m = action.shape[0], action.shape[1]
    if q > 2 or float(rest.constants.abs().max()) > 1e-9:
        return torch.zeros(0, q, dtype=torch.float64)
    return rotations_of([a.mT for a in action]) if m >= 2 else torch.zeros(0, q, dtype=torch.float64)


def _has_identity(action: Tensor) -> bool:
    q, m = action.shape[0], action.shape[1]
    table = torch.cat([action.reshape(q, -1), torch.eye(m, dtype=torch.float64).reshape(1, -1)])
    return _rank(table) == q


def rotations_of(matrices: list[Tensor]) -> Tensor:
    """Rows (k, g): combinations of commuting matrices that are diagonalisable with imaginary eigenvalues, not zero.

    Real parts of the joint eigenvalues are linear in the combination, so they vanish on a subspace.
    """
    g = len(matrices)
    if g == 0:
        return torch.zeros(0, 0, dtype=torch.float64)
    weights = torch.cos(torch.arange(1, g + 1, dtype=torch.float64) ** 2)
    generic = sum(w * a for w, a in zip(weights, matrices, strict=True))
    _, vectors = torch.linalg.eig(generic)
    if float(torch.linalg.cond(vectors)) > 1e8:
        return _each_rotation(matrices)
    inverse = torch.linalg.inv(vectors)
    diagonals = torch.stack([(inverse @ a.to(vectors.dtype) @ vectors).diagonal() for a in matrices])  # (g, n)
    growth = torch.where(
        diagonals.real.abs() > 1e-8 * diagonals.abs().max(), diagonals.real, torch.zeros_like(diagonals.real)
    )
    still = _kernel(growth.mT)
    turning = still @ diagonals.imag
    _, s, _ = torch.linalg.svd(turning) if len(still) else (None, torch.zeros(0), None)
    rank = int((s > 1e-8).sum())
    return still if rank == len(still) else still[:0] if rank == 0 else _each_rotation(matrices)


def _each_rotation(matrices: list[Tensor]) -> Tensor:
    rows = []
    for k, a in enumerate(matrices):
        values, vectors = torch.linalg.eig(a)
        size = values.abs().max()
        if size > 0 and float(values.real.abs().max()) < 1e-9 * size and float(torch.linalg.cond(vectors)) < 1e8:
            rows.append(torch.eye(len(matrices), dtype=torch.float64)[k])
    return torch.stack(rows) if rows else torch.zeros(0, len(matrices), dtype=torch.float64)


def _circles(algebra: LieAlgebra, abelian: Tensor, rest: Tensor, compact: Tensor) -> int:
    """How many dimensions of the abelian summand consist of rotations, modulo the rest."""
    both = torch.cat([abelian, rest])
    coordinates = compact @ torch.linalg.pinv(both)
    return _rank(coordinates[:, : len(abelian)])


# ---------------------------------------------------------------------------------------------------- subspaces


def _without_rounding(constants: Tensor, reference: Tensor) -> Tensor:
    """`constants` with zeros where they are rounding beside the constants that they were computed from."""
    floor = _ROUNDING * reference.abs().max() if reference.numel() else 0.0
    return torch.where(constants.abs() > floor, constants, torch.zeros_like(constants))


def _rank(rows: Tensor) -> int:
    s = torch.linalg.svdvals(rows)
    return int((s > _TOLERANCE * s[0]).sum()) if s.numel() and s[0] > 0 else 0


def _span(rows: Tensor) -> Tensor:
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    return vh[: int((s > _TOLERANCE * s[0]).sum())] if s.numel() and s[0] > 0 else vh[:0]


def _kernel(rows: Tensor, floor: float = 0.0) -> Tensor:
    """Orthonormal basis (k, g) of the vectors that all rows annihilate, up to `floor` where that is their rounding."""
    if rows.shape[0] > 2 * rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r")[1]
    _, s, vh = torch.linalg.svd(rows, full_matrices=True)
    return vh[int((s > max(_TOLERANCE * float(s[0]), floor)).sum()) :] if s.numel() and s[0] > 0 else vh


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    if not len(first) or not len(second):
        return first[:0]
    return _kernel(torch.cat([_kernel(first), _kernel(second)])) if len(first) < first.shape[1] else second
