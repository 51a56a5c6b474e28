"""Input that cannot be answered: an error that names it, from fit and from infer."""

import pytest
import torch

import manifoldid as mid

F64 = torch.float64
ZERO = torch.zeros(4, dtype=F64)
FIRST, SECOND = torch.tensor([0, 1, 2, 0, 1, 3]), torch.tensor([1, 2, 3, 2, 3, 0])


def league(won, lost):
    def nll(x):
        gap = x[FIRST] - x[SECOND]
        return -(won * torch.nn.functional.logsigmoid(gap) + lost * torch.nn.functional.logsigmoid(-gap)).sum()

    return nll


EVEN = league(torch.full((6,), 2.0, dtype=F64), torch.full((6,), 2.0, dtype=F64))
REFUSED = [
    ("empty point", EVEN, torch.zeros(0, dtype=F64), ValueError, r"point|start"),
    ("one item", lambda x: x.sum() * 0, torch.zeros(1, dtype=F64), mid.DegeneratePointError, "nothing identifiable"),
    ("integer point", EVEN, torch.zeros(4, dtype=torch.long), TypeError, "floating tensor"),
    ("half precision", lambda x: EVEN(x.double()), ZERO.half(), ValueError, "double"),
    ("nan in the point", EVEN, ZERO + torch.nan, ValueError, "finite"),
    ("list", EVEN, [0.0, 1.0], TypeError, r"point|start"),
    (
        "nan in the data",
        league(torch.full((6,), torch.nan, dtype=F64), torch.ones(6, dtype=F64)),
        ZERO,
        ValueError,
        "finite",
    ),
    ("vector", lambda x: x[FIRST] - x[SECOND], ZERO, ValueError, r"`nll` must return one number.*\.sum\(\)"),
    ("detached", lambda x: EVEN(x.detach()), ZERO, ValueError, "`nll` has no autograd graph"),
    ("a number", lambda x: 1.0, ZERO, TypeError, "`nll` must return a floating tensor"),
    ("numpy", lambda x: EVEN(torch.from_numpy(x.detach().numpy())), ZERO, ValueError, "`nll` has no autograd graph"),
    ("random", lambda x: EVEN(x) * (1 + torch.rand(())), ZERO, ValueError, "`nll` returns different values"),
    ("no function", 3.0, ZERO, TypeError, "nll"),
    ("sees the gauge", lambda x: EVEN(x) + x.square().sum(), ZERO + 1, mid.NotInvariantError, "`nll`"),
]


@pytest.mark.parametrize(
    ("nll", "point", "error", "text"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
@pytest.mark.parametrize("function", [mid.fit, mid.infer])
def test_it_is_refused_by_name(function, nll, point, error, text):
    with pytest.raises(error, match=text):
        function(nll, point, mid.Translation())


@pytest.mark.parametrize("function", [mid.fit, mid.infer])
@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (torch.tensor([1.0, torch.nan, 1, 1], dtype=F64), "finite"),
        (torch.tensor([1.0, -1, 1, 1], dtype=F64), "negative"),
        (torch.zeros(4, dtype=F64), "zero"),
        (torch.ones(3, dtype=F64), "shape"),
    ],
)
def test_weights_that_are_none_are_refused(function, weights, text):
    with pytest.raises(ValueError, match=f"`weights`.*{text}"):
        function(EVEN, ZERO, mid.Translation(), weights=weights)


def test_no_data_is_no_information():
    nothing = league(torch.zeros(6, dtype=F64), torch.zeros(6, dtype=F64))
    with pytest.raises(mid.NotIdentifiableError, match="no data"):
        mid.fit(nothing, ZERO, mid.Translation())
    with pytest.raises(mid.NotIdentifiableError, match=r"items 0, 1, 2 .*each by itself"):
        mid.infer(nothing, ZERO, mid.Product())


def test_all_draws_are_data():
    estimate = mid.infer(EVEN, mid.fit(EVEN, ZERO + 3, mid.Translation()).point, mid.Translation())
    torch.testing.assert_close(estimate.estimate(), ZERO, rtol=0, atol=1e-12)
    assert bool((estimate.standard_errors() > 0).all())


