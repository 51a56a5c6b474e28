"""`attach`: any torch optimiser steps along identifiable directions, with the parameters and kernels where they are."""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from manifoldid.distributed.dtensors import Local, is_spread, localised, whole
from manifoldid.errors import NotInvariantError
from manifoldid.groups.base import GaugeGroup, check_quotient, checked
from manifoldid.invariance import default_tolerance, largest_change, not_invariant
from manifoldid.optim.attachment import Attachment, Member
from manifoldid.optim.state import move_state
from manifoldid.points import Point, Weights, blocks_of, compute_point, detached, first, is_dict, map_blocks
from manifoldid.sections import Section

Parameters = (
    Tensor | Mapping[str, Tensor] | nn.ParameterDict | Iterable[Tensor | Mapping[str, Tensor] | nn.ParameterDict]
)


class Handle:
    """What `attach` returns: ends the attachment.

    Attributes:
        group: The gauge group.
    """

    def __init__(self, attachment: Attachment, members: list[Member], group: GaugeGroup):
        self._attachment = weakref.ref(
            attachment
        )  # a handle that is kept does not keep an optimiser that was thrown away
        self._members = members
        self.group = group

    @property
    def attached(self) -> bool:
        """Whether the optimiser still follows the gauge on these parameters."""
        attachment = self._attachment()
        return attachment is not None and all(member in attachment.members for member in self._members)

    def detach(self) -> None:
        """Lets the optimiser step freely again. The parameters stay where they are; a second call does nothing."""
        if (attachment := self._attachment()) is not None:
            attachment.remove(self._members)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a handle cannot be pickled, since the hooks of an optimiser cannot: save optimizer.state_dict(), and call mid.attach again "
            "after loading"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handle":
        attachment = self._attachment()
        if attachment is None:
            return self
        attachment = copy.deepcopy(attachment, memo)
        return Handle(attachment, [memo[id(member)] for member in self._members if id(member) in memo], self.group)

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        return f"<{state} {self.group} on {len(self._members)} point(s)>"


