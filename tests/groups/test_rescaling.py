import copy
import warnings

import pytest
import torch
from cases import randn

import manifoldid as mid
from manifoldid.groups.geometry import Geometry

GROUP = mid.Rescaling(incoming=("w", "b"), outgoing=("v",))
POINT = {"w": randn(5, 3), "b": randn(5, seed=1), "v": randn(2, 5, seed=2)}
INPUTS = randn(20, 3, seed=9)


def network(p):
    return torch.relu(INPUTS.to(p["w"].dtype) @ p["w"].mT + p["b"]) @ p["v"].mT


def norms(p):
    return torch.cat([p["w"], p["b"][:, None]], dim=1).norm(dim=1), p["v"].norm(dim=0)


def test_the_section_is_balanced_and_the_network_the_same():
    y = mid.Section(GROUP)(POINT)
    torch.testing.assert_close(*norms(y))
    torch.testing.assert_close(network(y), network(POINT))


def test_channels_of_convolutions_are_units():
    group = mid.Rescaling(incoming=("k1", "b1"), outgoing=("k2",), dims={"k2": 1})
    x = {"k1": randn(4, 3, 3, 3), "b1": randn(4, seed=1), "k2": randn(2, 4, 3, 3, seed=2)}
    images = randn(2, 3, 8, 8, seed=3)

    def convolutions(p):
        return torch.conv2d(torch.conv2d(images, p["k1"], p["b1"]).relu(), p["k2"])

    mid.check_invariance(convolutions, x, group)
    y = mid.Section(group)(x)
    torch.testing.assert_close(convolutions(y), convolutions(x))
    into = torch.cat([y["k1"].flatten(1), y["b1"][:, None]], dim=1).norm(dim=1)
    torch.testing.assert_close(into, y["k2"].transpose(0, 1).flatten(1).norm(dim=1))


def test_several_outgoing_blocks_count_together():
    group = mid.Rescaling(incoming=("w",), outgoing=("mean", "scale"))
    x = {"w": randn(4, 3), "mean": randn(2, 4, seed=1), "scale": randn(4, seed=2)}
    y = mid.Section(group)(x)
    out = torch.cat([y["mean"], y["scale"][None]]).norm(dim=0)
    torch.testing.assert_close(y["w"].norm(dim=1), out)


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [
        ({"w": (4, 3), "b": (4,), "v": (2, 4)}, 0),
        ({"w": (4, 4, 3), "b": (4, 4), "v": (4, 4, 4)}, 1),  # a bias says what is batch
        ({"w": (3, 5, 3), "b": (3, 5), "v": (3, 2, 5)}, 1),
        ({"w": (2, 3, 5, 3), "b": (2, 3, 5), "v": (2, 3, 2, 5)}, 2),
        ({"w": (4, 3), "b": (4,), "v": (4,)}, 0),
    ],
)
def test_the_number_of_batch_dimensions_follows_from_the_shapes(shapes, batch):
    assert GROUP.batch_ndim({name: torch.zeros(shape) for name, shape in shapes.items()}) == batch


def test_square_layers_without_bias_are_one_point_unless_said_otherwise():
    x = {"w": torch.zeros(4, 4), "v": torch.zeros(4, 4)}
    assert mid.Rescaling(incoming="w", outgoing="v").batch_ndim(x) == 0
    assert mid.Rescaling(incoming="w", outgoing="v", event_dims={"w": 1}).batch_ndim(x) == 1


