"""Orthogonal: X -> X Q."""

from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid._linalg import column_signs, lyapunov, polar, rank_tolerance, right_singular, rotation_log, skew
from manifoldid.groups._isometric import IsometricGeometry, by_rows
from manifoldid.groups._turning import TurningGeometry, row_weights
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.geometry import Check, unchecked
from manifoldid.points import Point, Weights


@dataclass(frozen=True, eq=False, repr=False)
class Orthogonal(GaugeGroup):
    """X -> X Q for matrices X (n, r), Q orthogonal. Canonical: X'WX diagonal and decreasing, signs from the columns.

    Factor loadings, embeddings, everything in which only X X' enters; reflections belong to it. Coordinates: the entries above
    the diagonal of a skew matrix S (r (r - 1) / 2 of them, row by row), Q = exp(S). The group has a second component, the
    reflections: there the first coordinate is 32 larger (above 16), and Q = exp(S) diag(1, ..., 1, -1). So a frame leads back
    exactly, and `carry` is right for new items, also where X and its section are mirror images. For one column the group is
    the sign alone, of dimension 0, which no frame holds.

    The sign convention is that the entry of largest modulus in each column is positive. Where X'WX has equal eigenvalues the
    section is not continuous.

    The horizontal spaces are curved: no section is horizontal. A closed path of horizontal steps ends at a rotated point, so that
    optimisers are attached by horizontal steps, and no convention of axes makes entries comparable. For ensembles this means: the
    mean is the Frechet mean (generalised Procrustes analysis), not the mean of entries on some section; deviations and covariances
    are those of the members aligned to that mean, and belong to this ensemble (a further member can turn all others a little).
    What does not depend on it are functions of X X': pass them to `Ensemble.contrast`.
    """

    event_dim = 2
    defect = (
        "has rank below r - 1 for its r columns: rotations inside the missing directions do not change it, so it has no frame; "
        "start from a point of full rank, or use fewer columns"
    )
    closest_defect = (
        "is orthogonal to `at` in two directions or more, so that many rotations are closest; choose another `at`"
    )

    def on_items(self, rows: dict[str, Tensor]) -> "Orthogonal":
        """See `GaugeGroup.on_items`."""
        return self

    def dimension(self, x: Point) -> int:
        return x.shape[-1] * (x.shape[-1] - 1) // 2

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return x @ rotation(xi, x.shape[-1])

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        return x @ rotation(xi, x.shape[-1]).mT

    def vertical_basis(self, x: Tensor) -> Tensor:
        return x[..., None, :, :] @ planes(x)

    def canonical(self, x: Tensor, weights: Weights = None) -> Canonical:
        turn, regular = principal_rotation(weighted_rows(x, weights))
        point = x @ turn
        signs = column_signs(point)
        return Canonical(point * signs * regular[..., None], frame_of(turn * signs, regular), regular)

    def closest(self, x: Tensor, to: Tensor, weights: Weights = None) -> Canonical:
        turn, regular = procrustes(x, to, weights)
        return Canonical(x @ turn, frame_of(turn, torch.ones_like(regular)), regular)

    def geometry(self, weights: Weights = None) -> "OrthogonalGeometry":
        return OrthogonalGeometry(self, weights)

    def generator_names(self, x: Point) -> list[str]:
        size = x.shape[-1]
        return [f"rotation of columns {i} and {j}" for i in range(size) for j in range(i + 1, size)]


