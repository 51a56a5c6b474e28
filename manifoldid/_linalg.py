"""Numerics used in more than one place."""

from collections.abc import Callable

import torch
from torch import Tensor

from manifoldid.points import Point, map_blocks

MOST_IN_SYSTEM = 16  # columns, whose equations take 256^2 numbers as one linear system


def pushforward(function: Callable[..., Point], at: Point, velocity: Point) -> Point:
    """The derivative of `function` at `at` along `velocity`, by reverse over reverse.

    Forward mode would be one pass, but fewer operations of users' functions have it, and its first use warns.

    Args:
        function: A function of a point; returns a point.
        at: Where.
        velocity: In which direction, shaped like `at`.

    Returns:
        A point shaped like the result of `function`.
    """
    value, pull = torch.func.vjp(function, at)[:2]
    _, pull_again = torch.func.vjp(lambda w: pull(w)[0], map_blocks(torch.zeros_like, value))[:2]
    return pull_again(velocity)[0]


def derivative_along(function: Callable[[Tensor], Tensor], at: Tensor, velocity: Tensor) -> Tensor:
    """`pushforward` of one tensor without transforms of torch.func, whose first derivative loads torch's compiler for seconds.

    Args:
        function: A function of a tensor.
        at: Where; derivatives by it are not kept.
        velocity: In which direction, shaped like `at`.

    Returns:
        A tensor shaped like the result of `function`, without derivatives.
    """
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        value = function(at)
        dual = torch.zeros_like(value).requires_grad_()
        pulled = (
            torch.autograd.grad(value, at, dual, create_graph=True, allow_unused=True)[0]
            if value.requires_grad
            else None
        )
    if pulled is None or not pulled.requires_grad:
        return torch.zeros_like(value.detach())
    return torch.autograd.grad(pulled, dual, velocity)[0]


def widened(x: Point) -> Point:
    """`x` in float64 where it is float32 and the device has float64: differences of almost equal points need it."""

    def wide(t: Tensor) -> Tensor:
        if t.device.type == "mps":
            return t
        return t.to({torch.float32: torch.float64, torch.complex64: torch.complex128}.get(t.dtype, t.dtype))

    return map_blocks(wide, x)


# ------------------------------------------------------------------------------------------------ matrices (*batch, n, r)


def rank_tolerance(x: Tensor) -> float:
    """Singular values below this fraction of the largest are rounding: k n eps for matrices (*batch, n, k)."""
    return x.shape[-2] * x.shape[-1] * torch.finfo(x.dtype).eps


