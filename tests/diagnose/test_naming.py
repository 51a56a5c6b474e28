"""Names of algebras do not depend on the units of the coordinates."""

import pytest
import torch

import manifoldid as mid
from manifoldid.diagnose.fields import ClosedField
from manifoldid.diagnose.generators import _affine_bracket

F64 = torch.float64


@pytest.mark.slow
def test_a_rotation_of_coordinates_in_different_units_is_one():
    units = torch.tensor([1.0, 1e3, 1e-3], dtype=F64)
    diagnosis = mid.diagnose(
        lambda x: (x / units).square().sum()[None], torch.tensor([0.3, -1.1, 0.7], dtype=F64) * units
    )
    assert (diagnosis.dim, diagnosis.algebra) == (2, "so(3)")
    assert all(g.complete and g.flow_error < 1e-10 for g in diagnosis.generators)


@pytest.mark.parametrize("unit", [1.0, 1e-13])
def test_a_bracket_of_affine_fields_keeps_small_terms_and_drops_rounding(unit):
    def field(rows, columns, entries, constant=None):
        entries = torch.tensor(entries, dtype=F64) * unit
        return ClosedField(2, constant, torch.tensor(rows), torch.tensor(columns), entries)

    shift = torch.tensor([0.0, unit], dtype=F64)
    bracket = _affine_bracket(field([0], [1], [1.0], shift), field([1, 0], [0, 0], [1.0, 0.1]))
    # [A x + a, B x + b] = (B A - A B) x + B a - A b
    expected = torch.tensor([[-1.0, 0.1], [0.0, 1.0]], dtype=F64) * unit**2
    torch.testing.assert_close(bracket.matrix(), expected, rtol=1e-12, atol=0)
    assert bracket.constant is None  # B a = 0
    a, b = field([0, 1], [0, 1], [0.1, 0.3]), field([0, 1], [0, 1], [0.7, 0.9])
    assert not len(_affine_bracket(a, b).rows)
