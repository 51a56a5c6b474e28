"""Steps between points that rotations act on, taken in place, lead where the geometry of the group says."""

import pytest
import torch
from cases import randn

import manifoldid as mid

GROUPS = [mid.Orthogonal(), mid.RigidMotion(), mid.Similarity()]
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 0.25, 1.0, 3.0, 1.0])


def follow_by_definition(geometry, x, y):
    return geometry.retract(x, geometry.horizontal(x, y - x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0], ids=["small steps", "large steps"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_matrices(group, batch, columns, weights, size, dtype):
    geometry, steps = group.geometry(weights), group.geometry(weights).stepping()
    room = torch.empty(*batch, 7, columns, dtype=dtype)  # where steps begin is kept in the same memory
    for seed in (0, 5):
        x = randn(*batch, 7, columns, seed=seed).to(dtype) + 2
        y = x + size * randn(*batch, 7, columns, seed=seed + 1).to(dtype)
        wanted = follow_by_definition(geometry, x.double(), y.double())
        end = y.clone()
        actual = steps.follow(room.copy_(x), end)
        assert actual is end
        # Gram matrices of seven rows of size 2, whose condition is below 100.
        tolerance = 300 * torch.finfo(dtype).eps
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["", "weights"])
@pytest.mark.parametrize("batch", [(), (4,)], ids=str)
def test_phases(batch, weights, dtype):
    geometry, steps = mid.Phase().geometry(weights), mid.Phase().geometry(weights).stepping()
    x, y = (torch.complex(randn(*batch, 7, seed=s), randn(*batch, 7, seed=s + 1)).to(dtype) for s in (0, 5))
    wanted = follow_by_definition(geometry, x.to(torch.complex128), y.to(torch.complex128))
    actual = steps.follow(x.clone(), end := y.clone())
    assert actual is end
    torch.testing.assert_close(actual.to(torch.complex128), wanted, rtol=0, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_points_that_some_rotations_leave_alone(group):
    x = randn(7, 3)
    x[:, 2] = 1.0  # rotations among the other axes only, about a centre or not
    y = x + 0.1 * randn(7, 3, seed=1)
    wanted = follow_by_definition(group.geometry(), x, y)
    torch.testing.assert_close(group.geometry().follow(x.clone(), y.clone()), wanted, rtol=0, atol=1e-12)
    zero = torch.zeros_like(y)
    wanted = follow_by_definition(group.geometry(), zero, y)
    torch.testing.assert_close(group.geometry().follow(zero.clone(), y.clone()), wanted)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_matrices_far_from_the_origin_in_float32(group):
    """The centre is 1000 times as far as the points are apart: what is left of the step is right to the rounding of the points."""
    offset = 0.0 if isinstance(group, mid.Orthogonal) else 1000.0
    x = (randn(200, 3) + offset).float()
    y = (x + 0.01 * randn(200, 3, seed=1)).float()
    wanted = follow_by_definition(group.geometry(), x.double(), y.double())
    actual = group.geometry().follow(x.clone(), y.clone())
    rounding = torch.finfo(torch.float32).eps * float(y.abs().max())
    assert float((actual - wanted).abs().max()) < 4 * rounding


@pytest.mark.parametrize("layout", [lambda t: t, lambda t: t.mT.contiguous().mT], ids=["", "columns first in memory"])
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_the_end_of_a_step_is_overwritten_however_it_lies_in_memory(group, layout):
    x, y = randn(7, 3), layout(randn(7, 3, seed=1))
    wanted = follow_by_definition(group.geometry(), x, y)
    assert group.geometry().follow(x.clone(), y) is y
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("group", [*GROUPS, mid.Phase()], ids=str)
def test_one_check_comes_before_anything_is_lost(group):
    x, y = randn(7, 3), randn(7, 3, seed=1)
    if isinstance(group, mid.Phase):
        x, y = torch.complex(x, y), torch.complex(y, x)
    y[2, 1] = float("nan")
    end = y.clone()

    seen = []

    def check(values):
        seen.append(values)
        if not torch.isfinite(values).all():
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        group.geometry().follow(x, end, check)
    torch.testing.assert_close(end, y, rtol=1e-15, atol=1e-15, equal_nan=True)
    assert len(seen) == 1


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_where_a_step_begins_may_lie_in_memory_in_any_way(group):
    x = (randn(3, 2, 7, 4) + 2).transpose(0, 1)
    y = x + 0.1 * randn(2, 3, 7, 4, seed=1)
    wanted = follow_by_definition(group.geometry(), x, y)
    steps = group.geometry().stepping()
    for _ in range(2):  # what was made of another layout is not taken for the next point
        torch.testing.assert_close(steps.follow(x.clone(memory_format=torch.preserve_format), y.clone()), wanted)
    single = x[0, 0, :1].expand(7, 4)  # all rows in one place
    group.geometry().follow(single, y[0, 0].clone())


def attached(group, shape, offset=0.0):
    p = torch.nn.Parameter(randn(*shape).float())
    optimizer = torch.optim.SGD([p], lr=1.0)
    mid.attach(optimizer, group, p)
    p.data += offset
    p.grad = torch.zeros_like(p)
    return p, optimizer


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e3])
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_many_steps_without_a_gradient_do_not_add_their_rounding_up(group, offset):
    """In float32, where Gram matrices of 1e5 rows are wrong by 1e-5."""
    offset = 0.0 if isinstance(group, mid.Orthogonal) else offset
    p, optimizer = attached(group, (100_000, 3), offset)
    start = p.detach().double()
    for _ in range(100):
        optimizer.step()
    # A hundred steps that round the numbers of a point at random.
    rounding = torch.finfo(torch.float32).eps * float(start.abs().max())
    assert float((p.detach() - start).abs().max()) <= 2 * 100**0.5 * rounding
    sizes = [float((t - t.mean(0)).square().mean()) for t in (start, p.detach().double())]
    assert abs(sizes[1] / sizes[0] - 1) < 1e-6


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
def test_a_step_whose_square_overflows_is_an_error():
    p, optimizer = attached(mid.Similarity(), (20, 3))
    p.grad = 1e21 * randn(20, 3).float()
    plain = p.detach() - p.grad
    with pytest.raises(ValueError, match="must be finite"):
        optimizer.step()
    torch.testing.assert_close(p.detach(), plain)


@pytest.mark.filterwarnings("ignore::manifoldid.NotInvariantWarning")
def test_what_is_beside_the_parts_is_looked_at_too():
    p = torch.nn.Parameter(randn(20))
    optimizer = torch.optim.SGD([p], lr=1.0)
    mid.attach(optimizer, mid.Parts(mid.Product(x=mid.RigidMotion()), x=torch.arange(15).reshape(5, 3)), p)
    p.grad = torch.zeros(20).index_fill(0, torch.tensor([17]), float("nan")).to(p)
    with pytest.raises(ValueError, match="must be finite"):
        optimizer.step()
