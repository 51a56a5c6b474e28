import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import manifoldid as mid
from manifoldid.nn import GaugeFix, calibrate, fold


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(head, columns=1, dtype=torch.float32):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, columns), head)
    for k, parameter in enumerate(model.parameters()):
        parameter.data = 0.5 * random(*parameter.shape, seed=k)
    return model.to(dtype)


GROUPS = [mid.Translation(), mid.Scaling(), mid.Affine()]
each_group = pytest.mark.parametrize("group", GROUPS, ids=repr)
POPULATION = random(200, 3, seed=9)


# ---------------------------------------------------------------------------------------------------------- calibrate


@each_group
@pytest.mark.parametrize("columns", [1, 3])
def test_calibrated_outputs_over_the_population_are_on_the_section(group, columns):
    model = network(GaugeFix(group, over="batch"), columns)
    assert calibrate(model, [POPULATION]) is model
    y = model.eval()(POPULATION)
    torch.testing.assert_close(y.mT, mid.Section(group)(y.mT), rtol=0, atol=1e-5)


@each_group
def test_the_frame_does_not_depend_on_the_batching(group):
    frames = []
    for batches in (
        [POPULATION],
        POPULATION.split(7),
        DataLoader(TensorDataset(POPULATION), batch_size=64),
        POPULATION[:, None].unbind(0),
    ):
        model = network(GaugeFix(group, over="batch"), dtype=torch.float64)
        calibrate(model, batches, lambda m, batch: m((batch[0] if isinstance(batch, list | tuple) else batch).double()))
        frames.append(model[-1].frame)
    for frame in frames[1:]:
        torch.testing.assert_close(frame, frames[0], rtol=0, atol=1e-12)


def test_the_frame_of_float32_outputs_far_from_zero_is_exact():
    head = GaugeFix(mid.Affine(), over="batch").double()
    x = (1e3 + random(10**5)).float()
    calibrate(head, x.split(100))
    exact = mid.Section(mid.Affine()).frame(x.double())
    torch.testing.assert_close(head.frame, exact, rtol=0, atol=1e-12)


def test_positive_outputs_are_calibrated():
    head = GaugeFix(mid.PositiveScaling(), over="batch")
    x = random(50).exp()
    calibrate(head, [x])
    assert head(x).log().mean().abs() < 1e-6


def test_all_kinds_of_batches_are_understood():
    class Rater(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = GaugeFix(mid.Translation(), over="batch")

        def forward(self, x, scale=1.0):
            return self.head(scale * x)

    x = random(6)
    for batches, forward in [
        ([x], None),
        ([(x, torch.zeros(6))], None),
        ([[x]], None),
        ([{"x": x, "scale": 1.0}], None),
        ([("id", x)], lambda model, batch: model(batch[1])),
        (iter([x[:2], x[2:]]), None),
    ]:
        model = Rater()
        calibrate(model, batches, forward)
        torch.testing.assert_close(model.head.frame, x.mean()[None])


@pytest.mark.parametrize("batches", [list, iter], ids=["list", "iterator"])
def test_heads_after_one_another_are_calibrated_in_their_order(batches):
    model = nn.Sequential(
        GaugeFix(mid.Translation(), over="batch"), nn.Linear(1, 1), GaugeFix(mid.Affine(), over="batch")
    )
    nn.init.constant_(model[1].weight, 3.0)
    nn.init.constant_(model[1].bias, 2.0)
    x = 5 + random(40, 1)
    calibrate(model, batches(x.split(8)))
    centred = x - x.mean()
    torch.testing.assert_close(model[0].frame, x.mean()[None])
    torch.testing.assert_close(
        model[2].frame, torch.stack([(3 * centred).std(correction=0).log(), torch.tensor(2.0)]), rtol=0, atol=1e-5
    )
    y = model.eval()(x)[:, 0]
    assert y.mean().abs() < 1e-5
    assert (y.std(correction=0) - 1).abs() < 1e-5


def test_a_head_that_is_called_several_times_sees_all_its_items():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = GaugeFix(mid.Translation(), over="batch")

        def forward(self, pair):
            return self.head(pair[:, 0]) - self.head(pair[:, 1])

    model, pairs = Pairs(), random(10, 2)
    calibrate(model, [pairs])
    torch.testing.assert_close(model.head.frame, pairs.mean()[None])


def test_nothing_but_the_frame_changes():
    """Modes, statistics of other layers, gradients, the state of the random generators."""
    model = network(GaugeFix(mid.Affine(), over="batch"))
    model[3].eval()  # one layer frozen by the caller
    model(POPULATION).sum().backward()
    modes = [module.training for module in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    before = torch.get_rng_state()
    calibrate(model, DataLoader(TensorDataset(POPULATION), batch_size=50, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, state[name])}
    assert changed == {"5.frame", "5.calibrated"}
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert not model[-1]._forward_pre_hooks


def test_a_second_calibration_replaces_the_first():
    head, x = GaugeFix(mid.Translation(), over="batch"), random(20)
    calibrate(head, [x + 100])
    calibrate(head, [x])
    torch.testing.assert_close(head.frame, x.mean()[None])


def test_calibration_does_not_warn_about_itself_and_keeps_the_first_warning_for_others():
    head = GaugeFix(mid.Translation(), over="batch").eval()
    with pytest.raises(RuntimeError, match="the loader failed"):
        calibrate(head, _failing())
    assert not head.training
    assert not bool(head.calibrated)
    with pytest.warns(mid.UncalibratedWarning):
        head(random(4))


def _failing():
    yield random(4)
    raise RuntimeError("the loader failed")


@pytest.mark.parametrize(
    ("model", "batches", "error", "message"),
    [
        (nn.Linear(3, 1), [POPULATION], ValueError, r"`model` has no GaugeFix\(over='batch'\) head"),
        (nn.Sequential(GaugeFix(mid.Translation())), [POPULATION], ValueError, "over='last' needs no calibration"),
        (GaugeFix(mid.Translation(), over="batch"), [], ValueError, "`loader` is empty"),
        (
            GaugeFix(mid.Affine(), over="batch"),
            [torch.ones(5)],
            mid.DegeneratePointError,
            "`outputs before the head`.* is constant",
        ),
        (
            GaugeFix(mid.Translation(), over="batch"),
            [torch.tensor([1.0, torch.nan])],
            ValueError,
            "`outputs before the head` must be finite",
        ),
        (
            GaugeFix(mid.Translation(), over="batch"),
            [torch.ones(1)],
            mid.DegeneratePointError,
            "nothing identifiable is left",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_named(model, batches, error, message):
    with pytest.raises(error, match=message):
        calibrate(model, batches)


def test_a_model_of_two_inputs_is_told_how_to_be_called():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.fix = mid.nn.GaugeFix(mid.Translation(), over="batch")

        def forward(self, prompt, response):
            return self.fix((prompt * response).sum(-1))

    batches = [(random(5, 3), random(5, 3, seed=1))]
    with pytest.raises(TypeError, match=r"'response'.*a Pair one input.*forward=lambda model, batch: model"):
        mid.nn.calibrate(Pair(), batches)
    model = mid.nn.calibrate(Pair(), batches, forward=lambda model, batch: model(*batch)).eval()
    assert abs(float(model(*batches[0]).mean())) < 1e-6


def test_a_head_that_is_not_called_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = GaugeFix(mid.Translation(), over="batch")
            self.idle = GaugeFix(mid.Translation(), over="batch")

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match=r"`model` does not call its head\(s\) \['idle'\]"):
        calibrate(Idle(), [random(5)])


# --------------------------------------------------------------------------------------------------------------- fold


@each_group
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_layer_gives_the_outputs_of_layer_and_head(group, columns, bias, dtype):
    linear, head = nn.Linear(3, columns, bias=bias, dtype=dtype), GaugeFix(group, over="batch").to(dtype)
    model = nn.Sequential(linear, head)
    x = POPULATION.to(dtype)
    kept = [p.detach().clone() for p in linear.parameters()]
    calibrate(model, [x])
    folded = fold(linear, head)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-13)
    assert folded.weight.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(linear.parameters(), kept, strict=True))
    assert folded.weight.data_ptr() != linear.weight.data_ptr()


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2, 0, 3])], ids=["equal", "weighted"])
@pytest.mark.parametrize("blocks", [None, torch.tensor([5, 1, 1, 5])], ids=["one block", "blocks"])
def test_centring_of_logits_is_folded(weights, blocks):
    linear, head = nn.Linear(3, 4, dtype=torch.float64), GaugeFix(mid.Translation(blocks=blocks), weights)
    x = POPULATION.double()
    torch.testing.assert_close(fold(linear, head)(x), head(linear(x)), rtol=0, atol=1e-13)


