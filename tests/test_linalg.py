"""Numerics with finite derivatives where singular values coincide or vanish."""

from collections.abc import Callable

import pytest
import torch
from cases import randn
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from manifoldid._linalg import (
    balanced_frame,
    column_signs,
    lyapunov,
    polar,
    right_singular,
    rotation_log,
    skew,
    sylvester_by_system,
)


def symmetric(x):
    return x.mT @ x


def rotation(r, seed=0, size=0.7):
    return torch.linalg.matrix_exp(size * 2 * skew(randn(2, r, r, seed=seed)))


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "singular values": (lambda y: right_singular(y)[0], (randn(2, 6, 3),)),
    "right singular vectors": (lambda y: right_singular(y)[1], (randn(2, 6, 3),)),
    "right singular vectors of a wide matrix": (lambda y: right_singular(y)[1].abs()[..., :2], (randn(2, 3),)),
    "polar": (polar, (randn(2, 3, 3),)),
    "lyapunov": (lambda m, c: lyapunov(symmetric(m), c), (randn(2, 3, 3), randn(2, 3, 3, seed=1))),
    "balanced frame": (balanced_frame, (randn(2, 5, 3), randn(2, 4, 3, seed=1))),
    "rotation log": (lambda x: rotation_log(torch.linalg.matrix_exp(skew(x))), (randn(2, 4, 4),)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_finite_differences_twice(name):
    function, inputs = FUNCTIONS[name]
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_can_be_vmapped_and_differentiated_under_it(name):
    function, inputs = FUNCTIONS[name]
    if inputs[0].ndim < 3:
        pytest.skip("no batch")
    loop = torch.stack([function(*row) for row in zip(*inputs, strict=True)])
    torch.testing.assert_close(torch.vmap(function)(*inputs), loop, rtol=0, atol=1e-12)
    slope = torch.func.grad(lambda *t: function(*t).square().sum())
    loop = torch.stack([slope(*row) for row in zip(*inputs, strict=True)])
    torch.testing.assert_close(torch.vmap(slope)(*inputs), loop, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("matrix", ["identity", "rank one", "zero", "two equal"])
@pytest.mark.parametrize("function", ["polar", "right singular vectors", "lyapunov", "balanced frame"])
def test_equal_and_zero_singular_values_have_finite_values_and_gradients(function, matrix, dtype):
    m = {
        "identity": torch.eye(3),
        "rank one": torch.ones(3, 3),
        "zero": torch.zeros(3, 3),
        "two equal": torch.tensor([2.0, 2.0, 1.0]).diag(),
    }[matrix].to(dtype)
    if matrix in ("rank one", "zero") and function == "balanced frame":
        pytest.skip("there is no frame without full rank, and GeneralLinear does not ask for one")
    m.requires_grad_()
    value = {
        "polar": polar,
        "right singular vectors": lambda m: right_singular(m)[1],
        "lyapunov": lambda m: lyapunov(symmetric(m), m),
        "balanced frame": lambda m: balanced_frame(m, m),
    }[function](m)
    (slope,) = torch.autograd.grad((value * torch.arange(9.0).reshape(3, 3).to(dtype)).sum(), m)
    assert torch.isfinite(value).all()
    assert torch.isfinite(slope).all()


def test_polar_factor_is_the_closest_orthogonal_matrix():
    m = randn(4, 4)
    r = polar(m)
    torch.testing.assert_close(r @ r.mT, torch.eye(4).double())
    stretch = r.mT @ m
    torch.testing.assert_close(stretch, stretch.mT)
    assert (torch.linalg.eigvalsh(stretch) > 0).all()


def test_lyapunov_solution_solves():
    p, c = symmetric(randn(5, 4)), randn(4, 4, seed=1)
    x = lyapunov(p, c)
    torch.testing.assert_close(p @ x + x @ p, c)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_balanced_factors_have_one_diagonal_gram_matrix_whatever_their_balance(condition):
    g = torch.diag(torch.tensor([condition, 1.0, 1.0]).double()) @ rotation(3)[0]
    a, b = randn(6, 3) @ g, torch.linalg.solve(g.mT, randn(5, 3, seed=1), left=False)
    frame = balanced_frame(a, b)
    one, other = symmetric(a @ frame), symmetric(torch.linalg.solve(frame.mT, b, left=False))
    rounding = 64 * torch.finfo(a.dtype).eps * condition * one.max()
    torch.testing.assert_close(one, other, rtol=0, atol=float(rounding))
    torch.testing.assert_close(one, one.diagonal().diag(), rtol=0, atol=float(rounding))
    assert (one.diagonal().diff() < 0).all()
    singular = torch.linalg.svdvals(a @ b.mT)[:3]
    torch.testing.assert_close(one.diagonal(), singular, rtol=1e-9, atol=0)


@pytest.mark.parametrize("r", [2, 3, 4, 5])
def test_rotation_log_inverts_the_exponential(r):
    q = rotation(r)
    torch.testing.assert_close(torch.linalg.matrix_exp(rotation_log(q)), q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1, 1), (-1, -1, -1, -1, 1)])
def test_rotation_log_knows_half_turns(signs):
    turn = torch.tensor(signs).double().diag()
    for q in (turn, rotation(len(signs))[0] @ turn @ rotation(len(signs))[0].mT):
        x = rotation_log(q)
        torch.testing.assert_close(x, -x.mT)
        # eigenvalues near -1 are known to sqrt(eps)
        torch.testing.assert_close(torch.linalg.matrix_exp(x), q, rtol=0, atol=1e-7)


def test_ties_of_the_largest_modulus_do_not_depend_on_rounding():
    x = torch.tensor([[1.0], [-1.0]]).double()
    for change in (0.0, 1e-15, -1e-15):
        assert column_signs(x + torch.tensor([[0.0], [change]])).item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_sylvester_equations_are_solved_as_one_system(size, batch, dtype):
    a, b, c = (randn(*batch, size + 5, size, seed=k).to(dtype) for k in range(3))
    p, q, c = a.mT @ a, b.mT @ b, c[..., :size, :]
    x = sylvester_by_system(p, q, c)
    # Backward stable: the residual is rounding of the products, and of what is added on the diagonal.
    scale = (p.norm(dim=(-2, -1)) + q.norm(dim=(-2, -1))) * x.norm(dim=(-2, -1))
    residual = (p @ x + x @ q - c).norm(dim=(-2, -1))
    assert (residual <= 8 * size * torch.finfo(dtype).eps * scale).all()
    skew = c - c.mT
    torch.testing.assert_close(
        sylvester_by_system(p, p, skew), lyapunov(p, skew), rtol=0, atol=1e4 * torch.finfo(dtype).eps
    )


def test_a_system_of_singular_matrices_gives_what_the_matrices_see():
    """A factor that is zero, as LoRA starts; rotations that leave a point alone."""
    a, c = randn(9, 4), randn(4, 4, seed=1)
    p = a.mT @ a
    zero = torch.zeros_like(p)
    torch.testing.assert_close(sylvester_by_system(p, zero, c), torch.linalg.solve(p, c), rtol=1e-12, atol=1e-12)
    assert not sylvester_by_system(zero, zero, zero).any()
    a[:, 2:] = 0
    p, change = a.mT @ a, a.mT @ randn(9, 4, seed=2)
    change = change - change.mT
    torch.testing.assert_close(a @ sylvester_by_system(p, p, change), a @ lyapunov(p, change), rtol=1e-10, atol=1e-10)
    assert sylvester_by_system(p, p, torch.full_like(p, float("nan"))).isnan().all()
