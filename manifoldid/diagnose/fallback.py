"""Directions without a formula: the null space at every point, as smooth as it is."""

import torch
from torch import Tensor

from manifoldid.diagnose.fields import FunctionField
from manifoldid.diagnose.generators import Search
from manifoldid.diagnose.nullspace import local_null


def add_projections(search: Search) -> int:
    """Completes the fields of `search` by projections of coordinate directions on the null space; returns how many."""
    missing = search.dim - search.rank()
    if missing <= 0:
        return 0
    probe, scale = search.nulls.probe, search.nulls.scale
    start = search.nulls.regular(1)[0]
    null = start.null
    if search.fields:
        span = torch.linalg.qr(torch.stack([f(start.x) for f in search.fields], dim=1) / scale[:, None])[0]
        null = null - span @ (span.mT @ null)
    order = null.norm(dim=1).argsort(descending=True)
    chosen: list[int] = []
    for j in order.tolist():
        if torch.linalg.matrix_rank(null[[*chosen, j]], rtol=1e-6) == len(chosen) + 1:
            chosen.append(j)
        if len(chosen) == missing:
            break

    def projected(j: int):
        def one(x: Tensor) -> Tensor:
            found = local_null(probe, x.detach().double(), scale)
            return (scale * (found.null @ found.null[j])).to(x)

        def field(x: Tensor) -> Tensor:
            return one(x) if x.ndim == 1 else torch.stack([one(row) for row in x.flatten(0, -2)]).reshape(x.shape)

        return field

    for j in chosen:
        text = f"no closed form: coordinate direction {j}, projected on the null space at each point"
        search.fields.append(FunctionField(probe.size, projected(j), text, closed_form=False))
    return len(chosen)