def test_a_parameter_that_nothing_depends_on_is_named():
    def nll(point):
        return EVEN(point["skill"])

    group = mid.Product(skill=mid.Translation())
    start = {"skill": ZERO, "bonus": torch.zeros(2, dtype=F64)}
    fit = mid.fit(nll, start, group)
    assert "flat along a direction beyond the gauge" in fit.message
    assert "flat" not in mid.fit(EVEN, ZERO + 1, mid.Translation()).message
    with pytest.raises(mid.NotIdentifiableError, match="bonus"):
        mid.infer(nll, fit.point, group)


@pytest.mark.parametrize("start", [0.1, 20.0], ids=["near the edge", "steps lead over the edge"])
def test_a_likelihood_that_raises_outside_of_its_domain_is_fitted_inside(start):
    y, of = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=F64), torch.arange(32) % 4
    group = mid.Shift(torch.tensor([[1.0, 1, 1, 1, 0]], dtype=F64))

    def nll(x):
        return -torch.distributions.Normal(x[of] - x[:4].mean(), x[4], validate_args=True).log_prob(y).sum()

    fitted = mid.fit(nll, torch.cat([ZERO, ZERO[:1] + start]), group)
    assert fitted.converged
    means = y.reshape(8, 4).mean(0)
    rest = y.reshape(8, 4) - (means - means.mean())
    assert float(fitted.point[4]) == pytest.approx(float(rest.square().mean().sqrt()), rel=1e-6)


def test_an_error_that_no_domain_explains_is_the_callers():
    calls = iter(range(100))

    def nll(x):
        if next(calls) > 12:
            raise IndexError("of the caller")
        return (x - torch.arange(4)).square().sum() - (x - torch.arange(4)).sum().square() / 4

    with pytest.raises(IndexError, match="of the caller"):
        mid.fit(nll, ZERO, mid.Translation())


def test_a_block_without_numbers_changes_nothing():
    group, none = mid.Product(x=mid.Translation()), torch.zeros(0, dtype=torch.float64)

    def nll(p):
        return (p["x"][1:3] - p["x"][0]).square().sum()

    fitted = mid.fit(nll, {"none": none, "x": torch.ones(4, dtype=torch.float64)}, group)
    with pytest.raises(mid.NotIdentifiableError, match=r"1 direction.*in block 'x'"):
        mid.infer(nll, fitted.point, group)


def test_collinear_columns_are_named():
    design = torch.randn(30, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    design[:, 2] = design[:, 0] - 2 * design[:, 1]
    right = design[:, 0] + torch.arange(30, dtype=F64).sin()

    def nll(x):
        return 0.5 * (design @ x - right).square().sum()

    with pytest.raises(mid.NotIdentifiableError, match="items 0, 1, 2"):
        mid.infer(nll, mid.fit(nll, torch.zeros(3, dtype=F64), mid.Product()).point, mid.Product())


def test_float32_gives_the_digits_it_has():
    won, lost = torch.tensor([3, 1, 4, 1, 5, 9.0]), torch.tensor([2, 7, 1, 8, 2, 8.0])
    single, double = league(won, lost), league(won.double(), lost.double())
    errors = [
        mid.infer(nll, mid.fit(nll, start, mid.Translation()).point, mid.Translation()).standard_errors()
        for nll, start in ((single, ZERO.float()), (double, ZERO))
    ]
    assert errors[0].dtype == torch.float32
    torch.testing.assert_close(errors[0].double(), errors[1], rtol=1e-3, atol=0)


def test_a_class_that_a_feature_separates_is_named():
    feature = torch.linspace(-1, 1, 10, dtype=F64)
    label = (feature > 0).to(F64)

    def nll(point):
        score = feature * point["slope"] + point["constant"]
        return torch.nn.functional.binary_cross_entropy_with_logits(score, label, reduction="sum")

    with pytest.raises(mid.UnboundedEstimateError, match="slope"):
        mid.fit(nll, {"slope": torch.zeros((), dtype=F64), "constant": torch.zeros((), dtype=F64)}, mid.Product())


def test_the_start_is_not_written_to_and_may_require_grad():
    start = torch.tensor([3.0, 1, 2, 0], dtype=F64, requires_grad=True)
    with torch.no_grad():
        point = mid.fit(EVEN, start, mid.Translation()).point
    mid.infer(EVEN, point, mid.Translation())
    assert start.grad is None
    torch.testing.assert_close(start.detach(), torch.tensor([3.0, 1, 2, 0], dtype=F64), rtol=0, atol=0)
