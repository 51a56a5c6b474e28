"""Items spread over two ranks give what all items in one place give, and only a few numbers travel."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from spawned import run
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import manifoldid as mid
from manifoldid.distributed import sharded

FULLY_SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")  # not torch 2.6
pytestmark = pytest.mark.slow

ITEMS = 7
BLOCKS = torch.tensor([5, 5, -1, -1, 5, -1, 5])
SPLITS = ([(0, 4), (4, 7)], [(0, 7), (7, 7)])  # items of the two ranks; in the second the other rank has none
GROUPS = {
    "translation": mid.Translation(),
    "scaling": mid.Scaling(),
    "positive scaling": mid.PositiveScaling(),
    "affine": mid.Affine(),
    "translation, blocks": mid.Translation(BLOCKS),
    "affine, blocks": mid.Affine(BLOCKS),
    "affine, common scale": mid.Affine(BLOCKS, common_scale=True),
}


def members():
    base = torch.linspace(0.5, 3, ITEMS, dtype=torch.float64).roll(2)
    return base + 0.2 * torch.rand(3, ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def weights():
    return 0.5 + torch.rand(ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@functools.cache
def mesh():
    return init_device_mesh("cpu", (2,))


def close(actual, expected, tolerance=1e-9):
    actual = actual.full_tensor() if isinstance(actual, DTensor) else actual
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def here(group, low, high):
    """The group, for the items from `low` to `high`."""
    return sharded(group if group.blocks is None else group.with_blocks(group.blocks[low:high]))


# ------------------------------------------------------------------------------------------------ checks in both ranks


def plain_shards_have_the_section_and_the_ensemble_of_the_whole_point(rank):
    for group in GROUPS.values():
        for w in (None, weights()):
            section, ensemble = mid.Section(group, w), mid.Ensemble(members(), group, w)
            for split in SPLITS:
                low, high = split[rank]
                x, part = members()[:, low:high], None if w is None else w[low:high]
                mine = mid.Section(here(group, low, high), part)
                close(mine(x), section(members())[:, low:high])
                close(mine.frame(x), section.frame(members()))
                if w is None and split is SPLITS[1]:
                    continue
                ens = mid.Ensemble(x, here(group, low, high), part)
                close(ens.mean(), ensemble.mean()[low:high])
                close(ens.std(), ensemble.std()[low:high])


def dtensors_have_the_section_and_the_ensemble_of_the_whole_point(rank):
    x = distribute_tensor(members(), mesh(), [Shard(1)])
    w = weights()
    for group in GROUPS.values():
        for given in (None, w, distribute_tensor(w, mesh(), [Shard(0)])):
            plain = None if given is None else w
            section, sections = mid.Section(group, plain), mid.Section(group, given)
            close(sections(x), section(members()))
            close(sections.frame(x), section.frame(members()))
            close(sections.carry(sections.frame(x), x), section(members()))
        ensemble, spread = mid.Ensemble(members(), group, w), mid.Ensemble(x, group, w)
        close(spread.mean(), ensemble.mean())
        close(spread.std(), ensemble.std())
    many = torch.randn(20, ITEMS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows = [distribute_tensor(row, mesh(), [Shard(0)]) for row in many]
    ensemble, spread = mid.Ensemble(many, mid.Translation()), mid.Ensemble(rows, mid.Translation())
    close(spread.contrast(lambda p: p[0] - p[6]).value, ensemble.contrast(lambda p: p[0] - p[6]).value)
    close(spread.quasi_variances().variances, ensemble.quasi_variances().variances)
    assert [row["mean"] for row in spread.table()] == pytest.approx([row["mean"] for row in ensemble.table()])


def rows_spread_over_ranks_are_points_of_their_own(rank):
    x = distribute_tensor(members(), mesh(), [Shard(0)])
    close(mid.Section(mid.Affine())(x), mid.Section(mid.Affine())(members()))
    close(mid.Section(mid.Affine()).frame(x), mid.Section(mid.Affine()).frame(members()))


def derivatives_through_a_sharded_section_are_those_of_the_whole(rank):
    target = torch.linspace(-1, 2, ITEMS, dtype=torch.float64)
    for group in GROUPS.values():
        x = members()[0].requires_grad_()
        (mid.Section(group)(x) - target).pow(4).sum().backward()
        low, high = SPLITS[0][rank]
        mine = members()[0, low:high].requires_grad_()
        (mid.Section(here(group, low, high))(mine) - target[low:high]).pow(4).sum().backward()
        close(mine.grad, x.grad[low:high])
        spread = distribute_tensor(members()[0], mesh(), [Shard(0)]).requires_grad_()
        (mid.Section(group)(spread) - distribute_tensor(target, mesh(), [Shard(0)])).pow(4).sum().backward()
        close(spread.grad, x.grad)
        frames = []
        for y in (members()[0], distribute_tensor(members()[0], mesh(), [Shard(0)])):
            y.requires_grad_()
            frame = mid.Section(group).frame(y)
            (frame.pow(3).sum() + mid.Section(group).carry(frame, y.detach() * 2).pow(3).sum()).backward()
            frames.append(y.grad)
        close(frames[1], frames[0])


def loss_of(section, x, target):
    return (section(x) - target).pow(2).sum()


def trained(group, w, make, steps=4):
    p = torch.nn.Parameter(members()[0])
    optimizer = make([p])
    mid.attach(optimizer, group, p, w)
    section, target = mid.Section(group, w), members()[1]
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(section, p, target).backward()
        optimizer.step()
    return p.detach()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def attached_plain_shards_run_as_the_whole_point_does(rank):
    for group in GROUPS.values():
        for w in (None, weights()):
            for make in (adam,) if w is None else (momentum,):
                expected = trained(group, w, make)
                for split in SPLITS:
                    low, high = split[rank]
                    mine, part = here(group, low, high), None if w is None else w[low:high]
                    p = torch.nn.Parameter(members()[0, low:high])
                    optimizer = make([p])
                    mid.attach(optimizer, mine, p, part)
                    for _ in range(4):
                        optimizer.zero_grad()
                        loss_of(mid.Section(mine, part), p, members()[1, low:high]).backward()
                        if not p.numel():
                            p.grad = None  # what an empty shard of a hand-written loop has
                        optimizer.step()
                    close(p.detach(), expected[low:high], 1e-7)


def attached_dtensors_run_as_the_whole_point_does(rank):
    for group in GROUPS.values():
        for w in (None, weights()):
            for make in (adam,) if w is None else (momentum,):
                p = torch.nn.Parameter(distribute_tensor(members()[0], mesh(), [Shard(0)]))
                optimizer = make([p])
                mid.attach(optimizer, group, p, w)
                target = distribute_tensor(members()[1], mesh(), [Shard(0)])
                for _ in range(4):
                    optimizer.zero_grad()
                    loss_of(mid.Section(group, w), p, target).backward()
                    optimizer.step()
                close(p.detach(), trained(group, w, make), 1e-7)


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
    directions = torch.stack([torch.ones(ITEMS), torch.arange(ITEMS)]).double()
    group, w = mid.Shift(directions), weights()
    expected, frame = mid.Section(group, w)(members()), mid.Section(group, w).frame(members())
    spread = distribute_tensor(members(), mesh(), [Shard(1)])
    close(mid.Section(group, w)(spread), expected)
    close(mid.Section(group, w).frame(spread), frame)
    for split in SPLITS:
        low, high = split[rank]
        section = mid.Section(sharded(mid.Shift(directions[:, low:high])), w[low:high])
        close(section(members()[:, low:high]), expected[:, low:high])
        close(section.frame(members()[:, low:high]), frame)
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


class Scores(torch.nn.Module):
    def __init__(self, values):
        super().__init__()
        self.scores = torch.nn.Parameter(values)

    def forward(self, i, j):
        return torch.nn.functional.softplus(self.scores[j] - self.scores[i]).mean()


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


def fully_sharded_parameters_run_as_the_whole_ones_do(rank):
    for items in (ITEMS, 2):  # and with as many items as ranks
        games = torch.randint(items, (2, 40), generator=torch.Generator().manual_seed(4))
        whole = Scores(torch.linspace(3, 5, items, dtype=torch.float64))
        spread = copy.deepcopy(whole)
        fully_shard(spread, mesh=mesh())
        for model in (whole, spread):
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
            mid.attach(optimizer, mid.Translation(), model.scores)
            for _ in range(5):
                optimizer.zero_grad()
                model(*games).backward()
                optimizer.step()
        assert isinstance(spread.scores, DTensor)
        close(spread.scores.detach(), whole.scores.detach())
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


class counted_bytes:
    """The bytes that collectives of this rank were handed."""

    def __enter__(self):
        self.bytes, self._real = 0, dist.all_reduce

        def reduce(tensor, *args, **kwargs):
            self.bytes += tensor.numel() * tensor.element_size()
            return self._real(tensor, *args, **kwargs)

        dist.all_reduce = reduce
        return self

    def __exit__(self, *_):
        dist.all_reduce = self._real


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


def a_step_moves_as_many_numbers_as_the_group_has_dimensions(rank):
    for kind, spread, weighted in (
        (mid.Translation(), False, False),
        (mid.Scaling(), False, False),
        (mid.Affine(), False, False),
        (mid.Affine(), True, False),
        (mid.Affine(), False, True),
        (mid.PositiveScaling(), False, True),
        ("blocks", False, False),
        ("blocks", False, True),
        (JOINT["rasch"], False, True),
        (JOINT["rasch"], True, False),
        (mid.Shift([{"theta": 1, "beta": -1}, {"theta": 2.0}]), False, False),
        (JOINT["thurstone"], True, False),
        (JOINT["response model"], False, False),
    ):
        for items in (10, 5000):
            if not isinstance(kind, str) and kind.block_names:
                bytes_of_joint_steps(kind, spread, weighted, items, rank)
                continue
            group = mid.Affine(torch.arange(items) % 3) if kind == "blocks" else kind
            values = torch.randn(items, dtype=torch.float64, generator=torch.Generator().manual_seed(rank)).abs() + 4
            p = torch.nn.Parameter(DTensor.from_local(values, mesh(), [Shard(0)]) if spread else values)
            optimizer = adam([p])
            weights = torch.arange(1.0, items + 1) if weighted else None
            mid.attach(optimizer, group if spread else sharded(group), p, weights=weights)
            used = []
            for _ in range(3):
                p.grad = torch.zeros_like(p)
                with counted_bytes() as counted:
                    optimizer.step()
                used.append(counted.bytes)
                optimizer.zero_grad()
            assert used[1:] == [8 * group.dimension(values)] * 2, (group, items, used)


def an_error_on_one_rank_is_an_error_on_both(rank):
    x = members()[0, slice(*SPLITS[0][rank])].clone()
    bad = x.clone()
    bad[0] = float("nan") if rank == 1 else bad[0]
    with pytest.raises(ValueError, match="finite"):
        mid.Section(sharded(mid.Translation()))(bad)
    with pytest.raises(mid.DegeneratePointError, match="not positive"):
        mid.Section(sharded(mid.PositiveScaling()))(x if rank == 0 else -x)
    with pytest.raises(mid.DegeneratePointError, match="constant"):
        mid.Section(sharded(mid.Affine()))(torch.full((3,), 2.0))
    with pytest.raises(mid.DegeneratePointError, match="nothing identifiable"):
        mid.Section(sharded(mid.Translation()))(torch.zeros(1 - rank))
    with pytest.raises(ValueError, match="not negative"):
        mid.Section(sharded(mid.Translation()), torch.ones_like(x) if rank == 0 else -torch.ones_like(x))(x)
    p = torch.nn.Parameter(x)
    optimizer = torch.optim.SGD([p], lr=1.0)
    mid.attach(optimizer, sharded(mid.Translation()), p)
    p.grad = torch.full_like(p, float("nan") if rank == 1 else 0.0)
    with pytest.raises(ValueError, match="finite"):
        optimizer.step()
    assert bool(torch.isfinite(p).all()) == (rank == 0)  # nothing is lost where nothing was wrong
    with pytest.raises(TypeError, match="gather"):
        mid.Section(mid.Orthogonal())(distribute_tensor(torch.eye(4), mesh(), [Shard(0)]))
    with pytest.raises(TypeError, match="one place"):
        mid.Reference(sharded(mid.Translation()), 0)(x)


def the_attached_gauge_is_looked_at_over_all_ranks(rank):
    # On every rank alone this gradient is vertical; over both it is not. And the other way round.
    for sign, warned in ((1.0, True), (-1.0, False)):
        p = torch.nn.Parameter(torch.arange(2.0) + 4 * rank)
        optimizer = torch.optim.SGD([p], lr=1e-3)
        mid.attach(optimizer, sharded(mid.Translation()), p)
        p.grad = torch.ones(2) * (1.0 if rank == 0 else sign)
        if warned:
            with pytest.warns(mid.NotInvariantWarning):
                optimizer.step()
        else:
            optimizer.step()


def replicated_parameters_stay_the_same_bits_under_ddp(rank):
    model = Scores(torch.linspace(3, 5, ITEMS))
    replica = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = adam(replica.parameters())
    mid.attach(optimizer, mid.Affine(), model.scores)
    # other games on every rank
    games = torch.randint(ITEMS, (2, 20), generator=torch.Generator().manual_seed(10 + rank))
    for _ in range(10):
        optimizer.zero_grad()
        (replica(*games) * 1.0).backward()
        model.scores.grad -= model.scores.grad.mean()
        model.scores.grad -= model.scores * (model.scores * model.scores.grad).mean()
        optimizer.step()
    everyone = [torch.empty_like(model.scores) for _ in range(2)]
    dist.all_gather(everyone, model.scores.detach())
    assert torch.equal(everyone[0], everyone[1])
    close(model.scores.detach().mean(), torch.tensor(0.0), 1e-6)


def scorer(head):
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softplus(), head).double()


def calibrated_frames_are_those_of_the_population_of_all_ranks(rank):
    population = torch.randn(11, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for group in (mid.Translation(), mid.Scaling(), mid.PositiveScaling(), mid.Affine()):
        for batches in ([population[:7], population[7:]], [population, None]):  # in the second a rank has no examples
            alone, model = scorer(mid.nn.GaugeFix(group, over="batch")), scorer(mid.nn.GaugeFix(group, over="batch"))
            mid.nn.calibrate(alone, [population], process_group=None)
            mine = iter(() if batches[rank] is None else batches[rank].split(3))  # a stream, which has no length
            mid.nn.calibrate(torch.nn.parallel.DistributedDataParallel(model), mine)
            close(model[-1].frame, alone[-1].frame)
            with counted_bytes() as counted:
                model.eval()(population)
            assert counted.bytes == 0
    used = []
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(dist, "all_gather_object")  # tensors travel, on the device of the model, and nothing else
        for copies in (1, 50):
            with counted_bytes() as counted:
                mid.nn.calibrate(scorer(mid.nn.GaugeFix(mid.Affine(), over="batch")), [population] * copies)
            used.append(counted.bytes)
    assert used[0] == used[1] <= 8 * (2 * 4 + 2 * 8)  # four numbers a rank, and a few for each of two columns
    model = scorer(mid.nn.GaugeFix(mid.Affine(), over="batch"))
    with pytest.raises(ValueError if rank == 1 else RuntimeError, match="finite" if rank == 2 else "shape|rank 1"):
        mid.nn.calibrate(model, [population if rank == 0 else population[:, None]])
    with pytest.raises(ValueError, match="empty on all ranks"):
        mid.nn.calibrate(model, [])
    with torch.no_grad():
        model[0].bias += rank
    with pytest.raises(ValueError, match="other parameters on other ranks"):
        mid.nn.calibrate(model, [population])


def a_rank_that_does_not_come_is_an_error_not_a_hang(rank):
    """The last check: it leaves the process group broken."""
    if rank == 0:
        with pytest.raises(RuntimeError, match="another rank failed"):
            mid.Section(sharded(mid.Translation()))(torch.ones(3))


CHECKS = [
    plain_shards_have_the_section_and_the_ensemble_of_the_whole_point,
    dtensors_have_the_section_and_the_ensemble_of_the_whole_point,
    rows_spread_over_ranks_are_points_of_their_own,
    derivatives_through_a_sharded_section_are_those_of_the_whole,
    attached_plain_shards_run_as_the_whole_point_does,
    attached_dtensors_run_as_the_whole_point_does,
    blocks_of_joint_gauges_are_spread_or_replicated,
    derivatives_through_joint_gauges_are_those_of_the_whole,
    attached_joint_gauges_run_as_the_whole_point_does,
    directions_of_a_tensor_are_spread_as_its_items_are,
    blocks_that_do_not_go_together_are_refused,
    *([fully_sharded_parameters_run_as_the_whole_ones_do] if FULLY_SHARDS_ON_CPU else []),
    a_step_moves_as_many_numbers_as_the_group_has_dimensions,
    an_error_on_one_rank_is_an_error_on_both,
    the_attached_gauge_is_looked_at_over_all_ranks,
    replicated_parameters_stay_the_same_bits_under_ddp,
    calibrated_frames_are_those_of_the_population_of_all_ranks,
    a_rank_that_does_not_come_is_an_error_not_a_hang,
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    return run(CHECKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_on_two_ranks(check, outcome):
    for rank, failure in enumerate(outcome[check]):
        assert failure is None, f"rank {rank}:\n{failure}"
