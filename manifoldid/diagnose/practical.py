"""What is identifiable in principle and hardly in practice: the Fisher spectrum on the complement of the gauge."""

import torch
from torch import Tensor

from manifoldid.diagnose.diagnosis import Direction
from manifoldid.diagnose.labels import Labels
from manifoldid.diagnose.probe import Probe
from manifoldid.diagnose.terms import number
from manifoldid.points import unflatten

_WEAK = 1e-6  # of the information of the best determined direction: standard errors a thousand times larger
_MOST_NUMBERS = 20_000_000
_TERMS = 4


def directions_at(probe: Probe, null_dim: int, scale: Tensor, labels: Labels) -> tuple[Direction, ...]:
    """Directions that predictions see at the point, worst determined first.

    Information is |J v|^2 for unit noise on the predictions and unit steps in the coordinates x / scale, `scale` being a
    power of 8 near the size of each coordinate, so that units do not decide what is weak.
    """
    jacobian = probe.full_jacobian(probe.point, _MOST_NUMBERS)
    if jacobian is None:
        return ()
    _, s, vh = torch.linalg.svd(jacobian * scale, full_matrices=False)
    seen = min(probe.size - null_dim, len(s))
    found = []
    for k in range(seen - 1, -1, -1):
        information, top = float(s[k] ** 2), float(s[0] ** 2)
        if information == 0:
            continue
        vector = vh[k] * torch.sign(vh[k][vh[k].abs().argmax()])
        text = combination(vector, labels)
        found.append(Direction(text, information, information / top, unflatten(vector, probe.like)))
    return tuple(found)


def weak_ones(directions: tuple[Direction, ...]) -> tuple[Direction, ...]:
    """Those with little information beside the best one."""
    return tuple(d for d in directions if d.relative < _WEAK)


def combination(vector: Tensor, labels: Labels) -> str:
    """The largest entries of a direction as a sum."""
    order = vector.abs().argsort(descending=True)
    lead = float(vector[order[0]])
    text = ""
    shown = [i for i in order.tolist() if abs(float(vector[i])) > 0.15 * abs(lead)]
    for i in shown[:_TERMS]:
        c = float(vector[i]) / lead
        size = "" if abs(abs(c) - 1) < 0.02 else number(round(abs(c), 2)) + " "
        sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
        text += f"{sign}{size}{labels.name(i)}"
    return text + (" + ..." if len(shown) > _TERMS else "")
