"""What other software printed; see data/SOURCES.md."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


def printed(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def skulls() -> Tensor:
    """(30, 8, 2)."""
    with open(DATA / "gorf.csv", newline="") as file:
        rows = [[float(v) for v in row] for row in list(csv.reader(file))[1:]]
    return tensor(rows).reshape(30, 2, 8).mT
