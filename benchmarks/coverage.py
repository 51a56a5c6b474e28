"""Coverage of 95 % intervals of contrasts over simulated leagues: from the information, and from bootstrap ensembles.

    python benchmarks/coverage.py [leagues [bootstrapped]]

Six teams, every pair plays 20 games, scores evenly from -1 to 1. Every league is simulated, fitted and asked for the intervals of
all 15 differences, one by one and together. The first hundred leagues are bootstrapped as well, game by game (60 replicates). Leagues
in which somebody always wins have no estimate; they are counted and left out.
"""

import sys

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import manifoldid as mid

TEAMS, GAMES, REPLICATES = 6, 20, 60
TRUTH = torch.linspace(-1, 1, TEAMS, dtype=torch.float64)
FIRST, SECOND = torch.triu_indices(TEAMS, TEAMS, offset=1)
GAUGE = mid.Translation()


def nll(score: Tensor, won: Tensor) -> Tensor:
    margin = score[FIRST] - score[SECOND]
    return -(won * logsigmoid(margin) + (GAMES - won) * logsigmoid(-margin)).sum()


def differences(score: Tensor) -> Tensor:
    return score[FIRST] - score[SECOND]


def results(score: Tensor, generator: torch.Generator) -> Tensor:
    """How many games the first team of every pair won, (15,)."""
    chance = torch.sigmoid(differences(score)).expand(GAMES, -1)
    return torch.bernoulli(chance, generator=generator).sum(0)


def holds(low: Tensor, high: Tensor) -> Tensor:
    wanted = differences(TRUTH)
    return (low < wanted) & (wanted < high)


def resampled(won: Tensor, generator: torch.Generator) -> Tensor:
    """The games of every pair drawn again, with replacement."""
    return torch.bernoulli((won / GAMES).expand(GAMES, -1), generator=generator).sum(0)


def main(leagues: int = 2000, bootstrapped: int = 100) -> None:
    generator = torch.Generator().manual_seed(0)
    single, together, bootstrap, separated = [], [], [], 0
    for k in range(leagues):
        won = results(TRUTH, generator)
        try:
            fit = mid.fit(lambda x, won=won: nll(x, won), torch.zeros(TEAMS, dtype=torch.float64), GAUGE)
        except mid.UnboundedEstimateError:
            separated += 1
            continue
        contrast = mid.infer(lambda x, won=won: nll(x, won), fit.point, GAUGE).contrast(differences)
        single.append(holds(*contrast.interval(0.95)))
        together.append(holds(*contrast.simultaneous_interval(0.95, draws=5000)).all())
        if k < bootstrapped:
            ensemble = mid.Ensemble.from_bootstrap(
                nll,
                lambda g, won=won: resampled(won, g),
                REPLICATES,
                fit.point,
                GAUGE,
                failures="drop",
                generator=generator,
            )
            spread = ensemble.contrast(differences).standard_error
            bootstrap.append(holds(contrast.value - 1.96 * spread, contrast.value + 1.96 * spread))
    shares = {
        f"information, one by one ({len(single)} leagues)": single,
        f"information, all 15 together ({len(together)} leagues)": together,
        f"bootstrap ensemble, one by one ({len(bootstrap)} leagues)": bootstrap,
    }
    for name, held in shares.items():
        per_league = torch.stack(held).double().reshape(len(held), -1).mean(1)
        error = float(per_league.std()) / len(held) ** 0.5
        print(f"{name:50} {float(per_league.mean()):.1%} +- {error:.1%}")
    print(f"{separated} leagues without an estimate")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
