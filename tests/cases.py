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
    weighted: bool = True
    """Whether weights of the first dimension of every block mean something."""


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
    Row(
        "location-scale-slopes",
        mid.LocationScale(locations=("theta", "beta"), slopes=("alpha",)),
        {"theta": randn(6), "beta": randn(4, seed=1), "alpha": positive(4, seed=2)},
    ),
    Row(
        "location-scale",
        mid.LocationScale("mu", scales="sigma"),
        {"mu": randn(6), "sigma": positive(6), "free": randn(2, seed=3)},
    ),
    Row("orthogonal", mid.Orthogonal(), randn(7, 3)),
    Row("orthogonal-plane", mid.Orthogonal(), randn(5, 2, seed=1)),
    Row(
        "general-linear",
        mid.GeneralLinear("A", "B"),
        {"A": randn(6, 3), "B": randn(5, 3, seed=2), "free": randn(2, seed=3)},
    ),
    Row(
        "general-linear-peft",
        mid.GeneralLinear("lora_A", "lora_B", rank_dims=(0, -1)),
        {"lora_A": randn(2, 6), "lora_B": randn(5, 2, seed=2)},
        weighted=False,
    ),
    Row(
        "rescaling",
        mid.Rescaling(incoming=("w", "b"), outgoing=("v",)),
        {"w": randn(5, 3), "b": randn(5, seed=1), "v": randn(2, 5, seed=2)},
    ),
    Row(
        "rescaling-channels",
        mid.Rescaling(incoming=("k", "b"), outgoing=("l",), dims={"l": 1}),
        {"k": randn(3, 2, 2, 2), "b": randn(3, seed=1), "l": randn(2, 3, 2, 2, seed=2)},
    ),
    Row("phase", mid.Phase(), torch.complex(randn(6), randn(6, seed=3))),
    Row("rigid-motion", mid.RigidMotion(), randn(7, 2)),
    Row("similarity", mid.Similarity(), randn(7, 2)),
    Row("similarity-space", mid.Similarity(), randn(8, 3)),
    Row("pointwise", mid.Pointwise(lambda x: x.log().log(), lambda y: y.exp().exp()), 2 + positive(6)),
    Row("pointwise-affine", mid.Pointwise(torch.asinh, torch.sinh, mid.Affine(blocks=BLOCKS)), randn(7)),
    Row("permutation", mid.Permutation(dim=-2, event_dim=2), randn(5, 3)),
    Row(
        "permutation-of-units",
        mid.Permutation(dim={"w": 0, "v": -1}, event_dim=2),
        {"w": randn(5, 3), "v": randn(2, 5, seed=2)},
    ),
    Row("signs", mid.SignFlip(dim=-1, event_dim=2), randn(5, 3)),
    Row("finite", mid.Finite(torch.neg, lambda x: x.flip(-1), event_dim=1), randn(4)),
    Row(
        "nested",
        mid.Product(
            mid.GeneralLinear("U", "V"), mid.Product(mid.LocationScale("mu", scales="sigma")), skill=mid.Affine()
        ),
        {
            "U": randn(4, 2),
            "V": randn(5, 2, seed=1),
            "mu": randn(4, seed=2),
            "sigma": positive(4, seed=3),
            "skill": randn(5, seed=4),
        },
    ),
    Row("custom", AsinhShift(), randn(5)),
]

CASES = {row.name: row for row in TABLE}
CLOSED = [row.name for row in TABLE if row.name != "custom"]  # geodesics in closed form
ON_TENSORS = [row.name for row in TABLE if isinstance(row.sample, Tensor)]
ITEMS = [name for name in ON_TENSORS if name not in ("custom", "trivial")]
"""Closed forms on a tensor of seven items."""
