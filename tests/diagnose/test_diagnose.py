"""What `diagnose` says about functions of every kind, and about functions that are no models."""

import itertools
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn

from manifoldid.diagnose import NetworkDiagnosis, diagnose
from manifoldid.ensemble import Ensemble
from manifoldid.groups import (
    Affine,
    Finite,
    Orthogonal,
    Pointwise,
    PositiveScaling,
    Product,
    Scaling,
    Shift,
    Translation,
)
from manifoldid.invariance import check_invariance

F64 = torch.float64
I, J = torch.combinations(torch.arange(5)).T


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


IRT = {"a": normal(4).exp(), "t": normal(6, seed=1), "b": normal(4, seed=2)}


class Calls:
    """A model that counts its calls."""

    def __init__(self):
        self.calls = 0

    def count(self, x):
        self.calls += 1
        return x + self.calls


CALLS = Calls()


def differences(x):
    return torch.sigmoid(x[I] - x[J])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("predict", "point", "group"),
    [
        (differences, normal(5), Translation()),
        (lambda x: x[I] / x[J], normal(5), Scaling()),
        (lambda x: torch.log(x[I] / x[J]), normal(5).exp(), PositiveScaling()),
        (lambda x: (x[I] - x[J]) / (x[0] - x[1]), normal(5), Affine()),
        (
            lambda x: torch.log_softmax(x.reshape(2, 3), 1),
            normal(6),
            Translation(blocks=torch.tensor([0, 0, 0, 1, 1, 1])),
        ),
        (lambda x: torch.log_softmax(x, -1), normal(4, 3), Translation()),
        (lambda p: p["a"][:, None] - p["b"], {"a": normal(3), "b": normal(2, seed=1)}, Shift([{"a": 1.0, "b": 1.0}])),
        (lambda x: x, normal(3), Product()),
    ],
)
def test_the_group_of_the_catalogue_is_handed_over(predict, point, group):
    diagnosis = diagnose(predict, point)
    assert type(diagnosis.group) is type(group)
    assert diagnosis.dim == sum(g.closed_form for g in diagnosis.generators)
    check_invariance(predict, point, diagnosis.group)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forward", "inverse", "point"),
    [
        (torch.asinh, torch.sinh, 2 * normal(5)),
        (torch.logit, torch.sigmoid, torch.sigmoid(normal(5))),
        (torch.special.ndtri, torch.special.ndtr, torch.sigmoid(normal(5))),
        (lambda x: torch.log(x).log(), lambda y: y.exp().exp(), 1.1 + normal(5).exp()),
        (lambda x: x**3 + x, None, 0.6 * normal(5)),
    ],
    ids=["asinh", "logit", "probit", "powers", "polynomial"],
)
def test_a_pointwise_gauge_is_a_group_behind_a_chart(forward, inverse, point):
    predict = lambda x: torch.sigmoid(forward(x)[I] - forward(x)[J])  # noqa: E731
    group = diagnose(predict, point).group
    assert isinstance(group, Pointwise)
    assert pickle.loads(pickle.dumps(group)) == group
    check_invariance(predict, point, group)
    if inverse is not None:
        moved = group.act(torch.tensor([0.7], dtype=F64), point)
        assert torch.allclose(forward(moved) - forward(point), (forward(moved) - forward(point))[:1].expand(5))


def test_a_generated_group_acts_on_batches_and_its_inverse_undoes_it():
    group = diagnose(lambda x: x[0] * x[1] ** 2, torch.tensor([1.5, -0.7], dtype=F64)).group
    assert type(group).__name__ == "GeneratedGroup"
    x, xi = normal(3, 2), torch.tensor([[0.1], [0.4], [-0.3]], dtype=F64)
    moved = group.act(xi, x)
    assert torch.allclose(moved[..., 0] * moved[..., 1] ** 2, x[..., 0] * x[..., 1] ** 2)
    assert torch.allclose(group.act(-xi, moved), x)
    assert torch.equal(group.act(torch.zeros(3, 1, dtype=F64), x), x)


def test_fields_are_the_same_formula_at_every_point_and_in_float32():
    generator = diagnose(differences, normal(5)).generators[0]
    x = normal(5, seed=9).float()
    assert torch.allclose(generator.field(x), torch.ones(5))
    assert generator.field(normal(2, 5)).shape == (2, 5)
    assert torch.allclose(differences(generator.flow(x, 3.0)), differences(x), atol=1e-6)


