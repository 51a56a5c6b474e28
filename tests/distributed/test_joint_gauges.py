"""Points of several blocks, of which some are spread over two ranks and others are on both, give what one process gives."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from over_ranks import FULLY_SHARDS_ON_CPU, adam, close, counted_bytes, mesh, momentum
from spawned import on_two_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import manifoldid as mid
from manifoldid.distributed import sharded
from manifoldid.quotient.frechet import frechet_mean

pytestmark = pytest.mark.slow

SIZES = {"theta": 7, "beta": 5, "sigma": 3, "alpha": 5}
CUTS = {"theta": [0, 4, 7], "beta": [0, 5, 5], "sigma": [0, 0, 3], "alpha": [0, 2, 5]}  # some without items on one rank
SLOPE = {"theta": torch.linspace(-1, 1, 7).double(), "beta": torch.linspace(0, 3, 5).double() ** 2}
JOINT = {
    "rasch": mid.Shift({"theta": 1, "beta": 1}),
    "two directions": mid.Shift([{"theta": 1, "beta": -1}, SLOPE]),
    "thurstone": mid.LocationScale(locations=("theta", "beta"), scales=("sigma",)),
    "response model": mid.LocationScale(locations=("theta", "beta"), scales=("sigma",), slopes=("alpha",)),
    "product": mid.Product(mid.Shift({"theta": 1, "beta": 1}), alpha=mid.PositiveScaling()),
}


PLACEMENTS = {"theta": [Replicate(), Shard(0)], "beta": [Shard(0), Replicate()]}


def response_model(group):
    generator = torch.Generator().manual_seed(5)
    x = {n: torch.randn(3, size, dtype=torch.float64, generator=generator) for n, size in SIZES.items()}
    heavy = {n: 0.5 + torch.rand(size, dtype=torch.float64, generator=generator) for n, size in SIZES.items()}
    x = {n: t.mul(0.3).exp() if n in ("sigma", "alpha") else t + 2 for n, t in x.items() if n in group.block_names}
    return x, {n: heavy[n] for n in x}


def plain_parts(group, rank, replicated):
    """The group for plain shards, and what takes the part of a point or of weights that is on a rank."""

    def part(x):
        return {n: t if n in replicated else t[..., CUTS[n][rank] : CUTS[n][rank + 1]] for n, t in x.items()}

    here = group.with_items(lambda n, d: part({n: d})[n])
    return sharded(here, replicated=[n for n in replicated if n in group.block_names]), part


def dtensor_parts(group, rank, replicated):
    def part(x):
        def placement(n, t):
            return [Replicate() if n in replicated else Shard(t.ndim - 1)]

        return {n: distribute_tensor(t, mesh(), placement(n, t)) for n, t in x.items()}

    return group, part


def joint_cases(rank):
    for name, group in JOINT.items():
        x, heavy = response_model(group)
        for parts in (plain_parts, dtensor_parts):
            for replicated in ((), ("beta",), ("theta",), ("sigma", "alpha"), ("beta", "sigma", "alpha")):
                if name == "product" and parts is plain_parts and "alpha" in replicated:
                    continue  # a factor of its own, of which nothing is spread
                for w in (None, heavy):
                    gauge, part = parts(group, rank, replicated)
                    yield group, w, x, gauge, None if w is None else part(w), part, replicated


def close_parts(actual, expected, part, tolerance=1e-9):
    for n, t in part(expected).items():
        wanted = t.full_tensor() if isinstance(t, DTensor) else t
        close(actual[n], wanted, tolerance)


def blocks_of_joint_gauges_are_spread_or_replicated(rank):
    for group, w, x, gauge, v, part, replicated in joint_cases(rank):
        section, here = mid.Section(group, w), mid.Section(gauge, v)
        close_parts(here(part(x)), section(x), part)
        close(here.frame(part(x)), section.frame(x))
        close_parts(here.carry(here.frame(part(x)), part(x)), section(x), part)
        at = {n: t[0] for n, t in x.items()}
        close_parts(mid.Section(gauge, v, at=part(at))(part(x)), mid.Section(group, w, at=at)(x), part)
        if w is None or replicated not in ((), ("beta",)):
            continue  # means on a sphere take a second
        ensemble, spread = mid.Ensemble(x, group, w), mid.Ensemble(part(x), gauge, v)
        close_parts(spread.mean(), ensemble.mean(), part, 1e-8)
        close_parts(spread.std(), ensemble.std(), part, 1e-8)
    bad, group = response_model(JOINT["response model"])[0], sharded(JOINT["response model"])
    bad = plain_parts(JOINT["response model"], rank, ())[1](bad)
    bad["alpha"] = bad["alpha"] * (1 if rank == 0 else -1)
    with pytest.raises(mid.DegeneratePointError, match="alpha"):
        mid.Section(group)(bad)


def summed_over_ranks(value):
    value = value.clone()
    dist.all_reduce(value)
    return value


def joint_loss(section, p, share):
    """A sum over items; of blocks that all ranks have, each counts its share."""
    return sum(share(n) * (t - 1).square().sum() for n, t in section(p).items())


def derivatives_of(gauge, v, point, replicated):
    """Those of a loss of the section and of its frame, as a training loop takes them."""
    p = {n: t.detach().requires_grad_() for n, t in point.items()}
    section, plain = mid.Section(gauge, v), not isinstance(next(iter(p.values())), DTensor)
    alone = plain and replicated is not None
    frame = section.frame(p)
    carried = section.carry(frame, {n: t.detach() + 1 for n, t in p.items()})
    loss = joint_loss(section, p, lambda n: 0.5 if alone and n in replicated else 1.0)
    loss = loss + sum((0.5 if alone and n in replicated else 1.0) * t.pow(3).sum() for n, t in carried.items())
    loss = loss + (0.5 if alone else 1.0) * frame.pow(3).sum()
    loss.backward()
    return {n: summed_over_ranks(t.grad) if alone and n in replicated else t.grad for n, t in p.items()}


def derivatives_through_joint_gauges_are_those_of_the_whole(rank):
    for group, w, x, gauge, v, part, replicated in joint_cases(rank):
        one = {n: t[0] for n, t in x.items()}
        close_parts(derivatives_of(gauge, v, part(one), replicated), derivatives_of(group, w, one, None), part)


def squares_of_derivatives_of(gauge, v, point):
    """Derivatives of the sum of squares of those of a loss of section, frame and carried point: Hessian-vector products."""
    p = {n: t.detach().requires_grad_() for n, t in point.items()}
    section = mid.Section(gauge, v)
    frame = section.frame(p)
    carried = section.carry(frame, {n: t.detach() * 2 for n, t in p.items()})
    loss = frame.pow(4).sum() + sum(t.pow(4).sum() for y in (section(p), carried) for t in y.values())
    slopes = torch.autograd.grad(loss, list(p.values()), create_graph=True)
    sum(t.pow(2).sum() for t in slopes).backward()
    return {n: t.grad for n, t in p.items()}


def second_derivatives_of_dtensors_are_those_of_the_whole(rank):
    for group, w, x, gauge, v, part, _ in joint_cases(rank):
        one = {n: t[0] for n, t in x.items()}
        if isinstance(part(one)["theta"], DTensor):
            expected = squares_of_derivatives_of(group, w, one)
            scale = max(float(t.abs().max()) for t in expected.values())
            actual = squares_of_derivatives_of(gauge, v, part(one))
            close_parts({n: t / scale for n, t in actual.items()}, {n: t / scale for n, t in expected.items()}, part)


def second_derivatives_by_blocks_shorter_than_the_mesh_are_right(rank):
    group = JOINT["rasch"]
    for sizes in ((4, 1), (1, 3), (1, 1)):
        one = {
            n: torch.linspace(0, 2, size).double() + k
            for k, (n, size) in enumerate(zip(("theta", "beta"), sizes, strict=True))
        }
        expected = squares_of_derivatives_of(group, None, one)
        actual = squares_of_derivatives_of(group, None, dtensors(one, theta=Shard(0), beta=Shard(0)))
        for n, t in actual.items():
            close(t, expected[n], 1e-8)


def joint_path(gauge, v, point, make, replicated):
    p = {n: torch.nn.Parameter(t.clone()) for n, t in point.items()}
    optimizer = make(p.values())
    mid.attach(optimizer, gauge, p, v)
    plain = not isinstance(next(iter(p.values())), DTensor) and replicated is not None
    for _ in range(4):
        optimizer.zero_grad()
        share = (lambda n: 0.5 if n in replicated else 1.0) if plain else (lambda n: 1.0)
        joint_loss(mid.Section(gauge, v), p, share).backward()
        for n, t in p.items():
            if plain and n in replicated:
                dist.all_reduce(t.grad)
        optimizer.step()
    return {n: t.detach() for n, t in p.items()}


def attached_joint_gauges_run_as_the_whole_point_does(rank):
    for group, w, x, gauge, v, part, replicated in joint_cases(rank):
        one, make = {n: t[0] for n, t in x.items()}, adam if w is None else momentum
        expected = joint_path(group, w, one, make, None)
        close_parts(joint_path(gauge, v, part(one), make, replicated), expected, part, 1e-8)


def directions_of_a_tensor_are_spread_as_its_items_are(rank):
    x = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 2
    directions, w = torch.stack([torch.ones(7), torch.arange(7)]).double(), torch.linspace(0.5, 2, 7).double()
    group = mid.Shift(directions)
    expected, frame = mid.Section(group, w)(x), mid.Section(group, w).frame(x)
    spread = distribute_tensor(x, mesh(), [Shard(1)])
    close(mid.Section(group, w)(spread), expected)
    close(mid.Section(group, w).frame(spread), frame)
    for low, high in ([(0, 4), (4, 7)][rank], [(0, 7), (7, 7)][rank]):
        section = mid.Section(sharded(mid.Shift(directions[:, low:high])), w[low:high])
        close(section(x[:, low:high]), expected[:, low:high])
        close(section.frame(x[:, low:high]), frame)
    matrix = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    whole = mid.Section(mid.Shift(torch.ones(1, 3, 2).double()))(matrix)
    for placement in (Shard(0), Shard(1), Shard(2)):
        spread = distribute_tensor(matrix, mesh(), [placement])
        close(mid.Section(mid.Shift(torch.ones(1, 3, 2).double()))(spread), whole)
    dependent = torch.ones(2, 3) if rank == 0 else torch.ones(2, 4)
    with pytest.raises(ValueError, match="linearly dependent"):
        mid.Section(sharded(mid.Shift(dependent)))(torch.ones(dependent.shape[1]))


def blocks_that_do_not_go_together_are_refused(rank):
    group, x = JOINT["rasch"], {n: t[0] for n, t in response_model(JOINT["rasch"])[0].items()}
    spread = {n: distribute_tensor(t, mesh(), [Shard(0)]) for n, t in x.items()}
    with pytest.raises(TypeError, match=r"plain tensor.*beta.*distribute_tensor"):
        mid.Section(group)({"theta": spread["theta"], "beta": x["beta"]})
    square = init_device_mesh("cpu", (1, 2))
    other = {n: distribute_tensor(x[n], square, p) for n, p in PLACEMENTS.items()}
    with pytest.raises(ValueError, match="do not go together"):
        mid.Section(group)(other)
    with pytest.raises(ValueError, match="one mesh"):
        mid.Section(group)({"theta": spread["theta"], "beta": other["beta"]})
    with pytest.raises(ValueError, match="sigma"):
        sharded(group, replicated=["sigma"])
    with pytest.raises(TypeError, match="collection"):
        sharded(group, replicated="beta")


class Responses(torch.nn.Module):
    """Persons answer items: sigmoid(alpha (theta - beta)), and sigma a spread of the locations."""

    def __init__(self, values):
        super().__init__()
        for name, value in values.items():
            setattr(self, name, torch.nn.Parameter(value.clone()))

    @property
    def parameters_by_name(self):
        return dict(self.named_parameters())

    def forward(self, persons, items):
        p = self.parameters_by_name
        logits = p["theta"][persons] - p["beta"][items]
        if "alpha" in p:
            logits = logits * p["alpha"][items] + (p["sigma"][persons % 3] * p["alpha"][items]).log()
        return torch.nn.functional.softplus(logits).mean()


def fully_sharded_blocks_run_as_the_whole_ones_do(rank):
    games = torch.randint(5, (2, 40), generator=torch.Generator().manual_seed(6))
    for group in (JOINT["rasch"], JOINT["response model"]):
        whole = Responses({n: t[0] for n, t in response_model(group)[0].items()})
        spread = copy.deepcopy(whole)
        fully_shard(spread, mesh=mesh())
        for model in (whole, spread):
            optimizer = adam(model.parameters())
            mid.attach(optimizer, group, model.parameters_by_name)
            for _ in range(5):
                optimizer.zero_grad()
                model(*games).backward()
                optimizer.step()
        for n, t in whole.parameters_by_name.items():
            close(spread.parameters_by_name[n].detach(), t.detach(), 1e-8)


def bytes_of_joint_steps(group, spread, weighted, items, rank):
    """Of items of every block on both ranks, and of one block that both have."""
    generator = torch.Generator().manual_seed(1)
    x = {n: torch.rand(items, dtype=torch.float64, generator=generator) + 1 for n in group.block_names}
    both = [n for n in x if n == "beta"]
    x.update({n: x[n] + rank for n in x if n not in both})
    if spread:
        x = {n: DTensor.from_local(t, mesh(), [Replicate() if n in both else Shard(0)]) for n, t in x.items()}
    gauge = group if spread else sharded(group, replicated=both)
    p = {n: torch.nn.Parameter(t) for n, t in x.items()}
    optimizer = adam(p.values())
    mid.attach(optimizer, gauge, p, weights={"theta": torch.arange(1.0, items + 1)} if weighted else None)
    used = []
    for _ in range(3):
        for t in p.values():
            t.grad = torch.zeros_like(t)
        with counted_bytes() as counted:
            optimizer.step()
        used.append(counted.bytes)
    assert used[1:] == [8 * group.dimension(x)] * 2, (group, items, used)


def a_step_of_a_joint_gauge_moves_as_many_numbers_as_it_has_dimensions(rank):
    for items in (10, 5000):
        bytes_of_joint_steps(JOINT["rasch"], False, True, items, rank)
        bytes_of_joint_steps(JOINT["rasch"], True, False, items, rank)
        bytes_of_joint_steps(mid.Shift([{"theta": 1, "beta": -1}, {"theta": 2.0}]), False, False, items, rank)
        bytes_of_joint_steps(JOINT["thurstone"], True, False, items, rank)
        bytes_of_joint_steps(JOINT["response model"], False, False, items, rank)


def dtensors(x, **placements):
    return {n: distribute_tensor(t, mesh(), [placements.get(n, Replicate())]) for n, t in x.items()}


def one_point(group):
    return {n: t[0] for n, t in response_model(group)[0].items()}


def frames_and_other_points_come_as_they_are(rank):
    """Plain or spread in another way than the point."""
    group = JOINT["rasch"]
    x, target = one_point(group), {n: t[1] for n, t in response_model(group)[0].items()}
    spread, section = dtensors(x, theta=Shard(0)), mid.Section(group)
    other = mid.Section(group, at=target)(x)
    for at in (target, dtensors(target), dtensors(target, theta=Shard(0), beta=Shard(0))):
        for n, t in mid.Section(group, at=at)(spread).items():
            close(t, other[n])
    derivatives = []
    for y in (x, spread):
        frame = section.frame(x).requires_grad_()
        sum(t.pow(3).sum() for t in section.carry(frame, y).values()).backward()
        derivatives.append(frame.grad)
    close(derivatives[1], derivatives[0])
    many = {n: t.clone() for n, t in response_model(group)[0].items()}
    batch = {n: distribute_tensor(t, mesh(), [Shard(0)]) for n, t in many.items()}
    frame = section.frame(many)
    for xi in (frame, distribute_tensor(frame, mesh(), [Replicate()]), frame[:1].expand(3, 1), section.frame(batch)):
        whole = xi.full_tensor() if isinstance(xi, DTensor) else xi
        for n, t in section.carry(xi, batch).items():
            close(t, section.carry(whole, many)[n])
    square = init_device_mesh("cpu", (1, 2))
    elsewhere = {n: distribute_tensor(t, square, [Replicate(), Replicate()]) for n, t in x.items()}
    with pytest.raises(ValueError, match="full_tensor"):
        section.carry(section.frame(spread), elsewhere)


def a_factor_of_plain_tensors_goes_with_one_of_dtensors(rank):
    group = mid.Product(mid.Shift({"theta": 1, "beta": 1}), alpha=mid.PositiveScaling())
    x = one_point(group)
    for spread in (
        {**dtensors({n: x[n] for n in ("theta", "beta")}, theta=Shard(0)), "alpha": x["alpha"]},
        {"theta": x["theta"], "beta": x["beta"], "alpha": distribute_tensor(x["alpha"], mesh(), [Shard(0)])},
    ):
        found = []
        for point in (x, spread):
            p = {n: t.detach().clone().requires_grad_() for n, t in point.items()}
            frame = mid.Section(group).frame(p)
            carried = mid.Section(group).carry(frame, {n: t.detach() + 1 for n, t in p.items()})
            for t in carried.values():
                t.pow(3).sum().backward(retain_graph=True)
            frame.pow(3).sum().backward()
            found.append([*carried.values(), frame, *(t.grad for t in p.values())])
        for expected, actual in zip(*found, strict=True):
            close(actual, expected)


def coordinates_of_products_keep_their_order(rank):
    group = mid.Product(mid.Product(alpha=mid.Translation()), mid.Shift({"theta": 1, "beta": 1}))
    x = {n: t + 10 * k for k, (n, t) in enumerate(one_point(JOINT["response model"]).items())}
    x = {n: x[n] for n in ("theta", "beta", "alpha")}
    close(mid.Section(group).frame(dtensors(x, theta=Shard(0))), mid.Section(group).frame(x))


def means_of_products_come_to_one_end_on_all_ranks(rank):
    group = mid.Product(mid.LocationScale(("theta", "beta")), sigma=mid.PositiveScaling())
    x = {n: response_model(JOINT["response model"])[0][n] for n in ("theta", "beta", "sigma")}
    expected = frechet_mean(group, x)
    spread = {n: distribute_tensor(t, mesh(), [Replicate() if n == "beta" else Shard(1)]) for n, t in x.items()}
    for n, t in frechet_mean(group, spread).items():
        close(t, expected[n], 1e-8)
    end = [None, 0][rank]  # the second rank has nothing that could move
    for n, t in frechet_mean(sharded(group), {n: t[:, :end] for n, t in x.items()}).items():
        close(t, expected[n][:end], 1e-8)


def stepped(gauge, p, gradients, lr=0.1):
    optimizer = torch.optim.SGD(p.values(), lr=lr)
    mid.attach(optimizer, gauge, p)
    for n, t in gradients.items():
        p[n].grad = t
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mid.NotInvariantWarning)
        optimizer.step()
    return p


def blocks_without_a_gradient_stay_on_ranks_without_items_too(rank):
    group = mid.Shift({"theta": 1, "beta": 1})
    theta, beta = torch.arange(3.0)[: 3 * (1 - rank)], torch.arange(5.0)  # all of theta is on rank 0
    for frozen in (True, False):
        p = {"theta": torch.nn.Parameter(theta, requires_grad=not frozen), "beta": torch.nn.Parameter(beta.clone())}
        optimizer = torch.optim.SGD(p.values(), lr=0.1)
        mid.attach(optimizer, sharded(group, replicated=["beta"]), p)
        before = {n: t.detach().clone() for n, t in p.items()}
        p["beta"].grad = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.5])
        optimizer.step()
        close(p["theta"].detach(), before["theta"])
        close(p["beta"].detach(), before["beta"] - 0.1 * p["beta"].grad, 1e-6)  # and no move of the section
    one = {"theta": torch.arange(1.0).double(), "beta": torch.arange(3.0).double()}
    p = {n: torch.nn.Parameter(t, requires_grad=n == "beta") for n, t in dtensors(one, theta=Shard(0)).items()}
    stepped(group, p, {"beta": distribute_tensor(torch.tensor([1.0, -1.0, 0.5]).double(), mesh(), [Replicate()])})
    p = {"theta": torch.nn.Parameter(theta.clone()), "beta": torch.nn.Parameter(beta.clone())}
    stepped(
        sharded(group, replicated=["beta"]),
        p,
        {"beta": torch.ones(5), **({"theta": torch.ones(3)} if rank == 0 else {})},
    )
    sums = p["theta"].detach().sum() + p["beta"].detach().sum() / 2
    dist.all_reduce(sums)
    close(sums, torch.tensor(0.0), 1e-5)


def points_that_look_alike_on_one_rank_step_on_both(rank):
    """Their weights differ on the other."""
    heavy = [torch.ones(4), torch.ones(4) if rank == 0 else torch.tensor([1.0, 1.0, 2.0, 3.0])]
    points = [torch.nn.Parameter(torch.arange(4.0) + rank + 3 * k) for k in range(2)]
    optimizer = torch.optim.SGD(points, lr=0.1)
    for p, weights in zip(points, heavy, strict=True):
        mid.attach(optimizer, sharded(mid.Translation()), p, weights=weights)
    for p in points:
        p.grad = torch.linspace(-1, 1, 4)
    optimizer.step()
    for p, weights in zip(points, heavy, strict=True):
        total = (weights * p.detach()).sum()
        dist.all_reduce(total)
        close(total, torch.tensor(0.0), 1e-5)
    alpha = torch.nn.Parameter(torch.ones(4 * (1 - rank), 2), requires_grad=rank == 0)
    p = {"theta": torch.nn.Parameter(torch.arange(3.0) + rank), "alpha": alpha}
    gradients = {"theta": torch.tensor([1.0, 0.0, -1.0]), **({"alpha": torch.zeros(4, 2)} if rank == 0 else {})}
    p["alpha"].requires_grad_()  # of no items, whose gradient nobody takes
    stepped(sharded(mid.LocationScale(("theta",), slopes=("alpha",))), p, gradients)


def losses_are_verified_for_all_ranks_together(rank):
    for name in ("two directions", "response model"):
        group, x = JOINT[name], one_point(JOINT[name])
        for replicated in ((), ("beta",)):
            gauge, part = plain_parts(group, rank, replicated)
            for each, point in (
                (group, dtensors(x, **{n: Shard(0) for n in x if n not in replicated})),
                (gauge, part(x)),
            ):
                p = {n: torch.nn.Parameter(t.clone()) for n, t in point.items()}
                plain = each is gauge
                section = mid.Section(each)

                def loss(section=section, p=p, plain=plain, replicated=replicated):
                    return sum(
                        (0.5 if plain and n in replicated else 1.0) * (t - 1).square().sum()
                        for n, t in section(p).items()
                    )

                assert mid.attach(adam(p.values()), each, p, loss=loss).attached
                q = {n: torch.nn.Parameter(t.clone()) for n, t in point.items()}
                with pytest.raises(mid.NotInvariantError):
                    mid.attach(adam(q.values()), each, q, loss=lambda q=q: q["theta"].square().sum())
    q = torch.nn.Parameter(torch.arange(3.0))
    sign = 1 - 2 * rank  # invariant together, but on no rank alone
    assert mid.attach(adam([q]), sharded(mid.Translation()), q, loss=lambda: sign * q.sum()).attached


def frames_of_plain_factors_stay_plain(rank):
    x = torch.arange(28.0).view(4, 7).double()
    spread = {"theta": x, "e": distribute_tensor(torch.ones(4, 3).double(), mesh(), [Shard(0)])}
    section = mid.Section(mid.Product(theta=mid.Translation()))
    close(section.frame(spread), mid.Section(mid.Translation()).frame(x))
    close(section.carry(section.frame(spread), spread)["theta"], section(spread)["theta"])


def the_trivial_group_leaves_everything_where_it_is(rank):
    x = one_point(JOINT["rasch"])
    spread = dtensors(x, theta=Shard(0))
    for point in (spread, spread["theta"]):
        y, frame = mid.Section(mid.Product())(point), mid.Section(mid.Product()).frame(point)
        assert frame.shape[-1] == 0
        for n, t in y.items() if isinstance(y, dict) else [("theta", y)]:
            close(t, x[n])


def blocks_that_are_not_contiguous_on_one_rank_step_as_others_do(rank):
    for group in (mid.Shift({"theta": 1, "beta": 1}), mid.LocationScale(("theta", "beta"))):
        whole = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        low, high = [(0, 4), (4, 7)][rank]
        mine = whole.clone()[:, low:high] if rank == 0 else whole[:, low:high].contiguous()
        beta = torch.arange(9.0).view(3, 3).double() / 5
        p = {"theta": torch.nn.Parameter(mine), "beta": torch.nn.Parameter(beta.clone())}
        assert p["theta"].is_contiguous() == (rank == 1)
        stepped(sharded(group, replicated=["beta"]), p, {n: torch.ones_like(t) for n, t in p.items()})
        q = {"theta": torch.nn.Parameter(whole.clone()), "beta": torch.nn.Parameter(beta.clone())}
        stepped(group, q, {n: torch.ones_like(t) for n, t in q.items()})
        close(p["theta"].detach(), q["theta"].detach()[:, low:high])
        close(p["beta"].detach(), q["beta"].detach())


def what_does_not_fit_is_an_error_on_both_ranks(rank):
    group, x = JOINT["rasch"], one_point(JOINT["rasch"])
    spread = dtensors(x, theta=Shard(0), beta=Shard(0))
    with pytest.raises(ValueError, match=r"\(7,\), one weight per item, got \(8,\)"):
        mid.Section(group, {"theta": torch.ones(8)})(spread)
    with pytest.raises(ValueError, match="must be a dict over its blocks"):
        mid.Section(group, torch.ones(7))(spread)
    with pytest.raises(TypeError, match="one place"):
        mid.Reference(group, {"theta": 0})(spread)
    with pytest.raises(TypeError, match="one place"):
        mid.Reference(sharded(group), {"theta": 0})(x)
    many = response_model(group)[0]
    half = {"theta": distribute_tensor(many["theta"], mesh(), [Shard(0)]), "beta": many["beta"]}
    with pytest.raises(ValueError, match="batch entries"):
        mid.Section(mid.Product(theta=mid.Translation(), beta=mid.Translation()))(half)
    x["beta"] = x["beta"] + rank
    with pytest.raises(ValueError, match="the same on all ranks"):
        stepped(sharded(group, replicated=["beta"]), {n: torch.nn.Parameter(t) for n, t in x.items()}, {})
    p = {n: torch.nn.Parameter(t) for n, t in spread.items()}
    with pytest.raises(ValueError, match="LBFGS"):
        mid.attach(torch.optim.LBFGS(p.values()), group, p)
    handle = mid.attach(
        torch.optim.SGD(p.values()),
        group,
        p,
        loss=lambda: sum(t.square().sum() for t in mid.Section(group)(p).values()),
    )
    assert handle.attached
    many = {"theta": torch.zeros(40000, dtype=torch.float16), "beta": torch.zeros(2, dtype=torch.float16)}
    mid.Section(sharded(group, replicated=["beta"]))(many)


def placements_of_fsdp_with_tensor_parallel_are_refused(rank):
    placement_types = pytest.importorskip("torch.distributed.tensor.placement_types")
    x = DTensor.from_local(
        torch.arange(4.0), mesh(), [placement_types._StridedShard(0, split_factor=2)], run_check=False
    )
    with pytest.raises(ValueError, match="redistribute"):
        mid.Section(mid.Translation())(x)


def points_that_degenerate_in_a_step_lose_nothing(rank):
    group = mid.LocationScale(("theta", "beta"), scales=("sigma",))
    p = {"theta": torch.arange(4.0) + rank, "beta": torch.ones(3), "sigma": torch.ones(2)}
    p = {n: torch.nn.Parameter(t.double()) for n, t in p.items()}
    gradients = {n: t if n == "theta" else torch.zeros_like(t) for n, t in mid.Section(sharded(group))(p).items()}
    with pytest.raises(mid.DegeneratePointError, match="constant"):
        stepped(sharded(group), p, {n: t.detach() for n, t in gradients.items()}, lr=1.0)
    assert max(float(t.detach().abs().max()) for t in p.values()) < 100
    wrong = {"theta": torch.tensor([0.0, float("nan")]) if rank == 1 else torch.zeros(2), "beta": torch.arange(3.0)}
    q = {n: torch.nn.Parameter(torch.arange(float(len(t)))) for n, t in wrong.items()}
    with pytest.raises(ValueError, match="finite"):
        stepped(sharded(mid.LocationScale(("beta", "theta"))), q, wrong)
    assert all(bool(torch.isfinite(t).all()) for n, t in q.items() if n == "beta" or rank == 0)
    with pytest.raises(ValueError, match="finite"):
        mid.Section(sharded(mid.LocationScale(("beta", "theta"))))(wrong)


CHECKS = [
    blocks_of_joint_gauges_are_spread_or_replicated,
    derivatives_through_joint_gauges_are_those_of_the_whole,
    second_derivatives_of_dtensors_are_those_of_the_whole,
    second_derivatives_by_blocks_shorter_than_the_mesh_are_right,
    attached_joint_gauges_run_as_the_whole_point_does,
    directions_of_a_tensor_are_spread_as_its_items_are,
    blocks_that_do_not_go_together_are_refused,
    *([fully_sharded_blocks_run_as_the_whole_ones_do] if FULLY_SHARDS_ON_CPU else []),
    a_step_of_a_joint_gauge_moves_as_many_numbers_as_it_has_dimensions,
    frames_and_other_points_come_as_they_are,
    a_factor_of_plain_tensors_goes_with_one_of_dtensors,
    coordinates_of_products_keep_their_order,
    means_of_products_come_to_one_end_on_all_ranks,
    blocks_without_a_gradient_stay_on_ranks_without_items_too,
    points_that_look_alike_on_one_rank_step_on_both,
    losses_are_verified_for_all_ranks_together,
    frames_of_plain_factors_stay_plain,
    the_trivial_group_leaves_everything_where_it_is,
    blocks_that_are_not_contiguous_on_one_rank_step_as_others_do,
    what_does_not_fit_is_an_error_on_both_ranks,
    placements_of_fsdp_with_tensor_parallel_are_refused,
    points_that_degenerate_in_a_step_lose_nothing,
]


outcome, test_on_two_ranks = on_two_ranks(CHECKS)
