"""Maximum-likelihood scores of paired comparisons, against numbers printed by R's BradleyTerry2."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import manifoldid as mid
from manifoldid.demo.baseball import load_season

F64 = {"dtype": torch.float64}
# Citations among four statistics journals, Stigler (1994), in Agresti (2002), p. 448: pair, wins of the first and the second.
CITATIONS = [(0, 1, 730, 33), (0, 2, 498, 320), (0, 3, 221, 284), (1, 2, 68, 813), (1, 3, 17, 276), (2, 3, 142, 325)]
# BradleyTerry2 0.2.1, abilities with mean zero, and the log-likelihood without its binomial coefficients.
REFERENCE = {
    "citations": ([0.789922052694107, -2.1591504441498, 0.310352282942115, 1.05887610851358], -1622.8898088276),
    "baseball": (
        [
            -1.05020253600378,
            0.0574951693685619,
            -0.366349766850507,
            0.386205895802022,
            0.531153340650996,
            0.197415309131161,
            0.24428258790155,
        ],
        -172.248175994716,
    ),
}


def comparisons(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and second item, wins of each."""
    if name == "citations":
        first, second, won, lost = zip(*CITATIONS, strict=True)
        return torch.tensor(first), torch.tensor(second), torch.tensor(won, **F64), torch.tensor(lost, **F64)
    season = load_season()
    return season.home, season.away, season.won, season.lost


def likelihood(name: str):
    first, second, won, lost = comparisons(name)

    def nll(score: Tensor) -> Tensor:
        difference = score[first] - score[second]
        return -(won * logsigmoid(difference) + lost * logsigmoid(-difference)).sum()

    return nll


@pytest.mark.parametrize("start", [0.0, 40.0])
@pytest.mark.parametrize("name", REFERENCE)
def test_lbfgs_ends_at_the_estimates_of_r(name, start):
    expected, log_likelihood = REFERENCE[name]
    nll, p = likelihood(name), nn.Parameter(torch.full((len(expected),), start, **F64))
    optimiser = torch.optim.LBFGS([p], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    mid.attach(optimiser, mid.Translation(), p, loss=lambda: nll(p))

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nll(p)
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(p.detach(), torch.tensor(expected, **F64), rtol=0, atol=1e-5)
    assert abs(float(nll(p).detach()) + log_likelihood) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_adam_ends_at_the_estimates_of_r(name):
    expected, _ = REFERENCE[name]
    nll, p = likelihood(name), nn.Parameter(torch.full((len(expected),), 40.0, **F64))
    optimiser = torch.optim.Adam([p], lr=5e-2)
    mid.attach(optimiser, mid.Translation(), p)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1000)
    for _ in range(1000):
        optimiser.zero_grad()
        nll(p).backward()
        optimiser.step()
        scheduler.step()
    torch.testing.assert_close(p.detach(), torch.tensor(expected, **F64), rtol=0, atol=1e-5)