class OrthogonalGeometry(TurningGeometry, IsometricGeometry):
    """Metric tr(U'WV). Source of the horizontal space: Journée, Bach, Absil & Sepulchre (2010), SIAM J. Optim. 20(5)."""

    def horizontal(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.horizontal`: u - x S with S skew, S P + P S = x'Wu - u'Wx, P = x'Wx."""
        return u - x @ spin(x, u, self.weights)

    def follow(self, x: Tensor, y: Tensor, check: Check = unchecked) -> Tensor:
        """See `Geometry.follow`: y - x S, S as for y - x."""
        turning = self.turning(x)
        turning.meet(y)
        check(spin := turning.spin())
        turning.subtract_product(y, spin)
        return y

    def components(self, x: Tensor, u: Tensor) -> Tensor:
        """See `Geometry.components`: the norm of every row, since rotations mix the entries of a row."""
        return by_rows(weighted_rows(u, self.weights))

    def transport(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """See `Geometry.transport`: the horizontal component at the representative of `y` closest to `x`, rotated to `y`."""
        turn, _ = procrustes(y, x, self.weights)
        return self.horizontal(y, v @ turn.mT)


_MIRRORED = 32.0  # on top of the first coordinate of reflections; those of rotations are at most pi


def rotation(xi: Tensor, size: int) -> Tensor:
    """The orthogonal matrix (*batch, r, r) with coordinates `xi` (*batch, r (r - 1) / 2); see `Orthogonal`."""
    if size < 2:
        return torch.ones(*xi.shape[:-1], size, size, dtype=xi.dtype, device=xi.device)
    mirrored = xi[..., :1] > _MIRRORED / 2
    xi = torch.cat([xi[..., :1] - _MIRRORED * mirrored, xi[..., 1:]], dim=-1)
    if size == 2:
        cosine, sine = xi.cos(), xi.sin()
        turn = torch.stack([torch.cat([cosine, sine], dim=-1), torch.cat([-sine, cosine], dim=-1)], dim=-2)
    else:
        rows, columns = torch.triu_indices(size, size, 1, device=xi.device)
        upper = torch.zeros(*xi.shape[:-1], size * size, dtype=xi.dtype, device=xi.device)
        upper = upper.index_add(-1, rows * size + columns, xi).unflatten(-1, (size, size))
        turn = torch.linalg.matrix_exp(upper - upper.mT)
    last = torch.arange(size, device=xi.device) == size - 1
    return torch.where(last & mirrored[..., None], -turn, turn)


def planes(x: Tensor) -> Tensor:
    """The generators E_ij - E_ji, i < j, of rotations of the columns of `x`; shape (r (r - 1) / 2, r, r)."""
    size = x.shape[-1]
    rows, columns = torch.triu_indices(size, size, 1, device=x.device)
    one = torch.eye(size, dtype=x.dtype, device=x.device)
    upper = one[rows][:, :, None] * one[columns][:, None, :]
    return upper - upper.mT


def weighted_rows(x: Tensor, weights: Weights, power: float = 0.5) -> Tensor:
    """The rows of `x` (*batch, n, r) times w^power."""
    w = row_weights(x, weights)
    return x if w is None else x * w**power


def principal_rotation(y: Tensor) -> tuple[Tensor, Tensor]:
    """The principal axes of `y` as columns of an orthogonal matrix, and whether rotations move `y` freely (*batch, 1)."""
    values, axes = right_singular(y)
    finite = torch.isfinite(y).all(-1).all(-1)[..., None]
    if values.shape[-1] < 2:
        return axes, finite & (values.shape[-1] > 0)
    return axes, finite & (values[..., -2:-1] > rank_tolerance(y) * values[..., :1])


def procrustes(x: Tensor, to: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The orthogonal R that brings x R closest to `to`, and whether it is the only one near it (*batch, 1)."""
    product = x.mT @ weighted_rows(to, weights, 1.0)
    values = torch.linalg.svdvals(torch.where(torch.isfinite(product), product, torch.zeros_like(product)).detach())
    regular = torch.isfinite(product).all(-1).all(-1)[..., None]
    if values.shape[-1] > 1:
        size = torch.linalg.vector_norm(x, dim=(-2, -1)) * torch.linalg.vector_norm(
            weighted_rows(to, weights, 1.0), dim=(-2, -1)
        )
        regular = regular & (values[..., -2:-1] > torch.finfo(x.dtype).eps * size[..., None])
    return polar(product), regular


def frame_of(turn: Tensor, regular: Tensor) -> Tensor:
    """Coordinates of the inverse of the orthogonal matrix `turn` (*batch, r, r); zero where the point is not regular."""
    size, back = turn.shape[-1], turn.mT
    if size < 2:
        return turn.new_zeros(*turn.shape[:-2], 0)
    mirrored = torch.linalg.det(turn.detach())[..., None] < 0
    last = torch.arange(size, device=turn.device) == size - 1
    back = torch.where(last & mirrored[..., None], -back, back)
    if size == 2:
        xi = torch.atan2(skew(back)[..., 0, 1:], 0.5 * (back[..., 0, :1] + back[..., 1, 1:]))
    else:
        rows, columns = torch.triu_indices(size, size, 1, device=turn.device)
        xi = rotation_log(back)[..., rows, columns]
    return torch.cat([xi[..., :1] + _MIRRORED * mirrored, xi[..., 1:]], dim=-1) * regular


def spin(x: Tensor, u: Tensor, weights: Weights) -> Tensor:
    """The skew matrix S for which x S is the component of `u` along the rotations of `x`."""
    y, v = weighted_rows(x, weights), weighted_rows(u, weights)
    product = y.mT @ v
    return lyapunov(y.mT @ y, product - product.mT)
