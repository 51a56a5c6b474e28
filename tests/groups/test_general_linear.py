import pytest
import torch
from cases import randn

import manifoldid as mid
from manifoldid.groups._thin import ThinMatrices
from manifoldid.groups.geometry import Geometry
from manifoldid.groups.orbit import flatten_basis
from manifoldid.points import flatten
from manifoldid.quotient.frechet import frechet_mean

GROUP = mid.GeneralLinear("A", "B")
POINT = {"A": randn(8, 3), "B": randn(6, 3, seed=1)}

OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2),
    "SGD with Nesterov momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
}


def moved(point, condition, seed=5):
    """(A G, B G^-T) with a G of that condition number."""
    r = point["A"].shape[-1]
    u, _, v = torch.linalg.svd(randn(r, r, seed=seed))
    g = u @ torch.logspace(0, torch.tensor(condition).log10(), r, dtype=torch.float64).diag() @ v / condition**0.5
    return {"A": point["A"] @ g, "B": torch.linalg.solve(g.mT, point["B"], left=False)}


def products(start, make, steps=50, group=GROUP):
    """A B' over the steps of an attached run."""
    target = randn(start["A"].shape[0], start["B"].shape[0], seed=9)
    p = {name: torch.nn.Parameter(t.clone()) for name, t in start.items()}
    optimizer = make(list(p.values()))
    mid.attach(optimizer, group, p)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        (p["A"] @ p["B"].mT - target).square().mean().backward()
        optimizer.step()
        path.append((p["A"] @ p["B"].mT).detach().clone())
    return torch.stack(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMISERS)
def test_attached_runs_do_not_know_the_balance_of_their_start(name):
    path = products(POINT, OPTIMISERS[name])
    other = products(moved(POINT, condition=100.0), OPTIMISERS[name])
    torch.testing.assert_close(other, path, rtol=0, atol=1e-9)


def test_the_section_is_balanced_and_ordered():
    x = {name: torch.stack([t, 3 * t.flip(0)]) for name, t in POINT.items()}
    y = mid.Section(GROUP)(x)
    gram = [y[name].mT @ y[name] for name in "AB"]
    torch.testing.assert_close(*gram, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        gram[0], torch.diag_embed(torch.linalg.svdvals(x["A"] @ x["B"].mT)[..., :3]), rtol=0, atol=1e-11
    )
    assert (y["A"].gather(-2, y["A"].abs().argmax(-2, keepdim=True)) > 0).all()


def test_frames_lead_back_for_every_determinant():
    for scale in (1.0, -1.0):
        x = GROUP.act((scale * torch.eye(3) - torch.eye(3)).double().flatten(), POINT)
        section = mid.Section(GROUP)
        back = GROUP.act(section.frame(x), section(x))
        for name in "AB":
            torch.testing.assert_close(back[name], x[name], rtol=0, atol=1e-11)


def test_the_layout_of_peft_is_the_transposed_one():
    group = mid.GeneralLinear("A", "B", rank_dims=(0, -1))
    turned = {"A": POINT["A"].mT, "B": POINT["B"]}
    here, there = mid.Section(group)(turned), mid.Section(GROUP)(POINT)
    torch.testing.assert_close(here["A"].mT, there["A"])
    torch.testing.assert_close(here["B"], there["B"])
    w = {"A": randn(8, seed=3).exp(), "B": randn(6, seed=4).exp()}
    here, there = mid.Section(group, weights=w)(turned), mid.Section(GROUP, weights=w)(POINT)
    torch.testing.assert_close(here["A"].mT, there["A"])


