"""fit: the minimum on the quotient, from any gauge, and errors where there is none."""

import pytest
import torch

import manifoldid as mid

F64 = torch.float64
FIRST, SECOND = torch.triu_indices(5, 5, offset=1)


def league(dtype=F64, unit=1.0):
    """Bradley-Terry of five items; everybody wins and loses."""
    won = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3], dtype=dtype)
    lost = torch.tensor([2, 7, 1, 8, 2, 8, 1, 8, 2, 8], dtype=dtype)

    def nll(x):
        gap = (x[FIRST] - x[SECOND]) / unit
        return -(won * torch.nn.functional.logsigmoid(gap) + lost * torch.nn.functional.logsigmoid(-gap)).sum()

    return nll


def test_the_gauge_of_the_start_does_not_matter():
    start = torch.tensor([1.0, -2, 0.5, 0, 3], dtype=F64)
    fits = [mid.fit(league(), start + shift, mid.Translation()) for shift in (0, 100)]
    assert all(fit.converged for fit in fits)
    torch.testing.assert_close(fits[0].point, fits[1].point, rtol=0, atol=1e-8)
    torch.testing.assert_close(start, torch.tensor([1.0, -2, 0.5, 0, 3], dtype=F64))


def test_the_gradient_vanishes_and_the_point_is_on_the_section():
    fit = mid.fit(league(), torch.zeros(5, dtype=F64), mid.Translation())
    gradient = torch.func.grad(league())(fit.point)
    assert float(gradient.abs().max()) < 1e-9
    assert abs(float(fit.point.mean())) < 1e-12


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_the_point_does_not_matter(unit):
    fit = mid.fit(league(unit=unit), torch.zeros(5, dtype=F64), mid.Translation())
    plain = mid.fit(league(), torch.zeros(5, dtype=F64), mid.Translation())
    torch.testing.assert_close(fit.point / unit, plain.point, rtol=0, atol=1e-8)


def test_float32_converges_to_its_precision():
    fit = mid.fit(league(torch.float32), torch.zeros(5), mid.Translation())
    plain = mid.fit(league(), torch.zeros(5, dtype=F64), mid.Translation())
    assert fit.converged
    torch.testing.assert_close(fit.point.double(), plain.point, rtol=0, atol=1e-4)


def test_a_curved_gauge_is_fitted_on_its_horizontal_space():
    target = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)

    def nll(x):
        return (x @ x.mT - target).square().sum()

    fit = mid.fit(nll, torch.tensor([[1.0, 0.2], [0.1, 0.7]], dtype=F64), mid.Orthogonal())
    assert fit.converged
    torch.testing.assert_close(fit.point @ fit.point.mT, target, rtol=0, atol=1e-8)


@pytest.mark.parametrize("item", [0, 3])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_item_that_only_wins_or_only_loses_is_named(item, sign):
    def nll(x):
        gap = x[FIRST] - x[SECOND]
        rest = (item != FIRST) & (item != SECOND)
        even = -(torch.nn.functional.logsigmoid(gap) + torch.nn.functional.logsigmoid(-gap))[rest].sum()
        against = torch.nn.functional.logsigmoid(sign * (x[item] - torch.cat([x[:item], x[item + 1 :]])))
        return even - against.sum()

    with pytest.raises(mid.UnboundedEstimateError, match=f"items {item} run away"):
        mid.fit(nll, torch.zeros(5, dtype=F64), mid.Translation())


@pytest.mark.parametrize(
    ("nll", "error", "text"),
    [
        (lambda x: x - x.mean(), ValueError, "one number"),
        (lambda x: x.var().detach(), ValueError, "graph"),
        (lambda x: x.var() * torch.nan, ValueError, "finite"),
        (lambda x: float(x.detach().var()), TypeError, "floating tensor"),
        (lambda x: x[0].square(), mid.NotInvariantError, "`nll`"),
    ],
)
def test_a_function_that_is_no_likelihood_is_refused(nll, error, text):
    with pytest.raises(error, match=text):
        mid.fit(nll, torch.tensor([1.0, 2, 4], dtype=F64), mid.Translation())


def test_starts_that_are_no_points_are_refused():
    with pytest.raises(TypeError, match="start"):
        mid.fit(league(), torch.zeros(5, dtype=torch.long), mid.Translation())
    with pytest.raises(ValueError, match=r"start.*finite"):
        mid.fit(league(), torch.full((5,), torch.nan), mid.Translation())
    with pytest.raises(mid.DegeneratePointError):
        mid.fit(league(), torch.zeros(1), mid.Translation())


