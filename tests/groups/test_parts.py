"""Parts: what the group on blocks does, done to a vector."""

import pickle

import pytest
import torch

import manifoldid as mid

F64 = torch.float64
PLACES = {"U": torch.arange(8).reshape(4, 2), "V": torch.tensor([[17, 9], [10, 11], [12, 13], [14, 15], [16, 8]])}
INSIDE = mid.GeneralLinear("U", "V")
GROUP = mid.Parts(INSIDE, **PLACES)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_blocks_and_vector_are_inverse_and_permute_entries(batch):
    x = normal(*batch, 20)
    blocks = GROUP.blocks(x)
    assert torch.equal(GROUP.vector(blocks), x)
    assert torch.equal(blocks["V"][..., 0, 1], x[..., 9])


def test_a_move_is_the_move_of_the_blocks_and_the_rest_stays():
    x, xi = normal(3, 20), 0.3 * normal(3, 4, seed=1)
    y = GROUP.act(xi, x)
    inside = INSIDE.act(xi, {name: x[..., places] for name, places in PLACES.items()})
    for name, places in PLACES.items():
        assert torch.equal(y[..., places], inside[name])
    assert torch.equal(y[..., 18:], x[..., 18:])


def test_repr_is_code_and_copies_are_equal():
    names = {name: getattr(mid, name) for name in mid.__all__ if name != "conformance"}
    assert eval(repr(GROUP), {"torch": torch, **names}) == GROUP
    assert pickle.loads(pickle.dumps(GROUP)) == GROUP
    assert mid.Parts(INSIDE, U=PLACES["U"], V=torch.arange(8, 18).reshape(5, 2)) != GROUP


@pytest.mark.slow
def test_passes_the_conformance_kit():
    group = mid.Parts(mid.LocationScale(locations=("t",), slopes=("a",)), t=torch.arange(5), a=torch.arange(7, 10))
    report = mid.conformance.check_group(group, torch.cat([normal(5), normal(7, seed=2).exp()]))
    assert report.passed, str(report)


def test_weights_are_those_of_the_entries():
    group = mid.Parts(mid.Product(x=mid.Translation()), x=torch.arange(3))
    weights = torch.tensor([1.0, 0.0, 3.0, 7.0], dtype=F64)
    section = mid.Section(group, weights=weights)(normal(4))
    assert abs(float(section[0] + 3 * section[2])) < 1e-12


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: mid.Parts(mid.Translation(), x=torch.arange(3)), TypeError, "`group`"),
        (lambda: mid.Parts(INSIDE, U=torch.arange(8).reshape(4, 2)), ValueError, "lacks the blocks"),
        (lambda: mid.Parts(mid.Product(x=mid.Translation()), x=torch.tensor([0, 0])), ValueError, "overlap"),
        (lambda: mid.Parts(mid.Product(x=mid.Translation()), x=torch.tensor([0.5])), TypeError, "long"),
        (lambda: mid.Section(GROUP)(normal(10)), ValueError, "at least 18 entries"),
    ],
)
def test_what_is_wrong_is_said(make, error, words):
    with pytest.raises(error, match=words):
        make()
