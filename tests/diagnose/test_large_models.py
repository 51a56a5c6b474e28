"""Models of many parameters: with too few predictions for all of them, and with parameters that nothing depends on."""

import pytest
import torch

from manifoldid import Ensemble, GeneralLinear, Shift, attach, diagnose
from manifoldid.invariance import check_invariance

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ too few predictions


def test_structural_gauges_are_found_where_most_directions_are_unseen():
    # one sequence of 15 tokens through an attention block: 450 predictions for 1,200 parameters, 200 of them gauge
    tokens = normal(15, 30)
    point = {"q": normal(30, 10), "k": normal(30, 10, seed=1), "v": normal(30, 10, seed=2), "o": normal(10, 30, seed=3)}
    point = {name: t / len(t) ** 0.5 for name, t in point.items()}

    def predict(p):
        scores = (tokens @ p["q"]) @ (tokens @ p["k"]).T / 10**0.5
        return torch.softmax(scores, -1) @ (tokens @ p["v"]) @ p["o"]

    diagnosis = diagnose(predict, point)
    assert (diagnosis.dim, diagnosis.algebra, diagnosis.identifiable) == (200, "gl(10) + gl(10)", False)
    assert diagnosis.more >= 1200 - 450 - 200
    assert diagnosis.group.dimension(point) == 200
    check_invariance(predict, point, diagnosis.group)
    assert f"about {diagnosis.more} further directions are unseen" in diagnosis.verdict
    assert any("at more of them" in note for note in diagnosis.warnings)


def test_a_large_network_at_few_inputs_is_not_called_identifiable():
    inputs = normal(20, 15)
    point = {"W": normal(40, 15), "b": normal(40, seed=1), "V": normal(2, 40, seed=2)}
    diagnosis = diagnose(lambda p: torch.cos(inputs @ p["W"].T + p["b"] + 0.3) ** 3 @ p["V"].T, point)
    assert (diagnosis.dim, diagnosis.identifiable, diagnosis.group) == (0, False, None)
    assert abs(diagnosis.more - (720 - 40)) <= 1
    assert diagnosis.verdict.startswith("not identifiable: about 680 directions are unseen")


def test_a_loss_of_many_parameters_is_not_called_identifiable():
    phases = normal(1000)
    diagnosis = diagnose(lambda x: (torch.cos(x + phases) ** 3).sum(), normal(1000, seed=1))
    assert diagnosis.identifiable is False
    assert diagnosis.more == 999
    assert any("if it is a loss" in note for note in diagnosis.warnings)


# ------------------------------------------------------------------------------------------ parameters without derivative


def test_rows_of_an_embedding_that_nothing_uses_are_dead_and_the_gauge_is_that_of_the_others():
    point = {"rows": normal(250, 3), "loads": normal(3, 20, seed=1)}
    predict = lambda p: p["rows"][:50] @ p["loads"]  # noqa: E731
    diagnosis = diagnose(predict, point)
    assert (diagnosis.dim, diagnosis.null_dim, diagnosis.algebra) == (609, 609, "gl(3) + R^600")
    assert len(diagnosis.generators) == 9
    assert diagnosis.dead == tuple(f"rows[{i}, {j}]" for i in range(50, 250) for j in range(3))
    assert diagnosis.group == GeneralLinear("rows", "loads", rank_dims=(-1, 0))
    assert any("do not depend on 600 of the 810 parameters (rows[50:250])" in note for note in diagnosis.warnings)
    velocity = diagnosis.generators[0].field(point)["rows"]
    assert bool(velocity[:50].any())
    assert not bool(velocity[50:].any())


def test_with_weight_zero_unused_rows_do_not_enter_the_section_of_the_others():
    point = {"rows": normal(250, 3), "loads": normal(3, 20, seed=1)}
    diagnosis = diagnose(lambda p: p["rows"][:50] @ p["loads"], point)
    members = [diagnosis.group.act(0.3 * normal(9, seed=k), point) for k in range(5)]
    members = [{**m, "rows": torch.cat([m["rows"][:50], normal(200, 3, seed=k)])} for k, m in enumerate(members)]
    weights = {"rows": (torch.arange(250) < 50).double()}
    spread = Ensemble(members, diagnosis.group, weights=weights).std()["rows"][:50].max()
    assert float(spread) < 1e-13
    assert float(Ensemble(members, diagnosis.group).std()["rows"][:50].max()) > 0.01


def test_items_that_were_never_compared_do_not_enter_the_zero_of_the_others():
    winner, loser = torch.randint(300, (2, 3000), generator=torch.Generator().manual_seed(0))
    diagnosis = diagnose(lambda x: x[winner] - x[loser], normal(700))
    assert (diagnosis.dim, diagnosis.algebra, len(diagnosis.dead)) == (401, "R + R^400", 400)
    assert isinstance(diagnosis.group, Shift)
    members = normal(700, seed=1) + normal(5, 1, seed=2) * (torch.arange(700) < 300)
    members[:, 300:] = normal(5, 400, seed=3)  # as everybody initialised them
    aligned = Ensemble(members, diagnosis.group)
    assert float(aligned.std()[:300].max()) < 1e-14
    assert float(aligned.std()[300:].min()) > 0


