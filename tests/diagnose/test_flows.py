"""Flows of linear fields in any units: as accurate, and in as few steps, as in the best ones."""

import sys

import pytest
import torch

from manifoldid.diagnose.fields import ClosedField
from manifoldid.diagnose.flows import steps_of_series
from manifoldid.diagnose.moves import natural_time

F64 = torch.float64
TURN = torch.tensor([[0.0, -1.0, 2.0], [1.0, 0.0, 0.5], [-2.0, -0.5, 0.0]], dtype=F64)
POINT = torch.tensor([0.3, -1.1, 0.7], dtype=F64)


def linear(matrix):
    rows, columns = matrix.nonzero(as_tuple=True)
    return ClosedField(len(matrix), None, rows, columns, matrix[rows, columns])


def test_the_time_of_a_field_that_vanishes_at_the_point_is_not_one_over_rounding():
    zero = 1.1083412345
    constant, one = torch.tensor([0.0, zero], dtype=F64), torch.tensor([1])
    field = ClosedField(2, constant, one, torch.tensor([0]), -torch.ones(1, dtype=F64))  # dx[1] = 1.108.. - x[0]
    assert natural_time(field, torch.tensor([zero * (1 + 4e-16), 0.3], dtype=F64)) == 1.0
    assert natural_time(field, torch.tensor([0.1083412345, 0.3], dtype=F64)) == pytest.approx(0.301)


@pytest.mark.parametrize("unit", [1.0, 1e3, 1e10])
def test_units_do_not_decide_how_far_a_rotation_turns_nor_how_long_that_takes(unit):
    units = torch.tensor([1.0, unit, 1 / unit], dtype=F64)
    field, time = linear(TURN * units[:, None] / units), torch.tensor(7.0, dtype=F64)
    moved = field.flow(POINT * units, time) / units
    torch.testing.assert_close(moved, torch.linalg.matrix_exp(7 * TURN) @ POINT, rtol=1e-12, atol=1e-12)
    assert steps_of_series(field.rows, field.columns, field.entries, POINT * units, time) <= 7 * TURN.abs().sum(1).max()


def test_a_long_chain_is_not_taken_for_a_matter_of_units(monkeypatch):
    monkeypatch.setattr(sys.modules["manifoldid.diagnose.flows"], "_BALANCINGS", 2000)  # until units make it short
    chain = torch.diag(torch.full((39,), 1e3, dtype=F64), 1)  # powers far beyond those of one series count
    moved = linear(chain).flow(torch.ones(40, dtype=F64), torch.ones((), dtype=F64))
    torch.testing.assert_close(moved, torch.linalg.matrix_exp(chain) @ torch.ones(40, dtype=F64), rtol=1e-12, atol=0)