def test_a_flow_that_leaves_the_domain_is_not_a_group():
    diagnosis = diagnose(lambda x: 1 / x[I] - 1 / x[J], normal(5).exp())
    assert [g.complete for g in diagnosis.generators] == [False]
    assert diagnosis.group is None
    assert torch.isnan(diagnosis.generators[0].flow(torch.ones(5, dtype=F64), 2.0)).all()
    assert "leaves the domain" in str(diagnosis)
    assert "jump" not in str(diagnosis)


def test_a_branch_cut_of_predictions_is_no_end_of_the_domain():
    def polar(x):  # turning both vectors moves each angle across the cut at its own time
        angle = torch.atan2(x[:, 1], x[:, 0])
        return torch.cat([x.norm(dim=1), angle[:1] - angle[1:]])

    point = normal(2, 2)
    diagnosis = diagnose(polar, point)
    (turn,) = diagnosis.generators
    assert turn.complete
    assert turn.jump * polar(point).abs().max() > 1  # 2 pi, relative to the largest at some point
    assert turn.flow_error < 1e-12
    assert isinstance(diagnosis.group, Orthogonal)
    assert any("branch cut" in note for note in diagnosis.warnings)
    assert "leaves the domain" not in str(diagnosis)


def test_dead_parameters_are_named():
    diagnosis = diagnose(lambda p: p["used"][:1], {"used": normal(2), "idle": normal(2, seed=1)})
    assert set(diagnosis.dead) == {"used[1]", "idle[0]", "idle[1]"}


def test_a_hard_comparison_has_no_derivative_information():
    diagnosis = diagnose(lambda x: (x[I] > x[J]).to(F64), normal(5))
    assert "no derivative information" in diagnosis.verdict
    assert diagnosis.dim == 0


def test_a_rounded_parameter_is_not_called_gauge():
    diagnosis = diagnose(lambda x: torch.stack([x[0], torch.round(10 * x[1])]), normal(2))
    assert diagnosis.dim == 0
    assert any("no derivative information" in note for note in diagnosis.warnings)
    assert diagnosis.unknown == 1
    assert diagnosis.identifiable is None
    assert diagnosis.group is None
    assert "no derivative information along 1 direction(s)" in str(diagnosis)
    assert not any("singular" in note for note in diagnosis.warnings)


def test_signs_alone_have_no_derivative_information():
    # at random points, which keep their signs, nothing changes
    diagnosis = diagnose(lambda x: (x > 0).to(F64), normal(4))
    assert "no derivative information" in diagnosis.verdict
    assert diagnosis.identifiable is None


def test_a_constant_function_leaves_everything_free():
    diagnosis = diagnose(lambda x: torch.ones(3, dtype=F64), normal(2))
    assert diagnosis.dim == 2
    assert len(diagnosis.dead) == 2


def test_a_singular_point_is_not_a_gauge():
    diagnosis = diagnose(lambda x: x**3, torch.zeros(1, dtype=F64))
    assert (diagnosis.dim, diagnosis.null_dim) == (0, 1)
    assert "singular" in str(diagnosis)


def test_units_of_parameters_and_outputs_do_not_matter():
    units = torch.tensor([1e-6, 1.0, 1e5, 1.0, 1e2], dtype=F64)
    diagnosis = diagnose(lambda x: 1e7 * (x[I] / units[I] - x[J] / units[J]), units * normal(5))
    assert diagnosis.dim == 1
    field = diagnosis.generators[0].field(normal(5))
    assert torch.allclose(field / field[1], units)


@pytest.mark.parametrize(
    ("predict", "error", "words"),
    [
        (lambda x: torch.rand(3, dtype=F64) + x[:1], ValueError, "random"),
        (lambda x: torch.log(x - 100), ValueError, "not finite"),
        (lambda x: x.add_(1.0), ValueError, "writes into"),
        (lambda x: x.argsort(), TypeError, "floating"),
        (lambda x: "text", TypeError, "str"),
        (lambda x: (x > 0).to(torch.int64), TypeError, "int64"),
        (lambda x: x * torch.nan, ValueError, "nan or infinite"),
        (lambda x: torch.where(x > 0, x.sqrt(), 0 * x), ValueError, "torch.where"),
        (CALLS.count, ValueError, "state that it changes"),
        (lambda x: [], ValueError, "nothing"),
        (3, TypeError, "function"),
    ],
)
def test_functions_that_are_no_models_are_refused_by_name(predict, error, words):
    with pytest.raises(error, match="`predict`") as caught:
        diagnose(predict, normal(3))
    assert words in str(caught.value)


