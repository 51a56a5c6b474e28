import copy
import warnings

import pytest
import torch
from torch import nn

import manifoldid as mid

LABELS = torch.tensor([7, -2, 7, -2, 7, -2])


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rater(head: nn.Module | None = None, seed: int = 0, dtype=torch.float64) -> nn.Sequential:
    """A small network from 3 features to one rate, with or without a head."""
    layers = [nn.Linear(3, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, 1, dtype=dtype), nn.Flatten(0)]
    for k, layer in enumerate(layers[::2][:2]):
        for parameter in layer.parameters():
            parameter.data = 0.5 * random(*parameter.shape, seed=seed + 10 * k + parameter.ndim, dtype=dtype)
    return nn.Sequential(*layers, *([] if head is None else [head]))


# ------------------------------------------------------------------------------------------------------- over the rows


@pytest.mark.parametrize(
    "group", [mid.Translation(), mid.Scaling(), mid.Affine(), mid.Translation(blocks=LABELS)], ids=repr
)
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2, 3, 1, 2, 0])], ids=["equal", "weighted"])
def test_every_row_is_put_on_its_section_in_training_and_evaluation(group, weights):
    head, x = mid.nn.GaugeFix(group, weights), random(4, 5, 6)
    assert torch.equal(head(x), mid.Section(group, weights)(x))
    assert torch.equal(head.eval()(x), head.train()(x))
    assert not list(head.parameters())
    assert not head.state_dict()


def test_ragged_prompts_have_a_shift_each():
    head, x = mid.nn.GaugeFix(mid.Translation()), random(6)
    y = head(x, blocks=LABELS)
    for label in LABELS.unique():
        assert y[label == LABELS].mean().abs() < 1e-6
        torch.testing.assert_close(y[label == LABELS].diff(), x[label == LABELS].diff())


def test_gradients_have_no_component_along_the_gauge():
    x = random(4, 6).requires_grad_()
    nn.functional.cross_entropy(mid.nn.GaugeFix(mid.Translation())(x), torch.tensor([0, 3, 2, 5])).backward()
    torch.testing.assert_close(x.grad.sum(-1), torch.zeros(4), rtol=0, atol=1e-6)


def test_a_column_of_outputs_is_asked_about():
    with pytest.raises(mid.DegeneratePointError, match="did you mean over='batch'"):
        mid.nn.GaugeFix(mid.Translation())(random(5, 1))


