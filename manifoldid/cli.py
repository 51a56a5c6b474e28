"""The command line: `manifoldid COMMAND`. A command is a function that adds its parser, and one line in `_COMMANDS`."""

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

import manifoldid
from manifoldid.demo import run_demo
from manifoldid.diagnose.model_file import ModelFileError, diagnose_file

_MOST_MEMBERS = 500  # trained in one batch; more than this is no longer a demo of under a minute

_DEMO = """
Trains an ensemble of small networks on 210 travellers' choices between air, train, bus and car. Only differences of
utilities within a traveller enter the likelihood, so every network has its own origin: prints standard deviations over
the ensemble as emitted and aligned, the held-out log-loss, and what was found about the gauge. Then fits a baseball
season whose origin AND unit are free, with a penalty and on the affine section. Saves a picture (needs matplotlib).
Takes some seconds; the defaults are the run that the README quotes.
"""

_DIAGNOSE = """
Runs FILE.py and reports which parameters, or combinations of parameters, its model determines: the gauge by name and
formula, the group to remove it with, finite symmetries, what is only weakly determined.

In the file, NAME (default: predict) is a function of one point that returns everything the likelihood can see, or a
torch.nn.Module. Beside it stands `point`, a tensor or a dict of tensors, or `sample`, a function that draws one (of nothing,
or of a torch.Generator); both may be there. For a network: `inputs`, what it is called with, and if you like `likelihood`,
everything the likelihood sees of its outputs.

The exit status is the verdict: 0 no gauge (see the report for finite symmetries and weak directions), 3 there is a gauge,
4 nothing is known (no derivative information), 1 the file or its model is refused, 2 a wrong option.
"""
_STATUS = {True: 0, False: 3, None: 4}  # of the command `diagnose`, by Diagnosis.identifiable


class CommandError(Exception):
    """A command cannot do what was asked; the message is the one line that the user sees."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `manifoldid`.

    Args:
        arguments: Command-line arguments; default those of the process.

    Returns:
        The exit status: that of the command, 0 unless its help says otherwise; 1 when it failed, 130 when it was interrupted.
        A wrong option exits with 2.
    """
    parsed = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():  # torch 2.14 deprecates what its own forward-mode derivatives use
            warnings.filterwarnings("ignore", r".*torch\.jit\.script", FutureWarning)
            status: int = parsed.run(parsed)
        sys.stdout.flush()
    except CommandError as error:
        print(f"manifoldid {parsed.command}: error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print(f"manifoldid {parsed.command}: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps the final flush from failing again
        return 1
    return status


def _parser() -> _Parser:
    parser = _Parser(prog="manifoldid", description=manifoldid.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"manifoldid {manifoldid.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add_command in _COMMANDS:
        add_command(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="see the problem and the cure on real data",
        description=_DEMO,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--members",
        type=_whole_number(2, _MOST_MEMBERS),
        default=64,
        metavar="N",
        help=f"networks in the ensemble, 2 to {_MOST_MEMBERS} (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_whole_number(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="seed of the starts and of the bootstrap samples (default %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("manifoldid-demo"),
        metavar="FOLDER",
        help="folder for the picture, made if it is missing (default %(default)s)",
    )
    parser.set_defaults(run=_demo)


def _demo(parsed: argparse.Namespace) -> int:
    _make_writable(parsed.output)
    try:
        run_demo(parsed.members, parsed.seed, parsed.output, Console(highlight=False))
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or "the output"  # the picture, or what is printed
        raise CommandError(f"cannot write {where}: {error.strerror or error}") from error
    return 0


def _add_diagnose(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "diagnose",
        help="is a model identifiable? which gauge does it have?",
        description=_DIAGNOSE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="FILE.py[:NAME]", help="a Python file, and the name of the model in it")
    parser.add_argument(
        "--seed",
        type=_whole_number(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="seed of the points that are drawn (default %(default)s)",
    )
    parser.set_defaults(run=_diagnose)


def _diagnose(parsed: argparse.Namespace) -> int:
    try:
        diagnosis = diagnose_file(parsed.target, parsed.seed, progress=True)
    except ModelFileError as error:
        raise CommandError(str(error)) from error
    print(diagnosis)  # noqa: T201
    return _STATUS[diagnosis.identifiable]


_COMMANDS = (_add_demo, _add_diagnose)


def _make_writable(folder: Path) -> None:
    """Makes the folder and tries it, before minutes of work go into what cannot be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"cannot write to --output {folder}: {error.strerror or error}") from error


def _whole_number(least: int, most: int):
    """An argparse type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
        return value

    return parse
