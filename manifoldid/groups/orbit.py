"""Defaults for groups that give nothing but their action: velocities, closest representatives and inverse moves.

Representatives are found by Newton's method on the orbit: x <- act(step, x), with the step from the gradient and Hessian at
the identity, so that only the coordinates near 0 are ever used. The last two steps are differentiable: a Newton step taken
from the solution carries the derivative of the implicit function, and a second one carries the next two derivatives.
"""

import copy

import torch
from torch import Tensor

from manifoldid._linalg import pushforward
from manifoldid.errors import DegeneratePointError
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.points import (
    Point,
    Weights,
    blocks_of,
    concrete,
    detached,
    first,
    flat_weights,
    flatten,
    is_dict,
    unflatten,
)

_NEWTON_STEPS = 60
_BLIND_STEPS = 15  # where values cannot be looked at; Newton doubles its digits from the third or fourth step on


def batch_shape(group: GaugeGroup, x: Point) -> torch.Size:
    """Batch shape of `x` under `group`."""
    ndim = group.batch_ndim(x)
    mine = [t for name, t in blocks_of(x).items() if not group.block_names or name in group.block_names]
    return mine[0].shape[:ndim] if mine else torch.Size()


def zero_coordinates(group: GaugeGroup, x: Point) -> Tensor:
    """Coordinates of the identity, shape (*batch, dim), in the real dtype of `x`."""
    t = first(x)
    dtype = t.dtype.to_real() if t.is_complex() else t.dtype
    return torch.zeros(*batch_shape(group, x), group.dimension(x), dtype=dtype, device=t.device)


def moved(group: GaugeGroup, xi: Tensor, x: Point) -> Point:
    """`act(xi, x)`, with the blocks of `x` that the action does not return left alone."""
    y = group.act(xi, x)
    return {name: y.get(name, t) for name, t in x.items()} if is_dict(x) else y


def velocities(group: GaugeGroup, x: Point) -> Point:
    """d act(xi, x) / d xi at xi = 0; shape (*batch, dim, *event)."""
    zero, ndim = zero_coordinates(group, x), group.batch_ndim(x)
    rows = [_velocity(group, x, zero, k) for k in range(zero.shape[-1])]
    stacked = {
        name: torch.stack([blocks_of(row)[name] for row in rows], dim=ndim)
        if rows
        else t.new_zeros(*t.shape[:ndim], 0, *t.shape[ndim:])
        for name, t in blocks_of(x).items()
    }
    return stacked if is_dict(x) else stacked[""]


def _velocity(group: GaugeGroup, x: Point, zero: Tensor, k: int) -> Point:
    direction = torch.zeros_like(zero)
    direction[..., k] = 1
    return pushforward(lambda xi: moved(group, xi, x), zero, direction)


