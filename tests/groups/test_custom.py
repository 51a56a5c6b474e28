"""Groups that users write: what follows from `act` alone, and what is refused."""

import pytest
import torch
from cases import AsinhShift, positive, randn

import manifoldid as mid


class InverseSquare(mid.GaugeGroup):
    """x -> (x^-2 + t)^(-1/2) on x > 0: incomplete, a large negative t has no image."""

    dim = 1

    def act(self, xi, x):
        return (x**-2 + xi).rsqrt()


class Projective(mid.GaugeGroup):
    """x -> x / (1 + t x): coordinates that are exponential, an action with poles."""

    dim = 1

    def act(self, xi, x):
        return x / (1 + xi * x)


class Tangent(mid.GaugeGroup):
    """Translations in a coordinate that is not exponential: the inverse of t is not -t, and for t > log 2 there is none."""

    dim = 1

    def act(self, xi, x):
        return x + xi.exp() - 1


class Everything(mid.GaugeGroup):
    """Two coordinates that do the same."""

    dim = 2

    def act(self, xi, x):
        return x + xi.sum(-1, keepdim=True)


def test_an_event_dim_per_block_is_refused():
    group = AsinhShift()
    group.event_dim = {"x": 1}
    with pytest.raises(TypeError, match="`event_dim` of AsinhShift must be an integer"):
        mid.Section(group)(randn(4))


def test_coordinates_need_not_be_exponential():
    group, x, xi = Tangent(), randn(5), torch.tensor([0.3]).double()
    torch.testing.assert_close(group.undo(xi, group.act(xi, x)), x)
    section = mid.Section(group)
    torch.testing.assert_close(section(group.act(xi, x)), section(x))
    torch.testing.assert_close(group.act(section.frame(x), section(x)), x)
    with pytest.raises(mid.DegeneratePointError, match="cannot be undone"):
        group.undo(torch.tensor([0.8]).double(), x)


def test_incomplete_actions_work_where_they_are_defined_and_raise_elsewhere():
    x = positive(5)
    group = InverseSquare()
    with pytest.raises(mid.DegeneratePointError, match="at=x0"):
        mid.Section(group)(x)  # |x| has no minimum: the orbit ends at 0
    section = mid.Section(group, at=x)
    moved = group.act(torch.tensor([0.1]).double(), x)
    torch.testing.assert_close(section(moved), x)
    with pytest.raises(mid.DegeneratePointError, match="cannot be undone"):
        group.undo(torch.tensor([10.0]).double(), x)


def test_poles_of_an_action_do_not_stop_a_section_near_the_data():
    x = positive(5)
    section = mid.Section(Projective(), at=x)
    moved = Projective().act(torch.tensor([0.05]).double(), x)
    torch.testing.assert_close(section(moved), section(x), rtol=0, atol=1e-9)


def test_redundant_coordinates_are_found_by_the_conformance_kit():
    report = mid.conformance.check_group(Everything(), randn(5))
    assert not report.passed
    assert "dimension" in str(report)


@pytest.mark.slow
def test_action_alone_is_enough_for_everything():
    x = randn(6)
    group = AsinhShift()
    members = torch.stack([group.act(randn(1, seed=k), x + 0.01 * randn(6, seed=k)) for k in range(6)])
    ensemble = mid.Ensemble(members, group)
    assert float(ensemble.std().max()) < 0.05 < float(members.std(0).max())
    differences = ensemble.contrast(lambda x: torch.asinh(x[1:]) - torch.asinh(x[0]))
    torch.testing.assert_close(differences.value, (members[:, 1:].asinh() - members[:, :1].asinh()).mean(0))
    with pytest.raises(TypeError, match="act"):
        mid.GaugeGroup()
