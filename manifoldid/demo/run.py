"""Runs the demo: trains, aligns, prints tables, saves the picture."""

import itertools
import time
from pathlib import Path as FilePath

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import manifoldid as mid
from manifoldid.demo import baseball, travel
from manifoldid.demo.picture import save_picture
from manifoldid.demo.report import Outcome, print_gauge, print_log_loss, print_scale, print_spread
from manifoldid.diagnose.stages import Stages

PICTURE = "demo.png"
PENALTY, SECTION = "penalty on l", "section"


def run_demo(members: int, seed: int, output: FilePath, console: Console) -> None:
    """Trains the ensemble and the affine case, prints what was found and saves the picture.

    Args:
        members: Number of networks.
        seed: Seed of starts and bootstrap samples; the global random numbers are left alone.
        output: Existing folder for the picture.
        console: Where to print.

    Raises:
        OSError: The picture cannot be written.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    console.print(f"Training {members} networks on the choices of travellers, then three fits of baseball.")
    with _progress(console) as progress, Stages(not console.is_interactive, "demo") as stages:
        outcome = _train(members, generator, progress, stages)
        stages.begin("fitting baseball")
        start = torch.randn(7, generator=generator, dtype=torch.float64)
        fits = _fit(start, progress)
    print_spread(outcome, console)
    print_log_loss(outcome, console)
    print_gauge(outcome, console)
    print_scale(fits, console)
    _save_picture(output / PICTURE, outcome, fits, console)
    console.print(f"Done in {time.perf_counter() - started:.0f} s.")


def _progress(console: Console) -> Progress:
    """A progress bar for terminals; in pipes and on terminals that cannot move the cursor `Stages` speaks instead, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_interactive,
    )


def _train(members: int, generator: torch.Generator, progress: Progress, stages: Stages) -> Outcome:
    learn, held_out = travel.load_travellers()
    task = progress.add_task("travel modes", total=travel.STEPS)
    done = itertools.count(1)

    def advance() -> None:
        progress.advance(task)
        if (step := next(done)) % (travel.STEPS // 10) == 0:
            stages.begin(f"training {members} networks, step {step:,} of {travel.STEPS:,}")

    stages.begin(f"training {members} networks")
    utilities = travel.train_members(learn, members, generator, advance)
    naive = utilities(held_out.features)
    shares = torch.bincount(learn.chosen, minlength=len(travel.MODES)).double() / len(learn.chosen)
    baseline = -shares.log()[held_out.chosen].mean().item()
    return Outcome(held_out, naive, mid.Ensemble(naive, mid.Translation()), baseline)


def _fit(start: Tensor, progress: Progress) -> dict[str, baseball.Path]:
    season = baseball.load_season()
    runs = {
        PENALTY: (baseball.fit_penalised, start),
        SECTION: (baseball.fit_on_section, start),
        "section, 10 l+5": (baseball.fit_on_section, 10 * start + 5),
    }
    task = progress.add_task("baseball", total=len(runs) * baseball.ROUNDS)
    return {name: fit(season, at, lambda: progress.advance(task)) for name, (fit, at) in runs.items()}


def _save_picture(path: FilePath, outcome: Outcome, fits: dict[str, baseball.Path], console: Console) -> None:
    penalised, section = fits[PENALTY], fits[SECTION]
    try:
        save_picture(path, outcome.naive[:, 0], outcome.ensemble.aligned[:, 0], penalised, section)
    except ImportError as error:
        console.print(f"No picture: {error}", soft_wrap=True, markup=False)
    else:
        console.print(f"Picture: {path}", soft_wrap=True, markup=False)
