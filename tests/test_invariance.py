"""Functions that see a gauge are caught and the culprit is named; functions that do not see it pass."""

import pytest
import torch

import manifoldid as mid
from manifoldid.groups import GaugeGroup
from manifoldid.invariance import largest_change, vertical_share

LABELS = torch.tensor([7, -2, 7, -2, 40, 40])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def differences(x):
    return x[..., :, None] - x[..., None, :]


def within(x):
    """Differences of items with the same label."""
    return differences(x) * (LABELS[:, None] == LABELS)


INVARIANT = {
    "differences": (differences, random(6), mid.Translation()),
    "differences of a batch": (differences, random(2, 3, 6), mid.Translation()),
    "differences within blocks": (within, random(3, 6), mid.Translation(blocks=LABELS)),
    "direction": (lambda x: x / x.norm(), random(6), mid.Scaling()),
    "ratios": (lambda x: x[:3] / x[3:], random(6).exp(), mid.PositiveScaling()),
    "section": (mid.Section(mid.Affine()), random(2, 6), mid.Affine()),
    "Rasch": (
        lambda x: torch.nn.functional.softplus(x["theta"][:, None] - x["beta"]).sum(),
        {"theta": random(4), "beta": random(3)},
        mid.Shift({"theta": 1, "beta": 1}),
    ),
    "two blocks": (
        lambda x: {"skill": differences(x["skill"]), "scale": [x["scale"][0] / x["scale"][1], x["free"].sum()]},
        {"skill": random(4), "scale": random(3).exp(), "free": random(2)},
        mid.Product(skill=mid.Translation(), scale=mid.PositiveScaling()),
    ),
    "nothing declared": (lambda x: x.sum(), random(4), mid.Product()),
    "ranks, without a derivative": (lambda x: x.argsort(), random(6), mid.Affine()),
    "a comparison": (lambda x: bool(x[0] > x[1]), random(6), mid.Affine()),
    "zero by symmetry, up to rounding": (
        lambda x: x - x.mean(-1, keepdim=True),
        torch.full((2, 7), -0.1, dtype=torch.float64),
        mid.Translation(),
    ),
}


@pytest.mark.parametrize("name", INVARIANT)
def test_an_invariant_function_passes_with_the_size_of_its_rounding(name):
    fn, point, group = INVARIANT[name]
    assert 0 <= mid.check_invariance(fn, point, group) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tolerances_follow_the_precision_of_the_point(dtype):
    x = random(6, dtype=dtype)
    change = mid.check_invariance(lambda t: torch.softmax(t, -1), x, mid.Translation())
    assert change <= torch.finfo(dtype).eps ** 0.5
    with pytest.raises(mid.NotInvariantError):
        mid.check_invariance(lambda t: torch.softmax(t, -1), x, mid.Affine())


@pytest.mark.parametrize("leak", [1e-4, 1e-6])
@pytest.mark.parametrize("at", [0.0, 3.0])
def test_a_small_leak_is_caught(leak, at):
    x = random(6)
    x = x - x.mean() + at

    def leaky(t):
        return differences(t).square().sum() * (1 + leak * t.mean())

    with pytest.raises(mid.NotInvariantError):
        mid.check_invariance(leaky, x, mid.Translation())
    assert mid.check_invariance(leaky, x, mid.Translation(), tolerance=10 * leak) > 0


def test_a_penalty_without_derivative_at_the_section_is_caught_by_finite_moves():
    x = mid.Section(mid.Translation())(random(6))

    def penalised(t):
        return differences(t).square().sum() + 1e-3 * t.mean() ** 2

    with pytest.raises(mid.NotInvariantError, match="translation"):
        mid.check_invariance(penalised, x, mid.Translation())
    with pytest.raises(mid.NotInvariantError, match="translation"):
        mid.check_invariance(lambda t: t.mean() ** 2, x, mid.Translation())


@pytest.mark.parametrize("start", [0.0, torch.pi / 2])
def test_a_ripple_that_finite_moves_do_not_see_is_caught_by_its_derivative(start):
    """At most 2e-5 high, with slope 0.02; at one of the two starts the derivative at the point itself is zero."""
    x = mid.Section(mid.Translation())(random(6)) + start / 2000

    def ripple(t):
        return 1 + 1e-5 * (2000 * t.mean()).sin()

    assert largest_change(ripple, x, mid.Translation(), derivatives=False).relative < 1e-4
    with pytest.raises(mid.NotInvariantError, match="translation"):
        mid.check_invariance(ripple, x, mid.Translation(), tolerance=1e-4)


@pytest.mark.parametrize(
    ("fn", "point", "group", "culprit"),
    [
        (differences, random(6), mid.Affine(), "scaling"),
        (lambda x: x / x.norm(), random(6), mid.Affine(), "translation"),
        (lambda x: within(x) + x[4], random(6), mid.Translation(blocks=LABELS), "translation of block 40"),
        (
            lambda x: torch.cat([differences(x["a"]).reshape(-1), x["b"]]),
            {"a": random(4), "b": random(3)},
            mid.Product(a=mid.Translation(), b=mid.Translation()),
            "translation of 'b'",
        ),
        (
            lambda x: x["theta"][:, None] - x["beta"],
            {"theta": random(4), "beta": random(3)},
            mid.Shift([{"theta": 1, "beta": 1}, {"theta": 1, "beta": -1}]),
            "shift of theta, beta",
        ),
        (
            lambda x: x[..., 0] - x[..., 1] + x[..., 5],
            random(2, 6),
            mid.Shift(torch.eye(6)[4:]),
            "shift along direction 1",
        ),
    ],
)
def test_the_generator_and_the_size_of_the_change_are_named(fn, point, group, culprit):
    with pytest.raises(
        mid.NotInvariantError,
        match=rf"`fn` is not invariant under .*changes by \d\.\de[+-]\d\d relative under the {culprit} ",
    ):
        mid.check_invariance(fn, point, group)


