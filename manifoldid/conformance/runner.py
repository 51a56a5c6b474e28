"""Runs checks one by one and reports what ran, what was skipped and why, and what failed and where to look."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


class Skip(Exception):
    """A check does not apply; the message says why."""


class Finding(AssertionError):
    """A check failed; the message says what was expected, how large the error is and what it usually means."""


@dataclass(frozen=True)
class Check:
    """One property of one function of the interface.

    Attributes:
        name: The property.
        look_at: The function of the group or manifold that has to have it.
        run: Takes the case; raises `Finding` or `Skip`.
    """

    name: str
    look_at: str
    run: Callable[[Any], None]


def check(look_at: str) -> Callable[[Callable[[Any], None]], Check]:
    """Decorator: a function of a case as the `Check` of the same name."""
    return lambda run: Check(run.__name__, look_at, run)


@dataclass(frozen=True)
class Outcome:
    """What became of one check.

    Attributes:
        name: The property.
        look_at: The function that has to have it.
        status: "passed", "failed" or "skipped".
        reason: Why it failed or was skipped.
    """

    name: str
    look_at: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """The outcomes of all checks on one group or manifold; `str(report)` says them.

    Attributes:
        subject: The repr of what was checked.
        outcomes: One per check, in the order in which they ran.
    """

    subject: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def ran(self) -> int:
        """How many checks ran to a verdict."""
        return sum(outcome.status != "skipped" for outcome in self.outcomes)

    @property
    def skipped(self) -> dict[str, str]:
        """The reasons of the checks that were skipped, by name."""
        return {outcome.name: outcome.reason for outcome in self.outcomes if outcome.status == "skipped"}

    @property
    def failures(self) -> dict[str, str]:
        """The findings of the checks that failed, by name."""
        return {outcome.name: outcome.reason for outcome in self.outcomes if outcome.status == "failed"}

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        failed = [outcome for outcome in self.outcomes if outcome.status == "failed"]
        verdict = "passed" if self.passed else f"FAILED {len(failed)}"
        lines = [f"{self.subject}: {verdict} ({self.ran} checks ran, {len(self.skipped)} skipped)"]
        for look_at, names in _by_value({o.name: f"{o.reason}; look at `{o.look_at}`" for o in failed}).items():
            lines.append(f"  FAILED {', '.join(names)}: {look_at}")
        for reason, names in _by_value(self.skipped).items():
            lines.append(f"  skipped {', '.join(names) if len(names) <= 4 else f'{len(names)} checks'}: {reason}")
        return "\n".join(lines)


def _by_value(reasons: dict[str, str]) -> dict[str, list[str]]:
    """The names that share a reason, by reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names


def run_check(one: Check, case: Any) -> Outcome:
    """The outcome of one check. An exception of any kind inside of the checked code is a finding."""
    try:
        one.run(case)
    except Skip as skip:
        return Outcome(one.name, one.look_at, "skipped", str(skip))
    except NotImplementedError as error:
        # The interface is optional in part; an operation that torch does not have for a dtype is a finding.
        status = "failed" if " not implemented for '" in str(error) else "skipped"
        return Outcome(one.name, one.look_at, status, str(error) or "not implemented")
    except Finding as finding:
        return Outcome(one.name, one.look_at, "failed", str(finding))
    except Exception as error:
        text = " ".join(str(error).split())
        return Outcome(one.name, one.look_at, "failed", f"{type(error).__name__}: {text[:300]}")
    return Outcome(one.name, one.look_at, "passed")


def run_checks(checks: Iterable[Check], case: Any, subject: str, needed: Iterable[Check] = ()) -> Report:
    """Runs all checks.

    Args:
        checks: What to run.
        case: What to run it on.
        subject: What the report is about.
        needed: Checks without which those after them make no sense: when one has failed by then, the rest is skipped.

    Returns:
        The report.
    """
    outcomes: list[Outcome] = []
    broken: list[str] = []
    for one in checks:
        if broken:
            outcomes.append(Outcome(one.name, one.look_at, "skipped", f"{', '.join(broken)} failed"))
            continue
        outcomes.append(run_check(one, case))
        if one in needed:
            broken = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    return Report(subject, tuple(outcomes))