def test_blocks_with_different_units_are_refused():
    with pytest.raises(ValueError, match="same number of units"):
        mid.Section(GROUP)({**POINT, "v": randn(5, 2)})
    with pytest.raises(ValueError, match="twice"):
        mid.Rescaling(incoming=("w",), outgoing=("w",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dead", ["incoming", "outgoing", "both"])
def test_a_dead_unit_is_left_alone_with_one_warning(dead, dtype):
    group = mid.Rescaling(incoming=("w", "b"), outgoing=("v",))
    x = {name: t.to(dtype).clone() for name, t in POINT.items()}
    if dead != "outgoing":
        x["w"][1], x["b"][1] = 0, 0
    if dead != "incoming":
        x["v"][:, 1] = 0
    section, p = mid.Section(group), {name: t.clone().requires_grad_() for name, t in x.items()}
    with pytest.warns(UserWarning, match="1 dead hidden unit"):
        y = section(p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = section(p)
    for name, unit in (("w", 1), ("b", 1), ("v", (slice(None), 1))):
        assert torch.equal(y[name].detach()[unit], x[name][unit])
    torch.testing.assert_close(network(y), network(x))
    for slope in torch.autograd.grad(torch.cat([t.flatten() for t in y.values()]).pow(3).sum(), list(p.values())):
        assert torch.isfinite(slope).all()
    u = {name: torch.ones_like(t) for name, t in x.items()}
    geometry = group.geometry()
    for step in (
        geometry.horizontal(x, u),
        geometry.exp(x, u),
        geometry.log(x, {n: t.flip(0) for n, t in x.items() if n != "v"} | {"v": x["v"]}),
    ):
        assert all(torch.isfinite(t).all() for t in step.values())


def test_training_with_a_dead_unit_is_finite_and_leaves_it_dead():
    group = mid.Rescaling(incoming=("w", "b"), outgoing=("v",))
    start = {name: t.clone() for name, t in POINT.items()}
    start["w"][1], start["b"][1], start["v"][:, 1] = 0, 0, 0
    p = {name: torch.nn.Parameter(t) for name, t in start.items()}
    optimizer = torch.optim.Adam(p.values(), lr=1e-2)
    with pytest.warns(UserWarning, match="dead"):
        mid.attach(optimizer, group, p)
    target = network(POINT)
    for _ in range(20):
        optimizer.zero_grad()
        (network(p) - target).square().mean().backward()
        optimizer.step()
    assert all(torch.isfinite(t).all() for t in p.values())
    assert p["v"][:, 1].abs().max() == 0


def test_closed_forms_agree_with_what_follows_from_the_action():
    u = {name: randn(*t.shape, seed=5 + k) for k, (name, t) in enumerate(POINT.items())}
    closed, derived = GROUP.geometry(), Geometry(GROUP)
    torch.testing.assert_close(closed.inner(POINT, u, u), derived.inner(POINT, u, u))
    for name in POINT:
        torch.testing.assert_close(closed.horizontal(POINT, u)[name], derived.horizontal(POINT, u)[name])
        torch.testing.assert_close(closed.gradient(POINT, u)[name], derived.gradient(POINT, u)[name])


def test_units_of_opposite_sign_are_joined_through_the_dead_unit():
    group, one = mid.Rescaling(incoming="w", outgoing="v"), torch.ones(1, 1).double()
    x, y = {"w": 2 * one, "v": 2 * one}, {"w": -one, "v": one}
    torch.testing.assert_close(group.geometry().dist(x, y)[()], 2**0.5 * (torch.tensor(2.0).double() + 1))


def test_balanced_networks_are_not_equal_to_permuted_ones_but_align():
    """Mixed finite and continuous parts: balance by the section, then permute hidden units."""
    order = torch.tensor([2, 0, 4, 1, 3])
    permuted = {"w": POINT["w"][order], "b": POINT["b"][order], "v": POINT["v"][:, order]}
    members = []
    for k, p in enumerate([POINT, permuted] * 4):
        noisy = {name: t + 0.01 * randn(*t.shape, seed=k) for name, t in p.items()}
        members.append(mid.Section(GROUP)(GROUP.act(randn(5, seed=k), noisy)))
    ensemble = mid.Ensemble(members, mid.Permutation(dim={"w": 0, "b": 0, "v": -1}))
    assert max(float(t.max()) for t in ensemble.std().values()) < 0.05


def test_groups_are_values():
    assert copy.deepcopy(GROUP) == GROUP
    assert hash(GROUP) == hash(mid.Rescaling(incoming=["w", "b"], outgoing="v"))


@pytest.mark.compile
def test_section_compiles_without_graph_breaks():
    found = torch.compile(mid.Section(GROUP), fullgraph=True)(POINT)
    for name, t in mid.Section(GROUP)(POINT).items():
        torch.testing.assert_close(found[name], t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
@pytest.mark.parametrize(
    "weights", [None, {"w": torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0]), "v": torch.tensor([1.0, 3.0])}]
)
def test_putting_networks_back_in_place_gives_the_closed_form(weights, batch, dtype):
    settle = GROUP.settler(weights)
    for seed in (0, 5):
        x = {n: randn(*batch, *t.shape, seed=seed + k).to(dtype) for k, (n, t) in enumerate(POINT.items())}
        x["v"][..., 2] = 0  # a dead unit
        wanted = GROUP.canonical({n: t.double() for n, t in x.items()}, weights)
        form = settle(x)
        assert form.point is x
        tolerance = 8 * torch.finfo(dtype).eps  # norms of a few numbers, their logarithms, and products
        for n, t in x.items():
            torch.testing.assert_close(t.double(), wanted.point[n], rtol=tolerance, atol=0)
        torch.testing.assert_close(form.xi.double(), wanted.xi, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e-30, 1e30])
def test_networks_whose_squares_are_no_numbers_are_left_to_the_closed_form(wrong):
    x = {n: t.float() for n, t in POINT.items()}
    x["w"][1], x["b"][1] = wrong, 0
    before = {n: t.clone() for n, t in x.items()}
    assert GROUP.settler()(x) is None
    for n, t in x.items():
        torch.testing.assert_close(t, before[n], rtol=0, atol=0, equal_nan=True)


def test_blocks_without_weights_of_a_unit_count_for_nothing():
    group = mid.Rescaling(("w", "b"), ("v",))
    x = {"w": torch.zeros(3, 0), "b": torch.tensor([0.0, 1.0, 2.0]), "v": torch.ones(2, 3)}  # the first unit is dead
    wanted = group.canonical(x)
    form = group.settler()(x)
    torch.testing.assert_close(form.point, wanted.point)


@pytest.mark.parametrize(
    "x",
    [
        {"w": 3e-22 * randn(3, 4).float(), "v": randn(2, 3)},
        {"w": torch.full((1, 10**6), 1.1e-22), "v": torch.ones(2, 1)},
    ],
    ids=["two dtypes", "many small weights"],
)
def test_squares_that_underflow_are_left_to_the_closed_form(x):
    assert mid.Rescaling(("w",), ("v",)).settler()(x) is None


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("group", "shapes"),
    [
        (mid.Rescaling(("w",), ("v",)), {"w": (3, 2, 2, 2), "v": (4, 3)}),
        (mid.Rescaling(("w",), ("v",), dims={"v": 1}), {"w": (3, 2, 2, 2), "v": (4, 3, 2, 2)}),
        (mid.Rescaling(("w",), ("v",)), {"w": (3,), "v": (3,)}),
    ],
    ids=["convolution and matrix", "convolutions", "vectors"],
)
@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
def test_as_many_networks_as_there_are_units_are_not_taken_for_one(group, shapes, count):
    points = [
        {n: torch.nn.Parameter(randn(*shape, seed=9 * k + j)) for j, (n, shape) in enumerate(shapes.items())}
        for k in range(count)
    ]
    optimizer = torch.optim.SGD([p for x in points for p in x.values()], lr=0.1)
    for x in points:
        mid.attach(optimizer, group, x)
    before = [{n: p.detach().clone() for n, p in x.items()} for x in points]
    for x in points:
        for p in x.values():
            p.grad = torch.zeros_like(p)
    optimizer.step()
    for x, start in zip(points, before, strict=True):
        torch.testing.assert_close({n: p.detach() for n, p in x.items()}, start)


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("everywhere", [False, True])
def test_weights_that_are_not_finite_are_no_dead_units(everywhere, bad):
    points = {n: torch.nn.Parameter(t.clone()) for n, t in POINT.items()}
    optimizer = torch.optim.Adam(points.values())
    mid.attach(optimizer, GROUP, points)
    for p in points.values():
        p.grad = torch.full_like(p, bad) if everywhere else torch.ones_like(p)
    points["w"].grad[1, 2] = bad
    with pytest.raises(ValueError, match="must be finite"):
        optimizer.step()
    broken = {**POINT, "w": POINT["w"].index_fill(0, torch.tensor([1]), bad)}
    with pytest.raises(ValueError, match="must be finite"):
        mid.Section(GROUP)(broken)
