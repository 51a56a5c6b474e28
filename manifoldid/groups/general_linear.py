"""GeneralLinear: A -> A G, B -> B G^-T for two factors of a product A B'."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldid._linalg import balanced_frame, polar, rank_tolerance, right_singular
from manifoldid._memory import Kept, Memory
from manifoldid.groups._named_blocks import NamedBlocksGeometry
from manifoldid.groups._sylvester import Sylvester
from manifoldid.groups._thin import ThinMatrices
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.groups.geometry import Check, Geometry, unchecked
from manifoldid.points import Point, Weights, item_weights


class _Factor(NamedTuple):
    """A matrix (*batch, n, r), its singular values (*batch, r) and right singular vectors."""

    matrix: Tensor
    values: Tensor
    axes: Tensor


class _Pairs:
    """Factors A (*batch, n, r) and B (*batch, m, r) where steps begin, and Gram matrices of them, rows weighted."""

    def __init__(self, x: Point, group: "GeneralLinear", weights: Weights):
        first, second = zip(group.factors_of(x), group.rank_dims, group.row_weights(x, weights), strict=True)
        self.factors = tuple(ThinMatrices(t, dim in (0, -2), w) for t, dim, w in (first, second))
        a = first[0]
        grams = Memory().room("grams", (2, 2, *a.shape[:-2], a.shape[-1], a.shape[-1]), a)
        self._squares, self._changes = grams
        self._own = [grams[:, k] for k in range(2)]

    def meet(self, k: int, end: Tensor) -> None:
        """Takes note of where factor `k` (0 or 1) is at the end of the step."""
        self.factors[k].grams(end, out=self._own[k])

    def mixing(self, solve: Sylvester) -> Tensor:
        """L (*batch, r, r) with A'A L + L B'B = A'(C - A) - (D - B)'B, for the factors C and D at the end."""
        return solve(self._squares, self._changes[0] - self._changes[1].mT)


@dataclass(frozen=True, eq=False, repr=False)
class GeneralLinear(GaugeGroup):
    """A -> A G, B -> B G^-T for factors A (n, r) and B (m, r) of which only A B' enters, G invertible (r, r).

    Matrix factorisation, LoRA (`GeneralLinear("lora_A", "lora_B", rank_dims=(0, -1))` in PEFT's layout), queries and keys, values
    and outputs of attention heads. Coordinates: the entries of G - 1, row by row; they reach every G. Leading dimensions (layers,
    heads) are batch.

    Canonical: A'WA = B'WB diagonal and decreasing, the entry of largest modulus in each column of A positive; not continuous
    where singular values of A B' are equal. The metric is tr(B'B dA'dA) + tr(A'A dB'dB), which does not change with G; its
    gradient is that of scaled gradient descent (preconditioned LoRA). Horizontal spaces are curved: there is no horizontal section, so optimisers
    are attached by horizontal steps, and means, deviations and covariances of an ensemble are those of members aligned to their
    Frechet mean, which belong to this ensemble; functions of A B' do not depend on that (`Ensemble.contrast`).

    One factor that is zero, the usual start of LoRA, is a point without a frame. It is left where it is, and while a factor has no
    full rank the metric is damped: its Gram matrix is raised by the mean square of the other factor. An attached optimiser keeps
    A'A - B'B (to first order), whether zero as from balanced factors or the square of the A that LoRA starts with: `attach` trains
    LoRA as the plain optimiser does, without what it moves along the gauge. Runs from (A, 0) and (A G, 0) are different ones.

    Args:
        first: Name of the block A.
        second: Name of the block B.
        rank_dims: Which of the two dimensions of A and of B counts the rank.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: The names are equal, or a dimension is none of -2, -1, 0, 1.
    """

    first: str
    second: str
    rank_dims: Sequence[int] = (-1, -1)
    event_dim = 2
    defect = (
        "has a factor without full rank, so that A B' has lower rank than the factors have columns and the group moves it along "
        "fewer directions; use fewer columns, or start at full rank (a factor that is zero, with the other of full rank, is "
        "accepted as a start)"
    )
    closest_defect = f"{defect}; or `at` has such a factor"

    def __post_init__(self) -> None:
        if not isinstance(self.first, str) or not isinstance(self.second, str):
            raise TypeError(f"`first` and `second` must be names of blocks, got {self.first!r} and {self.second!r}")
        if self.first == self.second:
            raise ValueError(f"`first` and `second` must be different blocks, got {self.first!r} twice")
        dims = self.rank_dims
        if not isinstance(dims, Sequence) or len(dims) != 2 or any(d not in (-2, -1, 0, 1) for d in dims):
            raise ValueError(f"`rank_dims` must be a pair of dimensions out of -2, -1, 0, 1, got {dims!r}")
        object.__setattr__(self, "rank_dims", tuple(int(d) for d in dims))
        object.__setattr__(self, "block_names", (self.first, self.second))

    # ------------------------------------------------------------------------------------------------ shapes

    def factors_of(self, x: Point) -> tuple[Tensor, Tensor]:
        """A (*batch, n, r) and B (*batch, m, r), the rank last."""
        first, second = (
            x[name].mT if d in (0, -2) else x[name] for name, d in zip(self.block_names, self.rank_dims, strict=True)
        )
        return first, second

    def point_of(self, a: Tensor, b: Tensor, x: Point) -> Point:
        """`x` with the factors replaced; the inverse of `factors_of`."""
        pairs = zip(self.block_names, (a, b), self.rank_dims, strict=True)
        return {**x, **{name: t.mT if d in (0, -2) else t for name, t, d in pairs}}

    def on_items(self, rows: dict[str, Tensor]) -> GaugeGroup:
        """See `GaugeGroup.on_items`: items are rows, so the rank has to be the last dimension.

        Raises:
            TypeError: It is the first dimension of a factor.
        """
        return self if all(d in (-1, 1) for d in self.rank_dims) else super().on_items(rows)

    def dimension(self, x: Point) -> int:
        return self.factors_of(x)[0].shape[-1] ** 2

    def validate(self, x: Point, name: str = "point") -> Point:
        """See `GaugeGroup.validate`; also that both factors have the same number of columns and the same batch.

        Raises:
            ValueError: They do not.
        """
        x = super().validate(x, name)
        a, b = self.factors_of(x)
        if a.shape[-1] != b.shape[-1] or a.shape[:-2] != b.shape[:-2]:
            raise ValueError(
                f"`{name}[{self.first!r}]` and `{name}[{self.second!r}]` must have equal ranks and batches, got shapes "
                f"{tuple(x[self.first].shape)} and {tuple(x[self.second].shape)} with the rank in dimensions {self.rank_dims} "
                "(rank_dims=)"
            )
        return x

    # ------------------------------------------------------------------------------------------------ the action

    def act(self, xi: Tensor, x: Point) -> Point:
        size = self.factors_of(x)[0].shape[-1]
        return self.moved_by(_element(xi, size), x)

    def undo(self, xi: Tensor, x: Point) -> Point:
        a, b = self.factors_of(x)
        g = _element(xi, a.shape[-1])
        return self.point_of(torch.linalg.solve(g, a, left=False), b @ g.mT, x)

    def moved_by(self, g: Tensor, x: Point) -> Point:
        """(A g, B g^-T)."""
        a, b = self.factors_of(x)
        return self.point_of(a @ g, torch.linalg.solve(g.mT, b, left=False), x)

    def vertical_basis(self, x: Point) -> Point:
        a, b = self.factors_of(x)
        size, ndim = a.shape[-1], a.ndim - 2
        one = torch.eye(size, dtype=a.dtype, device=a.device)
        units = (one[:, None, :, None] * one[None, :, None, :]).reshape(size * size, size, size)
        rows = self.point_of(a[..., None, :, :] @ units, -b[..., None, :, :] @ units.mT, {})
        rest = {n: t for n, t in x.items() if n not in self.block_names}
        zeros = {n: t.new_zeros(*t.shape[:ndim], size * size, *t.shape[ndim:]) for n, t in rest.items()}
        return {n: {**rows, **zeros}[n] for n in x}

    # -------------------------------------------------------------------------------------------- representatives

    def canonical(self, x: Point, weights: Weights = None) -> Canonical:
        a, b = self.factors_of(x)
        start, full = self._start(x, weights)
        regular, full = (full | start)[..., None], full[..., None, None]
        g = one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(*a.shape[:-2], -1, -1)
        if min(a.shape[-2], b.shape[-2]) >= a.shape[-1]:
            pairs = zip((a, b), self.row_weights(x, weights), strict=True)
            safe_a, safe_b = (torch.where(full, _weighted(t, w), _tall_eye(t)) for t, w in pairs)
            g = torch.where(full, balanced_frame(safe_a, safe_b), one)
        inverse = torch.linalg.inv(g)
        point = self.point_of(a @ g * regular[..., None], b @ inverse.mT * regular[..., None], x)
        return Canonical(point, (inverse - one).flatten(-2), regular)

    def _start(self, x: Point, weights: Weights) -> tuple[Tensor, Tensor]:
        """Whether one factor is zero and the other has full rank; whether both have full rank. Shape (*batch)."""
        matrices = [_weighted(t, w) for t, w in zip(self.factors_of(x), self.row_weights(x, weights), strict=True)]
        finite = torch.isfinite(matrices[0]).all(-1).all(-1) & torch.isfinite(matrices[1]).all(-1).all(-1)
        full_a, full_b = (has_full_rank(t, right_singular(t.detach())[0]) & finite for t in matrices)
        zero_a, zero_b = ((t == 0).all(-1).all(-1) for t in self.factors_of(x))
        return (full_a & zero_b) | (full_b & zero_a), full_a & full_b

    def closest(self, x: Point, to: Point, weights: Weights = None) -> Canonical:
        """The representative of `x` with the balance of `to`, rotated to be closest to it: balanced `x` rotated to balanced `to`."""
        start, end = self.canonical(x, weights), self.canonical(to, weights)
        size = self.factors_of(x)[0].shape[-1]
        from_x, from_to = (_element(form.xi, size) for form in (start, end))
        g = self.turn(start.point, end.point, weights) @ from_to
        regular = start.verdict & end.verdict
        change = torch.linalg.solve(g, from_x) - torch.eye(size, dtype=g.dtype, device=g.device)
        point = self.moved_by(g, start.point)
        return Canonical(point, change.flatten(-2) * regular, regular)

    def turn(self, x: Point, to: Point, weights: Weights) -> Tensor:
        """The orthogonal matrix that brings balanced `x` closest to balanced `to`."""
        (a, b), (c, d), (w_a, w_b) = self.factors_of(x), self.factors_of(to), self.row_weights(x, weights)
        return polar(_weighted(a, w_a).mT @ _weighted(c, w_a) + _weighted(b, w_b).mT @ _weighted(d, w_b))

    # ------------------------------------------------------------------------------------------------ weights

    def row_weights(self, x: Point, weights: Weights) -> tuple[Tensor | None, Tensor | None]:
        """The weights (n, 1) and (m, 1) of the rows of A and B (their dimensions that do not count the rank).

        Raises:
            ValueError: They are no dict, name another block, or have the wrong shape.
        """
        if weights is None:
            return None, None
        if isinstance(weights, Tensor) or set(weights) - set(x.keys()):
            raise ValueError(
                f"`weights` of {self} must be a dict over the blocks {sorted(x.keys())}, got {_kind(weights)}"
            )
        first, second = (
            item_weights(weights[n], t.shape[-2:-1], t)[:, None] if n in weights else None
            for n, t in zip(self.block_names, self.factors_of(x), strict=True)
        )
        return first, second

    def entry_weights(self, weights: Weights, x: Point) -> Weights:
        """See `GaugeGroup.entry_weights`: items are columns where the rank comes first (PEFT's lora_A)."""
        if weights is None or isinstance(weights, Tensor):
            return weights
        columns = {n: x[n].shape[-2:] for n, d in zip(self.block_names, self.rank_dims, strict=True) if d in (0, -2)}
        return {
            name: w.expand(columns[name]) if name in columns and w.shape == columns[name][1:] else w
            for name, w in weights.items()
        }

    def geometry(self, weights: Weights = None) -> NamedBlocksGeometry:
        return NamedBlocksGeometry(GeneralLinearGeometry(self, weights), weights)

    def generator_names(self, x: Point) -> list[str]:
        size = self.factors_of(x)[0].shape[-1]
        blocks = f"of {self.first} and {self.second}"
        return [
            f"scaling of column {i} {blocks}" if i == j else f"shear of columns {i} and {j} {blocks}"
            for i in range(size)
            for j in range(size)
        ]


class GeneralLinearGeometry(Geometry):
    """Metric tr(B'B dA'dA) + tr(A'A dB'dB), rows weighted.

    Source: Mishra, Apuroop & Sepulchre (2012), arXiv:1211.1550; Tong, Ma & Chi (2021), JMLR 22(150), for the
    gradient. The damping is ours.
    """

    group: GeneralLinear
    _kept: Kept[_Pairs] | None = None
    _solve: Sylvester | None = None

    def stepping(self) -> "GeneralLinearGeometry":
        """See `Geometry.stepping`: it keeps the eigenvectors of the Gram matrices, and memory."""
        other = copy.copy(self)
        other._solve, other._kept = Sylvester(), Kept()
        return other

    def inner(self, x: Point, u: Point, v: Point) -> Tensor:
        """See `Geometry.inner`."""
        a, b = self._factors(x)
        (da, db), (ea, eb) = self._vectors(x, u), self._vectors(x, v)
        first = ((da @ b.axes) * (ea @ b.axes) * self._squares(b, a)).sum((-2, -1))
        return first + ((db @ a.axes) * (eb @ a.axes) * self._squares(a, b)).sum((-2, -1))

    def horizontal(self, x: Point, u: Point) -> Point:
        """See `Geometry.horizontal`: (dA - A L, dB + B L').

        L' solves D_B L' A'A + B'B L' D_A = D_B dA'A - B'dB D_A with D the damped Gram matrices; without damping L is half of
        (A'A)^-1 A'dA - ((B'B)^-1 B'dB)'.
        """
        a, b = self._factors(x)
        da, db = self._vectors(x, u)
        # In the singular vectors of both: rows belong to B, columns to A; one factor of size is taken out of either side.
        left_a, left_b = _left(a), _left(b)
        along_a = b.axes.mT @ da.mT @ left_a
        along_b = left_b.mT @ db @ a.axes
        size_a, size_b = a.values[..., None, :], b.values[..., :, None]
        damped_a, damped_b = self._squares(a, b), self._squares(b, a).mT
        right = damped_b * size_a * along_a - size_b * along_b * damped_a
        left = damped_b * size_a.square() + size_b.square() * damped_a
        usable = left > 0
        mixing = torch.where(usable, right / torch.where(usable, left, torch.ones_like(left)), torch.zeros_like(right))
        mixing = b.axes @ mixing @ a.axes.mT
        first, second = self.group.factors_of(x)
        du, dv = self.group.factors_of(u)
        return self.group.point_of(du - first @ mixing.mT, dv + second @ mixing, u)

    def gradient(self, x: Point, derivative: Point) -> Point:
        """See `Geometry.gradient`: (g_A D_B^-1, g_B D_A^-1), horizontal already for functions of A B'."""
        a, b = self._factors(x)
        (ga, gb), (w_a, w_b) = self.group.factors_of(derivative), self.group.row_weights(x, self.weights)
        ga, gb = ga if w_a is None else ga / w_a, gb if w_b is None else gb / w_b
        first = ga @ b.axes / self._positive_squares(b, a) @ b.axes.mT
        second = gb @ a.axes / self._positive_squares(a, b) @ a.axes.mT
        return self.horizontal(x, self.group.point_of(first, second, derivative))

    def components(self, x: Point, u: Point) -> Point:
        """See `Geometry.components`: the invariant norm of every row, since the group mixes the entries of a row."""
        a, b = self._factors(x)
        da, db = self._vectors(x, u)
        first = torch.linalg.vector_norm(da @ b.axes * self._squares(b, a).sqrt(), dim=-1, keepdim=True)
        second = torch.linalg.vector_norm(db @ a.axes * self._squares(a, b).sqrt(), dim=-1, keepdim=True)
        scale = da.shape[-1] ** -0.5
        return self.group.point_of((scale * first).expand_as(da), (scale * second).expand_as(db), u)

    def retract(self, x: Point, u: Point) -> Point:
        """See `Geometry.retract`: (A + dA, B + dB), equivariant, of first order."""
        return {name: t + u[name] for name, t in x.items()}

    def follow(self, x: Point, y: Point, check: Check = unchecked) -> Point:
        """See `Geometry.follow`; horizontal in the Euclidean metric at `x` = (A, B): y = (C, D) -> (C - A L, D + B L').

        L solves A'A L + L B'B = A'dA - dB'B with dA = C - A, dB = D - B. At balanced points that is the horizontal space of the
        invariant metric which is Euclidean there, not of this class.

        This keeps A'A - B'B to first order, zero for the balanced points that `attach` starts from; gradient flow keeps it, too. It
        needs one factor of full rank only, so that a factor that is zero gets its size as under a plain optimiser. The metric of this
        class would keep the ratio of A to B instead, and for a B that was zero a step ago that is the learning rate.

        A B' of the answer is that of y to second order in y - x: `x` has to be where the step began.
        """
        # By Gram matrices and not by singular values: what is solved for has their condition, and a step has to be cheap. A'dA is
        # a difference of two of them: its rounding moves the answer along the orbit, by that of the entries of A.
        pairs, ends = self._pairs_at(x), self.group.factors_of(y)
        for k, end in enumerate(ends):
            pairs.meet(k, end)
        mixing = pairs.mixing(self._solve or Sylvester())
        check(mixing)  # what is not finite in a factor makes a column of L so
        first, second = pairs.factors
        first.add_product_(ends[0], mixing, alpha=-1.0)
        second.add_product_(ends[1], mixing.mT)
        return y

    def _pairs_at(self, x: Point) -> _Pairs:
        """Memory for steps that begin at `x`."""

        def make() -> _Pairs:
            return _Pairs(x, self.group, self.weights)

        return make() if self._kept is None else self._kept.of([x[name] for name in self.group.block_names], make)

    def align(self, x: Point, to: Point) -> Point:
        """See `Geometry.align`: with the balance of `to`, rotated to it."""
        return self.group.closest(x, to, self.weights).point

    def transport(self, x: Point, y: Point, v: Point) -> Point:
        """See `Geometry.transport`: from balanced `x` to the rotated balanced `y`, then made horizontal."""
        start, end = (self.group.canonical(p, self.weights) for p in (x, y))
        size = self.group.factors_of(x)[0].shape[-1]
        from_x, from_y = (_element(form.xi, size) for form in (start, end))
        turn = self.group.turn(end.point, start.point, self.weights)
        return self.horizontal(y, self.group.moved_by(torch.linalg.solve(from_x, turn.mT @ from_y), v))

    # ------------------------------------------------------------------------------------------------ private

    def _factors(self, x: Point) -> tuple[_Factor, _Factor]:
        matrices = zip(self.group.factors_of(x), self.group.row_weights(x, self.weights), strict=True)
        first, second = (_Factor(y, *right_singular(y)) for y in (_weighted(t, w) for t, w in matrices))
        return first, second

    def _vectors(self, x: Point, u: Point) -> tuple[Tensor, Tensor]:
        vectors = zip(self.group.factors_of(u), self.group.row_weights(x, self.weights), strict=True)
        first, second = (_weighted(t, w) for t, w in vectors)
        return first, second

    @staticmethod
    def _squares(own: _Factor, other: _Factor) -> Tensor:
        """Eigenvalues (*batch, 1, r) of the Gram matrix of `own`, raised by the mean square of `other` without full rank."""
        square = own.values.square()
        level = other.values.square().mean(-1, keepdim=True)
        full = has_full_rank(own.matrix, own.values)[..., None]
        return torch.where(full, square, square + level)[..., None, :]

    def _positive_squares(self, own: _Factor, other: _Factor) -> Tensor:
        square = self._squares(own, other)
        return torch.where(square > 0, square, torch.ones_like(square))


def has_full_rank(matrix: Tensor, values: Tensor) -> Tensor:
    """Whether the smallest singular value of `matrix` (*batch, n, r) is more than rounding; shape (*batch)."""
    if matrix.shape[-2] < matrix.shape[-1]:
        return torch.zeros_like(values[..., 0], dtype=torch.bool)
    return values[..., -1] > rank_tolerance(matrix) * values[..., 0]


def _element(xi: Tensor, size: int) -> Tensor:
    return xi.unflatten(-1, (size, size)) + torch.eye(size, dtype=xi.dtype, device=xi.device)


def _weighted(x: Tensor, w: Tensor | None) -> Tensor:
    return x if w is None else x * w.sqrt()


def _tall_eye(x: Tensor) -> Tensor:
    """A matrix of full rank in the place of `x` (*batch, n, r), where the frame is not used."""
    return torch.eye(x.shape[-2], x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)


def _left(factor: _Factor) -> Tensor:
    """Left singular vectors (*batch, n, r); zero for singular values that are rounding."""
    floor = rank_tolerance(factor.matrix) * factor.values[..., :1]
    usable = factor.values > floor
    inverse = torch.where(usable, 1 / torch.where(usable, factor.values, torch.ones_like(factor.values)), 0.0)
    return factor.matrix @ factor.axes * inverse[..., None, :]


def _kind(weights: object) -> str:
    return f"blocks {sorted(weights)}" if isinstance(weights, dict) else type(weights).__name__