def attach(
    optimizer: Optimizer,
    group: GaugeGroup,
    params: Parameters,
    weights: Weights = None,
    *,
    loss: Callable[[], Any] | None = None,
) -> Handle:
    """Lets `optimizer` move `params` along identifiable directions only.

    The parameters are moved to the canonical section at once. Flat gauges (translation, shift, scalings, affine, ...) are put
    back on it after every `step()`; for curved ones (rotations, GL(r), custom groups) the displacement of every step is
    projected to the horizontal space of the invariant metric and retracted. Positive tensors are stepped in their
    logarithm: the optimiser is handed x g and its displacement u is applied as x exp(u), so a learning rate is a relative
    step. Where all gradients of a point are sparse (SGD, SparseAdam, Adagrad), only the rows that they touch are displaced, and
    the metric is restricted to them: rows that are points of their own step as ever; rows that are items of one point keep
    their common frame (flat gauges; so the whole point stays on its section) or move horizontally among themselves (curved
    ones). Runs from x and from g.x are the same run. Works by hooks on the optimiser: schedulers, parameter groups, fused and
    foreach kernels, closures, GradScaler and state dicts stay as they are.

    On an accelerator no step but the first asks for values, unless the group gives its action alone (its representatives are found by
    iteration); torch's decompositions, of which rotations, motions and GL(r) take one a step, see for themselves whether they
    succeeded. A point that is degenerate or not finite is therefore an error in a later step, once the device has come so far.

    Args:
        optimizer: Any torch optimiser; LBFGS too, whose curvature pairs move along (curved gauges restart them each step).
        group: The gauge group.
        params: A parameter, a dict from block names to parameters, or a list of either, each a point of its own. Blocks that
            the group does not name are left alone. A block without gradient in a step keeps its whole point in place. The
            weights of a network that emits rates are not rates: its outputs want `nn.GaugeFix`, not `attach`.
        weights: Item weights (n,); a dict for dict points.
        loss: Optional function without arguments that returns the loss at the current parameters (same data at every call).
            Then the gauge is verified first.

    Returns:
        A handle with `detach()`.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: A parameter is not in the optimiser, is already attached (here, or through another optimiser that is in use),
            has `.grad` set, or does not fit the group; or the optimiser is differentiable.
        RuntimeError: The optimiser has state that a curved gauge cannot move along ("build, attach, load").
        DegeneratePointError: A parameter has no representative on its orbit.
        NotInvariantError: `loss` sees the gauge.

    Warns:
        NotInvariantWarning: On the first step, when the gradient has a component along the orbit.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` must be a torch optimiser, got {type(optimizer).__name__}")
    Section(group, weights)  # refuses what is no group
    if loss is not None and not callable(loss):
        raise TypeError(
            f"`loss` must be a function without arguments that computes the loss, got {type(loss).__name__}"
        )
    points = _points(params)
    _check_parameters(optimizer, points)
    here = [localised(group, _values(point, group, name), weights) for name, point in points]
    targets = [_representative(part, name) for part, (name, _) in zip(here, points, strict=True)]
    if loss is not None:
        for part, (name, point) in zip(here, points, strict=True):
            _verify(loss, part, name, is_spread(point))
    attachment = Attachment.of(optimizer)
    members = [member for name, point in points for member in Member.of(point, group, weights, name)]
    attachment.check_new(members)
    if isinstance(optimizer, LBFGS) and (spread := [m.name for m in members if m.is_spread]):
        raise ValueError(
            f"`{spread[0]}` is spread over ranks, or a DTensor, and LBFGS takes its steps from the numbers of one rank alone: gather it, or "
            "take another optimiser"
        )
    for member in members:
        move_state(optimizer, member)
    with torch.no_grad():
        for part, target in zip(here, targets, strict=True):
            _write(part.point, target)
    attachment.add(members)
    return Handle(attachment, members, group)


def _points(params: Any) -> list[tuple[str, Point]]:
    """The points of `params` with what to call them in messages."""
    if isinstance(params, nn.ParameterDict):
        params = dict(params.items())
    elif isinstance(params, nn.ParameterList):
        params = list(params)
    elif isinstance(params, nn.Module):
        raise TypeError(
            f"`params` must be parameters, got the module {type(params).__name__}: weights of a network are not rates; attach to "
            "the tensor that holds the rates, or put mid.nn.GaugeFix(group) on the outputs"
        )
    if isinstance(params, Tensor) or is_dict(params):
        return [("params", params if isinstance(params, Tensor) else dict(params.items()))]
    if isinstance(params, Iterator):
        raise TypeError(
            f"`params` must be the tensors that hold rates, got a {type(params).__name__}, such as model.parameters(): weights of a network "
            "are not rates; attach to the tensor that holds the rates, or put mid.nn.GaugeFix(group) on the outputs"
        )
    if not isinstance(params, Iterable):
        raise TypeError(
            f"`params` must be a parameter, a dict of parameters, or a list of either, got {type(params).__name__}"
        )
    points = [(f"params[{k}]", p if isinstance(p, Tensor) else dict(p.items())) for k, p in enumerate(params)]
    if not points:
        raise ValueError("`params` is empty: there is nothing to attach to")
    return points


def _named_parameters(points: list[tuple[str, Point]]) -> Iterable[tuple[str, Tensor]]:
    for name, point in points:
        if isinstance(point, Tensor):
            yield name, point
        else:
            yield from ((f"{name}[{block!r}]", parameter) for block, parameter in point.items())


def _check_parameters(optimizer: Optimizer, points: list[tuple[str, Point]]) -> None:
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(
            "`optimizer` has differentiable=True: an attached step writes in place and cannot be differentiated"
        )
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    seen = set()
    for name, parameter in _named_parameters(points):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"`{name}` must be a parameter, got {type(parameter).__name__}")
        if id(parameter) not in known:
            raise ValueError(
                f"`{name}` (shape {tuple(parameter.shape)}) is not among the parameters of `optimizer`: pass the same Parameter "
                "object that the optimiser was built with"
            )
        if parameter.grad is not None:
            raise ValueError(
                f"`{name}` has `.grad` set: it was taken before the move to the section; call optimizer.zero_grad() and attach "
                "before the backward pass"
            )
        if id(parameter) in seen:
            raise ValueError(f"`{name}` is given twice: one parameter can follow one gauge only")
        seen.add(id(parameter))


def _values(point: Point, group: GaugeGroup, name: str) -> Point:
    """The values of a point of parameters, which share its memory; a DTensor stays one."""
    value = group.validate(map_blocks(lambda t: t.detach() if is_spread(t) else detached(t), point), name)
    check_quotient(group, value, name, _COLUMN)
    return value


_COLUMN = (
    "hold the items in a parameter (n,): nn.Parameter(torch.zeros(n)) and table[index] in place of nn.Embedding(n, 1)"
)


def _representative(part: Local, name: str) -> Point:
    wide = compute_point(part.point)
    return checked(Section(part.group, part.weights).canonical_form(wide), part.group, wide, name).point


@torch.no_grad()
def _write(point: Point, value: Point) -> None:
    """Copies the numbers of `value` into the memory of `point`."""
    new = blocks_of(value)
    for name, t in blocks_of(point).items():
        t.copy_(new[name])


def _verify(loss: Callable[[], Any], part: Local, name: str, dtensors: bool) -> None:
    """Moves a point of parameters along the group, evaluates the loss, and puts everything back.

    The loss of DTensors is one number, that of plain tensors whose items are spread the sum over ranks.

    Raises:
        NotInvariantError: The loss changes.
    """
    start = map_blocks(torch.clone, part.point)
    spread = next((factor.shards for factor, _ in part.group.factors() if factor.shards is not None), None)

    def evaluate(moved: Point) -> Any:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)  # the same dropout masks at every point
            _write(part.point, moved)
            value = loss()
            if dtensors or spread is None:
                return whole(value)
            return spread.sum(torch.as_tensor(value, device=first(start).device).detach())

    try:
        change = largest_change(evaluate, start, part.group, derivatives=False)
    finally:
        _write(part.point, start)
    tolerance = default_tolerance(start)
    if not change.relative <= tolerance:
        raise NotInvariantError(not_invariant(f"`loss`, as a function of `{name}`,", change, tolerance, part.group))
