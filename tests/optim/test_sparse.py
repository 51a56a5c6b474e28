"""Sparse gradients: only the rows that they touch move, and the whole point stays where the gauge wants it."""

import pytest
import torch
from torch import Tensor, nn

import manifoldid as mid

# torch's own: Adagrad makes sparse tensors without saying whether they are to be checked
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")

F64 = {"dtype": torch.float64}
OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sparse-adam": lambda p: torch.optim.SparseAdam(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}
GROUPS = {
    "translation": mid.Translation(),
    "scaling": mid.Scaling(),
    "positive": mid.PositiveScaling(),
    "affine": mid.Affine(),
    "affine-blocks": mid.Affine(torch.tensor([3, 3, 3, 3, 3, -1, -1, -1, -1, -1])),
    "shift": mid.Shift(torch.linspace(1, 2, 10, **F64)[None]),
}
TOUCHED = torch.tensor([1, 2, 4, 6, 8, 9])


def start(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (10,), generator=torch.Generator().manual_seed(seed), **F64)


def step(optimiser, p: Tensor, touched: Tensor, closure: bool = False) -> None:
    """A step with a gradient at the `touched` items only, of any size: a loss that sees the gauge is the harder case."""
    grad = torch.cos(3.0 * torch.arange(p.numel(), **F64)).reshape(p.shape)

    def evaluate() -> Tensor:
        optimiser.zero_grad()
        p.grad = torch.sparse_coo_tensor(touched[None], grad[touched], p.shape, check_invariants=True)
        return torch.zeros(())

    if closure:
        optimiser.step(evaluate)
    else:
        evaluate()
        optimiser.step()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("weights", [None, torch.linspace(1, 3, 10, **F64)], ids=["equal", "weighted"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("group", GROUPS)
def test_touched_items_move_and_the_point_stays_on_its_section(group, optimiser, weights, closure):
    gauge = GROUPS[group]
    p = nn.Parameter(start().exp() if gauge.positive else start())
    optimizer = OPTIMISERS[optimiser]([p])
    mid.attach(optimizer, gauge, p, weights=weights)
    before = p.detach().clone()
    for _ in range(3):
        step(optimizer, p, TOUCHED, closure)
    moved = (p.detach() != before).nonzero()[:, 0]
    assert torch.equal(moved, TOUCHED)
    torch.testing.assert_close(mid.Section(gauge, weights)(p.detach()), p.detach(), rtol=0, atol=1e-13)


def test_an_invariant_loss_takes_plain_steps_of_sgd_to_first_order():
    """Restricted to the touched items the gradient has no part along the orbit, so that nothing is taken out of it."""
    p = nn.Parameter(start() - start().mean())
    before = p.detach().clone()
    optimizer = torch.optim.SGD([p], lr=0.1)
    mid.attach(optimizer, mid.Translation(), p)
    y = torch.gather(p, 0, TOUCHED, sparse_grad=True)
    (y[:, None] - y - 1).square().mean().backward()
    wanted = before - 0.1 * p.grad.to_dense()
    optimizer.step()
    torch.testing.assert_close(p.detach(), wanted, rtol=0, atol=1e-15)


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
@pytest.mark.parametrize("group", ["translation", "affine", "affine-blocks"])
def test_a_single_touched_item_has_nowhere_to_go(group):
    p = nn.Parameter(start())
    optimizer = torch.optim.SGD([p], lr=0.1)
    mid.attach(optimizer, GROUPS[group], p)
    before = p.detach().clone()
    step(optimizer, p, torch.tensor([4]))
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=1e-15)


def test_rows_that_are_points_step_as_with_dense_gradients():
    """A table of student profiles: every row has a gauge of its own."""
    rows, tables = torch.tensor([5, 0, 5, 7]), []
    for sparse in (False, True):
        table = nn.Embedding(9, 4, sparse=sparse, dtype=torch.float64)
        with torch.no_grad():
            table.weight.copy_(start(9, 4))
        optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
        mid.attach(optimizer, mid.Affine(), table.weight)
        before = table.weight.detach().clone()
        for _ in range(3):
            optimizer.zero_grad()
            x = mid.Section(mid.Affine())(table(rows))
            (x @ torch.arange(4.0, **F64)).sum().backward()
            optimizer.step()
        still = [1, 2, 3, 4, 6, 8]
        if sparse:
            assert torch.equal(table.weight.detach()[still], before[still])
        tables.append(table.weight.detach())
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_embeddings_of_a_factorisation_move_in_touched_rows_alone(optimiser):
    u, v = nn.Embedding(12, 2, sparse=True, dtype=torch.float64), nn.Embedding(9, 2, sparse=True, dtype=torch.float64)
    point = {"U": u.weight, "V": v.weight}
    with torch.no_grad():
        u.weight.copy_(start(12, 2))
        v.weight.copy_(start(9, 2, seed=1))
    optimizer = OPTIMISERS[optimiser](list(point.values()))
    mid.attach(optimizer, mid.GeneralLinear("U", "V"), point)
    before = {name: t.detach().clone() for name, t in point.items()}
    i, j = torch.tensor([0, 3, 5, 7]), torch.tensor([1, 2, 2, 8])
    for _ in range(3):
        optimizer.zero_grad()
        ((u(i) * v(j)).sum(-1) - 1).square().sum().backward()
        optimizer.step()
    for name, rows in {"U": i, "V": j}.items():
        moved = (point[name].detach() != before[name]).any(-1).nonzero()[:, 0]
        assert torch.equal(moved, torch.unique(rows))


def test_rasch_tables_keep_their_common_shift():
    """Abilities and difficulties in two sparse tables: sum theta + sum beta does not move."""
    theta, beta = (nn.Embedding(n, 1, sparse=True, dtype=torch.float64) for n in (20, 6))
    point = {"theta": theta.weight, "beta": beta.weight}
    gauge = mid.Shift({"theta": torch.ones(20, 1), "beta": torch.ones(6, 1)})
    optimizer = torch.optim.SparseAdam(list(point.values()), lr=0.1)
    mid.attach(optimizer, gauge, point)
    for k in range(5):
        optimizer.zero_grad()
        i, j = torch.tensor([k, k + 3, k + 7]), torch.tensor([0, k, 5])
        nn.functional.softplus(beta(j) - theta(i)).sum().backward()
        optimizer.step()
    assert abs(sum(float(t.detach().sum()) for t in point.values())) < 1e-13


def test_what_cannot_be_restricted_is_refused():
    class Unknown(mid.GaugeGroup):
        dim = 1

        def act(self, xi: Tensor, x: Tensor) -> Tensor:
            return x + xi

    for group, weights, error, message in [
        (Unknown(), None, TypeError, "dense gradients"),
        (mid.Translation(), torch.arange(10.0), ValueError, "weights"),
    ]:
        p = nn.Parameter(start())
        optimizer = torch.optim.SGD([p], lr=0.1)
        mid.attach(optimizer, group, p, weights=weights)
        y = torch.gather(p, 0, torch.tensor([0, 1, 2]), sparse_grad=True)
        (y[0] - y[1]).square().backward()
        with pytest.raises(error, match=message):
            optimizer.step()
