"""geoopt's optimisers on a quotient: equivariance, drift, the minimum that other software finds."""

import warnings

import pytest
import torch
from cases import BLOCKS, positive, randn
from torch.nn.functional import logsigmoid

import manifoldid as mid
from manifoldid.demo.baseball import load_season

geoopt = pytest.importorskip("geoopt")

pytestmark = pytest.mark.slow

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.3, 1.7, 1.0, 0.9], dtype=torch.float64)
GROUPS = {
    "translation": (mid.Translation(), lambda x: x + 5.0),
    "translation-blocks": (mid.Translation(blocks=BLOCKS), lambda x: x + 5.0 * BLOCKS),
    "scaling": (mid.Scaling(), lambda x: 10.0 * x),
    "positive-scaling": (mid.PositiveScaling(), lambda x: 10.0 * x),
    "positive-scaling-blocks": (mid.PositiveScaling(blocks=BLOCKS), lambda x: 2.0 ** (BLOCKS + 1) * x),
    "scaling-blocks": (mid.Scaling(blocks=BLOCKS), lambda x: 2.0 ** (BLOCKS + 1) * x),
    "affine": (mid.Affine(), lambda x: 10.0 * x + 5.0),
    "affine-blocks": (mid.Affine(blocks=BLOCKS), lambda x: 2.0 ** (BLOCKS + 1) * x + BLOCKS),
    "affine-common-scale": (mid.Affine(blocks=BLOCKS, common_scale=True), lambda x: 10 * x + BLOCKS),
    "shift": (mid.Shift(randn(2, 7, seed=3)), lambda x: x + torch.tensor([3.0, -2.0]).double() @ randn(2, 7, seed=3)),
}
OPTIMISERS = {
    "adam": lambda p: geoopt.optim.RiemannianAdam([p], lr=1e-2),
    "amsgrad": lambda p: geoopt.optim.RiemannianAdam([p], lr=1e-2, amsgrad=True, weight_decay=0.0),
    "sgd": lambda p: geoopt.optim.RiemannianSGD([p], lr=1e-2),
    "momentum": lambda p: geoopt.optim.RiemannianSGD([p], lr=1e-2, momentum=0.9),
    "nesterov": lambda p: geoopt.optim.RiemannianSGD([p], lr=1e-2, momentum=0.9, nesterov=True),
    "line-search": lambda p: geoopt.optim.RiemannianLineSearch([p]),
}


def loss_of(name, optimiser_name, p, target):
    """Steep at its minimum, so that no run settles; for a line search smooth, well conditioned, and in the chart of the group.

    An Armijo search divides differences of losses. Where steps zigzag, as in a narrow valley, each of them multiplies the rounding of
    the one before, whatever the manifold is; and its first trial has length |gradient|, in a positive chart a factor exp(|gradient|).
    """
    y = mid.Section(GROUPS[name][0])(p)
    if optimiser_name != "line-search":
        return (y - target).abs().pow(1.5).sum()
    rest = y.log() - target.log() if "positive" in name else y - target
    return (torch.linspace(1, 4, 7) * rest.square()).sum()


