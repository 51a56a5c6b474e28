"""What predictions do determine, in words: the functions that are constant along the gauge."""

import torch
from torch import Tensor

from manifoldid.diagnose.chart import TableField
from manifoldid.diagnose.fields import ClosedField, Field
from manifoldid.diagnose.generators import _sparse_constants
from manifoldid.diagnose.labels import Labels
from manifoldid.diagnose.terms import expression_of, number
from manifoldid.groups.base import GaugeGroup

_SHOWN = 3
_MOST = 60  # coordinates
_CHARTS = {  # of the field f: psi with psi' = 1 / f, up to a factor
    "1": "{}",
    "x": "log|{}|",
    "x^2": "1/{}",
    "x log|x|": "log|log|{}||",
    "exp(-x)": "exp({})",
    "exp(x)": "exp(-{})",
    "sqrt(1 + x^2)": "asinh({})",
    "x (1 - x)": "logit({})",
    "1/x": "{}^2",
    "1 + x^2": "atan({})",
    "1 - x^2": "atanh({})",
    "x^3": "1/{}^2",
    "1/x^2": "{}^3",
    "sqrt(x)": "sqrt({})",
    "sin(x)": "log|tan({}/2)|",
    "1 + exp(-x)": "softplus({})",
    "xi": "psi({})",
}
_FACTORS = {"x^2": -1.0, "exp(x)": -1.0, "1/x": 0.5, "x^3": -0.5, "1/x^2": 1 / 3, "sqrt(x)": 2.0}  # psi = factor * name
_KNOWN = {
    "Translation": "differences of items",
    "Scaling": "ratios of items",
    "PositiveScaling": "ratios of items",
    "Affine": "ratios of differences of items",
    "Orthogonal": "inner products of rows (X X')",
    "RigidMotion": "distances between rows",
    "Similarity": "ratios of distances between rows, angles",
    "GeneralLinear": "the product of the two factors",
    "Phase": "moduli, and phases relative to each other",
    "LocationScale": "ratios of differences of locations, and slope times difference",
    "Rescaling": "products of incoming and outgoing weights of each unit",
}


def invariants(fields: list[Field], group: GaugeGroup | None, labels: Labels, size: int, apart: Tensor) -> str:
    """Functions of the parameters that predictions determine, as text; `apart`: mask (n,) of those that count for nothing."""
    if not fields:
        return "every parameter, apart from the dead ones" if bool(apart.any()) else "every parameter"
    blocked = getattr(group, "blocks", None) is not None
    if type(group).__name__ in _KNOWN:
        return _KNOWN[type(group).__name__] + (" within each block" if blocked else "")
    still = _untouched(fields, apart)
    combinations = _in_charts(fields, labels, size)
    if combinations is None:
        free = size - len(still) - int(apart.sum())
        left = free - len(fields)
        combinations = [f"{left} combination{'' if left == 1 else 's'} of the others"] if left > 0 else []
    parts = ([labels.listed_by_block(still)] if still else []) + combinations
    return "; ".join(parts) if parts else "nothing"


def _untouched(fields: list[Field], apart: Tensor) -> list[int]:
    moved = apart.clone()
    for f in fields:
        if not isinstance(f, (ClosedField, TableField)):
            return []
        moved |= f.moved_rows()
    return (~moved).nonzero()[:, 0].tolist()


def _in_charts(fields: list[Field], labels: Labels, size: int) -> list[str] | None:
    """Sums of chart values that do not move, where every coordinate moves by one function of itself."""
    if size > _MOST:
        return None
    functions: dict[int, str] = {}
    velocity = torch.zeros(len(fields), size, dtype=torch.float64)
    for k, f in enumerate(fields):
        terms = f.separate_terms() if isinstance(f, ClosedField) else None
        if isinstance(f, TableField):
            terms = {"xi": f.coefficients}
        if terms is None:
            return None
        for name, c in terms.items():
            for i in c.nonzero()[:, 0].tolist():
                if functions.setdefault(i, name) != name or name not in _CHARTS:
                    return None
                velocity[k, i] = c[i] / _FACTORS.get(name, 1.0)
    moving = sorted(functions)
    if len(moving) <= len(fields):
        return []
    unit = velocity[:, moving].abs().amax(0)  # so that the units of coordinates do not matter
    _, s, vh = torch.linalg.svd(velocity[:, moving] / unit, full_matrices=True)
    rank = int((s > 1e-9 * s[0]).sum())
    kernel = _sparse_constants(vh[rank:].mT / unit[:, None], 1 / unit)
    shown = [_written(c, moving, functions, labels) for c in kernel[:_SHOWN]]
    return [*shown, f"... ({len(kernel)} in all)"] if len(kernel) > _SHOWN else shown


def _written(c: Tensor, moving: list[int], functions: dict[int, str], labels: Labels) -> str:
    used = [(float(c[k]), i) for k, i in enumerate(moving) if c[k] != 0]
    if all(functions[i] == "x" for _, i in used):
        unit = min(abs(v) for v, _ in used)
        powers = [(v / unit, labels.name(i)) for v, i in used]
        top = " ".join(_power(v, name) for v, name in powers if v > 0)
        bottom = [_power(-v, name) for v, name in powers if v < 0]
        below = bottom[0] if len(bottom) == 1 else f"({' '.join(bottom)})"
        return (top or "1") + (f" / {below}" if bottom else "")
    return expression_of([(v, _CHARTS[functions[i]].format(labels.name(i))) for v, i in used])


def _power(exponent: float, name: str) -> str:
    return name if exponent == 1 else f"{name}^{number(exponent)}"