def test_projection_is_orthogonal_to_the_orbit_in_the_preconditioned_metric():
    u = {"A": randn(8, 3, seed=2), "B": randn(6, 3, seed=3)}
    a, b = POINT["A"], POINT["B"]
    geometry = GROUP.geometry()
    by_hand = torch.trace(b.mT @ b @ u["A"].mT @ u["A"]) + torch.trace(a.mT @ a @ u["B"].mT @ u["B"])
    torch.testing.assert_close(geometry.inner(POINT, u, u), by_hand)
    horizontal = geometry.horizontal(POINT, u)
    basis = GROUP.vertical_basis(POINT)
    for k in range(9):
        vertical = {name: basis[name][k] for name in "AB"}
        assert abs(float(geometry.inner(POINT, horizontal, vertical))) < 1e-12
    rest = flatten({name: u[name] - horizontal[name] for name in "AB"})
    rows = flatten_basis(basis, POINT, 0)
    fitted = torch.linalg.lstsq(rows.mT, rest[:, None]).solution
    torch.testing.assert_close((rows.mT @ fitted)[:, 0], rest)


def test_gradient_is_that_of_scaled_gradient_descent():
    p = {name: t.clone().requires_grad_() for name, t in POINT.items()}
    (p["A"] @ p["B"].mT - randn(8, 6, seed=4)).square().sum().backward()
    slope = {name: t.grad for name, t in p.items()}
    found = GROUP.geometry().gradient(POINT, slope)
    a, b = POINT["A"], POINT["B"]
    torch.testing.assert_close(found["A"], slope["A"] @ torch.linalg.inv(b.mT @ b))
    torch.testing.assert_close(found["B"], slope["B"] @ torch.linalg.inv(a.mT @ a))