def descend(name, optimiser_name, start, weights, on_section, steps=25):
    group, _ = GROUPS[name]
    target = mid.Section(group)(positive(7, seed=5) if "positive" in name else randn(7, seed=5))
    if on_section:
        p = mid.parameter(start, group, weights)
    else:
        p = geoopt.ManifoldParameter(start.clone(), manifold=mid.QuotientManifold(group, weights))
    optimiser = OPTIMISERS[optimiser_name](p)
    if optimiser_name in ("momentum", "nesterov"):
        optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)  # the documented cure
    path = []
    for _ in range(steps):

        def closure():
            optimiser.zero_grad()
            loss = loss_of(name, optimiser_name, p, target)
            loss.backward()
            return loss

        if optimiser_name == "line-search":
            optimiser.step(lambda closure=closure: closure().item())
        else:
            closure()
            optimiser.step()
        path.append(mid.Section(group)(p.detach().as_subclass(torch.Tensor)))
    return torch.stack(path)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("on_section", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("name", GROUPS)
def test_runs_from_x_and_from_gx_are_the_same_run(name, optimiser, on_section, weights):
    x = positive(7) if "positive" in name else randn(7)
    one = descend(name, optimiser, x, weights, on_section)
    other = descend(name, optimiser, GROUPS[name][1](x), weights, on_section)
    torch.testing.assert_close(other, one, rtol=0, atol=1e-9)
    assert not torch.allclose(one[-1], one[0])


@pytest.mark.parametrize(
    ("name", "optimiser"),
    [
        ("translation", "adam"),
        ("scaling", "adam"),
        ("positive-scaling", "adam"),
        ("affine", "adam"),
        ("affine", "sgd"),
        ("affine", "momentum"),
    ],
)
def test_nothing_drifts_over_two_thousand_steps_in_float32(name, optimiser):
    group, _ = GROUPS[name]
    start = (positive(7) if "positive" in name else randn(7)).float()
    p = mid.parameter(start, group)
    optimiser = OPTIMISERS[optimiser](p)
    if optimiser.defaults.get("momentum"):
        optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
    generator = torch.Generator().manual_seed(0)
    section = mid.Section(group)
    for _ in range(2000):
        # noise with the derivatives of a function on the quotient; the tangent space at the point is projected by the optimiser
        p.grad = torch.randn(7, generator=generator)
        optimiser.step()
    value = p.detach().as_subclass(torch.Tensor)
    # every step rounds mean and size by about eps: a random walk of 2000 steps, with room for a bias of eps / 10
    bound = 2000**0.5 * 4 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(value, section(value), rtol=0, atol=bound * float(value.abs().max()))
    assert float((value - section(start)).abs().max()) > 0.05  # it has moved along the quotient


# BradleyTerry2 0.2.1 on the baseball season of Agresti (2002), p. 438: abilities of seven teams with mean 0.
BASEBALL = [
    -1.05020253600378,
    0.0574951693685619,
    -0.366349766850507,
    0.386205895802022,
    0.531153340650996,
    0.197415309131161,
    0.24428258790155,
]


def fit_baseball(optimiser_name, origin):
    season = load_season()
    p = mid.parameter(torch.full((7,), origin, dtype=torch.float64), mid.Translation())
    optimiser = {
        "adam": lambda: geoopt.optim.RiemannianAdam([p], lr=0.05),
        "sgd": lambda: geoopt.optim.RiemannianSGD([p], lr=0.05),
        "momentum": lambda: geoopt.optim.RiemannianSGD([p], lr=0.02, momentum=0.8),
        "line-search": lambda: geoopt.optim.RiemannianLineSearch([p]),
    }[optimiser_name]()
    if optimiser_name == "momentum":
        optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)

    def closure():
        optimiser.zero_grad()
        gap = p[season.home] - p[season.away]
        nll = -(season.won * logsigmoid(gap) + season.lost * logsigmoid(-gap)).sum()
        nll.backward()
        return nll.item()

    if optimiser_name == "line-search":
        with warnings.catch_warnings():
            # at the minimum it takes no step
            warnings.simplefilter("ignore", geoopt.optim.rlinesearch.LineSearchWarning)
            for _ in range(12):
                optimiser.step(closure)
    else:
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.99 if optimiser_name == "adam" else 1.0)
        for _ in range(600 if optimiser_name == "adam" else 150):
            closure()
            optimiser.step()
            schedule.step()
    return p.detach().as_subclass(torch.Tensor)


@pytest.mark.parametrize(
    ("optimiser", "origin"),
    [("adam", 0.0), ("adam", 100.0), ("sgd", 100.0), ("momentum", 100.0), ("line-search", 100.0)],
)
def test_scores_of_a_baseball_season_are_those_of_other_software(optimiser, origin):
    found = fit_baseball(optimiser, origin)
    torch.testing.assert_close(found, torch.tensor(BASEBALL, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("group", [mid.Affine(), mid.Translation(), mid.PositiveScaling()])
@pytest.mark.parametrize("name", ["RiemannianAdam", "RiemannianSGD"])
def test_a_gradient_that_is_not_finite_is_refused_before_the_point_moves(name, group, bad):
    p = mid.parameter(positive(7), group)
    optimiser, before = getattr(geoopt.optim, name)([p], lr=0.1), p.detach().clone()
    p.grad = torch.ones_like(p)
    p.grad[2] = bad
    with pytest.raises(
        ValueError, match=r"gradient of a point of shape \(7,\) on QuotientManifold\(.*\) must be finite"
    ):
        optimiser.step()
    assert torch.equal(p.detach(), before)
    p.grad = randn(7, seed=4)
    optimiser.step()  # and the next one is as ever
    assert torch.isfinite(p).all()
