"""Items spread over two ranks give what all items in one place give, and only a few numbers travel."""

import copy

import pytest
import torch
import torch.distributed as dist
from over_ranks import FULLY_SHARDS_ON_CPU, adam, close, counted_bytes, mesh, momentum
from spawned import on_two_ranks
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import manifoldid as mid
from manifoldid.distributed import sharded

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


class Scores(torch.nn.Module):
    def __init__(self, values):
        super().__init__()
        self.scores = torch.nn.Parameter(values)

    def forward(self, i, j):
        return torch.nn.functional.softplus(self.scores[j] - self.scores[i]).mean()


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
    ):
        for items in (10, 5000):
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
    *([fully_sharded_parameters_run_as_the_whole_ones_do] if FULLY_SHARDS_ON_CPU else []),
    a_step_moves_as_many_numbers_as_the_group_has_dimensions,
    an_error_on_one_rank_is_an_error_on_both,
    the_attached_gauge_is_looked_at_over_all_ranks,
    replicated_parameters_stay_the_same_bits_under_ddp,
    calibrated_frames_are_those_of_the_population_of_all_ranks,
    a_rank_that_does_not_come_is_an_error_not_a_hang,
]


outcome, test_on_two_ranks = on_two_ranks(CHECKS)
