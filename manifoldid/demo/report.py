"""What the demo prints: plain ASCII, readable in a pipe and without colour."""

from dataclasses import dataclass

from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

import manifoldid as mid
from manifoldid.demo.baseball import Path
from manifoldid.demo.travel import MODES, Travellers


@dataclass(frozen=True)
class Outcome:
    """The trained ensemble on the held-out travellers.

    Attributes:
        held_out: The travellers.
        naive: Utilities as the networks emit them.
        ensemble: The same on the section.
        baseline: Log-loss of a model that knows the shares of the modes and nothing else.
    """

    held_out: Travellers
    naive: Float[Tensor, "members n 4"]
    ensemble: mid.Ensemble
    baseline: float


def print_spread(outcome: Outcome, console: Console) -> None:
    """Prints standard deviations over members, as emitted and aligned, averaged over travellers.

    Args:
        outcome: The trained ensemble.
        console: Where to print.
    """
    naive, aligned = outcome.naive.std(0), outcome.ensemble.std()
    members, travellers = outcome.naive.shape[:2]
    console.print(f"\nUtilities of {travellers} held-out travellers, standard deviation over {members} networks:")
    table = _table("mode", "as emitted", "aligned", "ratio")
    for k, mode in enumerate(MODES):
        table.add_row(mode, *_ratio(naive[:, k], aligned[:, k]))
    table.add_row("mean", *_ratio(naive, aligned))
    console.print(table)


def _ratio(naive: Tensor, aligned: Tensor) -> tuple[str, str, str]:
    a, b = naive.mean().item(), aligned.mean().item()
    return f"{a:.3f}", f"{b:.3f}", f"{a / b:.1f}"


def print_log_loss(outcome: Outcome, console: Console) -> None:
    """Prints the log-loss per held-out traveller, and that alignment does not change it.

    Args:
        outcome: The trained ensemble.
        console: Where to print.
    """
    by_member = outcome.held_out.log_likelihood(outcome.naive)
    mixture = -by_member.exp().mean(0).log().mean()
    change = (outcome.held_out.log_likelihood(outcome.ensemble.aligned) - by_member).abs().max()
    console.print(
        f"Held-out log-loss: {mixture:.3f} ensemble, {-by_member.mean():.3f} one network (mean), "
        f"{outcome.baseline:.3f} shares alone.\n"
        f"Alignment changes no log-probability by more than {change:.0e}.\n"
    )


def print_gauge(outcome: Outcome, console: Console) -> None:
    """Prints which gauges the likelihood has, and how much of the naive spread is gauge.

    Args:
        outcome: The trained ensemble.
        console: Where to print.
    """
    utilities = outcome.naive[0]
    console.print("The gauge of the likelihood, checked on the utilities of one network:")
    for words, group in (("a shift a traveller", mid.Translation()), ("a shift and a scale", mid.Affine())):
        console.print(f"  {words}: {_verdict(outcome, group)}", soft_wrap=True)
    share = 1 - outcome.ensemble.std().square().sum() / outcome.naive.std(0).square().sum()
    invisible = len(utilities) * mid.Translation().dimension(utilities)
    console.print(
        f"  invisible: {invisible} of {utilities.numel()} numbers, {100 * share:.0f} % of the variance over networks\n"
    )


def _verdict(outcome: Outcome, group: mid.GaugeGroup) -> str:
    try:
        change = mid.check_invariance(outcome.held_out.log_likelihood, outcome.naive[0], group)
    except mid.NotInvariantError as error:
        return str(error).partition(" (tolerance")[0]
    return f"`fn` does not see {group!r}, largest relative change {change:.0e}"


def print_scale(fits: dict[str, Path], console: Console) -> None:
    """Prints where unit and likelihood of the baseball fits went.

    Args:
        fits: The path of every fit, by its name.
        console: Where to print.
    """
    console.print("Baseball 1987, P(i beats j) = sigmoid(slope (l_i - l_j)) with a free slope:")
    table = _table("fit", "sd at start", "at end", "slope", "slope x sd", "-log L")
    for name, path in fits.items():
        start, end = path.spread[0], path.spread[-1]
        spread = f"{path.slope * end:.4f}"
        table.add_row(name, f"{start:.2g}", f"{end:.2g}", f"{path.slope:.3g}", spread, f"{path.nll:.4f}")
    console.print(table)
    factor = max(path.spread[0] / path.spread[-1] for path in fits.values())
    console.print(
        f"The penalty has shrunk the unit of l by a factor of {factor:.0f}: there is no minimum.\n"
        "The likelihood does not notice. On the section the unit stays, from any start.\n"
    )


def _table(first: str, *numbers: str) -> Table:
    """A table of labels and numbers without rules; what is too long is folded: the default, an ellipsis, is not ASCII."""
    table = Table(box=None, padding=(0, 1, 0, 2))
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table
