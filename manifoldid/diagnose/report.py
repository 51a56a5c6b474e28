"""The diagnosis as a page of text."""

from manifoldid.diagnose.diagnosis import Diagnosis


def report(d: Diagnosis) -> str:
    """The page."""
    return d.algebra
