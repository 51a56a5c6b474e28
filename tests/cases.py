"""The table of groups: name, group, and a generic point or how to draw one. A new group is one line here."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import manifoldid as mid
from manifoldid.points import Point, blocks_of, map_blocks

ITEMS = 9
LABELS = torch.tensor([7, -2, 7, 40, -2, 40, 7, -2, 40])  # any integers, unsorted, with gaps
BLOCKS = torch.tensor([5, 5, -1, -1, 5, -1, -1])
BATCHES = ((), (3,), (2, 3))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positive(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (randn(*shape, seed=seed) / 2).exp().to(dtype)


class AsinhShift(mid.GaugeGroup):
    """x -> sinh(asinh x + t): nothing but the action is given."""

    dim = 1

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return torch.sinh(torch.asinh(x) + xi)


def _signed(*batch: int, seed: int = 0) -> Tensor:
    return 3 * randn(*batch, ITEMS, seed=seed) + 1


def _positive(*batch: int, seed: int = 0) -> Tensor:
    return 5 * positive(*batch, ITEMS, seed=seed)


def _matrix(*batch: int, seed: int = 0) -> Tensor:
    return randn(*batch, 3, 4, seed=seed)


def _rasch(*batch: int, seed: int = 0) -> Point:
    x = randn(*batch, ITEMS, seed=seed)
    return {"theta": x[..., :5], "beta": x[..., 5:]}


def _factors(*batch: int, seed: int = 0) -> Point:
    return {
        "user": randn(*batch, 3, 2, seed=seed),
        "item": randn(*batch, 4, seed=seed + 1),
        "rest": randn(*batch, 2),
    }


def _skills(*batch: int, seed: int = 0) -> Point:
    return {
        "skill": randn(*batch, 4, seed=seed),
        "free": randn(*batch, 2, seed=seed + 1),
        "scale": positive(*batch, 3, seed=seed + 2),
        "theta": randn(*batch, 2, seed=seed + 3),
        "beta": randn(*batch, 3, seed=seed + 4),
    }


def _ramp(n: int) -> Tensor:
    return 0.3 + torch.arange(n, dtype=torch.float64) / n


@dataclass(frozen=True)
class Case:
    name: str
    group: mid.GaugeGroup
    source: Any
    """A point, of which others are drawn in its neighbourhood, or a function (*batch, seed=0) that draws them."""
    weights: Any = None
    """Positive item weights that fit the points."""
    core: bool = False
    """Flat, with all of its geometry in closed form: tests/groups/test_core_*."""
    sphere: bool = False
    """Its quotient is made of spheres."""

    @property
    def sample(self) -> Any:
        return self.point()

    def point(self, *batch: int, seed: int = 0) -> Any:
        """A generic point for every entry of the batch."""
        if callable(self.source):
            return self.source(*batch, seed=seed)
        if not batch and not seed:
            return map_blocks(torch.clone, self.source)
        return map_blocks(lambda t: t * (1 + 0.2 * randn(*batch, *t.shape, seed=seed + 1).tanh()), self.source)

    def move(self, x: Point, seed: int = 11, size: float = 0.5) -> Tensor:
        """Coordinates of one move for every batch entry of `x`."""
        ndim = self.group.batch_ndim(x)
        mine = [t for name, t in blocks_of(x).items() if not self.group.block_names or name in self.group.block_names]
        return size * randn(*mine[0].shape[:ndim], self.group.dimension(x), seed=seed)


TABLE = [
    Case("translation", mid.Translation(), _signed, _ramp(ITEMS), core=True),
    Case("translation-blocks", mid.Translation(blocks=LABELS), _signed, _ramp(ITEMS), core=True),
    Case("scaling", mid.Scaling(), _signed, _ramp(ITEMS), core=True, sphere=True),
    Case("scaling-blocks", mid.Scaling(blocks=LABELS), _signed, _ramp(ITEMS), core=True, sphere=True),
    Case("positive-scaling", mid.PositiveScaling(), _positive, _ramp(ITEMS), core=True),
    Case("positive-scaling-blocks", mid.PositiveScaling(blocks=LABELS), _positive, _ramp(ITEMS), core=True),
    Case("affine", mid.Affine(), _signed, _ramp(ITEMS), core=True, sphere=True),
    Case("affine-blocks", mid.Affine(blocks=LABELS), _signed, _ramp(ITEMS), core=True, sphere=True),
    Case(
        "affine-common-scale",
        mid.Affine(blocks=LABELS, common_scale=True),
        _signed,
        _ramp(ITEMS),
        core=True,
        sphere=True,
    ),
    Case("shift", mid.Shift(randn(2, ITEMS, seed=5)), _signed, _ramp(ITEMS), core=True),
    Case("shift-matrices", mid.Shift(randn(2, 3, 4, seed=5)), _matrix, _ramp(3), core=True),
    Case("shift-dict", mid.Shift({"theta": 1, "beta": 1}), _rasch, {"theta": _ramp(5), "beta": _ramp(4)}, core=True),
    Case(
        "shift-mixed",
        mid.Shift([{"user": randn(3, 2, seed=6), "item": -1}, {"user": torch.eye(3, 2, dtype=torch.float64)}]),
        _factors,
        {"item": _ramp(4)},
        core=True,
    ),
    Case(
        "product",
        mid.Product(mid.Shift({"theta": 1, "beta": 1}), skill=mid.Affine(), scale=mid.PositiveScaling()),
        _skills,
        {"skill": _ramp(4), "beta": _ramp(3)},
        core=True,
    ),
    Case("trivial", mid.Product(), _skills, core=True),
    Case(
        "location-scale-slopes",
        mid.LocationScale(locations=("theta", "beta"), slopes=("alpha",)),
        {"theta": randn(6), "beta": randn(4, seed=1), "alpha": positive(4, seed=2)},
    ),
    Case(
        "location-scale",
        mid.LocationScale("mu", scales="sigma"),
        {"mu": randn(6), "sigma": positive(6), "free": randn(2, seed=3)},
    ),
    Case("orthogonal", mid.Orthogonal(), randn(7, 3)),
    Case("orthogonal-plane", mid.Orthogonal(), randn(5, 2, seed=1)),
    Case(
        "general-linear",
        mid.GeneralLinear("A", "B"),
        {"A": randn(6, 3), "B": randn(5, 3, seed=2), "free": randn(2, seed=3)},
    ),
    Case(
        "general-linear-peft",
        mid.GeneralLinear("lora_A", "lora_B", rank_dims=(0, -1)),
        {"lora_A": randn(2, 6), "lora_B": randn(5, 2, seed=2)},
    ),
    Case(
        "rescaling",
        mid.Rescaling(incoming=("w", "b"), outgoing=("v",)),
        {"w": randn(5, 3), "b": randn(5, seed=1), "v": randn(2, 5, seed=2)},
    ),
    Case(
        "rescaling-channels",
        mid.Rescaling(incoming=("k", "b"), outgoing=("l",), dims={"l": 1}),
        {"k": randn(3, 2, 2, 2), "b": randn(3, seed=1), "l": randn(2, 3, 2, 2, seed=2)},
    ),
    Case("phase", mid.Phase(), torch.complex(randn(6), randn(6, seed=3))),
    Case("rigid-motion", mid.RigidMotion(), randn(7, 2)),
    Case("similarity", mid.Similarity(), randn(7, 2)),
    Case("similarity-space", mid.Similarity(), randn(8, 3)),
    Case("pointwise", mid.Pointwise(lambda x: x.log().log(), lambda y: y.exp().exp()), 2 + positive(6)),
    Case("pointwise-affine", mid.Pointwise(torch.asinh, torch.sinh, mid.Affine(blocks=BLOCKS)), randn(7)),
    Case("permutation", mid.Permutation(dim=-2, event_dim=2), randn(5, 3)),
    Case(
        "permutation-of-units",
        mid.Permutation(dim={"w": 0, "v": -1}, event_dim=2),
        {"w": randn(5, 3), "v": randn(2, 5, seed=2)},
    ),
    Case("signs", mid.SignFlip(dim=-1, event_dim=2), randn(5, 3)),
    Case("finite", mid.Finite(torch.neg, lambda x: x.flip(-1), event_dim=1), randn(4)),
    Case(
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
    Case("custom", AsinhShift(), randn(5)),
]

CASES = {case.name: case for case in TABLE}
CORE = {case.name: case for case in TABLE if case.core}
ON_TENSORS = [case.name for case in TABLE if isinstance(case.sample, Tensor)]
