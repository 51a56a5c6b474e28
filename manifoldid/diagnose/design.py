"""Data-limited against structural: what is unseen at these inputs, and what is unseen at any."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from manifoldid.diagnose.diagnosis import Diagnosis
from manifoldid.diagnose.moves import natural_time, relative_change, straight_move
from manifoldid.diagnose.nullspace import NullSpaces
from manifoldid.diagnose.probe import Probe

_VARIANTS = 3  # further sets of inputs, each as large as the one that was given
_FEW = 0.5  # a column with fewer distinct values than this share of its rows is drawn from these values
_SEEN = 1e-7  # relative change of predictions that counts


def varied_inputs(inputs: Any, generator: torch.Generator) -> Any:
    """Inputs of the same kind and shape with other values: every column drawn anew, from its own values or a normal fit.

    A column that is constant stays as it is, so that an intercept remains one; so does one of a single row. Whatever is no tensor is kept.
    """
    if isinstance(inputs, dict):
        return {name: varied_inputs(value, generator) for name, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        varied = [varied_inputs(value, generator) for value in inputs]
        return type(inputs)(*varied) if hasattr(inputs, "_fields") else type(inputs)(varied)  # a namedtuple, or not
    if not isinstance(inputs, Tensor) or not inputs.numel() or inputs.ndim == 0 or inputs.is_complex():
        return inputs
    columns = inputs.detach().reshape(-1, inputs.shape[-1] if inputs.ndim > 1 else 1)
    drawn = torch.stack([_drawn(column, generator) for column in columns.unbind(1)], dim=1)
    return drawn.reshape(inputs.shape)


def _drawn(column: Tensor, generator: torch.Generator) -> Tensor:
    values = column.unique()
    if len(values) == 1:
        return column
    if not column.is_floating_point() or len(values) <= _FEW * len(column):
        return values[torch.randint(len(values), (len(column),), generator=generator)]
    normal = torch.randn(len(column), generator=generator, dtype=torch.float64).to(column)
    return column.mean() + 1.5 * column.std() * normal


def with_design(
    diagnosis: Diagnosis,
    predict: Callable[[Any, Any], Any],
    probe: Probe,
    inputs: Any,
    most: int,
    others: Callable[[], Any] | None = None,
) -> Diagnosis:
    """The diagnosis, with what more varied inputs would determine called design.

    Args:
        diagnosis: At the given inputs.
        predict: Of a point and inputs.
        probe: The model at the given inputs.
        inputs: What was given.
        most: Parameters up to which null spaces are dense.
        others: Draws further inputs; default inputs of the same kind with other values.

    Returns:
        The same, or one that says how many directions are the design's.
    """
    if not diagnosis.dim or probe.size > most:
        return diagnosis
    further = others or (lambda: varied_inputs(inputs, probe.generator))
    every = [inputs, *(further() for _ in range(_VARIANTS))]
    try:
        richer = probe.of(lambda x: [predict(x, some) for some in every])
        design = diagnosis.dim - NullSpaces(richer, 3).dim
    except Exception as error:  # whatever a model raises at inputs that were made up here
        if others is not None:
            raise
        note = (
            f"design: not looked at, since `predict` raises {type(error).__name__} at inputs of the same kind with other values "
            f"({' '.join(str(error).split())[:80]}); pass `sample`, which draws pairs (point, inputs)"
        )
        return diagnosis.concluded((*diagnosis.warnings, note))
    if design <= 0:
        return diagnosis
    x = probe.point
    before = richer.values(x)
    seen = []
    for g in diagnosis.generators:
        if not g.closed_form:
            seen += [g.name] if straight_move(richer, g.flat_field, x) > _SEEN else []
            continue
        moved = g.flat_field.flow(x, torch.tensor(0.1 * natural_time(g.flat_field, x), dtype=x.dtype))
        if relative_change(before, richer.values(moved)) > _SEEN:
            seen.append(g.name)
    rest = "" if design == diagnosis.dim else "; the others are the model's own"
    note = (
        f"design: at more varied inputs predictions determine {design} of the {diagnosis.dim} direction(s) "
        f"({', '.join(seen[:6])}){rest}. Collect such inputs, or take these directions out as well"
    )
    return replace(diagnosis, design=design).concluded((*diagnosis.warnings, note))
