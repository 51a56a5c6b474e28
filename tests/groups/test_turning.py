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
    assert torch.isfinite(group.geometry().follow(zero.clone(), y.clone())).all()


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
def test_nothing_is_written_before_the_check(group):
    x, y = randn(7, 3), randn(7, 3, seed=1)
    if isinstance(group, mid.Phase):
        x, y = torch.complex(x, y), torch.complex(y, x)
    y[2, 1] = float("nan")
    end = y.clone()

    def check(values):
        if not torch.isfinite(values).all():
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        group.geometry().follow(x, end, check)
    torch.testing.assert_close(end, y, rtol=0, atol=0, equal_nan=True)