def test_steps_of_an_optimiser_are_those_of_the_model_without_the_dead():
    scores = torch.nn.Parameter(normal(700))
    first, second = torch.randint(300, (2, 3000), generator=torch.Generator().manual_seed(0))
    diagnosis = diagnose(lambda x: x[first] - x[second], scores.detach())
    optimizer = torch.optim.Adam([scores], lr=0.1)
    attach(optimizer, diagnosis.group, scores)
    before = scores.detach().clone()
    torch.nn.functional.softplus(scores[first] - scores[second]).sum().backward()
    optimizer.step()
    assert torch.equal(scores.detach()[300:], before[300:])
    assert float((scores.detach() - before)[:300].sum()) == pytest.approx(0, abs=1e-12)
    assert float((scores.detach() - before)[:300].abs().max()) > 0.01


def test_thresholds_are_told_from_dead_parameters():
    predict = lambda x: torch.cat([torch.tanh(x[:400] - x[1:401]), torch.round(5 * x[500:510])])  # noqa: E731
    diagnosis = diagnose(predict, normal(700))
    dead = {*range(401, 500), *range(510, 700)}
    assert {int(name[2:-1]) for name in diagnosis.dead} == dead
    assert (diagnosis.dim, diagnosis.unknown, diagnosis.null_dim) == (1 + len(dead), 10, 1 + len(dead) + 10)
    assert "x[5" not in diagnosis.invariants
    assert any("no derivative information along all of x[500:510]" in note for note in diagnosis.warnings)


@pytest.mark.parametrize("size", [8, 700])
def test_what_argmax_does_not_choose_is_not_dead_and_what_is_beside_it_is(size):
    # which of y1 .. y3 counts is decided by a maximum: y moves predictions once the others move; the last parameters never do
    def predict(p):
        return torch.stack([p[:3].max(), p[3:6][p[:3].argmax()]])

    point = torch.cat([torch.tensor([0.4, 1.9, 0.3], dtype=F64), normal(size - 3)])
    diagnosis = diagnose(predict, point)
    assert diagnosis.dead == tuple(f"x[{i}]" for i in range(6, size))
    assert diagnosis.unknown == 4


def test_a_dead_parameter_beside_a_threshold_is_dead_in_small_models_too():
    diagnosis = diagnose(lambda x: torch.cat([x[:1] - x[1:2], torch.round(3 * x[2:3])]), normal(4))
    assert diagnosis.dead == ("x[3]",)
    assert (diagnosis.dim, diagnosis.unknown) == (2, 1)


def test_large_models_without_any_derivative_are_called_dead_or_unknown():
    constant = diagnose(lambda x: 0 * x[:5], normal(700))
    assert (constant.dim, len(constant.dead), constant.identifiable) == (700, 700, False)
    rounded = diagnose(lambda x: torch.round(3 * x), normal(700))
    assert (rounded.dim, rounded.identifiable, rounded.algebra) == (0, None, "unknown")


@pytest.mark.parametrize("size", [5, 700])
def test_a_parameter_without_derivative_is_not_called_determined(size):
    diagnosis = diagnose(lambda x: torch.cat([x[:-1] - x[1:2], torch.round(3 * x[-1:])]), normal(size))
    assert diagnosis.unknown == 1
    assert f"x[{size - 1}]" not in diagnosis.invariants


def test_signs_of_dead_parameters_are_flows_and_no_finite_symmetries():
    point = torch.cat([normal(6), torch.tensor([-9.0, 4.0, 0.01], dtype=F64)])
    assert not diagnose(lambda x: torch.tanh(x[:6, None] - x[None, :6]), point).discrete


def test_a_small_network_at_few_inputs_counts_what_has_no_formula():
    inputs = normal(10, 5)
    point = {"W": normal(10, 5), "b": normal(10, seed=1), "V": normal(2, 10, seed=2)}
    diagnosis = diagnose(lambda p: torch.cos(inputs @ p["W"].T + p["b"] + 0.3) ** 3 @ p["V"].T, point)
    assert (diagnosis.dim, diagnosis.more, diagnosis.identifiable, diagnosis.group) == (0, 60, False, None)
    assert diagnosis.null_dim == 0  # of the others: 20 directions, all of them determined
    assert len(diagnosis.directions) == 20
    assert not any("singular" in note for note in diagnosis.warnings)


def test_fused_attention_is_diagnosed():
    tokens = normal(12, 80)
    point = {"q": normal(80, 4) / 9, "k": normal(80, 4, seed=1) / 9}
    attend = torch.nn.functional.scaled_dot_product_attention
    diagnosis = diagnose(lambda p: attend((tokens @ p["q"])[None], (tokens @ p["k"])[None], tokens[None]), point)
    assert (diagnosis.dim, diagnosis.algebra) == (16, "gl(4)")


def test_operations_with_one_derivative_are_refused_with_the_remedy():
    places = torch.randint(50, (90, 3), generator=torch.Generator().manual_seed(0))
    bags = lambda p: torch.nn.functional.embedding_bag(places, p["rows"]) @ p["loads"]  # noqa: E731
    with pytest.raises(TypeError, match=r"second derivatives .* in place of nn\.EmbeddingBag"):
        diagnose(bags, {"rows": normal(200, 3), "loads": normal(3, 20, seed=1)})


def test_badly_conditioned_models_of_moderate_size_are_decomposed():
    # a chain of differences with precisions from 1 to 1e-5: a thousand steps of conjugate gradients do not come to an end
    weights = (
        10 ** torch.linspace(-5, 0, 699, dtype=F64)[torch.randperm(699, generator=torch.Generator().manual_seed(0))]
    )
    diagnosis = diagnose(lambda x: weights * torch.sinh(x[1:] - x[:-1]), normal(700))
    assert (diagnosis.dim, diagnosis.algebra) == (1, "R")