def test_a_block_that_is_written_into_is_named():
    with pytest.raises(ValueError, match="`predict` writes into the block 'b'"):
        diagnose(lambda p: p["b"].mul_(2) + p["a"], {"a": normal(2), "b": normal(2)})


def test_a_detached_model_has_no_derivative_information():
    diagnosis = diagnose(lambda x: x.detach() ** 2, normal(3))
    assert diagnosis.identifiable is None
    assert any("keep the graph" in note for note in diagnosis.warnings)


def test_a_model_that_draws_random_numbers_of_its_own_is_noted_and_the_state_is_restored():
    def predict(x):
        torch.default_generator.manual_seed(7)  # torch.manual_seed formats the stack at every call, pytest's frames too
        return x + torch.rand(3, dtype=F64)

    state = torch.get_rng_state()
    diagnosis = diagnose(predict, normal(3))
    torch.set_rng_state(state)
    assert any("global random state" in note for note in diagnosis.warnings)


def test_single_precision_inside_the_model_is_noted():
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    diagnosis = diagnose(lambda x: weights @ x, normal(3).float())
    assert diagnosis.dim == 0
    assert any("float32" in note for note in diagnosis.warnings)


def test_a_domain_that_is_missed_asks_for_samples():
    with pytest.raises(ValueError, match="pass `sample`"):
        diagnose(lambda x: torch.log(1e-6 - (x - 1).abs()), torch.ones(2, dtype=F64))


def test_too_few_inputs_are_called_design_and_not_structure():
    inputs = normal(4, 6)
    diagnosis = diagnose(lambda beta, x: x @ beta, normal(6), inputs=inputs)
    assert (diagnosis.dim, diagnosis.design) == (2, 2)
    assert "design" in str(diagnosis)
    assert (diagnose(lambda beta, x: x @ beta, normal(6), inputs=normal(8, 6)).dim) == 0


def test_an_intercept_beside_all_indicators_is_structural_at_any_inputs_of_this_kind():
    groups = torch.arange(12) % 3
    predict = lambda p, g: p["one"] + p["group"][g]  # noqa: E731
    diagnosis = diagnose(predict, {"one": normal(1), "group": normal(3)}, inputs=groups)
    assert (diagnosis.dim, diagnosis.design) == (1, 0)


def test_a_network_at_few_inputs_is_told_from_its_structure():
    torch.manual_seed(0)
    diagnosis = diagnose(nn.Linear(6, 1), inputs=torch.randn(4, 6)).weights
    assert (diagnosis.dim, diagnosis.design) == (3, 3)


def test_the_report_fits_a_screen_and_answers():
    report = str(diagnose(lambda p: torch.sigmoid(p["a"] * (p["t"][:, None] - p["b"])), IRT))
    assert len(report.splitlines()) <= 40
    assert max(map(len, report.splitlines())) <= 110
    for words in (
        "not identifiable",
        "determined",
        "dt = 1, db = 1",
        "mid.LocationScale(",
        "mid.attach(",
        "finite part",
    ):
        assert words in report


@pytest.mark.parametrize("point", [torch.arange(3), [1.0, 2.0], None])
def test_points_that_are_none_are_refused_by_name(point):
    with pytest.raises(TypeError, match="`point`"):
        diagnose(lambda x: x, point)


def test_the_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    diagnose(differences, normal(5))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("predict", "point", "count"),
    [
        (lambda x: torch.stack([x.sum(), x.prod()]), torch.tensor([0.7, 1.9], dtype=F64), 1),
        (lambda x: x.square(), torch.tensor([0.7, 1.9], dtype=F64), 2),
        (lambda x: x, torch.tensor([0.7, 1.9], dtype=F64), 0),
        (
            lambda x: (torch.tanh(torch.linspace(-2, 2, 40, dtype=F64)[:, None] * x[:3] + x[3:6]) * x[6:]).sum(1),
            normal(9),
            5,
        ),
    ],
    ids=["swap", "two signs", "identity", "three tanh units"],
)
def test_finite_symmetries_are_found_once(predict, point, count):
    diagnosis = diagnose(predict, point)
    assert diagnosis.dim == 0
    assert len(diagnosis.discrete) == count
    for symmetry in diagnosis.discrete:
        moved = symmetry.map(point)
        assert eval(repr(symmetry.map), {"d": diagnosis}) is symmetry.map
        assert symmetry.formula in str(Finite(symmetry.map))
        assert torch.allclose(predict(moved), predict(point))
        assert torch.equal(symmetry.map(torch.stack([point, point])), torch.stack([moved, moved]))
        assert not torch.allclose(moved, point)