def right_singular(y: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (*batch, r), decreasing, and right singular vectors, the columns of (*batch, r, r), of y (*batch, n, r).

    By QR and the SVD of the triangle. Differentiable any number of times; within a space of equal singular values, where the
    vectors are not functions of `y`, the derivative is that of the space. Entries that are not finite count as 0.
    """
    return _RightSingular.apply(y)


def polar(m: Tensor) -> Tensor:
    """The orthogonal matrix R = U V' closest to m = U S V' (*batch, r, r).

    Differentiable any number of times, at equal singular values too: dR = R W with W P + P W = R'dm - dm'R, P = R'm. Directions
    with P_i + P_j = 0, in which R is not unique, have derivative 0. Entries that are not finite count as 0.
    """
    return _Polar.apply(m)


def lyapunov(p: Tensor, c: Tensor) -> Tensor:
    """The solution of p X + X p = c for symmetric p >= 0 (*batch, r, r); of least norm where there are many."""
    return _Lyapunov.apply(p, c)


def sylvester_by_system(p: Tensor, q: Tensor, c: Tensor) -> Tensor:
    """The solution of p X + X q = c for symmetric p, q >= 0, all (*batch, r, r), from one linear system of r^2 numbers.

    For accelerators and small r: torch looks at the eigenvectors that `lyapunov` takes, and the host has to wait. Directions of which
    both matrices see nothing but rounding get what rounding makes of them, in size that of c by the rounding; p and q do not see it.
    """
    size = c.shape[-1]
    one = torch.eye(size, dtype=c.dtype, device=c.device)
    matrix = p[..., :, None, :, None] * one[:, None, :] + one[:, None, :, None] * q.mT[..., None, :, None, :]
    matrix = matrix.flatten(-4, -3).flatten(-2, -1)
    kind = torch.finfo(c.dtype)
    level = (p.diagonal(dim1=-2, dim2=-1) + q.diagonal(dim1=-2, dim2=-1)).sum(-1) * (size * kind.eps) + kind.tiny
    matrix = matrix + level[..., None, None] * torch.eye(size * size, dtype=c.dtype, device=c.device)
    return torch.linalg.solve_ex(matrix, c.flatten(-2)[..., None]).result[..., 0].unflatten(-1, (size, size))


def balanced_frame(a: Tensor, b: Tensor) -> Tensor:
    """G (*batch, r, r) such that a G and b G^-T have the same diagonal Gram matrix, decreasing.

    Args:
        a: Matrices (*batch, n, r) of rank r.
        b: Matrices (*batch, m, r) of rank r.

    Returns:
        G; the entry of largest modulus in each column of a G is positive. Differentiable as `right_singular`.
    """
    return _BalancedFrame.apply(a, b)


def rotation_log(q: Tensor) -> Tensor:
    """The skew matrix X (*batch, r, r) of least norm with exp(X) = q, for rotations q (determinant 1).

    Differentiable any number of times, except at rotations by pi.
    """
    return _RotationLog.apply(q)


def column_signs(x: Tensor) -> Tensor:
    """The sign (*batch, 1, r), 1 for 0, of the entry of largest modulus in each column of x (*batch, n, r).

    Of entries that tie up to rounding the first one counts.
    """
    size = x.detach().abs()
    near = size >= (1 - torch.finfo(size.dtype).eps ** 0.75) * size.amax(-2, keepdim=True)
    first = near.to(torch.int8).argmax(-2, keepdim=True)
    return torch.where(x.detach().gather(-2, first) < 0, -1.0, 1.0).to(x.dtype)


def skew(x: Tensor) -> Tensor:
    """The skew-symmetric part."""
    return 0.5 * (x - x.mT)


def _finite(x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x), x, torch.zeros_like(x))


def _inverse_above(x: Tensor, floor: Tensor) -> Tensor:
    """1 / x where |x| > floor, else 0."""
    usable = x.abs() > floor
    return torch.where(usable, 1 / torch.where(usable, x, torch.ones_like(x)), torch.zeros_like(x))


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., :, None], x[..., None, :]


class _RightSingular(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor) -> tuple[Tensor, Tensor]:
        y = _finite(y)
        if y.shape[-2] < y.shape[-1]:
            y = torch.cat([y, y.new_zeros(*y.shape[:-2], y.shape[-1] - y.shape[-2], y.shape[-1])], dim=-2)
        _, s, vh = torch.linalg.svd(torch.linalg.qr(y, mode="r").R)
        return s, vh.mT.contiguous()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], *output)

    @staticmethod
    def backward(ctx, grad_s: Tensor, grad_v: Tensor) -> Tensor:
        y, s, v = ctx.saved_tensors
        y = _finite(y)
        first, second = _pairs(s)
        floor = rank_tolerance(y) * s[..., :1, None].square()
        mixing = _inverse_above((second - first) * (second + first), floor) * (v.mT @ grad_v)
        own = torch.diag_embed(grad_s * _inverse_above(s, rank_tolerance(y) * s[..., :1]))
        return y @ v @ (mixing + mixing.mT + own) @ v.mT


class _Polar(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(_finite(m))
        return u @ vh

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        m, r = ctx.saved_tensors
        stretch = r.mT @ _finite(m)
        h = lyapunov(0.5 * (stretch + stretch.mT), r.mT @ grad)
        return r @ (h - h.mT)


class _Lyapunov(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(p: Tensor, c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(_finite(p))
        first, second = _pairs(values)
        floor = rank_tolerance(p) * values.abs().amax(-1)[..., None, None]
        return vectors @ ((vectors.mT @ c @ vectors) * _inverse_above(first + second, floor)) @ vectors.mT

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        p, x = ctx.saved_tensors
        c = lyapunov(p, grad)
        return -(c @ x.mT + x.mT @ c), c


class _BalancedFrame(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        q_a, r_a = torch.linalg.qr(_finite(a))
        r_b = torch.linalg.qr(_finite(b), mode="r").R
        u, s, _ = torch.linalg.svd(r_a @ r_b.mT)
        scaled = u * s[..., None, :].sqrt()
        frame = torch.linalg.solve_triangular(r_a, scaled, upper=True)
        return frame * column_signs(q_a @ scaled)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        # With a, b balanced and d their Gram matrix, G moves to G (I + K): the Gram matrices stay diagonal and equal if
        # (d_i + d_j) (K + K')_ij = (q - p)_ij and (d_i - d_j) (K - K')_ij = -(p + q)_ij, p and q the symmetric parts of
        # 2 a'da and 2 b'db. Both are linear in da and db; this is the transpose.
        a, b, frame = ctx.saved_tensors
        inverse = torch.linalg.inv(frame)
        a, b = a @ frame, b @ inverse.mT
        d = a.square().sum(-2)
        first, second = _pairs(d)
        floor = max(rank_tolerance(a), rank_tolerance(b)) * d[..., :1, None]
        slope = frame.mT @ grad
        even, odd = slope * _inverse_above(first + second, floor), slope * _inverse_above(first - second, floor)
        for_a, for_b = -0.5 * (even + odd), 0.5 * (even - odd)
        return a @ (for_a + for_a.mT) @ frame.mT, b @ (for_b + for_b.mT) @ inverse


class _RotationLog(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor) -> Tensor:
        q = _finite(q)
        half = skew(q)
        cosine, v = torch.linalg.eigh(0.5 * (q + q.mT))
        rotated = v.mT @ half @ v
        sine = rotated.norm(dim=-2)
        angle = torch.atan2(sine, cosine)
        near_pi = cosine < -1 + torch.finfo(q.dtype).eps ** 0.5
        # sin(th) = 0 leaves th / sin(th) without a value: th = 0 has 1, th = pi is taken up below, plane by plane
        ratio = torch.where(sine > 0, angle / torch.where(sine > 0, sine, torch.ones_like(sine)), torch.ones_like(sine))
        ratio = torch.where(near_pi, torch.zeros_like(ratio), ratio)
        result = v @ (rotated * ratio[..., None, :]) @ v.mT
        for k in range(0, q.shape[-1] - 1, 2):  # eigenvalues come in pairs, those of the largest angles first
            one, two = v[..., :, k : k + 1], v[..., :, k + 1 : k + 2]
            turn = torch.atan2(rotated[..., k, k + 1], cosine[..., k])
            plane = turn[..., None, None] * (one @ two.mT - two @ one.mT)
            result = result + torch.where((near_pi[..., k] & near_pi[..., k + 1])[..., None, None], plane, 0.0)
        return skew(result)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        # d exp(X) = exp(X) J(dX) with J = (1 - exp(-ad X)) / ad X, a matrix on skew coordinates; solve J' y = grad.
        q, x = ctx.saved_tensors
        size = x.shape[-1]
        rows, columns = torch.triu_indices(size, size, 1, device=x.device)
        count = rows.numel()
        if count == 0:
            return torch.zeros_like(q)
        basis = x.new_zeros(count, size, size)
        index = torch.arange(count, device=x.device)
        basis = basis.index_put((index, rows, columns), x.new_ones(())).index_put(
            (index, columns, rows), -x.new_ones(())
        )
        bracket = x[..., None, :, :] @ basis - basis @ x[..., None, :, :]
        ad = bracket[..., rows, columns].mT
        zero = torch.zeros_like(ad)
        eye = torch.eye(count, dtype=x.dtype, device=x.device).expand_as(ad)
        block = torch.cat([torch.cat([-ad, eye], dim=-1), torch.cat([zero, zero], dim=-1)], dim=-2)
        jacobian = torch.linalg.matrix_exp(block)[..., :count, count:]
        right = (grad - grad.mT)[..., rows, columns]
        y = (torch.linalg.pinv(jacobian.mT) @ right[..., None])[..., 0]
        return 0.5 * q @ (y[..., None, None] * basis).sum(-3)
