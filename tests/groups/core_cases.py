"""The groups of the core as data: each with a way to draw points, and positive item weights that fit them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import manifoldid as mid
from manifoldid.points import Point, blocks_of

ITEMS = 9
LABELS = torch.tensor([7, -2, 7, 40, -2, 40, 7, -2, 40])  # any integers, unsorted, with gaps
BATCHES = ((), (3,), (2, 3))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positive(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (random(*shape, seed=seed) / 2).exp().to(dtype)


def _signed(*batch: int, seed: int = 0) -> Tensor:
    return 3 * random(*batch, ITEMS, seed=seed) + 1


def _positive(*batch: int, seed: int = 0) -> Tensor:
    return 5 * positive(*batch, ITEMS, seed=seed)


def _matrix(*batch: int, seed: int = 0) -> Tensor:
    return random(*batch, 3, 4, seed=seed)


def _rasch(*batch: int, seed: int = 0) -> Point:
    x = random(*batch, ITEMS, seed=seed)
    return {"theta": x[..., :5], "beta": x[..., 5:]}


def _factors(*batch: int, seed: int = 0) -> Point:
    return {
        "user": random(*batch, 3, 2, seed=seed),
        "item": random(*batch, 4, seed=seed + 1),
        "rest": random(*batch, 2),
    }


def _skills(*batch: int, seed: int = 0) -> Point:
    return {
        "skill": random(*batch, 4, seed=seed),
        "free": random(*batch, 2, seed=seed + 1),
        "scale": positive(*batch, 3, seed=seed + 2),
        "theta": random(*batch, 2, seed=seed + 3),
        "beta": random(*batch, 3, seed=seed + 4),
    }


def _ramp(n: int) -> Tensor:
    return 0.3 + torch.arange(n, dtype=torch.float64) / n


@dataclass(frozen=True)
class Case:
    group: mid.GaugeGroup
    draw: Callable[..., Any]
    weights: Tensor | dict[str, Tensor] | None
    sphere: bool = False  # its quotient is made of spheres

    def point(self, *batch: int, seed: int = 0) -> Any:
        return self.draw(*batch, seed=seed)

    def move(self, x: Point, seed: int = 11, size: float = 0.5) -> Tensor:
        """Coordinates of one move for every batch entry of `x`."""
        ndim = self.group.batch_ndim(x)
        mine = [t for name, t in blocks_of(x).items() if not self.group.block_names or name in self.group.block_names]
        return size * random(*mine[0].shape[:ndim], self.group.dimension(x), seed=seed)


CASES = {
    "translation": Case(mid.Translation(), _signed, _ramp(ITEMS)),
    "translation per block": Case(mid.Translation(blocks=LABELS), _signed, _ramp(ITEMS)),
    "scaling": Case(mid.Scaling(), _signed, _ramp(ITEMS), sphere=True),
    "scaling per block": Case(mid.Scaling(blocks=LABELS), _signed, _ramp(ITEMS), sphere=True),
    "positive scaling": Case(mid.PositiveScaling(), _positive, _ramp(ITEMS)),
    "positive scaling per block": Case(mid.PositiveScaling(blocks=LABELS), _positive, _ramp(ITEMS)),
    "affine": Case(mid.Affine(), _signed, _ramp(ITEMS), sphere=True),
    "affine per block": Case(mid.Affine(blocks=LABELS), _signed, _ramp(ITEMS), sphere=True),
    "affine, one scale": Case(mid.Affine(blocks=LABELS, common_scale=True), _signed, _ramp(ITEMS), sphere=True),
    "shift": Case(mid.Shift(random(2, ITEMS, seed=5)), _signed, _ramp(ITEMS)),
    "shift of matrices": Case(mid.Shift(random(2, 3, 4, seed=5)), _matrix, _ramp(3)),
    "shift of two blocks": Case(mid.Shift({"theta": 1, "beta": 1}), _rasch, {"theta": _ramp(5), "beta": _ramp(4)}),
    "shifts by tensors and numbers": Case(
        mid.Shift([{"user": random(3, 2, seed=6), "item": -1}, {"user": torch.eye(3, 2, dtype=torch.float64)}]),
        _factors,
        {"item": _ramp(4)},
    ),
    "product": Case(
        mid.Product(mid.Shift({"theta": 1, "beta": 1}), skill=mid.Affine(), scale=mid.PositiveScaling()),
        _skills,
        {"skill": _ramp(4), "beta": _ramp(3)},
    ),
    "trivial": Case(mid.Product(), _skills, None),
}
