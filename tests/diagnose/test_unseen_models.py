"""The gauges of models that the method was not tuned on."""

import pytest
import torch
from models_of_practice import PRACTICE
from models_of_the_sciences import SCIENCES
from unseen_models import UNSEEN, Model

from manifoldid.diagnose import diagnose
from manifoldid.points import flatten

pytestmark = pytest.mark.slow


def diagnosed(model: Model):
    generator = torch.Generator().manual_seed(0)
    return diagnose(model.predict, model.sample(generator), sample=lambda: model.sample(generator))


@pytest.mark.parametrize("model", [*UNSEEN, *SCIENCES, *PRACTICE], ids=lambda model: model.name)
def test_dimension_algebra_span_and_flows_of_unseen_models(model):
    diagnosis = diagnosed(model)
    assert (diagnosis.dim, diagnosis.algebra) == (model.dim, model.algebra)
    assert str(diagnosis)
    if not model.dim:
        return
    assert all(g.complete for g in diagnosis.generators) == model.complete
    assert max(g.flow_error for g in diagnosis.generators) < 1e-8
    if model.fields is None:
        return
    x = model.sample(torch.Generator().manual_seed(7))
    basis = torch.linalg.svd(model.fields(flatten(x)), full_matrices=False)[2][: model.dim]
    found = torch.stack([flatten(g.field(x)) for g in diagnosis.generators])
    assert torch.linalg.matrix_rank(found, rtol=1e-8) == model.dim
    assert (found - found @ basis.mT @ basis).norm() < 1e-6 * found.norm()


@pytest.mark.parametrize("name", ["state_space", "tucker"])
def test_half_turns_of_a_gauge_are_no_finite_symmetries(name):
    """-1 lies in GL(2), one half turn away, and products of such turns in the gauge of a Tucker decomposition."""
    diagnosis = diagnosed(next(model for model in [*UNSEEN, *PRACTICE] if model.name == name))
    assert not [symmetry.formula for symmetry in diagnosis.discrete if symmetry.name == "sign"]
