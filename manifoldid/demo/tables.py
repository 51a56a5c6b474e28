"""The data shipped with the demo. Sources: data/SOURCES.md."""

import csv
from importlib.resources import files


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of `data/<name>.csv`, each a dict from column to text.

    Args:
        name: File name without its ending.

    Returns:
        The rows in the order of the file.
    """
    text = (files("manifoldid.demo") / "data" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
