"""The same answers from every gauge of the start, for every order of the items, and on every section."""

import pytest
import torch

import manifoldid as mid

pytestmark = pytest.mark.slow

F64 = torch.float64
FIRST, SECOND = torch.triu_indices(6, 6, offset=1)
WON = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9], dtype=F64)
LOST = torch.tensor([2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 4, 5], dtype=F64)
START = torch.tensor([1.3, 0.4, 0.7, 2, 1, 0.8], dtype=F64)
TARGET = torch.tensor([[2.0, 0.3, -0.5], [0.3, 1.0, 0.2], [-0.5, 0.2, 1.5]], dtype=F64)


def league(score, order=None):
    """A Bradley-Terry likelihood of `score(x)`; `order[k]` is the place of item k in the point."""
    place = torch.arange(6) if order is None else order

    def nll(x):
        gap = score(x)[place[FIRST]] - score(x)[place[SECOND]]
        sigmoid = torch.nn.functional.logsigmoid
        return -(WON * sigmoid(gap) + LOST * sigmoid(-gap)).sum()

    return nll


CASES = {
    "translation": (mid.Translation(), lambda x: x),
    "weighted translation": (mid.Translation(), lambda x: x),
    "positive scaling": (mid.PositiveScaling(), torch.log),
    "pointwise": (mid.Pointwise(torch.log, torch.exp), torch.log),
    "affine": (mid.Affine(), lambda x: 3 * (x - x.mean()) / (x - x.mean()).norm()),
}
WEIGHTS = {"weighted translation": torch.tensor([1.0, 2, 0.5, 3, 1, 1], dtype=F64)}


def answers(name, start, order=None):
    group, score = CASES[name]
    weights = WEIGHTS.get(name)
    if weights is not None and order is not None:
        weights = weights[order.argsort()]
    nll = league(score, order)
    fit = mid.fit(nll, start, group, weights=weights)
    assert fit.converged
    estimate = mid.infer(nll, fit.point, group, weights=weights)
    return estimate.estimate(), estimate.covariance()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("move", [[0.7, 1.1], [-1.5, -0.3]])
def test_starts_on_one_orbit_give_one_answer(name, move):
    group, _ = CASES[name]
    moved = group.act(torch.tensor(move, dtype=F64)[: group.dimension(START)], START)
    for plain, other in zip(answers(name, START), answers(name, moved), strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_the_items_does_not_matter(name):
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    back = order.argsort()
    value, covariance = answers(name, START)
    other, others = answers(name, START[back], order)
    torch.testing.assert_close(other[order], value, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(others[order][:, order], covariance, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("section", [None, mid.Reference(mid.Translation(), 2), lambda x: x - x[4]])
def test_contrasts_are_the_same_on_every_section(section):
    nll = league(lambda x: x)
    estimate = mid.infer(nll, mid.fit(nll, START, mid.Translation()).point, mid.Translation())
    contrast = estimate.contrast(lambda x: x[:3] - x[3:])
    difference = torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)], -1)
    torch.testing.assert_close(difference @ estimate.estimate(section), contrast.value, rtol=0, atol=1e-8)
    covariance = difference @ estimate.covariance(section=section) @ difference.mT
    torch.testing.assert_close(covariance, contrast.covariance, rtol=1e-8, atol=1e-8)


def test_a_curved_gauge_gives_the_same_invariants_from_every_start():
    start = torch.tensor([[1.0, 0.2], [0.1, 0.7], [-0.4, 0.3]], dtype=F64)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 1.3], [-1.3, 0]], dtype=F64))

    def nll(x):
        return 50 * (x @ x.mT - TARGET).square().sum()

    found = []
    for x in (start, start @ turn):
        estimate = mid.infer(nll, mid.fit(nll, x, mid.Orthogonal()).point, mid.Orthogonal())
        found.append(estimate.contrast(lambda x: (x @ x.mT).flatten()))
    torch.testing.assert_close(found[1].value, found[0].value, rtol=0, atol=1e-8)
    torch.testing.assert_close(found[1].covariance, found[0].covariance, rtol=1e-8, atol=1e-8)
