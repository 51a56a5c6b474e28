"""The table of groups: name, group, a generic sample. A new group is one line here."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

import manifoldid as mid


class AsinhShift(mid.GaugeGroup):
    """x -> sinh(asinh x + t): nothing but the action is given."""

    dim = 1

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return torch.sinh(torch.asinh(x) + xi)


class Row(NamedTuple):
    name: str
    group: mid.GaugeGroup
    sample: Any


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positive(*shape: int, seed: int = 0) -> Tensor:
    return (randn(*shape, seed=seed) / 2).exp()


BLOCKS = torch.tensor([5, 5, -1, -1, 5, -1, -1])

TABLE = [
    Row("translation", mid.Translation(), randn(7)),
    Row("translation-blocks", mid.Translation(blocks=BLOCKS), randn(7)),
    Row("scaling", mid.Scaling(), randn(7)),
    Row("scaling-blocks", mid.Scaling(blocks=BLOCKS), randn(7)),
    Row("positive-scaling", mid.PositiveScaling(), positive(7)),
    Row("positive-scaling-blocks", mid.PositiveScaling(blocks=BLOCKS), positive(7)),
    Row("affine", mid.Affine(), randn(7)),
    Row("affine-blocks", mid.Affine(blocks=BLOCKS), randn(7)),
    Row("affine-common-scale", mid.Affine(blocks=BLOCKS, common_scale=True), randn(7)),
    Row("shift", mid.Shift(randn(2, 7, seed=3)), randn(7)),
    Row("shift-dict", mid.Shift({"theta": 1, "beta": 1}), {"theta": randn(5), "beta": randn(4, seed=1)}),
    Row(
        "product",
        mid.Product(skill=mid.Translation(), rate=mid.PositiveScaling()),
        {"skill": randn(5), "rate": positive(4, seed=1), "home": randn(1, seed=2)},
    ),
    Row("trivial", mid.Product(), randn(7)),
    Row("custom", AsinhShift(), randn(5)),
]

CASES = {row.name: row for row in TABLE}
CLOSED = [row.name for row in TABLE if row.name != "custom"]  # geodesics in closed form
ON_TENSORS = [row.name for row in TABLE if isinstance(row.sample, Tensor)]
ITEMS = [name for name in ON_TENSORS if name not in ("custom", "trivial")]
"""Closed forms on a tensor of seven items."""
