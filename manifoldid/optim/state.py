"""State of torch's optimisers under a move of the parameters along a flat gauge.

The differential of such a move is diagonal, x -> c x + b entry by entry: gradients, and averages of them, divide by c, squares of
gradients by c^2, steps multiply by c.
"""

import torch
from torch import Tensor
from torch.optim import ASGD, LBFGS, Optimizer, RMSprop

from manifoldid._linalg import pushforward
from manifoldid.distributed.dtensors import local_value
from manifoldid.groups.base import Canonical, GaugeGroup
from manifoldid.points import Point, blocks_of, compute_point, map_blocks

# The power of c that an entry of the state is multiplied by, under the names that torch.optim uses.
_POWERS = {
    "exp_avg": -1,
    "exp_avg_sq": -2,
    "max_exp_avg_sq": -2,
    "exp_inf": -1,
    "momentum_buffer": -1,
    "square_avg": -2,
    "grad_avg": -1,
    "sum": -2,
    "acc_delta": 2,
    "prev": -1,
    "step_size": 1,
}


def move_factor(group: GaugeGroup, form: Canonical, x: Point) -> Point:
    """c, the derivative of the move from `x` to `form.point`, entry by entry; shaped like `x`."""
    return pushforward(lambda y: group.undo(form.xi, y), x, map_blocks(torch.ones_like, x))


@torch.no_grad()
def move_state(optimizer: Optimizer, member) -> None:
    """Moves what `optimizer` knows of the parameters of `member` along with their move to the section.

    Positive parameters are known to an attached optimiser by their logarithm, which only shifts: their state stays.

    Raises:
        RuntimeError: The gauge is curved, or the state is of a kind that is not known.
    """
    stateful = {name: p for name, p in member.parameters.items() if _has_state(optimizer, p)}
    if not stateful:
        return
    if not member.group.flat:
        raise RuntimeError(
            f"`optimizer` already has state for `{member.name}`, which does not move along with {member.group}: build the "
            "optimiser, attach, then load the state dict"
        )
    x = compute_point(member.point())
    form = member.section.canonical_form(x)
    if isinstance(optimizer, LBFGS):
        move_curvature(optimizer, [member], form, x)
        return
    factors = blocks_of(move_factor(member.group, form, x))
    for name, parameter in stateful.items():
        if name not in member.group.positive:
            _move_entries(optimizer, parameter, factors[name], member.name)


def _has_state(optimizer: Optimizer, parameter: Tensor) -> bool:
    if isinstance(optimizer, LBFGS):
        return bool(optimizer.state.get(optimizer._params[0], {}).get("n_iter"))
    state = optimizer.state.get(parameter, {})
    if "step" in state and float(state["step"]) == 0:
        return False  # Adagrad fills its state when it is built
    return any(_is_beside(value, parameter) for value in state.values())


def _is_beside(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.numel() > 1


def _move_entries(optimizer: Optimizer, parameter: Tensor, factor: Tensor, name: str) -> None:
    for key, value in optimizer.state[parameter].items():
        if not _is_beside(value, parameter):
            continue
        if key == "ax" and isinstance(optimizer, ASGD):
            raise RuntimeError(
                f"`optimizer` averages `{name}` already (ASGD): build the optimiser, attach, then load the state dict"
            )
        power = 0 if key == "momentum_buffer" and isinstance(optimizer, RMSprop) else _POWERS.get(key)
        if power is None:
            raise RuntimeError(
                f"`optimizer` has state {key!r} for `{name}`, and it is not known how it moves with the parameter: build the "
                "optimiser, attach, then load the state dict"
            )
        local_value(value).mul_(factor.to(value.dtype) ** power)


# ------------------------------------------------------------------------------------------------------------ LBFGS


def move_curvature(optimizer: Optimizer, members: list, form: Canonical, x: Point) -> None:
    """Moves the curvature pairs of LBFGS along with its parameters; other optimisers keep their state.

    Args:
        optimizer: Any optimiser.
        members: The members that move, of one bucket.
        form: Where they move, stacked.
        x: Where they come from, stacked.
    """
    if not isinstance(optimizer, LBFGS):
        return
    state = optimizer.state[optimizer._params[0]]
    if state.get("prev_flat_grad") is None:
        return
    factors = blocks_of(move_factor(members[0].group, form, x))
    flat = torch.ones_like(state["prev_flat_grad"])
    starts, start = {}, 0
    for p in optimizer._params:
        starts[id(p)] = start
        start += p.numel()
    for k, member in enumerate(members):
        for name, p in member.parameters.items():
            if name in member.group.positive:
                continue
            factor = factors[name] if len(members) == 1 else factors[name][k]
            flat[starts[id(p)] : starts[id(p)] + p.numel()] = factor.expand_as(p).reshape(-1).to(flat.dtype)
    state["prev_flat_grad"] = state["prev_flat_grad"] / flat
    if state.get("d") is not None:
        state["d"] = state["d"] * flat
    state["old_dirs"] = [y / flat for y in state.get("old_dirs") or []]
    state["old_stps"] = [s * flat for s in state.get("old_stps") or []]
    if state["old_dirs"]:
        y, s = state["old_dirs"][-1], state["old_stps"][-1]
        state["H_diag"] = y.dot(s) / y.dot(y)


def restart_curvature(optimizer: Optimizer) -> None:
    """Lets LBFGS start its curvature pairs anew, since a curved gauge has moved the point by more than a diagonal map."""
    if isinstance(optimizer, LBFGS):
        state = optimizer.state[optimizer._params[0]]
        evaluations = state.get("func_evals", 0)
        state.clear()
        state["func_evals"], state["n_iter"] = evaluations, 0
