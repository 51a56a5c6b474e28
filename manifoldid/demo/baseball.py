"""Baseball with a free slope, P(i beats j) = sigmoid(slope (l_i - l_j)).

l -> a l + b, slope -> slope / a changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

import manifoldid as mid
from manifoldid.demo.tables import read_table

ROUNDS = 40
_ITERATIONS = 20  # of L-BFGS in a round
_PENALTY = 1.0


@dataclass(frozen=True)
class Season:
    """Wins of every ordered pair of teams.

    Attributes:
        teams: Names.
        home: Index of the home team.
        away: Index of the visitors.
        won: Games won by the home team.
        lost: Games lost by the home team.
    """

    teams: tuple[str, ...]
    home: Int[Tensor, " pairs"]
    away: Int[Tensor, " pairs"]
    won: Float[Tensor, " pairs"]
    lost: Float[Tensor, " pairs"]

    def nll(self, ability: Float[Tensor, " n"], slope: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Negative log-likelihood of the season.

        Args:
            ability: One number per team.
            slope: Log-odds per unit of ability.

        Returns:
            The sum over all games.
        """
        logit = slope * (ability[self.home] - ability[self.away])
        return -(self.won * logsigmoid(logit) + self.lost * logsigmoid(-logit)).sum()


@dataclass(frozen=True)
class Path:
    """What one fit went through, round by round.

    Attributes:
        spread: Standard deviation of the abilities; the start comes first.
        slope: Slope at the end.
        nll: Negative log-likelihood at the end.
    """

    spread: list[float]
    slope: float
    nll: float


def load_season() -> Season:
    """The season of baseball.csv: 7 teams, 42 ordered pairs.

    Returns:
        Teams in alphabetical order.
    """
    rows = read_table("baseball")
    teams = tuple(sorted({row["home.team"] for row in rows}))

    def column(name: str) -> Tensor:
        return torch.tensor([teams.index(row[name]) for row in rows])

    def wins(name: str) -> Tensor:
        return torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)

    return Season(teams, column("home.team"), column("away.team"), wins("home.wins"), wins("away.wins"))


def fit_penalised(season: Season, start: Float[Tensor, " n"], on_round: Callable[[], object]) -> Path:
    """Fits abilities and slope with a ridge penalty on the abilities, the usual cure for a free origin and unit.

    Args:
        season: The results.
        start: Abilities to start from.
        on_round: Called after each of the `ROUNDS` rounds.

    Returns:
        The path of the fit.
    """

    def objective(ability: Tensor, slope: Tensor) -> Tensor:
        return season.nll(ability, slope) + _PENALTY * ability.square().sum()

    return _minimise(objective, season, start, None, on_round)


def fit_on_section(season: Season, start: Float[Tensor, " n"], on_round: Callable[[], object]) -> Path:
    """Fits abilities on the affine section (mean 0, standard deviation 1) and the slope, no penalty.

    Args:
        season: The results.
        start: Abilities to start from.
        on_round: Called after each of the `ROUNDS` rounds.

    Returns:
        The path of the fit.
    """
    section = mid.Section(mid.Affine())

    # read through the section, origin and unit of the abilities are gauge at any slope
    def objective(ability: Tensor, slope: Tensor) -> Tensor:
        return season.nll(section(ability), slope)

    return _minimise(objective, season, start, mid.Affine(), on_round)


def _minimise(
    objective: Callable[[Tensor, Tensor], Tensor],
    season: Season,
    start: Tensor,
    gauge: mid.GaugeGroup | None,
    on_round: Callable[[], object],
) -> Path:
    ability = start.clone().requires_grad_()
    log_slope = torch.zeros((), dtype=start.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [ability, log_slope], max_iter=_ITERATIONS, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )
    if gauge is not None:
        mid.attach(optimizer, gauge, ability)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(ability, log_slope.exp())
        loss.backward()
        return loss

    spread = [start.std(correction=0).item()]
    for _ in range(ROUNDS):
        optimizer.step(closure)
        spread.append(ability.detach().std(correction=0).item())
        on_round()
    slope = log_slope.detach().exp()
    return Path(spread, slope.item(), season.nll(ability.detach(), slope).item())
