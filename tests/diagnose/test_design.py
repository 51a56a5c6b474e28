"""Inputs that are varied to tell the design from the model."""

from typing import NamedTuple

import pytest
import torch

import manifoldid as mid
from manifoldid.diagnose.design import varied_inputs

F64 = torch.float64
POINT = torch.tensor([0.3, -1.0, 0.7, 2.0], dtype=F64)


class Rows(NamedTuple):
    features: torch.Tensor
    extra: torch.Tensor


def drawn(inputs):
    return varied_inputs(inputs, torch.Generator().manual_seed(0))


def test_inputs_keep_their_kind_and_what_is_constant():
    rows = Rows(torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.ones(5))
    varied = drawn(rows)
    assert type(varied) is Rows
    assert not torch.equal(varied.features, rows.features)
    assert torch.equal(varied.extra, rows.extra)
    for same in (torch.zeros(0), torch.ones(1, 3), torch.tensor([True]), "text", None):
        assert drawn(same) is same or torch.equal(drawn(same), same)


@pytest.mark.slow
def test_a_model_that_breaks_at_other_inputs_says_that_the_design_was_not_looked_at():
    def differences(x, pairs):  # indices that came as floating numbers become other numbers
        return x[pairs[:, 0].long()] - x[pairs[:, 1].long()]

    pairs = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    diagnosis = mid.diagnose(differences, POINT, inputs=pairs)
    assert (diagnosis.dim, diagnosis.design) == (1, 0)
    assert any("design: not looked at, since `predict` raises IndexError" in note for note in diagnosis.warnings)


@pytest.mark.slow
def test_a_model_that_breaks_at_inputs_of_the_caller_is_the_callers():
    def sample(generator):
        return POINT, torch.full((3, 4), float(next(counted)), dtype=F64)

    def predict(x, inputs):
        if float(inputs[0, 0]) > 1:
            raise IndexError("no such row")
        return inputs @ x

    counted = iter(range(100))
    with pytest.raises(IndexError, match="no such row"):
        mid.diagnose(predict, POINT, sample)
