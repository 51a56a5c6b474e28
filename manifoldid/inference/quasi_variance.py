"""Quasi-variances: the variance of every difference is nearly the sum of two of them (Firth & de Menezes 2004)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.errors import NotConvergedError, listed
from manifoldid.inference.names import checked_names
from manifoldid.inference.pools import members

_STEPS = 200


@dataclass(frozen=True, eq=False)
class QuasiVariances:
    """Quasi-variances of n scores.

    Attributes:
        variances: (n,); var(x_i - x_j) is close to variances[i] + variances[j]. One of them may be negative.
        worst_errors: Smallest and largest sqrt(quasi-variance / variance) - 1 over all contrasts of the scores; -1 where a quasi-variance
            of a contrast is negative.
        worst_pair_errors: The same over the differences of two scores, which is what bars are compared for.
    """

    variances: Tensor
    worst_errors: tuple[float, float]
    worst_pair_errors: tuple[float, float]

    @property
    def standard_errors(self) -> Tensor:
        """Square roots (n,); nan where a quasi-variance is negative."""
        return self.variances.sqrt()

    def warning(self, names: Sequence[object] | None = None) -> str:
        """What to know about negative quasi-variances; empty where there are none.

        Args:
            names: What the scores are called; default their index.
        """
        negative = [names[k] if names else k for k in (self.variances < 0).nonzero()[:, 0].tolist()]
        if not negative:
            return ""
        return (
            f"the quasi-variance of item(s) {listed(negative)} is negative, so its standard error is nan: differences with it "
            "vary less than the others allow for; report contrasts instead of standard errors of single items"
        )

    def __repr__(self) -> str:
        low, high = self.worst_errors
        shown = ", ".join(f"{error:.4g}" for error in self.standard_errors[:6].tolist())
        more = f", ... {len(self.variances)} in all" if len(self.variances) > 6 else ""
        return f"QuasiVariances(standard_errors=[{shown}{more}], worst_errors=({low:.2%}, {high:.2%}))"


def quasi_variances(
    covariance: Tensor, names: Sequence[object] | None = None, pools: Tensor | None = None
) -> QuasiVariances:
    """The quasi-variances q that fit log(q_i + q_j) to the log variances of all differences by least squares.

    Two intervals x_i +- sqrt(q_i) can be compared by eye whatever the origin: var(x_i - x_j) is close to q_i + q_j.

    Args:
        covariance: Covariance (n, n) of n >= 3 scores in any gauge: only variances of contrasts are used. Computed in float64.
        names: What the scores are called in errors and warnings.
        pools: Labels (n,) of scores without a common origin, which are not compared: quasi-variances pool by pool, nan in pools of
            fewer than 3 scores. None is one pool.

    Returns:
        Variances in the dtype of `covariance`, standard errors and the worst relative error over all contrasts.

    Raises:
        TypeError: `covariance` is no floating tensor, or `pools` no tensor.
        ValueError: It is not a finite symmetric matrix of at least 3 scores, `pools` is not one label per score, or a contrast has no
            variance (rank-deficient).
        NotConvergedError: The least-squares iteration does not settle.
    """
    result = fitted(covariance, names, pools)
    warning = result.warning(checked_names(names, covariance[0]).get(""))
    if warning:
        warnings.warn(warning, UserWarning, stacklevel=2)
    return result


def fitted(covariance: Tensor, names: Sequence[object] | None = None, pools: Tensor | None = None) -> QuasiVariances:
    """As `quasi_variances`, without its warning."""
    matrix = _checked(covariance)
    called = checked_names(names, matrix[0]).get("") or list(range(len(matrix)))
    if pools is not None and not isinstance(pools, Tensor):
        raise TypeError(f"`pools` must be a tensor of labels ({len(matrix)},), got {type(pools).__name__}")
    if pools is not None and tuple(pools.shape) != (len(matrix),):
        raise ValueError(f"`pools` must have shape ({len(matrix)},), one label per score, got {tuple(pools.shape)}")
    reason = refusal(covariance, called, pools)
    if reason:
        raise ValueError(reason)
    values = torch.full_like(matrix[0], torch.nan)
    worst, worst_pair = [], []
    for items in _comparable(pools, len(matrix)):
        part = matrix[items[:, None], items]
        values[items] = own = _least_squares(part)
        worst.append(_worst_errors(part, own))
        worst_pair.append(_worst_pair_errors(part, own))
    return QuasiVariances(values.to(covariance.dtype), _extremes(worst), _extremes(worst_pair))


def refusal(covariance: Tensor, called: Sequence[object], pools: Tensor | None = None) -> str | None:
    """Why a covariance (n, n), finite and symmetric, has no quasi-variances; None when it has."""
    if pools is not None:
        groups = _comparable(pools, len(covariance))
        if not groups:
            return "`covariance` must speak of at least 3 items of one pool: report the standard error of the contrast"
        reasons = (refusal(covariance[items[:, None], items], [called[k] for k in items.tolist()]) for items in groups)
        return next((reason for reason in reasons if reason), None)
    n, eps = len(covariance), torch.finfo(covariance.dtype).eps
    if n < 3:
        return f"`covariance` must speak of at least 3 items, got {n}: report the standard error of the contrast"
    matrix = covariance.detach().double()
    basis = _contrasts(matrix)
    contrasts = basis.mT @ matrix @ basis
    values = torch.linalg.eigvalsh(contrasts)
    null = ~(values > 10 * n * eps * values[-1].clamp_min(matrix.abs().max()))
    if not bool(null.any()):
        return None
    vectors = torch.linalg.eigh(contrasts).eigenvectors
    return (
        f"`covariance` is rank-deficient: {int(null.sum())} of its {n - 1} contrasts have no variance ("
        f"{_sides(basis @ vectors[:, null], called)}; smallest eigenvalue {float(values[0]):.1e}, largest {float(values[-1]):.1e}). "
        "Leave out items that are fixed or belong to another component, or use a larger sample: an ensemble needs more members than items, "
        "a sandwich more terms (clusters) than free numbers"
    )


def _sides(directions: Tensor, called: Sequence[object]) -> str:
    """What has no variance: the two sides of the only such contrast, when it is a difference of two means, or the items in it."""
    largest = directions.norm(dim=1)
    if directions.shape[1] == 1:
        direction = directions[:, 0]
        up, down = direction > 0.5 * direction.max(), direction < 0.5 * direction.min()
        flat = torch.stack([direction[up].std(correction=0), direction[down].std(correction=0)]).max()
        if bool((up | down).all()) and bool(flat < 1e-6 * largest.max()):
            left, right = ([called[k] for k in side.nonzero()[:, 0].tolist()] for side in (up, down))
            return f"the mean of items {listed(left)} minus that of items {listed(right)}"
    involved = (largest > 0.1 * largest.max()).nonzero()[:, 0].tolist()
    return f"between items {listed([called[k] for k in involved])}"


def _checked(covariance: Tensor) -> Tensor:
    if not isinstance(covariance, Tensor) or not covariance.is_floating_point():
        what = covariance.dtype if isinstance(covariance, Tensor) else type(covariance).__name__
        raise TypeError(
            f"`covariance` must be a floating tensor (n, n), got {what}; use torch.as_tensor(covariance).double()"
        )
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not len(covariance):
        raise ValueError(f"`covariance` must be a square matrix (n, n), got shape {tuple(covariance.shape)}")
    matrix = covariance.detach().double()
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("`covariance` must be finite: it has nan or infinite entries")
    eps = torch.finfo(covariance.dtype).eps
    if bool((matrix - matrix.mT).abs().max() > eps**0.5 * matrix.abs().max()):
        raise ValueError("`covariance` must be symmetric")
    return 0.5 * (matrix + matrix.mT)


def _contrasts(matrix: Tensor) -> Tensor:
    """An orthonormal basis (n, n - 1) of the contrasts: the reflection that takes the first axis to the vector of ones, without that."""
    n = len(matrix)
    axis = matrix.new_full((n,), n**-0.5)
    axis[0] += 1
    return (torch.eye(n, dtype=matrix.dtype, device=matrix.device) - axis * axis[:, None] / axis[0])[:, 1:]


def _least_squares(matrix: Tensor) -> Tensor:
    """Gauss-Newton with damping on sum_{i<j} (log(q_i + q_j) - log v_ij)^2, inside the domain q_i + q_j > 0.

    The Jacobian has two entries in every row, 1 / (q_i + q_j), so the normal equations are formed from (n, n) matrices.

    Raises:
        NotConvergedError: It does not settle.
    """
    n, eye = len(matrix), torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    variances = (matrix.diagonal() + matrix.diagonal()[:, None] - 2 * matrix).masked_fill(eye, 0)
    unit = variances.sum() / (n * (n - 1))
    total = (variances / unit).sum(1)
    target = (variances / unit).masked_fill(eye, 1).log()

    def rest_of(q: Tensor) -> tuple[Tensor, Tensor]:
        sums = (q + q[:, None]).masked_fill(eye, 1)
        return sums, sums.log() - target  # nan outside of the domain

    q = (total - total.sum() / (2 * (n - 1))) / (n - 2)  # least squares without the logarithm
    sums, rest = rest_of(q)
    if not bool((sums > 0).all()):
        q = torch.full_like(q, 0.5)
        sums, rest = rest_of(q)
    damping = 0.0
    for _ in range(_STEPS):
        slope = (rest / sums).sum(1)
        normal = sums.square().reciprocal().masked_fill(eye, 0)
        diagonal = normal.sum(1) * (1 + damping)
        step = -torch.linalg.solve(normal + torch.diag(diagonal), slope)
        if bool(step.abs().max() <= 1e-12 * q.abs().max()):
            return unit * q
        new_sums, new_rest = rest_of(q + step)
        if bool(new_rest.square().sum() <= rest.square().sum() * (1 + 1e-14)):
            q, sums, rest = q + step, new_sums, new_rest
            damping = damping / 10 if damping > 1e-9 else 0.0
        else:
            damping = max(10 * damping, 1e-4)
    raise NotConvergedError("`covariance`: the quasi-variances do not settle; report contrasts instead")


def _comparable(pools: Tensor | None, size: int) -> list[Tensor]:
    """The items of every pool that has quasi-variances."""
    return [items for items in members(pools, size) if pools is None or len(items) > 2]


def _extremes(errors: list[tuple[float, float]]) -> tuple[float, float]:
    return min(low for low, _ in errors), max(high for _, high in errors)


def _worst_pair_errors(matrix: Tensor, q: Tensor) -> tuple[float, float]:
    i, j = torch.triu_indices(len(q), len(q), offset=1, device=q.device)
    errors = ((q[i] + q[j]) / (matrix[i, i] + matrix[j, j] - 2 * matrix[i, j])).clamp_min(0).sqrt() - 1
    return float(errors.min()), float(errors.max())


def _worst_errors(matrix: Tensor, q: Tensor) -> tuple[float, float]:
    basis = _contrasts(matrix)
    root = torch.linalg.cholesky(basis.mT @ matrix @ basis)
    half = torch.linalg.solve_triangular(root, basis.mT @ torch.diag(q) @ basis, upper=False)
    ratios = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    errors = ratios.clamp_min(0).sqrt() - 1
    return float(errors[0]), float(errors[-1])