def test_a_positive_item_that_runs_to_zero_is_named():
    counts = torch.tensor([3.0, 5, 0, 2], dtype=F64)
    with pytest.raises(mid.UnboundedEstimateError, match="items 2 run away"):
        mid.fit(lambda p: -(counts * (p / p.sum()).log()).sum(), torch.ones(4, dtype=F64), mid.PositiveScaling())


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="tolerance"):
        mid.fit(league(), torch.zeros(5, dtype=F64), mid.Translation(), tolerance=-1.0)
    with pytest.raises(ValueError, match="max_iterations"):
        mid.fit(league(), torch.zeros(5, dtype=F64), mid.Translation(), max_iterations=0)


def factors(x):
    return (x @ x.mT - torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)).square().sum()


@pytest.mark.parametrize("start", [[[0.0, 0], [0, 0]], [[1.0, 1], [0, 0]]])
def test_a_saddle_is_left(start):
    start = torch.tensor(start, dtype=F64)
    fit = mid.fit(factors, start, mid.Product())
    assert fit.converged
    assert fit.nll < 1e-12


def test_items_of_weight_zero_do_not_define_the_origin():
    weights = torch.tensor([0.0, 1, 1, 0, 1], dtype=F64)
    fit = mid.fit(league(), torch.zeros(5, dtype=F64), mid.Translation(), weights=weights)
    plain = mid.fit(league(), torch.zeros(5, dtype=F64), mid.Translation())
    assert abs(float((weights * fit.point).sum())) < 1e-12
    torch.testing.assert_close(fit.point - fit.point[0], plain.point - plain.point[0], rtol=0, atol=1e-8)


def test_progress_is_a_table_on_stderr(capsys):
    mid.fit(league(), torch.zeros(5, dtype=F64), mid.Translation(), progress=True)
    out, table = capsys.readouterr()
    assert not out
    lines = table.splitlines()
    assert lines[0].split() == ["step", "nll", "gradient", "radius", "products"]
    assert len(lines) >= 4


def test_names_are_used_where_someone_runs_away():
    def nll(x):
        return -torch.nn.functional.logsigmoid(x[0] - x[1:]).sum() + (x[1] - x[2]).square()

    with pytest.raises(mid.UnboundedEstimateError, match="items Ann run away"):
        mid.fit(nll, torch.zeros(3, dtype=F64), mid.Translation(), names=["Ann", "Bob", "Cy"])


@pytest.mark.slow
def test_an_item_that_everybody_solves_is_named_although_its_way_to_infinity_bends():
    generator = torch.Generator().manual_seed(0)
    ability, easy = torch.randn(60, generator=generator, dtype=F64), torch.linspace(-1, 1, 5, dtype=F64)
    solved = torch.bernoulli(torch.sigmoid(1.2 * (ability[:, None] + easy)), generator=generator)
    solved[:, 1] = 1
    nodes = torch.linspace(-4, 4, 17, dtype=F64)
    share = (-0.5 * nodes.square()).log_softmax(0)

    def nll(point):
        at = point["mu"] + point["tau"] * nodes
        score = point["alpha"][:, None] * (at - point["beta"][:, None])
        logsigmoid = torch.nn.functional.logsigmoid
        return -(solved @ logsigmoid(score) + (1 - solved) @ logsigmoid(-score) + share).logsumexp(1).sum()

    one = torch.ones(1, dtype=F64)
    start = {"alpha": torch.ones(5, dtype=F64), "beta": -easy, "mu": 0 * one, "tau": one}
    gauge = mid.LocationScale(locations=("beta", "mu"), scales=("tau",), slopes=("alpha",))
    with pytest.raises(mid.UnboundedEstimateError, match=r"items 1 of block '(alpha|beta)' run"):
        mid.fit(nll, start, gauge)


def test_a_weak_direction_is_fitted_and_not_called_infinite():
    def nll(x):
        return league()(x) + 0.5 * (1e-5 * (x[5] - x[0] - 2)).square()

    fit = mid.fit(nll, torch.zeros(6, dtype=F64), mid.Translation())
    assert fit.converged
    error = mid.infer(nll, fit.point, mid.Translation()).contrast(lambda x: x[5] - x[0]).standard_error
    assert float(error) == pytest.approx(1e5, rel=1e-3)


def test_a_saddle_too_flat_to_be_seen_is_said_by_fit_and_refused_by_infer():
    curvatures = torch.logspace(-6, 0, 300, dtype=F64)
    curvatures[0] = -1e-6

    def nll(x):
        return 0.5 * (curvatures * x.square()).sum() + x[0] ** 4

    fit = mid.fit(nll, torch.zeros(300, dtype=F64), mid.Product())
    assert "too few to exclude a saddle" in fit.message
    with pytest.raises(mid.NotConvergedError, match="saddle"):
        mid.infer(nll, fit.point, mid.Product())