def test_a_second_solution_that_is_no_exchange_is_found():
    # 1/l1 + 1/l2 and l1 l2^2: the closed form of the second solution
    predict = lambda x: torch.stack([1 / x[0] + 1 / x[1], x[0] * x[1] ** 2])  # noqa: E731
    point = torch.tensor([0.7, 1.5], dtype=F64)
    diagnosis = diagnose(predict, point)
    second = (-point[1] + (point[1] ** 2 + 4 * point[0] * point[1]).sqrt()) / 2
    wanted = torch.stack([point[0] * point[1] ** 2 / second**2, second])
    assert any(torch.allclose(s.map(point), wanted, rtol=1e-6) for s in diagnosis.discrete)


def absorption(amount, volume, clearance, rate):
    times = torch.tensor([0.25, 0.5, 1, 2, 4, 8, 16], dtype=F64)
    out = clearance / volume
    return amount * rate / (volume * (rate - out)) * (torch.exp(-out * times) - torch.exp(-rate * times))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_rates_that_may_change_places_are_found_with_the_formula_of_the_exchange(seed):
    # flip-flop kinetics: rate -> clearance / volume, volume -> clearance / rate, whatever the points that are drawn
    predict = lambda x: absorption(1.0, *x)  # noqa: E731
    point = torch.tensor([30.0, 5.0, 1.2], dtype=F64)
    diagnosis = diagnose(predict, point, generator=torch.Generator().manual_seed(seed))
    (flip,) = diagnosis.discrete
    assert flip.formula == "x[0] -> x[1] / x[2], x[2] -> x[1] / x[0]"
    assert torch.allclose(flip.map(point), torch.tensor([5 / 1.2, 5.0, 5 / 30.0], dtype=F64), rtol=1e-12)


@pytest.mark.slow
def test_second_solutions_are_found_beside_a_gauge():
    point = {
        k: torch.tensor(v, dtype=F64) for k, v in {"amount": 0.7, "volume": 30.0, "clearance": 5.0, "rate": 1.2}.items()
    }
    diagnosis = diagnose(lambda p: absorption(**p), point)
    assert diagnosis.dim == 1
    flip = next(s for s in diagnosis.discrete if s.name == "second solution")
    moved = flip.map(point)
    assert torch.allclose(absorption(**moved), absorption(**point), rtol=1e-9)
    assert torch.allclose(moved["rate"], point["clearance"] / point["volume"], rtol=1e-9)


def test_signs_of_numbers_that_are_all_positive_are_noted_and_left_out_where_sample_says_so():
    point = torch.tensor([0.7, 1.9], dtype=F64)
    assert "pass `sample`" in str(diagnose(torch.square, point))
    assert diagnose(torch.square, point, sample=lambda: 0.1 + torch.rand(2, dtype=F64)).discrete == ()


def test_dropout_is_refused_where_two_masks_coincide():
    masks = itertools.cycle([1.0, 1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="random output"):
        diagnose(lambda x: x * next(masks) + 0 * torch.rand(2), torch.tensor([0.7, 1.9], dtype=F64))


def test_numpy_inside_the_model_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"torch\.exp for np\.exp"):
        diagnose(lambda x: torch.as_tensor(np.exp(x.numpy())), torch.tensor([0.7, 1.9], dtype=F64))


def test_whole_turns_of_angles_are_found_once_each():
    point = torch.tensor([0.4, -1.3], dtype=F64)
    diagnosis = diagnose(lambda x: torch.cat([torch.cos(x), torch.sin(x)]), point)
    assert [s.formula for s in diagnosis.discrete] == ["x[0] -> x[0] + 2 pi", "x[1] -> x[1] + 2 pi"]


def test_a_network_is_diagnosed_on_two_levels():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3))
    before = {name: p.clone() for name, p in network.named_parameters()}
    diagnosis = diagnose(network, inputs=3 * normal(50, 2).float(), likelihood=lambda o: torch.log_softmax(o, -1))
    assert isinstance(diagnosis, NetworkDiagnosis)
    assert isinstance(diagnosis.outputs.group, Translation)
    assert (diagnosis.weights.dim, diagnosis.weights.algebra) == (3, "R^3")
    assert "0.weight" in str(diagnosis)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())