def lora_start(r=3):
    return {"A": randn(8, r), "B": torch.zeros(6, r).double()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_zero_factor_stays_where_it_is_and_trains(name, dtype):
    start = {k: t.to(dtype) for k, t in lora_start().items()}
    p = {k: torch.nn.Parameter(t.clone()) for k, t in start.items()}
    optimizer = OPTIMISERS[name](list(p.values()))
    mid.attach(optimizer, GROUP, p)
    assert torch.equal(p["A"].detach(), start["A"])
    target = 0.1 * randn(8, 6, seed=3).to(dtype)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (p["A"] @ p["B"].mT - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.isfinite(t).all() for t in p.values())
    geometry = GROUP.geometry()
    step = geometry.horizontal({k: t.detach() for k, t in p.items()}, {k: torch.ones_like(t) for k, t in p.items()})
    assert all(torch.isfinite(t).all() for t in step.values())


def test_a_move_along_the_orbit_of_a_zero_factor_is_vertical():
    x = lora_start()
    u = {"A": x["A"] @ randn(3, 3, seed=4), "B": torch.zeros(6, 3).double()}
    for t in GROUP.geometry().horizontal(x, u).values():
        torch.testing.assert_close(t, torch.zeros_like(t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", [lora_start(), POINT, {"A": POINT["A"], "B": 1e-4 * POINT["B"]}])
def test_an_attached_step_keeps_the_difference_of_the_gram_matrices(start):
    """As gradient flow does; for balanced factors it is zero. And nothing but the gauge is taken out of the step."""
    geometry, size = GROUP.geometry(), 1e-7
    u = {"A": size * randn(8, 3, seed=4), "B": size * randn(6, 3, seed=3)}
    y = geometry.follow(start, {name: t + u[name] for name, t in start.items()})
    before, after = (x["A"].mT @ x["A"] - x["B"].mT @ x["B"] for x in (start, y))
    torch.testing.assert_close(after, before, rtol=0, atol=1e3 * size**2)
    plain = {name: t + u[name] for name, t in start.items()}
    moved_by = max(float((y[name] - plain[name]).abs().max()) for name in "AB")
    assert moved_by > 0.01 * size
    product, wanted = y["A"] @ y["B"].mT, plain["A"] @ plain["B"].mT
    torch.testing.assert_close(product, wanted, rtol=0, atol=1e3 * size**2)


@pytest.mark.parametrize("shape", [(5, 12, 8), (12, 8), (2, 3, 8, 4), (5, 7, 8), (3, 12, 1), (3, 4, 20), (0, 4, 8)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alpha", [1.0, -1.0])
def test_products_of_thin_matrices_are_those_of_matmul_whatever_their_layout(shape, transposed, weighted, alpha):
    a, b = (randn(*shape, seed=k).mT.contiguous().mT if transposed else randn(*shape, seed=k) for k in (1, 2))
    m, y = randn(*shape[:-2], shape[-1], shape[-1], seed=3), b.clone()
    w = torch.linspace(0, 2, shape[-2], dtype=a.dtype)[:, None] if weighted else None
    thin, grams = ThinMatrices(a, transposed, w), a.new_empty(2, *m.shape)
    thin.grams(b, out=grams)
    left = (a if w is None else w * a).mT
    torch.testing.assert_close(grams, torch.stack([left @ a, left @ (b - a)]))
    thin.add_product_(y, m, alpha)
    torch.testing.assert_close(y, b + alpha * a @ m)
    y = b.mT.clone(memory_format=torch.contiguous_format).mT  # another layout than that of a
    thin.add_product_(y, m, alpha)
    torch.testing.assert_close(y, b + alpha * a @ m)


def test_a_small_step_in_float32_changes_the_product_as_in_float64():
    """The gauge is found from differences of Gram matrices, whose rounding must not get into A B'."""
    wide = {"A": randn(768, 8) / 28, "B": 0.03 * randn(512, 8, seed=1) + 0.5}
    step = {name: 1e-4 * randn(*t.shape, seed=3) for name, t in wide.items()}
    wide, step = ({n: t.float().double() for n, t in x.items()} for x in (wide, step))
    errors = []
    for dtype in (torch.float64, torch.float32):
        x = {n: t.to(dtype) for n, t in wide.items()}
        y = GROUP.geometry().follow(x, {n: t + step[n].to(dtype) for n, t in x.items()})
        plain = (wide["A"] + step["A"]) @ (wide["B"] + step["B"]).mT
        errors.append(float((y["A"].double() @ y["B"].double().mT - plain).norm() / plain.norm()))
    # second order in the step, and the rounding of the entries themselves
    assert errors[1] < errors[0] + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_from_a_zero_factor_attached_trains_as_well_as_plain(name):
    """The gauge is all that differs: gradient flow has no part along it, and Adam's is a detour."""
    target = randn(8, 3, seed=3) @ randn(3, 6, seed=4)

    def last_loss(attached: bool) -> float:
        p = {k: torch.nn.Parameter(t.clone() / 8**0.5) for k, t in lora_start().items()}
        optimizer = OPTIMISERS[name](list(p.values()))
        optimizer.param_groups[0]["lr"] = {"SGD": 0.1, "AdamW": 0.02}[name]
        if attached:
            mid.attach(optimizer, GROUP, p)
        losses = []
        for _ in range(150):
            optimizer.zero_grad()
            loss = (p["A"] @ p["B"].mT - target).square().mean()
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
        return losses[-1]

    assert last_loss(attached=True) < 1.05 * last_loss(attached=False)


def test_damping_ends_with_full_rank():
    """From the step on that gives both factors full rank, runs are equivariant."""
    x = lora_start()
    x["B"][:, 0] = 1e-6 * randn(6, seed=3)
    damped = GROUP.geometry().inner(x, {"A": x["A"], "B": 0 * x["B"]}, {"A": x["A"], "B": 0 * x["B"]})
    assert damped > 1
    x["B"] = 1e-6 * randn(6, 3, seed=3)
    exact = GROUP.geometry().inner(x, {"A": x["A"], "B": 0 * x["B"]}, {"A": x["A"], "B": 0 * x["B"]})
    torch.testing.assert_close(exact, torch.trace(x["B"].mT @ x["B"] @ x["A"].mT @ x["A"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {"A": 0 * x["A"], "B": 0 * x["B"]},
        lambda x: {"A": x["A"][:, :1].expand(8, 3), "B": x["B"]},
        lambda x: {"A": x["A"], "B": x["B"][:, :1].expand(6, 3)},
        lambda x: {"A": x["A"][:2], "B": x["B"]},
        lambda x: {"A": x["A"][:, :1].expand(8, 3), "B": 0 * x["B"]},
    ],
)
def test_other_rank_loss_raises(change):
    x = change(POINT)
    with pytest.raises(mid.DegeneratePointError, match="without full rank"):
        mid.Section(GROUP)(x)
    p = {name: torch.nn.Parameter(t.clone()) for name, t in x.items()}
    with pytest.raises(mid.DegeneratePointError, match="without full rank"):
        mid.attach(torch.optim.SGD(list(p.values()), lr=0.1), GROUP, p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_singular_values_have_finite_gradients(dtype):
    x = {"A": torch.eye(5, 2, dtype=dtype), "B": torch.eye(4, 2, dtype=dtype)}
    p = {name: t.clone().requires_grad_() for name, t in x.items()}
    y = mid.Section(GROUP)(p)
    aligned = GROUP.closest(p, {name: t.flip(0) for name, t in x.items()}).point
    for value in (y["A"].pow(3).sum() + y["B"].pow(3).sum(), aligned["A"].pow(3).sum()):
        for slope in torch.autograd.grad(value, list(p.values())):
            assert torch.isfinite(slope).all()


def test_layers_and_heads_are_batches():
    x = {"A": randn(2, 4, 8, 3), "B": randn(2, 4, 6, 3, seed=1)}
    y, one = mid.Section(GROUP)(x), mid.Section(GROUP)({name: t[1, 2] for name, t in x.items()})
    for name in "AB":
        torch.testing.assert_close(y[name][1, 2], one[name])


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="equal ranks"):
        mid.Section(GROUP)({"A": randn(8, 3), "B": randn(6, 2)})
    with pytest.raises(ValueError, match="`rank_dims`"):
        mid.GeneralLinear("A", "B", rank_dims=(2, 0))
    with pytest.raises(ValueError, match="different blocks"):
        mid.GeneralLinear("A", "A")


def test_an_ensemble_of_factorisations_is_aligned():
    centre = {"A": randn(8, 2), "B": randn(6, 2, seed=1)}
    members = [
        moved({name: t + 0.01 * randn(*t.shape, seed=20 + k) for name, t in centre.items()}, 5.0, seed=k)
        for k in range(8)
    ]
    ensemble = mid.Ensemble(members, GROUP)
    for spread in ensemble.std().values():
        assert float(spread.max()) < 0.1


def test_weights_of_rows_are_those_of_columns_in_the_layout_of_peft():
    """One set of members in both layouts, with weights, has one mean, one metric and one closest representative."""
    weights = {"A": torch.linspace(0.5, 2, 8).double(), "B": torch.linspace(1, 3, 6).double()}
    peft = mid.GeneralLinear("A", "B", rank_dims=(0, -1))

    def turned(x):
        return {"A": x["A"].mT, "B": x["B"]}

    centre = {"A": randn(8, 2), "B": randn(6, 2, seed=1)}
    members = [
        moved({n: t + 0.02 * randn(*t.shape, seed=20 + k) for n, t in centre.items()}, 5.0, seed=k) for k in range(5)
    ]
    stacked = {name: torch.stack([m[name] for m in members]) for name in "AB"}
    mean, other = frechet_mean(GROUP, stacked, weights), frechet_mean(peft, turned(stacked), weights)
    torch.testing.assert_close(other["A"].mT, mean["A"])
    torch.testing.assert_close(other["B"], mean["B"])
    x, u = members[0], members[1]
    torch.testing.assert_close(
        Geometry(peft, weights).inner(turned(x), turned(u), turned(u)), Geometry(GROUP, weights).inner(x, u, u)
    )
    nested = mid.Product(peft, skill=mid.Translation())
    points = {**turned(stacked), "skill": randn(5, 4)}
    again = frechet_mean(nested, points, {**weights, "skill": torch.arange(1.0, 5.0)})
    torch.testing.assert_close(again["A"].mT, mean["A"])


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_section_and_projection_compile_without_graph_breaks():
    project = torch.compile(GROUP.geometry().horizontal, fullgraph=True)
    section = torch.compile(mid.Section(GROUP), fullgraph=True)
    for name in "AB":
        torch.testing.assert_close(
            project(POINT, POINT)[name], GROUP.geometry().horizontal(POINT, POINT)[name], rtol=0, atol=1e-12
        )
        torch.testing.assert_close(section(POINT)[name], mid.Section(GROUP)(POINT)[name])