class Objective:
    """A function of points whose least value on an orbit picks a representative, with derivatives in xi at 0."""

    def __init__(self, group: GaugeGroup, weights: Weights, like: Point):
        self.group = group
        self.ndim = group.batch_ndim(like)
        self.weights = flat_weights(group.entry_weights(weights, like), like, self.ndim)

    def value(self, xi: Tensor, x: Point) -> Tensor:
        """The function at act(xi, x), shape (*batch)."""
        raise NotImplementedError

    def extent(self, x: Point) -> Tensor:
        """Length of the numbers whose squares are the value: its rounding error is of the order of precision * extent^2."""
        size = flatten(x, self.ndim).abs()
        return (size if self.weights is None else size * self.weights.sqrt()).norm(dim=-1)

    def constant(self) -> "Objective":
        """The same function, without derivatives by what it was made of."""
        return self

    def derivatives(self, x: Point, zero: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (*batch, dim) and Hessian (*batch, dim, dim) at the identity."""

        def gradient(xi: Tensor) -> Tensor:
            return torch.func.grad(lambda s: self.value(s, x).sum())(xi)

        slope, pull = torch.func.vjp(gradient, zero)[:2]
        eye = torch.eye(zero.shape[-1], dtype=zero.dtype, device=zero.device)
        rows = [pull(row.expand_as(zero).contiguous())[0] for row in eye]
        return slope, torch.stack(rows, dim=-2)


class _Distance(Objective):
    """Half the weighted squared distance from a target."""

    def __init__(self, group: GaugeGroup, to: Point, weights: Weights, like: Point):
        super().__init__(group, weights, like)
        self.to = to

    def value(self, xi: Tensor, x: Point) -> Tensor:
        rest = flatten(moved(self.group, xi, x), self.ndim) - flatten(self.to, self.ndim)
        return 0.5 * (rest if self.weights is None else rest * self.weights.sqrt()).square().sum(-1)

    def extent(self, x: Point) -> Tensor:
        size = flatten(x, self.ndim).abs() + flatten(self.to, self.ndim).abs()
        return (size if self.weights is None else size * self.weights.sqrt()).norm(dim=-1)

    def constant(self) -> "_Distance":
        other = copy.copy(self)
        other.to = detached(self.to)
        return other


def closest_by_newton(group: GaugeGroup, x: Point, to: Point, weights: Weights = None) -> Canonical:
    """The representative of the orbit of `x` closest to `to`, from the action alone.

    Args:
        group: Any group.
        x: A point (*batch, *event).
        to: A point broadcastable to `x`.
        weights: Item weights of the norm.

    Returns:
        The representative and its frame, once or twice differentiable in `x`.

    Raises:
        DegeneratePointError: There is no closest representative, or Newton's method does not find one.
    """
    return least_on_orbit(_Distance(group, to, weights, x), x)


def least_on_orbit(
    objective: Objective, x: Point, first_move: Tensor | None = None, additive: bool = False
) -> Canonical:
    """The representative of the orbit of `x` where a function is least, by Newton's method.

    Args:
        objective: The function.
        x: A point (*batch, *event).
        first_move: Coordinates (*batch, dim) of a move to begin with, constants; default none.
        additive: Whether coordinates of moves one after the other add up.

    Returns:
        The representative and its frame, once or twice differentiable in `x`.

    Raises:
        DegeneratePointError: There is no least value, Newton's method does not find it, or no coordinates lead back from there.
    """
    group = objective.group
    zero = zero_coordinates(group, x)
    if zero.shape[-1] == 0:
        return Canonical(x, zero)
    steps = [] if first_move is None else [first_move]
    start = detached(x) if first_move is None else moved(group, first_move, detached(x))
    steps += newton_path(objective.constant(), start, zero)
    y = x
    for step in steps:
        y = moved(group, step, y)
    for _ in range(2):
        slope, curvature = objective.derivatives(y, zero)
        steps.append(-_solve(curvature, slope))
        y = moved(group, steps[-1], y)
    back = -torch.stack(steps).sum(0)
    if additive:
        return Canonical(y, back)
    xi = _frame(group, x, y, back.detach())
    if concrete(xi) and not _leads_back(group, xi, y, x):
        xi = _frame(group, x, y, _frame_by_steps(group, detached(x), [step.detach() for step in steps]))
        if not _leads_back(group, xi, y, x):
            raise DegeneratePointError(
                f"no coordinates of {group!r} are found that lead from the representative back to the point: it lies too far along "
                "its orbit; use mid.Section(group, at=x0) with a point x0 near your data"
            )
    return Canonical(y, xi)


def newton_path(objective: Objective, x: Point, zero: Tensor, most: int | None = None) -> list[Tensor]:
    """Steps, to be applied one after the other, that carry `x` to where the objective is least.

    Args:
        objective: What becomes least.
        x: Where to start.
        zero: Coordinates (*batch, dim) of the identity.
        most: Stop after so many steps, wherever they lead; default: go on until they arrive.

    Returns:
        The steps.

    Raises:
        DegeneratePointError: They do not arrive, when values can be looked at.
    """
    steps: list[Tensor] = []
    look = concrete(first(x))
    eps = torch.finfo(zero.dtype).eps
    slope = size = zero
    limit = most if most is not None else _NEWTON_STEPS if look else _BLIND_STEPS
    for _ in range(limit):
        slope, curvature = objective.derivatives(x, zero)
        value = objective.value(zero, x)
        step, diagonal = _descent(slope, curvature)
        rest = value.clamp_min(0).sqrt() + objective.extent(x)
        size = (diagonal.clamp_min(0).sqrt() * rest[..., None]).amax(-1)
        done = slope.abs().amax(-1) <= 8 * eps * objective_numbers(objective, x) ** 0.5 * size
        if look and bool(done.all()):
            return steps
        step = _shortened(objective, x, step, value, slope) * ~done[..., None]
        steps.append(step)
        x = moved(objective.group, step, x)
    if look and most is None and not bool((slope.abs().amax(-1) <= eps**0.5 * size).all()):
        raise DegeneratePointError(
            f"the distance has no minimum on the orbit that Newton's method finds for {objective.group}; use "
            "mid.Section(group, at=x0) with a point x0 near your data, and see mid.conformance.check_group(group, sample)"
        )
    return steps


def objective_numbers(objective: Objective, x: Point) -> int:
    """How many numbers one point has, for the rounding of sums over them."""
    return flatten(x, objective.ndim).shape[-1]


def _descent(slope: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """A Newton step with negative curvature turned round, and the largest curvature's diagonal."""
    values, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.mT))
    floor = 1e-12 * values.abs().amax(-1, keepdim=True)
    usable = values.abs() > floor
    inverse = torch.where(
        usable, 1 / torch.where(usable, values.abs(), torch.ones_like(values)), torch.zeros_like(values)
    )
    step = -(vectors @ (inverse[..., None] * (vectors.mT @ slope[..., None])))[..., 0]
    return step, curvature.diagonal(dim1=-2, dim2=-1).abs()


