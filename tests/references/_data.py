"""What other software printed; see data/SOURCES.md."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
EXAMPLES = Path(__file__).parents[2] / "examples" / "data"  # what the notebooks use as well


def printed(name: str, folder: Path = DATA) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def table(name: str, folder: Path = DATA) -> list[dict[str, str]]:
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def skulls() -> Tensor:
    """(30, 8, 2)."""
    with open(DATA / "gorf.csv", newline="") as file:
        rows = [[float(v) for v in row] for row in list(csv.reader(file))[1:]]
    return tensor(rows).reshape(30, 2, 8).mT
