"""Singular points of every kind of group: finite values and derivatives, or a `DegeneratePointError`; never nan."""

import pytest
import torch
from cases import positive, randn
from torch import Tensor

import manifoldid as mid
from manifoldid.points import blocks_of, map_blocks
from manifoldid.quotient.horizontal import Quotient

pytestmark = pytest.mark.slow

LINE = torch.stack([torch.arange(4.0), torch.zeros(4)], -1).double()
SQUARE = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).double()  # equal singular values
RAY = randn(5, 1) @ torch.ones(1, 3).double()  # rank one
STATE = torch.complex(randn(4), randn(4, seed=1))
LIVE = torch.tensor([0.0, 1, 1]).double()  # hidden unit 0 is dead
RELU = mid.Rescaling(incoming=("w", "b"), outgoing=("v",))
PAIR = mid.GeneralLinear("A", "B")
IRT = mid.LocationScale(("theta", "beta"), slopes=("alpha",))


def factors(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    return {"A": a, "B": b}


def network(in_scale: Tensor, out_scale: Tensor, seed: int = 0) -> dict[str, Tensor]:
    w, b, v = randn(3, 2, seed=seed), randn(3, seed=seed + 1), randn(2, 3, seed=seed + 2)
    return {"w": w * in_scale[:, None], "b": b * in_scale, "v": v * out_scale}


def items(sign: float, seed: int = 0) -> dict[str, Tensor]:
    return {"theta": sign * randn(4, seed=seed), "beta": sign * randn(3, seed=seed + 1), "alpha": positive(3)}


ONES = torch.ones(3).double()
SINGULAR = {
    "equal singular values": (mid.Orthogonal(), torch.eye(5, 3).double(), torch.eye(5, 3).double().flip(0)),
    "rank loss": (mid.Orthogonal(), RAY, randn(5, 3)),
    "zero matrix": (mid.Orthogonal(), 0 * RAY, randn(5, 3)),
    "mirror image": (mid.Orthogonal(), randn(5, 3), -randn(5, 3)),
    "a factor of lower rank": (PAIR, factors(RAY, randn(4, 3)), factors(randn(5, 3), randn(4, 3))),
    "a factor that is zero": (PAIR, factors(randn(5, 3), 0 * randn(4, 3)), factors(randn(5, 3), randn(4, 3))),
    "two factors that are zero": (PAIR, factors(0 * RAY, 0 * randn(4, 3)), factors(randn(5, 3), randn(4, 3))),
    "equal singular values of a product": (
        PAIR,
        factors(*(torch.eye(k, 2).double() for k in (5, 4))),
        factors(randn(5, 2), randn(4, 2)),
    ),
    "hidden unit without input": (RELU, network(LIVE, ONES), network(ONES, ONES, seed=5)),
    "hidden unit without output": (RELU, network(ONES, LIVE), network(ONES, ONES, seed=5)),
    "dead hidden unit": (RELU, network(LIVE, LIVE), network(ONES, ONES, seed=5)),
    "opposite phase": (mid.Phase(), STATE, -STATE),
    "orthogonal states": (mid.Phase(), torch.tensor([1, 0, 0.0]) + 0j, torch.tensor([0, 1j, 0])),
    "state of length zero": (mid.Phase(), 0 * STATE, STATE),
    "conjugate pair at distance pi": (mid.Orthogonal(), SQUARE, SQUARE @ torch.tensor([[-1.0, 0], [0, -1]]).double()),
    "symmetric configuration": (mid.RigidMotion(), SQUARE, SQUARE.flip(-1)),
    "symmetric shape": (mid.Similarity(), SQUARE, SQUARE.flip(-1)),
    "points on a line": (mid.RigidMotion(), LINE, randn(4, 2)),
    "shape on a line": (mid.Similarity(), LINE, randn(4, 2)),
    "all points in one": (mid.RigidMotion(), torch.ones(4, 2).double(), randn(4, 2)),
    "shape without size": (mid.Similarity(), torch.ones(4, 2).double(), randn(4, 2)),
    "opposite scores": (mid.Scaling(), randn(4), -randn(4)),
    "opposite standardised scores": (mid.Affine(), randn(4), -randn(4)),
    "equal scores": (mid.Affine(), torch.ones(4).double(), randn(4)),
    "opposite abilities": (IRT, items(-1.0), items(1.0)),
    "equal abilities": (IRT, {**items(1.0), "theta": torch.ones(4).double()}, items(1.0)),
    "equal entries under permutations": (mid.Permutation(), torch.ones(4).double(), randn(4)),
    "columns of zeros under signs": (mid.SignFlip(event_dim=2), torch.zeros(4, 2).double(), randn(4, 2)),
}
OPERATIONS = {
    "section": lambda group, x, y: mid.Section(group)(x),
    "frame": lambda group, x, y: mid.Section(group).frame(x),
    "section at": lambda group, x, y: mid.Section(group, at=y)(x),
    "align": lambda group, x, y: Quotient(group).align(x, y),
    "dist": lambda group, x, y: Quotient(group).dist(x, y),
    "log": lambda group, x, y: Quotient(group).log(x, y),
    "log of": lambda group, x, y: Quotient(group).log(y, x),
    "horizontal": lambda group, x, y: Quotient(group).horizontal_component(x, y),
    "transport": lambda group, x, y: Quotient(group).transport(x, y, y),
}


def narrowed(x, dtype):
    return map_blocks(lambda t: t.to(dtype.to_complex() if t.is_complex() else dtype), x)


def all_finite(tensors) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors)


@pytest.mark.filterwarnings("ignore:.*dead hidden unit")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SINGULAR)
def test_singular_points_are_finite_or_refused(name, dtype):
    group, x, y = SINGULAR[name][0], *(narrowed(p, dtype) for p in SINGULAR[name][1:])
    for label, operation in OPERATIONS.items():
        p = map_blocks(lambda t: t.clone().requires_grad_(), x)
        try:
            values = list(blocks_of(operation(group, p, y)).values())
        except (mid.DegeneratePointError, NotImplementedError):
            continue
        assert all_finite(values), label
        loss = sum((t * t.conj()).real.sum() + t.real.sum() for t in values)
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss, list(blocks_of(p).values()), allow_unused=True)
            assert all_finite(slope for slope in slopes if slope is not None), label
