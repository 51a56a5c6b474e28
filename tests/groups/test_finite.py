import itertools
from typing import Any

import pytest
import torch
from cases import positive, randn

import manifoldid as mid


def test_permutation_is_the_best_of_all():
    x, to, w = randn(4, 3), randn(4, 3, seed=1), randn(4, seed=2).exp()
    for weights in (None, w):
        v = torch.ones(4).double() if weights is None else w / w.mean()
        costs = [(v[:, None] * (x[list(order)] - to).square()).sum() for order in itertools.permutations(range(4))]
        found = mid.Permutation(dim=-2).closest(x, to, weights).point
        torch.testing.assert_close((v[:, None] * (found - to).square()).sum(), torch.stack(costs).min())


def test_signs_are_the_best_of_all():
    x, to = randn(4, 3), randn(4, 3, seed=1)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))).double()
    best = (signs[:, None] * x - to).square().sum((-2, -1)).min()
    found = mid.SignFlip(dim=-1, event_dim=2).closest(x, to).point
    torch.testing.assert_close((found - to).square().sum(), best)


def test_every_column_of_a_member_has_one_sign():
    centre = randn(5, 3)
    members = torch.stack([centre * torch.sign(randn(3, seed=k)) + 0.01 * randn(5, 3, seed=k + 50) for k in range(20)])
    aligned = mid.Ensemble(members, mid.SignFlip(dim=-1)).aligned
    ratio = aligned / members
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    torch.testing.assert_close(ratio.abs(), torch.ones_like(ratio))


def test_sections_and_moves_leave_points_alone():
    x = randn(4, 3)
    for group in (mid.Permutation(dim=-2), mid.SignFlip(), mid.Finite(torch.neg)):
        assert group.dimension(x) == 0
        assert torch.equal(mid.Section(group)(x), x)
        assert torch.equal(group.act(mid.Section(group).frame(x), x), x)


def test_hidden_units_are_permuted_and_flipped_together():
    x = {"w": randn(5, 3), "b": randn(5, seed=1), "v": randn(2, 5, seed=2), "free": randn(2, seed=3)}
    inputs = randn(20, 3, seed=9)

    def network(p):
        return torch.tanh(inputs @ p["w"].mT + p["b"]) @ p["v"].mT

    dims = {"w": 0, "b": 0, "v": -1}
    order, signs = torch.tensor([3, 1, 4, 0, 2]), torch.tensor([1.0, -1, -1, 1, -1]).double()
    permuted = {"w": x["w"][order], "b": x["b"][order], "v": x["v"][:, order], "free": x["free"]}
    flipped = {"w": x["w"] * signs[:, None], "b": x["b"] * signs, "v": x["v"] * signs, "free": x["free"]}
    for other, group in ((permuted, mid.Permutation(dim=dims)), (flipped, mid.SignFlip(dim=dims))):
        back = group.closest(other, x).point
        for name in x:
            torch.testing.assert_close(back[name], x[name])
        torch.testing.assert_close(network(back), network(other))


def test_label_switching_in_a_product_with_a_continuous_gauge():
    """Mixture components change places, scores shift, in one ensemble."""
    centre, scores = randn(4, 2), randn(6, seed=1)
    members = []
    for k in range(12):
        order = torch.randperm(4, generator=torch.Generator().manual_seed(k))
        members.append(
            {"means": centre[order] + 0.01 * randn(4, 2, seed=k), "scores": scores + 10 * k + 0.01 * randn(6, seed=k)}
        )
    group = mid.Product(means=mid.Permutation(dim=-2), scores=mid.Translation())
    ensemble = mid.Ensemble(members, group)
    for spread in ensemble.std().values():
        assert float(spread.max()) < 0.05


def test_finite_maps_generate_their_group():
    turn = mid.Finite(lambda x: torch.stack([-x[1], x[0]]), event_dim=1)  # a quarter turn: four images
    x = randn(2)
    assert len(turn.images(x)) == 4
    torch.testing.assert_close(turn.closest(-x, x).point, x)
    torch.testing.assert_close(turn.closest(torch.stack([-x, x]), x.expand(2, 2)).point, x.expand(2, 2))