@pytest.mark.slow
def test_large_models_are_matrix_free():
    n = 5000
    generator = torch.Generator().manual_seed(0)
    i, j = torch.randint(n // 2, (2, 20 * n), generator=generator)
    predict = lambda x: torch.cat([x[i] - x[j], x[n // 2 + i] - x[n // 2 + j]])  # noqa: E731
    diagnosis = diagnose(predict, torch.zeros(n, dtype=F64))
    assert (diagnosis.dim, diagnosis.algebra) == (2, "R^2")
    assert isinstance(diagnosis.group, Translation)


@pytest.mark.slow
def test_a_loss_that_is_one_number_determines_one_direction():
    first, second = torch.randint(9, (2, 40), generator=torch.Generator().manual_seed(0))
    loss = lambda x: -torch.nn.functional.logsigmoid(x[first] - x[second]).sum()  # noqa: E731
    diagnosis = diagnose(loss, normal(9))
    assert (diagnosis.dim, diagnosis.null_dim, diagnosis.identifiable) == (8, 8, False)
    assert torch.allclose(diagnosis.generators[0].field(normal(9)), torch.ones(9, dtype=F64))
    assert any("if it is a loss" in note for note in diagnosis.warnings)


@pytest.mark.slow
def test_directions_without_a_closed_form_count_and_are_not_called_singular():
    # an offset inside a logarithm: L -> L + 1 m' against size -> size exp(-U m), and GL(2)
    point = {"size": normal(6).exp(), "U": normal(6, 2, seed=1), "L": normal(5, 2, seed=2)}
    diagnosis = diagnose(lambda p: torch.log(p["size"])[:, None] + p["U"] @ p["L"].T, point)
    assert (diagnosis.dim, diagnosis.null_dim) == (6, 6)
    assert not any("singular" in note or "no derivative" in note for note in diagnosis.warnings)


@pytest.mark.slow
def test_what_the_inputs_of_sample_determine_is_called_design():
    # at any one draw only two of four columns vary: the sum with the intercept is structural, the other two are not
    def predict(p, x):
        return p["one"] + p["two"] + x @ p["beta"]

    columns = itertools.cycle([slice(0, 2), slice(2, 4)])

    def inputs(generator):
        x = torch.zeros(6, 4, dtype=F64)
        x[:, next(columns)] = torch.randn(6, 2, generator=generator, dtype=F64)
        return x

    def sample(generator):
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
        return {"one": draw(1), "two": draw(1), "beta": draw(4)}, inputs(generator)

    point = {"one": normal(1), "two": normal(1, seed=1), "beta": normal(4, seed=2)}
    for given in (None, inputs(torch.Generator().manual_seed(3))):
        diagnosis = diagnose(predict, point, sample, inputs=given)
        assert (diagnosis.dim, diagnosis.design) == (3, 2)
        assert "design" in str(diagnosis)


def test_sample_may_take_a_generator():
    diagnosis = diagnose(
        differences, normal(5), sample=lambda generator: torch.randn(5, generator=generator, dtype=F64)
    )
    assert diagnosis.dim == 1


def test_candidates_that_a_large_model_leaves_out_are_noted_with_the_remedy(monkeypatch):
    monkeypatch.setattr(sys.modules["manifoldid.diagnose.large"], "_MOST_NUMBERS", 2000)  # fields times parameters
    point = {"U": normal(200, 2), "V": normal(150, 2, seed=1)}
    diagnosis = diagnose(lambda p: p["U"] @ p["V"].T, point)
    assert diagnosis.dim == 4
    assert any("a smaller model of the same structure" in note for note in diagnosis.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("leading", [True, False], ids=["heads as a dimension", "heads as slices"])
def test_every_head_of_an_attention_block_has_its_own_bases(leading):
    tokens = normal(20, 8, 16)
    shapes = {"Q": (4, 16, 4), "K": (4, 16, 4), "V": (4, 16, 4), "O": (4, 4, 16)}
    point = {name: normal(*shape, seed=k) / 4 for k, (name, shape) in enumerate(shapes.items())}

    def predict(p):
        if not leading:
            cut = {name: p[name].unflatten(1, (4, 4)).movedim(1, 0) for name in "QKV"}
            p = {**cut, "O": p["O"].unflatten(0, (4, 4))}
        queries, keys, values = (torch.einsum("ntd,hdk->nhtk", tokens, p[name]) for name in "QKV")
        return torch.einsum("nhtk,hkd->ntd", torch.softmax(queries @ keys.mT / 2, -1) @ values, p["O"])

    if not leading:
        point = {name: t.movedim(0, 1).flatten(1) for name, t in point.items() if name != "O"} | {
            "O": point["O"].flatten(0, 1)
        }
    diagnosis = diagnose(predict, point)
    assert (diagnosis.dim, diagnosis.algebra) == (128, " + ".join(["gl(4)"] * 8))
    assert all(g.closed_form for g in diagnosis.generators)
    if not leading:
        assert diagnosis.group is None
        assert any("heads as a leading dimension" in note for note in diagnosis.warnings)
    else:
        check_invariance(predict, point, diagnosis.group)
        assert diagnosis.group.dimension(point) * 4 == 128


def test_a_gauge_of_few_coordinates_is_found_beside_many_that_are_determined():
    # two of five coordinates are moved: points are drawn until these have more equations than candidates
    times = torch.linspace(0.1, 6.0, 15, dtype=F64)

    def velocity(p):  # of a star: only m sin(i) is seen
        return p["centre"] + p["m"] * torch.sin(p["i"]) * torch.cos(2 * math.pi * times / p["period"] + p["phase"])

    values = {"m": 2.0, "i": 1.0, "period": 3.1, "phase": 0.4, "centre": -5.0}
    point = {name: torch.tensor(v, dtype=F64) for name, v in values.items()}
    diagnosis = diagnose(velocity, point)
    assert (diagnosis.dim, diagnosis.algebra, diagnosis.unknown) == (1, "R", 0)
    assert diagnosis.generators[0].formula == "dm = m cos(i), di = -sin(i)"
    check_invariance(velocity, point, diagnosis.group)


def test_parameters_that_another_point_brings_into_play_are_not_called_dead():
    def chosen(x):
        return torch.stack([x[:3].max(), x[3:6][x[:3].argmax()]])

    diagnosis = diagnose(chosen, torch.tensor([0.3, 1.2, -0.4, 2.0, 0.5, 1.0], dtype=F64))
    assert (diagnosis.dim, diagnosis.dead, diagnosis.unknown, diagnosis.identifiable) == (0, (), 4, None)
    assert not any(s.formula == "x[0] -> -x[0]" for s in diagnosis.discrete)


def test_the_shift_of_a_scalar_beside_a_vector_aligns_ensembles():
    point = {"mu": torch.tensor(0.4, dtype=F64), "level": torch.linspace(-1, 1, 5, dtype=F64)}
    diagnosis = diagnose(lambda p: p["mu"] + p["level"], point)
    members = {name: torch.stack([t, t + 1, t - 2]) for name, t in point.items()}
    assert Ensemble(members, diagnosis.group).mean()["level"].shape == (5,)


def test_units_of_a_recurrent_layer_are_exchanged_and_turned_along_both_axes_of_their_weights():
    inputs = normal(30, 4, 2)
    point = {"W": normal(3, 2), "U": normal(3, 3, seed=1), "b": normal(3, seed=2), "o": normal(2, 3, seed=3)}
    point = {name: 0.4 * t for name, t in point.items()}

    def predict(p):
        hidden = torch.zeros(30, 3, dtype=F64)
        for step in range(4):
            hidden = torch.tanh(inputs[:, step] @ p["W"].T + hidden @ p["U"].T + p["b"])
        return hidden @ p["o"].T

    diagnosis = diagnose(predict, point)
    assert diagnosis.dim == 0
    images = Finite(*[s.map for s in diagnosis.discrete]).images(point)
    assert len(images) == 6 * 8  # three units in any order, each with either sign
    assert all(torch.allclose(predict(image), predict(point)) for image in images)


def test_complements_of_two_blocks_together_are_found():
    draw = torch.Generator().manual_seed(3)
    sample = lambda: {name: torch.rand(n, generator=draw, dtype=F64) for name, n in (("p", 1), ("q", 4))}  # noqa: E731
    diagnosis = diagnose(lambda x: x["p"] * x["q"] + (1 - x["p"]) * (1 - x["q"]), sample(), sample)
    assert [s.formula for s in diagnosis.discrete] == ["p -> 1 - p, q -> 1 - q"]
