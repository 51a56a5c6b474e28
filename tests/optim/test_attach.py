"""`attach`: equivariance, no drift, refusals, and what people do with optimisers."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import manifoldid as mid
from manifoldid.groups import Canonical

F64 = {"dtype": torch.float64}
BLOCKS = torch.tensor([7, 7, 7, 7, -1, -1, -1, -1])
OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=2),
    "lbfgs-wolfe": lambda p: torch.optim.LBFGS(p, max_iter=2, line_search_fn="strong_wolfe"),
}


class AsinhShift(mid.GaugeGroup):
    """A gauge that gives nothing but its action."""

    dim = 1

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return torch.sinh(torch.asinh(x) + xi)


GROUPS = {
    "translation": (mid.Translation(), lambda x: x + 50.0),
    "scaling": (mid.Scaling(), lambda x: 30.0 * x),
    "affine": (mid.Affine(), lambda x: 30.0 * x - 50.0),
    "affine-blocks": (mid.Affine(BLOCKS), lambda x: torch.cat([3 * x[:4] + 1, 0.1 * x[4:] - 9])),
    "common-scale": (mid.Affine(BLOCKS, common_scale=True), lambda x: torch.cat([3 * x[:4] + 1, 3 * x[4:] - 9])),
    "shift": (
        mid.Shift(torch.arange(16.0, **F64).reshape(2, 8) ** 0.5),
        lambda x: x + 3 * torch.arange(8.0, **F64) ** 0.5,
    ),
}


def start(seed: int = 0) -> Tensor:
    return torch.randn(8, generator=torch.Generator().manual_seed(seed), **F64)


def train(group: mid.GaugeGroup, x: Tensor, make, steps: int = 25) -> Tensor:
    """The path of an attached run towards another point of the quotient."""
    p = nn.Parameter(x.clone())
    optimiser = make([p])
    mid.attach(optimiser, group, p)
    section, path = mid.Section(group), []
    target = section(start(1).exp() if group.positive else start(1))

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (section(p) - target).square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        if isinstance(optimiser, torch.optim.LBFGS):
            optimiser.step(closure)
        else:
            closure()
            optimiser.step()
        path.append(p.detach().clone())
    return torch.stack(path)


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("group", GROUPS)
def test_runs_from_x_and_from_gx_are_the_same_and_stay_on_the_section(group, optimiser):
    gauge, move = GROUPS[group]
    path, moved = train(gauge, start(), OPTIMISERS[optimiser]), train(gauge, move(start()), OPTIMISERS[optimiser])
    torch.testing.assert_close(moved, path, rtol=0, atol=1e-9)
    torch.testing.assert_close(mid.Section(gauge)(path), path, rtol=0, atol=1e-12)
    assert (path[-1] - path[0]).abs().max() > 1e-4  # it does move


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_positive_parameters_are_stepped_in_their_logarithm(optimiser):
    """Attached to PositiveScaling, an optimiser on x does what it does on z = log x attached to Translation."""
    gauge = mid.PositiveScaling()
    path = train(gauge, start().exp(), OPTIMISERS[optimiser])
    z = nn.Parameter(start())
    optimiser_z = OPTIMISERS[optimiser]([z])
    mid.attach(optimiser_z, mid.Translation(), z)
    target = gauge.canonical(start(1).exp()).point

    def closure() -> Tensor:
        optimiser_z.zero_grad()
        loss = ((z - z.mean()).exp() - target).square().sum()
        loss.backward()
        return loss

    for k in range(25):
        optimiser_z.step(closure)
        torch.testing.assert_close(path[k], z.detach().exp(), rtol=1e-9, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["sgd", "adam", "lbfgs-wolfe"])
def test_groups_that_only_give_their_action_are_equivariant(optimiser):
    gauge = AsinhShift()
    moved = gauge.act(torch.tensor([1.5], **F64), start())
    path, other = (train(gauge, x, OPTIMISERS[optimiser], steps=8) for x in (start(), moved))
    torch.testing.assert_close(other, path, rtol=0, atol=1e-9)


def test_displacements_of_curved_groups_are_horizontal():
    gauge, p = AsinhShift(), nn.Parameter(start())
    optimiser = torch.optim.SGD([p], lr=1e-3, momentum=0.9)
    mid.attach(optimiser, gauge, p)
    for _ in range(5):
        old = p.detach().clone()
        optimiser.zero_grad()
        (torch.asinh(p)[0] - torch.asinh(p)[3]).square().backward()
        optimiser.step()
        form = gauge.canonical(old)
        step = gauge.undo(form.xi, p.detach()) - form.point  # retracted at the representative: a straight line there
        vertical = gauge.vertical_basis(form.point)[0]
        assert (step @ vertical).abs() <= 1e-12 * step.norm() * vertical.norm()


@pytest.mark.slow
@pytest.mark.parametrize("group", ["translation", "scaling", "affine"])
def test_no_drift_over_2000_steps_in_float32(group):
    gauge, _ = GROUPS[group]
    p = nn.Parameter(start().float() * 100 + 1000)
    optimiser = torch.optim.Adam([p], lr=1e-2)
    mid.attach(optimiser, gauge, p)
    section, target = mid.Section(gauge), mid.Section(gauge)(start(1).float())
    worst = 0.0
    for _ in range(2000):
        optimiser.zero_grad()
        (section(p) - target).square().sum().backward()
        optimiser.step()
        q = p.detach()
        worst = max(worst, float((section(q.double()) - q).abs().max()))
    # Rounding of mean and size of 8 numbers below 32 (translation) or 3 (the others).
    assert worst <= 8 * torch.finfo(torch.float32).eps * (1000 if group == "translation" else 3)


def test_neutral_a_loss_that_does_not_see_the_gauge_has_the_same_steps_as_without():
    """On the section, plain SGD on an invariant loss keeps the mean already: attached and bare runs coincide."""
    x = start() - start().mean()
    runs = []
    for attached in (False, True):
        p = nn.Parameter(x.clone())
        optimiser = torch.optim.SGD([p], lr=1e-2, momentum=0.9)
        if attached:
            mid.attach(optimiser, mid.Translation(), p)
        for _ in range(20):
            optimiser.zero_grad()
            (p[:, None] - p - 1).square().mean().backward()
            optimiser.step()
        runs.append(p.detach())
    torch.testing.assert_close(*runs, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------------------ kinds of params


def test_dicts_lists_batches_and_weights():
    rows, point = (
        nn.Parameter(torch.randn(3, 5, **F64)),
        {"skill": nn.Parameter(start()), "home": nn.Parameter(torch.ones((), **F64))},
    )
    optimiser = torch.optim.Adam([rows, *point.values()], lr=0.1)
    w = torch.tensor([1.0, 0, 0, 0, 2], **F64)
    mid.attach(optimiser, mid.Translation(), [rows], weights=w)
    mid.attach(optimiser, mid.Product(skill=mid.Translation()), nn.ParameterDict(point))
    for _ in range(3):
        optimiser.zero_grad()
        loss = (rows[:, :1] - rows).square().sum() + (point["skill"][:1] - point["skill"]).square().sum()
        (loss + 0.2 * point["home"]).backward()
        optimiser.step()
    torch.testing.assert_close(rows.detach() @ w, torch.zeros(3, **F64), rtol=0, atol=1e-14)
    assert point["skill"].detach().mean().abs() < 1e-14
    assert float(point["home"].detach()) < 0.9  # a block that is not named is free


@pytest.mark.slow
def test_a_thousand_parameters_share_one_hook_and_one_pass():
    params = [nn.Parameter(torch.randn(4)) for _ in range(1000)]
    optimiser = torch.optim.Adam(params, lr=0.1)
    for p in params:
        mid.attach(optimiser, mid.Translation(), p)
    assert len(optimiser._optimizer_step_post_hooks) == 1
    assert len(optimiser.manifoldid_attachment.buckets) == 1
    sum((p[0] - p[1]) ** 2 for p in params).backward()
    optimiser.step()
    assert max(float(p.detach().mean().abs()) for p in params) < 1e-6


def test_parameters_without_gradient_do_not_move():
    p, q = nn.Parameter(start()), nn.Parameter(start(1))
    optimiser = torch.optim.Adam([p, q], lr=0.1)
    mid.attach(optimiser, mid.Scaling(), [p, q])
    with torch.no_grad():
        q += 1  # off the section
    before = q.detach().clone()
    (p[0] / p[1]).backward()
    optimiser.step()
    assert torch.equal(q, before)


def test_storage_and_gradient_stay_where_they_are():
    p = nn.Parameter(start().exp())
    optimiser = torch.optim.Adam([p], lr=0.1)
    mid.attach(optimiser, mid.PositiveScaling(), p)
    pointer = p.data_ptr()
    (p[0] / p[1]).backward()
    grad, value = p.grad, p.grad.clone()
    optimiser.step()
    assert p.data_ptr() == pointer
    assert p.grad is grad
    assert torch.equal(grad, value)


@pytest.mark.parametrize("group", [mid.PositiveScaling(), mid.Scaling()])
def test_the_closure_sees_the_parameter_itself(group):
    p = nn.Parameter(start().exp())
    optimiser = torch.optim.Adam([p], lr=0.1)
    mid.attach(optimiser, group, p)
    seen = []

    def closure() -> Tensor:
        seen.append(p.detach().clone())
        optimiser.zero_grad()
        loss = (p[0] / p[1]).square()
        loss.backward()
        return loss

    before = p.detach().clone()
    loss = optimiser.step(closure)
    assert torch.equal(seen[0], before)
    torch.testing.assert_close(loss.detach(), (before[0] / before[1]).square())


# ------------------------------------------------------------------------------------------------- schedulers and friends


def test_schedulers_parameter_groups_and_detach():
    p, q = nn.Parameter(start()), nn.Parameter(start(1))
    optimiser = torch.optim.SGD([{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.0}], lr=1.0)
    handle = mid.attach(optimiser, mid.Translation(), [p, q])
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.5)
    fixed = q.detach().clone()
    (p[0] - p[1] + q[0] - q[1]).backward()
    optimiser.step()
    scheduler.step()
    assert optimiser.param_groups[0]["lr"] == 0.05
    torch.testing.assert_close(q.detach(), fixed, rtol=0, atol=1e-15)
    assert handle.attached
    handle.detach()
    handle.detach()
    assert not handle.attached
    assert not optimiser._optimizer_step_post_hooks
    assert not optimiser._optimizer_step_pre_hooks
    optimiser.zero_grad()
    p.sum().backward()
    optimiser.step()
    assert p.mean().abs() > 0.01


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("group", [mid.PositiveScaling(), mid.Scaling()])
def test_steps_that_grad_scaler_skips_do_not_move(fused, group):
    p = nn.Parameter(start().float().exp())
    optimiser = torch.optim.Adam([p], lr=0.1, fused=fused)
    mid.attach(optimiser, group, p)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = p.detach().clone()
    scaler.scale((p[0] / p[1]) * float("inf")).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mid.NotInvariantWarning)
        scaler.step(optimiser)
    scaler.update()
    assert torch.equal(p, before)
    optimiser.zero_grad()
    scaler.scale((p[0] / p[1]).square()).backward()
    scaler.step(optimiser)
    assert not torch.equal(p, before)
    assert mid.Section(group)(p).sub(p).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("order", ["build, attach, load", "build, load, attach"])
def test_a_state_dict_resumes_the_same_run(optimiser, order):
    gauge = mid.Affine()
    section, target = mid.Section(gauge), mid.Section(gauge)(start(1))

    def make(x):
        p = nn.Parameter(x.clone())
        return p, OPTIMISERS[optimiser]([p])

    def run(p, o, steps):
        def closure():
            o.zero_grad()
            loss = (section(p) - target).square().sum()
            loss.backward()
            return loss

        for _ in range(steps):
            o.step(closure)

    p, o = make(start())
    mid.attach(o, gauge, p)
    run(p, o, 8)
    buffer = io.BytesIO()
    torch.save({"p": p.detach(), "o": o.state_dict()}, buffer)
    run(p, o, 8)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    q, o2 = make(saved["p"])
    if order == "build, attach, load":
        mid.attach(o2, gauge, q)
        o2.load_state_dict(saved["o"])
    else:
        o2.load_state_dict(saved["o"])
        if optimiser == "asgd":
            with pytest.raises(RuntimeError, match="build the optimiser, attach, then load"):
                mid.attach(o2, gauge, q)
            return
        mid.attach(o2, gauge, q)
    run(q, o2, 8)
    torch.testing.assert_close(q.detach(), p.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimiser", ["momentum", "adam", "rmsprop", "lbfgs-wolfe"])
def test_state_moves_along_with_a_flat_gauge(optimiser):
    """A bare run interrupted by a move g and an equal move of the state goes on as on the section."""
    gauge, scale = mid.Scaling(), 30.0
    section, target = mid.Section(gauge), mid.Section(gauge)(start(1))

    def closure_of(p, o):
        def closure():
            o.zero_grad()
            loss = (section(p) - target).square().sum()
            loss.backward()
            return loss

        return closure

    paths = []
    for factor in (1.0, scale):
        p = nn.Parameter(section(start()))
        o = OPTIMISERS[optimiser]([p])
        for _ in range(3):
            o.step(closure_of(p, o))
        o.zero_grad(set_to_none=True)
        if factor != 1:  # the same state at the point scaled by hand: gradients and their averages divide
            with torch.no_grad():
                p.mul_(factor)
            _rescale_state(o, p, factor)
        mid.attach(o, gauge, p)
        for _ in range(5):
            o.step(closure_of(p, o))
        paths.append(p.detach().clone())
    torch.testing.assert_close(paths[1], paths[0], rtol=0, atol=1e-10)


def _rescale_state(o, p, c):
    state = o.state[p]
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == p.shape and key not in ("d", "prev_flat_grad"):
            state[key] = value * c ** {"exp_avg": -1, "exp_avg_sq": -2, "square_avg": -2, "grad_avg": -1}.get(
                key, 0 if isinstance(o, torch.optim.RMSprop) else -1
            )
    if isinstance(o, torch.optim.LBFGS):
        state["prev_flat_grad"] = state["prev_flat_grad"] / c
        state["d"] = state["d"] * c
        state["old_dirs"] = [y / c for y in state["old_dirs"]]
        state["old_stps"] = [s * c for s in state["old_stps"]]
        state["H_diag"] = state["H_diag"] * c * c


def test_a_copy_stays_attached_and_a_pickle_says_that_it_is_not():
    model = nn.ParameterDict({"x": nn.Parameter(start())})
    optimiser = torch.optim.Adam(model.values(), lr=0.1)
    mid.attach(optimiser, mid.Translation(), model["x"])
    twin, copied = copy.deepcopy((model, optimiser))
    assert copied.param_groups[0]["params"][0] is twin["x"]
    (twin["x"][0] - twin["x"][1]).square().backward()
    copied.step()
    assert twin["x"].mean().abs() < 1e-14
    assert torch.equal(model["x"], mid.Section(mid.Translation())(start()))  # the original did not move
    with pytest.warns(mid.DetachedWarning, match="attach again"):
        pickle.dumps(optimiser)


# ------------------------------------------------------------------------------------------------------------ refusals


def sgd(*params):
    return torch.optim.SGD(params, lr=0.1)


def test_a_wrong_gauge_is_refused_before_anything_moves():
    p = nn.Parameter(start())
    before = p.detach().clone()
    with pytest.raises(mid.NotInvariantError, match="scaling"):
        mid.attach(sgd(p), mid.Affine(), p, loss=lambda: (p[:, None] - p).square().sum())
    assert torch.equal(p, before)
    mid.attach(sgd(p), mid.Translation(), p, loss=lambda: (p[:, None] - p).square().sum())


def test_verification_leaves_parameters_and_generator_alone():
    p, drop = nn.Parameter(start()), nn.Dropout(0.5)
    rng = torch.get_rng_state()
    mid.attach(sgd(p), mid.Translation(), p, loss=lambda: drop(p[:, None] - p).square().sum())
    assert torch.equal(torch.get_rng_state(), rng)
    torch.testing.assert_close(p.detach(), start() - start().mean(), rtol=0, atol=1e-15)


def test_the_first_step_warns_once_when_the_loss_sees_the_gauge():
    p = nn.Parameter(start())
    optimiser = sgd(p)
    mid.attach(optimiser, mid.Translation(), p)
    ((p[0] - p[1]).square() + 0.01 * p.sum()).backward()
    with pytest.warns(mid.NotInvariantWarning, match="translation"):
        optimiser.step()
    optimiser.step()  # warnings are errors here


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, q: mid.attach(sgd(p), mid.Translation(), q), ValueError, "not among the parameters"),
        (lambda p, q: mid.attach(sgd(p), mid.Translation(), [p, p]), ValueError, "twice"),
        (lambda p, q: mid.attach(sgd(p), mid.Translation(), []), ValueError, "empty"),
        (lambda p, q: mid.attach(sgd(p), mid.Translation(), {"skill": p}), ValueError, "Product"),
        (lambda p, q: mid.attach(sgd(p), mid.Product(skil=mid.Translation()), {"skill": p}), ValueError, "skil"),
        (lambda p, q: mid.attach(sgd(p), mid.Translation(torch.tensor([0, 1])), p), ValueError, "2 labels"),
        (lambda p, q: mid.attach(sgd(p), mid.Translation(), p, weights=torch.ones(3)), ValueError, "`weights`"),
        (
            lambda p, q: mid.attach(torch.optim.Adam([p], differentiable=True), mid.Translation(), p),
            ValueError,
            "differentiable",
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    p, q = nn.Parameter(start()), nn.Parameter(start(1))
    with pytest.raises(error, match=message):
        call(p, q)
    assert torch.equal(p, start())


@pytest.mark.compile  # with the run-time checks of annotations those speak first
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: mid.attach("adam", mid.Translation(), p), "`optimizer`"),
        (lambda p: mid.attach(sgd(p), "translation", p), "`group`"),
        (lambda p: mid.attach(sgd(p), mid.Translation, p), "parentheses"),
        (lambda p: mid.attach(sgd(p), mid.Translation(), 3.0), "`params`"),
        (lambda p: mid.attach(sgd(p), mid.Translation(), nn.Linear(2, 2)), "GaugeFix"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call(nn.Parameter(start()))


def test_degenerate_and_non_finite_points_are_refused():
    for value, group, error in [
        (torch.zeros(4), mid.Scaling(), mid.DegeneratePointError),
        (torch.ones(4), mid.Affine(), mid.DegeneratePointError),
        (-torch.ones(4), mid.PositiveScaling(), mid.DegeneratePointError),
        (torch.ones(1), mid.Translation(), mid.DegeneratePointError),
        (torch.tensor([1.0, float("nan")]), mid.Translation(), ValueError),
    ]:
        p = nn.Parameter(value.clone())
        with pytest.raises(error):
            mid.attach(sgd(p), group, p)


def test_a_second_attachment_and_a_set_gradient_are_refused():
    p = nn.Parameter(start())
    optimiser = sgd(p)
    handle = mid.attach(optimiser, mid.Translation(), p)
    with pytest.raises(ValueError, match="attached already"):
        mid.attach(optimiser, mid.Translation(), p)
    handle.detach()
    (p[0] - p[1]).backward()
    with pytest.raises(ValueError, match="zero_grad"):
        mid.attach(optimiser, mid.Translation(), p)


def test_state_that_cannot_move_along_is_refused():
    p = nn.Parameter(start())
    optimiser = torch.optim.Adam([p], lr=0.1)
    (torch.asinh(p)[0] - torch.asinh(p)[1]).backward()
    optimiser.step()
    optimiser.zero_grad()
    with pytest.raises(RuntimeError, match="build the optimiser, attach, then load"):
        mid.attach(optimiser, AsinhShift(), p)


def test_a_step_to_nowhere_names_the_parameter():
    p = nn.Parameter(start())
    optimiser = sgd(p)
    mid.attach(optimiser, mid.Translation(), p)
    p.grad = torch.full_like(p, float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mid.NotInvariantWarning)
        with pytest.raises(ValueError, match=r"params.*after this step.*learning rate"):
            optimiser.step()


class MedianOne(mid.PositiveScaling):
    """The representative whose median is 1."""

    def canonical(self, x, weights=None):
        median = x.median(-1, keepdim=True).values
        return Canonical(x / median, median.log())


@pytest.mark.parametrize("count", [1, 3])
def test_a_section_of_ones_own_is_where_steps_end_whatever_short_cut_the_class_has(count):
    points = [nn.Parameter(torch.rand(9, generator=torch.Generator().manual_seed(k)) + 0.5) for k in range(count)]
    optimiser = torch.optim.SGD(points, lr=0.1)
    mid.attach(optimiser, MedianOne(), points)
    for p in points:
        p.grad = torch.randn(9, generator=torch.Generator().manual_seed(7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mid.NotInvariantWarning)
        optimiser.step()
    assert [float(p.detach().median()) for p in points] == [1.0] * count


@pytest.mark.parametrize("group", [mid.Affine(), mid.Scaling(torch.arange(8) // 4), mid.PositiveScaling()], ids=str)
@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_points_that_were_loaded_far_from_the_section_are_back_after_a_step(group, size):
    p = nn.Parameter(start().float().exp())
    optimiser = torch.optim.SGD([p], lr=0.0)
    mid.attach(optimiser, group, p)
    with torch.no_grad():
        p.mul_(size)
    wanted = mid.Section(group)(p.detach().double())
    p.grad = torch.zeros(8)
    optimiser.step()
    torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-5, atol=1e-5)


def test_half_precision_parameters_are_computed_in_float32():
    p = nn.Parameter((start() * 3 + 10).bfloat16())
    optimiser = sgd(p)
    mid.attach(optimiser, mid.Affine(), p)
    assert p.dtype == torch.bfloat16
    torch.testing.assert_close(p.detach(), mid.Section(mid.Affine())((start() * 3 + 10).bfloat16()), rtol=0, atol=0)
    (p[0] - p[1]).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mid.NotInvariantWarning)  # only its difference enters, not its ratio
        optimiser.step()
    assert float(p.detach().float().square().mean() - 1) < 2**-6
