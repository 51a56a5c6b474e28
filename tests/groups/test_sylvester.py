"""S X + X T = R: what is remembered from earlier matrices changes the time, and not the answer."""

import pytest
import scipy.linalg
import torch
from cases import randn

from manifoldid.groups._sylvester import Sylvester

COUNT, SIZE, CONDITION = 20, 8, 30.0
ROUNDING = 4 * SIZE * CONDITION  # of a solution that is found by four products with sums of 8 terms


def matrices(seed=0, condition=CONDITION, count=COUNT):
    """S, T (2, count, 8, 8) of that condition, and R (count, 8, 8)."""
    axes = torch.linalg.qr(randn(2, count, SIZE, SIZE, seed=seed))[0]
    values = torch.logspace(0, torch.tensor(condition).log10(), SIZE, dtype=torch.float64)
    return axes * values @ axes.mT, randn(count, SIZE, SIZE, seed=seed + 1)


def turned(squares, by, seed=9):
    """Both matrices after A -> A + by |A| noise, which keeps them Gram matrices."""
    root = torch.linalg.cholesky(squares)
    root = root + by * root.norm(dim=(-2, -1), keepdim=True) / SIZE * randn(*root.shape, seed=seed)
    return root @ root.mT


def reference(squares, right):
    pairs = zip(squares[0].double(), squares[1].double(), right.double(), strict=True)
    return torch.stack(
        [torch.from_numpy(scipy.linalg.solve_sylvester(s.numpy(), t.numpy(), r.numpy())) for s, t, r in pairs]
    )


@pytest.fixture
def eigenvalue_problems(monkeypatch):
    """Shapes of the batches whose eigenvectors were computed."""
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: calls.append(tuple(x.shape)) or eigh(x))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by", [0.0, 1e-9, 1e-5, 1e-3, 1e-2, 0.3])
def test_near_and_far_matrices_have_the_solution_of_scipy(by, dtype):
    squares, right = matrices()
    solve = Sylvester()
    solve(squares.to(dtype), right.to(dtype))
    later = turned(squares, by).to(dtype)
    wanted, found = reference(later, right.to(dtype)), solve(later, right.to(dtype))
    assert (found - wanted).norm() < ROUNDING * torch.finfo(dtype).eps * wanted.norm()


def test_eigenvectors_are_computed_again_only_when_they_no_longer_fit(eigenvalue_problems):
    squares, right = matrices()
    solve = Sylvester()
    for k in range(6):
        solve(turned(squares, k * 1e-4), right)
    assert eigenvalue_problems == [(2 * COUNT, SIZE, SIZE)]
    solve(turned(squares, 0.3), right)
    assert len(eigenvalue_problems) == 2


def test_a_few_small_matrices_take_new_eigenvectors(eigenvalue_problems):
    squares, right = matrices(count=2)
    solve = Sylvester()
    for _ in range(3):
        solve(squares, right)
    assert len(eigenvalue_problems) == 3


def test_other_numbers_of_matrices_and_other_dtypes_are_solved_anew():
    solve = Sylvester()
    for dtype, count in ((torch.float64, COUNT), (torch.float64, COUNT + 1), (torch.float32, COUNT + 1)):
        squares, right = matrices(count=count)
        found = solve(squares.to(dtype), right.to(dtype))
        assert (found - reference(squares, right)).norm() < ROUNDING * torch.finfo(dtype).eps * found.norm()


@pytest.mark.parametrize(
    "before", [matrices()[0], matrices(condition=1e6)[0], torch.zeros(2, COUNT, SIZE, SIZE).double()]
)
def test_without_full_rank_the_solution_is_that_of_least_norm(before):
    """As in LoRA, of which one factor is zero; the other has rank 7 here: what both do not see stays 0."""
    squares, right = matrices(seed=3)
    values, axes = torch.linalg.eigh(squares)
    values[0, :, 0], values[1] = 0, 0
    squares = axes * values[..., None, :] @ axes.mT
    solve = Sylvester()
    solve(before, right)
    found = solve(squares, right)
    unseen = axes[0, :, :, :1]
    wanted = torch.linalg.pinv(squares[0], rtol=1e-12) @ right
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    torch.testing.assert_close(unseen.mT @ found, torch.zeros(COUNT, 1, SIZE).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["squares", "right"])
def test_what_is_not_finite_shows_in_its_own_solution_alone(value, where):
    squares, right = matrices()
    solve = Sylvester()
    for _ in range(2):
        good = solve(squares, right)
    bad, wrong = squares.clone(), right.clone()
    if where == "squares":
        bad[0, 3, 1, 2] = bad[0, 3, 2, 1] = value
        wrong[3] += bad[0, 3]  # as in `follow`, whose right-hand side has the same matrices in it
    else:
        wrong[3, 1, 2] = value
    found = solve(bad, wrong)
    others = [k for k in range(COUNT) if k != 3]
    assert not torch.isfinite(found[3]).all()
    torch.testing.assert_close(found[others], good[others])
    torch.testing.assert_close(solve(squares, right), good)


def test_one_pair_of_large_matrices_is_no_batch():
    axes = torch.linalg.qr(randn(2, 40, 40, seed=1))[0]
    squares, right = axes * torch.linspace(1, 3, 40).double() @ axes.mT, randn(40, 40, seed=2)
    solve = Sylvester()
    for _ in range(2):
        found = solve(squares, right)
        torch.testing.assert_close(squares[0] @ found + found @ squares[1], right, rtol=0, atol=1e-12)