def _shortened(objective: Objective, x: Point, step: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`step`, halved per batch entry until the distance decreases (Armijo); at most 30 times."""
    size = torch.ones_like(value)
    decrease = (slope * step).sum(-1)
    eps = torch.finfo(value.dtype).eps
    slack = 8 * eps * value + (4 * eps * objective.extent(x)).square()
    for _ in range(30):
        new = objective.value(size[..., None] * step, x)
        bad = ~(new <= value + 1e-4 * size * decrease + slack)
        size = torch.where(bad, size / 2, size)
        if concrete(size) and not bool(bad.any()):
            break
    return size[..., None] * step


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of a symmetric system; directions without curvature (stabilisers) stay at zero."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True)[..., None]
    inverse = (
        torch.linalg.pinv(0.5 * (matrix + matrix.mT), hermitian=True, rtol=1e-12) if matrix.shape[-1] > 1 else None
    )
    if inverse is None:
        safe = torch.where(scale > 0, matrix, torch.ones_like(matrix))
        return (right[..., None] / safe)[..., 0]
    return (inverse @ right[..., None])[..., 0]


def _frame(group: GaugeGroup, source: Point, y: Point, guess: Tensor) -> Tensor:
    """Coordinates xi with act(xi, y) = source, by Gauss-Newton from `guess`; differentiable."""
    ndim = group.batch_ndim(y)
    target = flatten(source, ndim)
    xi = guess
    for _ in range(4 + 2):
        xi = xi - _gauss_newton_step(group, xi, y, target, ndim)
    return xi


def _leads_back(group: GaugeGroup, xi: Tensor, y: Point, x: Point) -> bool:
    """Whether act(xi, y) is x, up to half of the digits."""
    ndim = group.batch_ndim(y)
    target = flatten(x, ndim)
    error = (flatten(moved(group, xi, y), ndim) - target).abs().amax(-1)
    return bool((error <= torch.finfo(error.dtype).eps ** 0.5 * target.abs().amax(-1)).all())


def _frame_by_steps(group: GaugeGroup, x: Point, steps: list[Tensor]) -> Tensor:
    """Coordinates of the move that undoes all steps from `x`, found one step after the other from their end."""
    points = [x]
    for step in steps:
        points.append(moved(group, step, points[-1]))
    xi = torch.zeros_like(steps[0])
    for point, step in zip(reversed(points[:-1]), reversed(steps), strict=True):
        xi = _frame(group, point, points[-1], xi - step)
    return xi


def _gauss_newton_step(group: GaugeGroup, xi: Tensor, y: Point, target: Tensor, ndim: int) -> Tensor:
    eye = torch.eye(xi.shape[-1], dtype=xi.dtype, device=xi.device)

    def residual(s: Tensor) -> Tensor:
        return flatten(moved(group, s, y), ndim) - target

    columns = [pushforward(residual, xi, row.expand_as(xi)) for row in eye]
    jacobian = torch.stack(columns, dim=-1)
    rest = residual(xi)
    if xi.shape[-1] == 1:
        square = jacobian.square().sum(-2)
        safe = torch.where(square > 0, square, torch.ones_like(square))
        return (jacobian[..., 0] * rest).sum(-1, keepdim=True) / safe
    return (torch.linalg.pinv(jacobian, rtol=1e-10) @ rest[..., None])[..., 0]


def undo_by_least_squares(group: GaugeGroup, xi: Tensor, x: Point) -> Point:
    """The point y with act(xi, y) = x, from the action alone.

    Raises:
        DegeneratePointError: There is none on the orbit of `x` (the action is incomplete there).
    """
    ndim = group.batch_ndim(x)
    target = flatten(x, ndim)
    eta = -xi
    for _ in range(8):
        eye = torch.eye(eta.shape[-1], dtype=eta.dtype, device=eta.device)

        def residual(s: Tensor) -> Tensor:
            return flatten(moved(group, xi, moved(group, s, x)), ndim) - target

        rest = residual(eta)
        scale = target.abs().amax(-1, keepdim=True)
        if concrete(rest) and bool((rest.abs() <= 16 * torch.finfo(rest.dtype).eps * scale).all()):
            break
        if concrete(rest) and not bool(torch.isfinite(rest).all()):
            break  # the move has left the domain of the action
        columns = [pushforward(residual, eta, row.expand_as(eta)) for row in eye]
        eta = eta - (torch.linalg.pinv(torch.stack(columns, dim=-1), rtol=1e-10) @ rest[..., None])[..., 0]
    y = moved(group, eta, x)
    rest = flatten(moved(group, xi, y), ndim) - target
    if concrete(rest) and not bool((rest.abs() <= torch.finfo(rest.dtype).eps ** 0.5 * (1 + target.abs())).all()):
        raise DegeneratePointError(
            f"`xi` cannot be undone at this point by {group}: the action is incomplete there, or `act` is no group action"
        )
    return y


def unflattened_velocity(group: GaugeGroup, x: Point, xi: Tensor) -> Point:
    """The velocity sum_k xi_k V_k of the orbit through `x`, shaped like `x`."""
    ndim = group.batch_ndim(x)
    basis = flatten_basis(group.vertical_basis(x), x, ndim)
    return unflatten((xi[..., None, :] @ basis)[..., 0, :], x, ndim)


def flatten_basis(basis: Point, x: Point, ndim: int) -> Tensor:
    """A vertical basis as matrices (*batch, dim, N) beside `flatten(x)`; blocks that it lacks are zero."""
    rows = []
    for name, t in blocks_of(x).items():
        v = blocks_of(basis).get(name)
        if v is None:
            some = first(basis)
            v = t.new_zeros(*some.shape[: ndim + 1], *t.shape[ndim:])
        v = torch.view_as_real(v.resolve_conj()) if v.is_complex() else v
        rows.append(v.flatten(ndim + 1) if v.ndim > ndim + 1 else v[..., None])
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)