def test_the_culprit_among_many_generators_is_named():
    labels = torch.arange(100).repeat_interleave(2)
    x = random(200)

    def fn(t):
        return torch.cat([t[0::2] - t[1::2], 3 * t[146:147]])

    with pytest.raises(mid.NotInvariantError, match="translation of block 73 "):
        mid.check_invariance(fn, x, mid.Translation(blocks=labels))
    assert mid.check_invariance(lambda t: t[0::2] - t[1::2], x, mid.Translation(blocks=labels)) < 1e-12


def test_one_row_of_a_batch_that_sees_the_gauge_is_enough():
    def fn(x):
        return torch.cat([differences(x[:2]).reshape(-1), x[2]])

    with pytest.raises(mid.NotInvariantError):
        mid.check_invariance(fn, random(3, 6), mid.Translation())


def test_a_custom_group_is_checked_by_its_action():
    class AsinhShift(GaugeGroup):
        dim = 1

        def act(self, xi, x):
            return torch.sinh(torch.asinh(x) + xi)

    assert mid.check_invariance(lambda x: differences(torch.asinh(x)), random(5), AsinhShift()) < 1e-12
    with pytest.raises(mid.NotInvariantError, match="generator 0 of AsinhShift"):
        mid.check_invariance(differences, random(5), AsinhShift())


def test_a_function_that_leaves_its_domain_is_not_invariant():
    with pytest.raises(mid.NotInvariantError, match="is no longer finite"):
        mid.check_invariance(lambda x: x.log(), random(5).abs() / 10, mid.Translation())


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: x.log(), ValueError, "`fn` must be finite at `point`"),
        (lambda x: x[:0], ValueError, "`fn` returns nothing to compare: an empty tensor"),
        (lambda x: "text", TypeError, "`fn` must return floating tensors, got str"),
        (lambda x: None, TypeError, "`fn` must return floating tensors, got NoneType"),
    ],
)
def test_functions_that_cannot_be_compared_are_named(fn, error, message):
    with pytest.raises(error, match=message):
        mid.check_invariance(fn, -torch.ones(5), mid.Translation())


def test_a_random_function_is_named():
    source = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="`fn` returns different values for the same point: make it deterministic"):
        mid.check_invariance(lambda x: x + torch.randn(5, generator=source), torch.ones(5), mid.Translation())


def test_points_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="lacks the blocks"):
        mid.check_invariance(lambda x: x["a"], {"b": random(3)}, mid.Product(a=mid.Translation()))


def test_nothing_of_the_caller_is_touched():
    before = torch.get_rng_state()
    parameter = torch.nn.Parameter(random(6))
    parameter.grad = torch.ones(6).double()
    kept = parameter.detach().clone()
    with torch.no_grad():
        mid.check_invariance(differences, parameter, mid.Translation())
    mid.check_invariance(differences, parameter, mid.Translation(), generator=torch.Generator().manual_seed(5))
    assert torch.equal(parameter, kept)
    assert torch.equal(parameter.grad, torch.ones(6).double())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_in_its_own_parameters_is_checked():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return x + self.bias

    net, x = Net(), random(5).float()

    def margins(parameters):
        out = torch.func.functional_call(net, dict(parameters), (x,))
        return out[:, None] - out

    point = {"bias": net.bias.reshape(1).detach().clone().squeeze(0)}
    assert mid.check_invariance(margins, point, mid.Shift({"bias": torch.tensor(1.0)})) < 1e-5


# --------------------------------------------------------------------------------------------------- the vertical share


def test_the_vertical_share_is_the_cosine_with_the_steepest_generator():
    x = random(3, 6)
    ones = torch.ones(3, 6).double()
    share = vertical_share(x, ones, mid.Translation())
    assert share.relative == pytest.approx(1)
    assert share.generator == "translation"
    mixed = ones + mid.Section(mid.Translation())(random(3, 6, seed=1)) * 0
    mixed[:, 0] += 1
    wanted = (mixed.sum(-1) / mixed.norm(dim=-1) / 6**0.5).max()
    assert vertical_share(x, mixed, mid.Translation()).relative == pytest.approx(float(wanted))
    assert vertical_share(x, 0 * ones, mid.Translation()).relative == 0


def test_the_gradient_of_an_invariant_loss_has_no_vertical_share():
    x = random(3, 6)
    slope = torch.func.grad(lambda t: (mid.Section(mid.Affine())(t) ** 3).sum())(x)
    assert vertical_share(x, slope, mid.Affine()).relative < 1e-12
    assert vertical_share(x, slope + x, mid.Affine()).generator == "scaling"


def test_the_vertical_share_of_many_generators_names_the_culprit():
    labels = torch.arange(100).repeat_interleave(2)
    slope = torch.zeros(200).double()
    slope[146:148] = 1
    share = vertical_share(random(200), slope, mid.Translation(blocks=labels))
    assert share.generator == "translation of block 73"
    assert share.relative > 1e-3