def test_the_other_branch_of_a_likelihood_is_aligned():
    """p and 1 / p, the Beta form: members fall on either branch."""
    centre = positive(5)
    members = torch.stack([(centre * (1 + 0.01 * randn(5, seed=k))) ** (1 if k % 2 else -1) for k in range(10)])
    ensemble = mid.Ensemble(members, mid.Finite(torch.reciprocal))
    assert float(ensemble.std().max()) < 0.1 * float(members.std(0).max())
    dist = mid.QuotientManifold(mid.Finite(torch.reciprocal)).dist(centre, 1 / centre)
    torch.testing.assert_close(dist, torch.zeros(()).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("product", [False, True], ids=["alone", "factor of a product"])
def test_a_contrast_that_sees_the_branch_is_refused_with_the_map(product):
    """x[0] <-> x[1]: which of the two is first says how a member was aligned, their sum does not."""
    swap = mid.Finite(lambda x: x.flip(-1), event_dim=1)
    members = torch.tensor([[0.7, 1.9], [1.91, 0.71], [0.69, 1.88]]).double()
    pick = lambda x: x["pair"] if product else x  # noqa: E731
    ensemble = mid.Ensemble(
        {"pair": members, "scores": randn(3, 4)} if product else members,
        mid.Product(pair=swap, scores=mid.Translation()) if product else swap,
    )
    assert float(ensemble.contrast(lambda x: pick(x).sum()).standard_error) < 0.05
    assert float(ensemble.contrast(lambda x: pick(x).sort().values).standard_error.max()) < 0.05
    with pytest.raises(mid.NotEstimableError, match=r"not constant on the orbits of .*Finite.* under the map <lambda>"):
        ensemble.contrast(lambda x: pick(x)[0])
    block = "pair" if product else None
    with pytest.raises(mid.NotEstimableError, match=r"the difference of two items.*or say which section="):
        ensemble.pairwise(block=block)
    with pytest.raises(mid.NotInvariantError, match="under the map"):
        mid.check_invariance(
            lambda x: pick(x)[0], mid.points.map_blocks(lambda t: t[0], ensemble.members), ensemble.group
        )


def test_a_function_that_is_zero_but_for_rounding_is_not_taken_for_one_that_sees_the_maps():
    turned = mid.Finite(lambda x: x.roll(1, -1), event_dim=1)
    x = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)  # whose sum depends on the order of the terms, by rounding
    assert x.sum() != x.roll(1).sum()
    assert mid.check_invariance(torch.sum, x, turned) < 1e-12
    assert float(mid.Ensemble(torch.stack([x, x.roll(1)]), turned).contrast(torch.sum).value) < 1e-12


def test_contrasts_of_matrix_points_see_the_maps_of_whole_members():
    members = torch.stack([randn(3, 2), -randn(3, 2)])
    ensemble = mid.Ensemble(members, mid.Finite(torch.neg))
    assert float(ensemble.contrast(lambda x: x.square().sum()).standard_error) < 1e-12
    with pytest.raises(mid.NotEstimableError):
        ensemble.contrast(lambda x: x[0, 0])


def test_maps_that_do_not_close_are_refused():
    with pytest.raises(mid.DegeneratePointError, match="do not generate a finite group"):
        mid.Finite(lambda x: x + 1).closest(randn(3), randn(3))


def test_images_outside_the_domain_are_left_out():
    group = mid.Finite(lambda x: x.log())
    with torch.no_grad():
        x = torch.tensor([-1.0, 2.0]).double()
        torch.testing.assert_close(group.closest(x, x).point, x)


def test_alignment_is_differentiable_in_the_member():
    x = randn(4, 3).requires_grad_()
    aligned = mid.Permutation(dim=-2).closest(x, x.detach()[[2, 0, 3, 1]]).point
    (slope,) = torch.autograd.grad((aligned * torch.arange(12.0).reshape(4, 3).double()).sum(), x)
    torch.testing.assert_close(slope[[2, 0, 3, 1]], torch.arange(12.0).reshape(4, 3).double())


def test_arguments_are_checked():
    wrong: Any = "rows"
    with pytest.raises(TypeError, match="dim"):
        mid.Permutation(dim=wrong)
    with pytest.raises(ValueError, match="no dimension -3"):
        mid.Section(mid.Permutation(dim=-3))(randn(4, 3))
    with pytest.raises(ValueError, match="different sizes"):
        mid.Section(mid.Permutation(dim={"w": 0, "v": -1}))({"w": randn(5, 3), "v": randn(2, 4)})
    with pytest.raises(TypeError, match=r"functions|maps"):
        mid.Finite(wrong)