def test_a_row_without_representative_is_named():
    x = random(3, 6)
    x[1] = 2
    with pytest.raises(mid.DegeneratePointError, match="at batch index 1 is constant"):
        mid.nn.GaugeFix(mid.Affine())(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("over", ["last", "batch"])
def test_half_precision_is_computed_in_float32(dtype, over):
    head, x = mid.nn.GaugeFix(mid.Affine(), over=over).train(), (1 + random(5, 4)).to(dtype)
    if over == "batch":
        head.set_frame(torch.tensor([0.3, 1.0]))
    assert torch.equal(head(x), head(x.float()).to(dtype))


def test_autocast_does_not_reach_inside():
    seen = []

    class Watching(mid.Translation):
        def canonical(self, x, weights=None):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().canonical(x, weights)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        mid.nn.GaugeFix(Watching())(random(5, 4))
    assert seen == [False]


def test_outputs_keep_their_precision_under_autocast():
    x = 1e3 + random(5, 4)
    linear = nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
        y = mid.nn.GaugeFix(mid.Affine())(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, mid.Section(mid.Affine())(x))


# ------------------------------------------------------------------------------------------------------ over the batch


def test_the_frame_is_the_identity_until_it_is_stored():
    head, x = mid.nn.GaugeFix(mid.Affine(), over="batch"), random(7)
    assert torch.equal(head(x), x)
    head.set_frame(torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(head(x), (x - 2) / torch.tensor(0.5).exp())
    assert torch.equal(head.eval()(x), head.train()(x))


@pytest.mark.parametrize("group", [mid.Translation(), mid.Scaling(), mid.PositiveScaling(), mid.Affine()], ids=repr)
@pytest.mark.parametrize("columns", [None, 1, 3])
def test_a_point_over_the_examples_is_moved_by_the_stored_frame(group, columns):
    x = random(50, dtype=torch.float64).exp() if columns is None else random(50, columns, dtype=torch.float64).exp()
    head = mid.nn.GaugeFix(group, over="batch").double()
    points = x[None] if columns is None else x.mT
    xi = mid.Section(group).frame(points)
    head.set_frame(xi if columns == 3 else xi[0])
    wanted = mid.Section(group)(points)
    torch.testing.assert_close(head(x), wanted[0] if columns is None else wanted.mT, rtol=1e-12, atol=1e-12)


def test_differences_of_two_calls_are_those_of_one_call():
    """No frame per forward call: examples do not see which others are in their batch."""
    model = rater(mid.nn.GaugeFix(mid.Translation(), over="batch"))
    x = random(10, 3, dtype=torch.float64)
    for mode in (True, False):
        model.train(mode)
        model[-1].set_frame(torch.tensor([0.7]))
        together = model(x)
        torch.testing.assert_close(torch.cat([model(x[:3]), model(x[3:])]), together, rtol=0, atol=1e-14)


@pytest.mark.parametrize("calls", ["two calls per step", "two networks in one step"])
def test_a_siamese_network_trains_to_the_same_parameters_with_and_without_the_head(calls):
    """Started alike, on pairs of which only the difference of rates counts."""
    first, second = random(64, 3, seed=1, dtype=torch.float64), random(64, 3, seed=2, dtype=torch.float64)
    wins = (random(64, seed=3) > 0).double()

    def train(model):
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for step in range(60):
            rows = torch.arange(64).roll(7 * step)[:16]
            optimiser.zero_grad()
            if calls == "two calls per step":
                margin = model(first[rows]) - model(second[rows])
            else:
                both = model(torch.cat([first[rows], second[rows]]))
                margin = both[:16] - both[16:]
            loss = nn.functional.binary_cross_entropy_with_logits(margin, wins[rows])
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    plain, fixed = rater(), rater(mid.nn.GaugeFix(mid.Translation(), over="batch"))
    head = fixed[-1]
    assert train(plain) == pytest.approx(train(fixed), abs=1e-12)
    mid.nn.calibrate(fixed, [(first,), (second,)])
    head.train()
    fixed.train()
    assert train(plain) == pytest.approx(train(fixed), abs=1e-9)  # the frame of a calibrated head does not train either
    for a, b in zip(plain.parameters(), fixed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert train(plain)[-1] < 0.69


def test_evaluation_before_calibration_warns_once_and_names_the_cure():
    head = mid.nn.GaugeFix(mid.Translation(), over="batch")
    head(random(5))  # training does not warn
    head.eval()
    with pytest.warns(
        mid.UncalibratedWarning, match=r"GaugeFix\(Translation\(\), over='batch'\) .* mid.nn.calibrate\(model, loader\)"
    ):
        head(random(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head(random(5))
        other = mid.nn.GaugeFix(mid.Translation(), over="batch").eval()
        other.set_frame(torch.zeros(1))
        other(random(5))


def test_the_frame_is_part_of_the_state_and_moves_with_the_module():
    head = mid.nn.GaugeFix(mid.Affine(), over="batch")
    head.set_frame(torch.tensor([[0.1, 1.0], [0.2, 2.0], [0.3, 3.0]]))  # three columns
    other = mid.nn.GaugeFix(mid.Affine(), over="batch").eval()
    other.load_state_dict(head.state_dict())
    x = random(5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(other(x), head(x))
    assert torch.equal(copy.deepcopy(head)(x), head(x))
    head.double()
    assert head.frame.dtype == torch.float64
    assert torch.equal(head(x), other(x))
    wrong = mid.nn.GaugeFix(mid.Translation(), over="batch")
    with pytest.raises(RuntimeError, match="size mismatch for frame"):
        wrong.load_state_dict(head.state_dict())


def test_the_state_survives_a_file(tmp_path):
    head = mid.nn.GaugeFix(mid.Affine(), over="batch")
    head.set_frame(torch.tensor([0.1, 1.0]))
    torch.save(head.state_dict(), tmp_path / "head.pt")
    torch.save(head, tmp_path / "module.pt")
    other = mid.nn.GaugeFix(mid.Affine(), over="batch")
    other.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    whole = torch.load(tmp_path / "module.pt", weights_only=False)
    x = random(5)
    assert torch.equal(other(x), head(x))
    assert torch.equal(whole(x), head(x))
    assert whole.group == head.group


def test_a_frame_is_copied_and_checked():
    head, xi = mid.nn.GaugeFix(mid.Affine(), over="batch"), torch.tensor([0.1, 1.0])
    head.set_frame(xi)
    xi.zero_()
    assert head.frame.tolist() == pytest.approx([0.1, 1.0])
    with pytest.raises(ValueError, match=r"`xi` must have shape \(2,\) or \(k, 2\), got \(3,\)"):
        head.set_frame(torch.zeros(3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mid.nn.GaugeFix(mid.Translation), TypeError, "`group` must be a gauge group.*forget the parentheses"),
        (
            lambda: mid.nn.GaugeFix(mid.Translation(), over="first"),
            ValueError,
            "`over` must be 'last' or 'batch', got 'first'",
        ),
        (lambda: mid.nn.GaugeFix(mid.Product(), over="batch"), TypeError, "`over='batch'` needs a group on items"),
        (
            lambda: mid.nn.GaugeFix(mid.Translation(blocks=LABELS), over="batch"),
            ValueError,
            "`blocks` name items, but with over='batch' the items are whatever examples come",
        ),
        (
            lambda: mid.nn.GaugeFix(mid.Translation(), torch.ones(3), over="batch"),
            ValueError,
            "`weights` name items, but with over='batch' the items are whatever examples come",
        ),
        (
            lambda: mid.nn.GaugeFix(mid.Translation(), over="batch")(random(2, 3, 4)),
            ValueError,
            r"`x` must have shape \(N,\) or \(N, k\)",
        ),
        (
            lambda: mid.nn.GaugeFix(mid.Translation(), over="batch")(random(6), blocks=LABELS),
            ValueError,
            "`blocks` belong to over='last'",
        ),
        (
            lambda: mid.nn.GaugeFix(mid.Translation())(torch.arange(5)),
            TypeError,
            "`x` must be a floating tensor, got dtype torch.int64",
        ),
        (
            lambda: mid.nn.GaugeFix(mid.Translation())(random(4), blocks=LABELS),
            ValueError,
            "`blocks` has 6 labels and `point` has 4",
        ),
        (
            lambda: mid.nn.GaugeFix(mid.Translation(), torch.ones(3))(random(4)),
            ValueError,
            r"`weights` must have shape \(4,\)",
        ),
    ],
)
def test_wrong_arguments_are_named(annotations_unchecked, make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_more_columns_than_calibrated_are_refused():
    head = mid.nn.GaugeFix(mid.Translation(), over="batch")
    head.set_frame(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"`x` has 2 column\(s\), but the head was calibrated with 3"):
        head(random(5, 2))


def test_heads_print_their_arguments():
    assert repr(mid.nn.GaugeFix(mid.Affine())) == "GaugeFix(Affine())"
    assert repr(mid.nn.GaugeFix(mid.Affine(), torch.ones(3))) == "GaugeFix(Affine(), weights=...)"
    assert repr(mid.nn.GaugeFix(mid.Affine(), over="batch")) == "GaugeFix(Affine(), over='batch')"
