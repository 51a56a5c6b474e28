"""Maxima at infinity: whether a likelihood goes on improving along a direction, and who runs away."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from manifoldid.errors import listed
from manifoldid.inference.names import item_label
from manifoldid.optim.local_model import LocalModel
from manifoldid.points import blocks_of, flatten, like_point, unflatten

_AHEAD = (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)  # steps ahead at which a direction of recession is looked at
_FAR = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # units by which one number alone is moved
_LOOKED_AT = 20  # numbers that are moved alone


def runs_away(model: LocalModel, u: Tensor) -> bool:
    """Whether the objective never gets worse along `u`, up to a thousand times as far as the step."""
    if not float(u.abs().max()) > 0:
        return False
    eps, last = torch.finfo(model.slope.dtype).eps, model.value
    for t in _AHEAD:
        value = model.value_along(t * u)
        if value == float("inf") and t >= 100:
            return True  # it has decreased all the way to where exponentials overflow
        if not value <= last + 64 * eps * abs(last):
            return False
        last = min(value, last)
    return True


def lone_runaway(model: LocalModel, u: Tensor) -> Tensor | None:
    """A direction of recession of one number alone: the likelihood never gets worse one way and does the other way.

    On curved sections the way to infinity bends, so that the last step is none; the number that causes it still has one. Looked at are
    those that the step moves most, in their own scale.

    Args:
        model: The objective where the iteration ended.
        u: The last step.
    """
    relative = _logarithmic(model, u).abs() / (1 + _logarithmic_size(model))
    for k in relative.topk(min(_LOOKED_AT, len(u))).indices.tolist():
        unit = torch.zeros_like(u)
        unit[k] = 1.0
        ways = [_endures(model, sign * unit) for sign in (1.0, -1.0)]
        if ways[0] != ways[1]:
            return unit if ways[0] else -unit
    return None


def _endures(model: LocalModel, unit: Tensor) -> bool:
    """Whether the objective stays at its value, or falls, as one number goes far; positive numbers by factors."""
    slack = 64 * torch.finfo(model.slope.dtype).eps * abs(model.value)
    positive, x = _positive(model), blocks_of(model.x)
    for t in _FAR:
        blocks = {}
        for name, step in blocks_of(unflatten(unit, model.x)).items():
            own = x[name]
            blocks[name] = own * (step * (1 + t) ** 0.5).clamp(-20, 20).exp() if name in positive else own + t * step
        value = model.value_at(like_point(blocks, model.x))
        if not value <= model.value + slack:
            return False
    return True


def moves_on(model: LocalModel, u: Tensor) -> bool:
    """Whether a last step is too long for the end of a quadratic convergence; in the metric, so that positive points count in logs."""
    return model.size(u) > 1e-4 * max(1e-3, model.size(flatten(model.x)))


def who_runs_away(model: LocalModel, u: Tensor, names: Mapping[str, Sequence[str]]) -> str:
    """The message of an `UnboundedEstimateError`.

    Args:
        model: The objective where it was noticed.
        u: The direction of recession.
        names: What items are called, by block.
    """
    who, several = [], 0
    u = _logarithmic(model, u)
    for name, t in blocks_of(unflatten(u, model.x)).items():
        rest = t.abs() if t.ndim == 0 or t.numel() < 3 else (t - t.median()).abs()
        far = (rest > 0.3 * float(u.abs().max())).nonzero().tolist()
        if far:
            items = f"items {listed([item_label(names, name, entry) for entry in far])}" if t.ndim else ""
            of = f"block {name!r}" if name else "the point"
            who.append(f"{items} of {of}" if items and name else items or f"the numbers of {of}")
            several += len(far)
    return (
        f"`nll` has no minimum: it keeps decreasing while {' and '.join(who) or 'the point'} run away "
        "to infinity (separation: an item that always or never wins, a class that a feature separates"
        f"{'; or `nll` is a log-likelihood, with the sign missing' if several > 1 else ''}). Leave these out, collect data that "
        "contradict it, or put a prior into `nll` on mid.Section(group)(x)"
    )


def _logarithmic(model: LocalModel, u: Tensor) -> Tensor:
    """The tangent vector `u`, relative to the point in blocks of positive numbers."""
    positive = _positive(model)
    vectors = blocks_of(unflatten(u, model.x))
    pieces = [vectors[name] / t if name in positive else vectors[name] for name, t in blocks_of(model.x).items()]
    return torch.cat([flatten(piece) for piece in pieces])


def _logarithmic_size(model: LocalModel) -> Tensor:
    """The modulus of every number of the point; 0 for those that count in logs."""
    positive = _positive(model)
    return torch.cat([flatten(0 * t if name in positive else t).abs() for name, t in blocks_of(model.x).items()])


def _positive(model: LocalModel) -> set[str]:
    """The blocks of positive numbers."""
    positive: set[str] = set()
    for factor, of in model.group.factors():
        positive.update([of] if isinstance(of, str) and factor.positive else factor.positive)
    return positive
