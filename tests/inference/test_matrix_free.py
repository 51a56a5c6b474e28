"""Large points: the same answers by solves, and errors for what cannot be had."""

import pytest
import torch

import manifoldid as mid
from manifoldid.inference.matrix_free import IterativeInverse, Solver
from manifoldid.inference.scores import Scores
from manifoldid.optim.local_model import FunctionObjective, LocalModel

F64 = torch.float64
ITEMS, GAMES = 6_000, 30_000


def terms_of(items, games, pools=1):
    """Bradley-Terry in `pools` pools that never met; in each a ring of wins, so that nobody runs away."""
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(items, (games,), generator=generator)
    other = torch.randint(items // pools - 1, (games,), generator=generator)
    second = (first + pools * (1 + other)) % (items - items % pools)
    ring = torch.arange(items)
    winner, loser = torch.cat([first, ring]), torch.cat([second, (ring + pools) % items])
    return lambda x: -torch.nn.functional.logsigmoid(x[winner] - x[loser])


@pytest.fixture(name="small", scope="module")
def _small():
    terms = terms_of(12, 60)
    point = mid.fit(lambda x: terms(x).sum(), torch.zeros(12, dtype=F64), mid.Translation()).point
    return terms, point


@pytest.mark.parametrize("information", ["observed", "sandwich"])
def test_solves_agree_with_the_matrix(small, information):
    terms, point = small
    dense = mid.infer(lambda x: terms(x).sum(), point, mid.Translation(), nll_terms=terms, information=information)
    model = LocalModel(FunctionObjective(lambda x: terms(x).sum()), mid.Translation(), None, point)
    scores = Scores(lambda x: terms(x).sum(), terms, point)
    inverse = IterativeInverse(Solver(model), scores.information if information == "sandwich" else None)
    rows = torch.eye(12, dtype=F64)[:3] - torch.eye(12, dtype=F64)[3:6]
    expected = dense.contrast(lambda x: x[:3] - x[3:6]).covariance
    torch.testing.assert_close(inverse.times(rows) @ rows.mT, expected, rtol=1e-8, atol=0)


def test_information_of_scores_is_the_sum_of_their_outer_products(small):
    terms, point = small
    estimate = mid.infer(lambda x: terms(x).sum(), point, mid.Translation(), nll_terms=terms, information="scores")
    scores = torch.func.jacrev(terms)(point)
    torch.testing.assert_close(estimate.covariance(), torch.linalg.pinv(scores.mT @ scores), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="nll_terms"):
        mid.infer(lambda x: terms(x).sum(), point, mid.Translation(), information="scores")


@pytest.fixture(name="large", scope="module")
def _large():
    terms = terms_of(ITEMS, GAMES)
    group = mid.Product(skill=mid.Translation())

    def nll(point):
        return terms(point["skill"]).sum() + 0.5 * (point["home"] - 1).square().sum()

    start = {"skill": torch.zeros(ITEMS, dtype=F64), "home": torch.zeros(2, dtype=F64)}
    return nll, mid.fit(nll, start, group).point, group


def test_a_contrast_of_a_large_point_is_solved_for(large):
    nll, point, group = large
    estimate = mid.infer(nll, point, group)
    contrast = estimate.contrast(lambda x: x["skill"][:2] - x["skill"][5:7])
    hessian = torch.zeros(ITEMS, 2, dtype=F64)
    for k in range(2):  # H times the solution is the contrast: checked by a product that the solver has no part in
        row = torch.zeros(ITEMS, dtype=F64)
        row[k], row[5 + k] = 1, -1
        solution = estimate._inverse.times(torch.cat([row, torch.zeros(2, dtype=F64)])[None])[0, :ITEMS]
        gradient = torch.func.grad(lambda s: nll({**point, "skill": s}))
        hessian[:, k] = torch.autograd.functional.jvp(gradient, point["skill"], solution)[1]
        torch.testing.assert_close(hessian[:, k], row, rtol=0, atol=1e-7)
        assert float(contrast.covariance[k, k]) == pytest.approx(float(row @ solution), rel=1e-9)
    torch.testing.assert_close(estimate.covariance(block="home"), torch.eye(2, dtype=F64), rtol=0, atol=1e-8)
    assert [row["standard_error"] for row in estimate.table(block="home")] == pytest.approx([1, 1], rel=1e-8)
    assert [row.get_text() for row in estimate.plot(block="home").get_yticklabels()] == ["0", "1"]


def test_what_needs_the_whole_matrix_is_refused_with_the_remedy(large):
    estimate = mid.infer(*large)
    for ask in (lambda: estimate.covariance(block="skill"), estimate.standard_errors):
        with pytest.raises(NotImplementedError, match="contrast"):
            ask()


def test_a_large_point_off_its_optimum_is_refused(large):
    nll, point, group = large
    with pytest.raises(mid.NotConvergedError, match="standard errors from the optimum"):
        mid.infer(nll, {**point, "home": torch.zeros(2, dtype=F64)}, group)


def test_two_large_pools_that_never_met_are_found():
    terms = terms_of(ITEMS, GAMES, pools=2)
    blocks = torch.arange(ITEMS) % 2

    def nll(x):
        return terms(x).sum()

    point = mid.fit(nll, torch.zeros(ITEMS, dtype=F64), mid.Translation(blocks=blocks)).point
    with pytest.raises(mid.NotIdentifiableError, match=r"2 component.*blocks=torch.tensor\(\[0, 1, 0, 1"):
        mid.infer(nll, point, mid.Translation())
