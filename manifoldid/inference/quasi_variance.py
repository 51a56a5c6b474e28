"""Quasi-variances: the variance of every difference is nearly the sum of two of them (Firth & de Menezes 2004)."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.errors import NotConvergedError, listed

_STEPS = 200


@dataclass(frozen=True)
class QuasiVariances:
    """Quasi-variances of n scores.

    Attributes:
        variances: (n,); var(x_i - x_j) is close to variances[i] + variances[j]. One of them may be negative.
        worst_errors: Smallest and largest sqrt(quasi-variance / variance) - 1 over all contrasts of the scores.
    """

    variances: Tensor
    worst_errors: tuple[float, float]

    @property
    def standard_errors(self) -> Tensor:
        """Square roots (n,); nan where a quasi-variance is negative."""
        return self.variances.sqrt()

    def __repr__(self) -> str:
        low, high = self.worst_errors
        return f"QuasiVariances(standard_errors={self.standard_errors.tolist()}, worst_errors=({low:.2%}, {high:.2%}))"


def quasi_variances(covariance: Tensor) -> QuasiVariances:
    """The quasi-variances q that fit log(q_i + q_j) to the log variances of all differences by least squares.

    Args:
        covariance: Covariance (n, n) of n >= 3 scores in any gauge: only variances of contrasts are used.

    Returns:
        Variances in the dtype of `covariance`, standard errors and the worst relative error over all contrasts.

    Raises:
        TypeError: `covariance` is no floating tensor.
        ValueError: It is not a finite symmetric matrix of at least 3 scores, or a contrast has no variance (rank-deficient).
        NotConvergedError: The least-squares iteration does not settle.
    """
    matrix = _checked(covariance)
    i, j = torch.triu_indices(*matrix.shape, offset=1, device=matrix.device)
    diagonal = matrix.diagonal()
    differences = diagonal[i] + diagonal[j] - 2 * matrix[i, j]
    unit = differences.mean()
    values = unit * _least_squares(differences / unit, i, j, len(matrix))
    negative = (values < 0).nonzero()[:, 0].tolist()
    if negative:
        warnings.warn(
            f"the quasi-variance of item(s) {listed(negative)} is negative, so its standard error is nan: differences with it "
            "vary less than the others allow for; report contrasts instead of standard errors of single items",
            UserWarning,
            stacklevel=2,
        )
    return QuasiVariances(values.to(covariance.dtype), _worst_errors(matrix, values))


def _checked(covariance: Tensor) -> Tensor:
    if not isinstance(covariance, Tensor) or not covariance.is_floating_point():
        raise TypeError(
            f"`covariance` must be a floating tensor (n, n), got {getattr(covariance, 'dtype', type(covariance).__name__)}"
        )
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"`covariance` must be a square matrix (n, n), got shape {tuple(covariance.shape)}")
    n = len(covariance)
    if n < 3:
        raise ValueError(
            f"`covariance` must speak of at least 3 items, got {n}: report the standard error of the contrast"
        )
    matrix = covariance.detach().double()
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("`covariance` must be finite: it has nan or infinite entries")
    eps = torch.finfo(covariance.dtype).eps
    if bool((matrix - matrix.mT).abs().max() > eps**0.5 * matrix.abs().max()):
        raise ValueError("`covariance` must be symmetric")
    matrix = 0.5 * (matrix + matrix.mT)
    values = torch.linalg.eigvalsh(_on_contrasts(matrix))
    if not bool(values[0] > 10 * n * eps * values[-1].clamp_min(matrix.abs().max())):
        raise ValueError(
            f"`covariance` is rank-deficient: of its {n - 1} contrasts some have no variance (smallest eigenvalue "
            f"{float(values[0]):.1e}, largest {float(values[-1]):.1e}); leave out fixed items, or use a larger sample"
        )
    return matrix


def _on_contrasts(matrix: Tensor) -> Tensor:
    """`matrix` in an orthonormal basis of the contrasts, (n - 1, n - 1)."""
    ones = matrix.new_ones(len(matrix), 1)
    basis = torch.linalg.qr(ones, mode="complete").Q[:, 1:]
    return basis.mT @ matrix @ basis


def _least_squares(v: Tensor, i: Tensor, j: Tensor, n: int) -> Tensor:
    """Gauss-Newton with damping on sum (log(q_i + q_j) - log v_ij)^2, inside the domain q_i + q_j > 0."""
    total = v.new_zeros(n).index_add(0, i, v).index_add(0, j, v)
    q = (total - total.sum() / (2 * (n - 1))) / (n - 2)  # least squares without the logarithm
    if not bool((q[i] + q[j] > 0).all()):
        q = torch.full_like(q, 0.5) * v.mean()
    design = v.new_zeros(len(v), n)
    rows = torch.arange(len(v), device=v.device)
    design[rows, i] = 1
    design[rows, j] = 1
    damping, rest = 0.0, (q[i] + q[j]).log() - v.log()
    for _ in range(_STEPS):
        jacobian = design / (q[i] + q[j])[:, None]
        normal, slope = jacobian.mT @ jacobian, jacobian.mT @ rest
        step = -torch.linalg.solve(normal + damping * torch.diag(normal.diagonal()), slope)
        new = q + step
        sums = new[i] + new[j]
        trial = sums.log() - v.log() if bool((sums > 0).all()) else torch.full_like(v, torch.inf)
        if bool(step.abs().max() <= 1e-12 * q.abs().max()):
            return q
        if bool(trial.square().sum() <= rest.square().sum() * (1 + 1e-14)):
            q, rest, damping = new, trial, damping / 10 if damping > 1e-9 else 0.0
        else:
            damping = max(10 * damping, 1e-4)
    raise NotConvergedError("`covariance`: the quasi-variances do not settle; report contrasts instead")


def _worst_errors(matrix: Tensor, q: Tensor) -> tuple[float, float]:
    root = torch.linalg.cholesky(_on_contrasts(matrix))
    half = torch.linalg.solve_triangular(root, _on_contrasts(torch.diag(q)), upper=False)
    ratios = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    errors = ratios.clamp_min(0).sqrt() - 1
    return float(errors[0]), float(errors[-1])