def test_a_folded_layer_keeps_mode_and_requires_grad():
    linear, head = nn.Linear(3, 4).requires_grad_(False).eval(), GaugeFix(mid.Translation())
    folded = fold(linear, head)
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert all(p.requires_grad for p in fold(nn.Linear(3, 4), head).parameters())


def calibrated(group, frame):
    head = GaugeFix(group, over="batch")
    head.set_frame(frame)
    return head


@pytest.mark.parametrize(
    ("linear", "head", "error", "message"),
    [
        (
            nn.Conv1d(3, 4, 1),
            GaugeFix(mid.Translation()),
            TypeError,
            "`fold` takes an nn.Linear and a GaugeFix, got Conv1d and GaugeFix",
        ),
        (nn.Linear(3, 4), nn.Identity(), TypeError, "got Linear and Identity"),
        (
            nn.Linear(3, 1),
            GaugeFix(mid.Translation(), over="batch"),
            ValueError,
            "`head` is not calibrated: call mid.nn.calibrate",
        ),
        (
            nn.Linear(3, 4),
            GaugeFix(mid.Affine()),
            ValueError,
            "over='last' is not linear in its inputs; only Translation can be folded",
        ),
        (
            nn.Linear(3, 2),
            calibrated(mid.Affine(), torch.zeros(3, 2)),
            ValueError,
            r"`head` has 3 column\(s\), `linear` has 2 outputs",
        ),
        (nn.Linear(3, 4), GaugeFix(mid.Translation(), torch.ones(3)), ValueError, r"`weights` must have shape \(4,\)"),
    ],
)
def test_what_cannot_be_folded_is_named(annotations_unchecked, linear, head, error, message):
    with pytest.raises(error, match=message):
        fold(linear, head)


def test_deployment_of_a_mean_on_new_items():
    """Calibrated networks agree on new items, whatever origin and unit they were trained in."""
    model = network(GaugeFix(mid.Affine(), over="batch")).eval()
    other = network(GaugeFix(mid.Affine(), over="batch")).eval()
    other[4].weight.data = 7 * model[4].weight.data
    other[4].bias.data = 7 * model[4].bias.data - 3
    for m in (model, other):
        calibrate(m, [POPULATION])
    new = random(5, 3, seed=20)
    torch.testing.assert_close(other(new), model(new), rtol=0, atol=1e-5)
