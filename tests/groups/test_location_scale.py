import pytest
import torch
from cases import positive, randn

import manifoldid as mid

IRT = mid.LocationScale(locations=("theta", "beta"), slopes=("alpha",))
POINT = {"theta": randn(30), "beta": randn(8, seed=1), "alpha": positive(8, seed=2)}


def logits(p):
    return p["alpha"] * (p["theta"][..., :, None] - p["beta"][..., None, :])


def norm(x, dims=-1):
    return x.square().sum(dims).sqrt()


def test_the_section_standardises_the_first_block_and_keeps_the_model():
    y = mid.Section(IRT)(POINT)
    torch.testing.assert_close(y["theta"].mean(), torch.zeros(()).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(y["theta"].std(correction=0), torch.ones(()).double())
    torch.testing.assert_close(logits(y), logits(POINT))


def test_weights_say_which_items_define_origin_and_unit():
    w = torch.zeros(30).double()
    w[:10] = 2.0
    y = mid.Section(IRT, weights={"theta": w})(POINT)
    torch.testing.assert_close(y["theta"][:10].mean(), torch.zeros(()).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(y["theta"][:10].std(correction=0), torch.ones(()).double())
    with pytest.raises(ValueError, match="blocks"):
        mid.Section(IRT, weights={"gamma": w})(POINT)


def test_metric_and_projection_are_the_formulas_of_the_joint_action():
    u = {name: randn(*t.shape, seed=7 + k) for k, (name, t) in enumerate(POINT.items())}
    z, dz = (torch.cat([p["theta"], p["beta"]]) for p in (POINT, u))
    c = z - z.mean()
    s = norm(c) / c.numel() ** 0.5
    relative = u["alpha"] / POINT["alpha"]
    geometry = IRT.geometry()
    torch.testing.assert_close(geometry.inner(POINT, u, u), dz.square().sum() / s**2 + relative.square().sum())
    k = ((c * dz).sum() / s**2 - relative.sum()) / (c.numel() + 8)
    found = geometry.horizontal(POINT, u)
    torch.testing.assert_close(found["alpha"], u["alpha"] + k * POINT["alpha"])
    torch.testing.assert_close(torch.cat([found["theta"], found["beta"]]), dz - dz.mean() - k * c)


def test_metric_orthogonal_section_differs_by_a_group_element():
    """Horizontal curves keep log s - (sum of log alpha) / T constant: the connection is flat."""
    x = POINT
    for seed in range(30):
        u = {name: 0.1 * t * randn(*t.shape, seed=seed + k) for k, (name, t) in enumerate(x.items())}
        u = IRT.geometry().horizontal(x, u)
        x = IRT.geometry().exp(x, u)

    def height(p):
        z = torch.cat([p["theta"], p["beta"]])
        return z.std(correction=0).log() - p["alpha"].log().sum() / z.numel()

    torch.testing.assert_close(height(x), height(POINT), rtol=0, atol=1e-12)


def test_thurstone_scales_go_up_where_slopes_go_down():
    group = mid.LocationScale(locations=("mu",), scales=("sigma",), slopes=("rate",))
    x = {"mu": randn(5), "sigma": positive(5), "rate": positive(3, seed=1), "free": randn(2)}
    y = group.act(torch.tensor([0.4, -2.0]).double(), x)
    a = torch.tensor(0.4).double().exp()
    torch.testing.assert_close(y["mu"], a * x["mu"] - 2)
    torch.testing.assert_close(y["sigma"], a * x["sigma"])
    torch.testing.assert_close(y["rate"], x["rate"] / a)
    assert y["free"] is x["free"]
    assert set(group.positive) == {"sigma", "rate"}


def test_distance_is_that_of_sphere_and_logarithms():
    other = {
        "theta": POINT["theta"] + 0.2 * randn(30, seed=5),
        "beta": POINT["beta"],
        "alpha": POINT["alpha"] * positive(8, seed=6),
    }
    geometry = IRT.geometry()

    def invariants(p):
        z = torch.cat([p["theta"], p["beta"]])
        s = z.std(correction=0)
        return (z - z.mean()) / s, p["alpha"].log() + s.log()

    (a, eta), (b, zeta) = invariants(POINT), invariants(other)
    angle = torch.acos((a * b).mean())
    e = zeta - eta
    square = 38 * angle**2 + e.square().sum() - e.sum().square() / (38 + 8)
    torch.testing.assert_close(geometry.dist(POINT, other), square.sqrt(), rtol=1e-8, atol=0)
    torch.testing.assert_close(
        geometry.dist(POINT, IRT.act(torch.tensor([1.0, 5.0]).double(), POINT)),
        torch.zeros(()).double(),
        rtol=0,
        atol=1e-7,
    )


def test_opposite_locations_have_finite_distances_and_gradients():
    x = {name: t.clone().requires_grad_() for name, t in POINT.items()}
    y = {"theta": -POINT["theta"], "beta": -POINT["beta"], "alpha": POINT["alpha"]}
    value = IRT.geometry().dist(x, y)
    torch.testing.assert_close(value.detach(), torch.pi * torch.tensor(38.0).double().sqrt())
    for slope in torch.autograd.grad(value, list(x.values())):
        assert torch.isfinite(slope).all()


def test_degenerate_blocks_are_named():
    for change, block in (({"theta": torch.ones(30).double()}, "theta"), ({"alpha": -POINT["alpha"]}, "alpha")):
        with pytest.raises(mid.DegeneratePointError, match=f"block '{block}'"):
            mid.Section(IRT)({**POINT, **change})


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="at least one"):
        mid.LocationScale(locations=())
    with pytest.raises(ValueError, match="twice"):
        mid.LocationScale(locations=("a",), scales=("a",))
    assert mid.LocationScale("mu", "sigma") == mid.LocationScale(locations=["mu"], scales=["sigma"])


def test_a_positive_block_never_leaves_its_domain_under_attach():
    p = {name: torch.nn.Parameter(t.clone()) for name, t in POINT.items()}
    optimizer = torch.optim.SGD(p.values(), lr=0.5)
    mid.attach(optimizer, IRT, p)
    with torch.no_grad():
        target = logits({**POINT, "alpha": POINT["alpha"].flip(0)})
    for _ in range(50):
        optimizer.zero_grad()
        (logits(p) - target).square().mean().backward()
        optimizer.step()
        assert (p["alpha"] > 0).all()
        assert abs(float(p["theta"].detach().mean())) < 1e-12
        assert abs(float(p["theta"].detach().std(correction=0)) - 1) < 1e-12


def test_float32_far_from_the_origin_keeps_its_digits():
    x = {"theta": 1e4 + randn(1000), "beta": 1e4 + randn(50, seed=1), "alpha": positive(50)}
    narrow = mid.Section(IRT)({name: t.float() for name, t in x.items()})
    wide = mid.Section(IRT)(x)
    entry = 1e4 * torch.finfo(torch.float32).eps  # rounding of the input
    torch.testing.assert_close(narrow["theta"].double(), wide["theta"], rtol=0, atol=4 * entry)


@pytest.mark.compile
def test_section_compiles_without_graph_breaks():
    found = torch.compile(mid.Section(IRT), fullgraph=True)(POINT)
    for name, t in mid.Section(IRT)(POINT).items():
        torch.testing.assert_close(found[name], t)


def test_weights_of_blocks_that_it_does_not_name_are_for_others():
    group = mid.LocationScale(("mu",), scales=("sigma",))
    x, to = ({"mu": randn(6, seed=k), "sigma": positive(4, seed=k), "free": randn(3)} for k in (0, 5))
    weights = {"mu": torch.arange(1.0, 7.0), "free": torch.arange(1.0, 4.0)}
    own = {"mu": weights["mu"]}
    torch.testing.assert_close(mid.Section(group, weights, at=to)(x), mid.Section(group, own, at=to)(x))
    torch.testing.assert_close(mid.Section(group, weights)(x), mid.Section(group, own)(x))
    start = {n: t.clone() for n, t in x.items()}
    torch.testing.assert_close(group.settler(weights)(x).point, group.canonical(start, own).point)
