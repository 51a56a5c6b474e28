"""The factor model of ability.cov, as R's factanal fits it: only L L' is identifiable."""

import pytest
import torch
from _data import printed, tensor

import manifoldid as mid

ABILITY = printed("ability_cov")
R = tensor(ABILITY["R"])


def discrepancy(loadings: torch.Tensor, log_uniqueness: torch.Tensor) -> torch.Tensor:
    """log |S| + tr(R S^-1) - log |R| - p, S = L L' + diag(psi)."""
    fitted = loadings @ loadings.mT + log_uniqueness.exp().diag()
    return torch.logdet(fitted) + torch.linalg.solve(fitted, R).trace() - torch.logdet(R) - 6


@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_of_factanal_is_reached_from_any_rotation(seed):
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64)).Q
    start = (R[:, :2] * 0.7) @ rotation
    loadings, uniqueness = torch.nn.Parameter(start), torch.nn.Parameter(torch.full((6,), -1.0, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(
        [loadings, uniqueness], line_search_fn="strong_wolfe", max_iter=60, tolerance_grad=1e-10
    )
    mid.attach(optimizer, mid.Orthogonal(), loadings, loss=lambda: discrepancy(loadings, uniqueness))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = discrepancy(loadings, uniqueness)
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    assert abs(float(closure().detach()) - ABILITY["objective"]) < 1e-7
    # factanal stops at a relative change of the objective of 1e-7 or so
    torch.testing.assert_close(loadings.detach() @ loadings.detach().mT, tensor(ABILITY["LLt"]), rtol=0, atol=2e-4)
    torch.testing.assert_close(uniqueness.detach().exp(), tensor(ABILITY["uniquenesses"]), rtol=0, atol=2e-4)


def test_unrotated_loadings_of_factanal_are_on_the_orbit_of_the_section():
    theirs = tensor(ABILITY["loadings_unrotated"])
    ours = mid.Section(mid.Orthogonal())(theirs)
    torch.testing.assert_close(ours @ ours.mT, tensor(ABILITY["LLt"]), rtol=0, atol=1e-12)
    # factanal's own convention, L' diag(1 / psi) L diagonal, is the section with the weights 1 / psi
    weighted = mid.Section(mid.Orthogonal(), weights=1 / tensor(ABILITY["uniquenesses"]))(theirs)
    torch.testing.assert_close(weighted.abs(), theirs.abs(), rtol=0, atol=1e-5)
