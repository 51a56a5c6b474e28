"""Scalar functions f that a pointwise field dx/dt = f(x) may have, each with its exact flow."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScalarFunction:
    """A function f and the flow of dx/dt = f(x).

    Attributes:
        name: How it is written, of the variable `x`.
        value: f(x), element-wise.
        flow: x(t) from x(0) = x, nan where it has left the domain; None where it has no closed form.
        level: How complicated it is; simpler ones are tried first.
        domain: Where f makes sense; None is everywhere.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    flow: Callable[[Tensor, Tensor], Tensor] | None
    level: int
    domain: Callable[[Tensor], Tensor] | None = None

    def defined(self, x: Tensor) -> bool:
        """Whether every number of `x` lies in the domain."""
        return self.domain is None or bool(self.domain(x).all())

    def written(self, variable: str) -> str:
        """The function as a formula of `variable`."""
        return re.sub(r"\bx\b", lambda _: variable, self.name)


def _power_flow(x: Tensor, t: Tensor) -> Tensor:
    return torch.sign(x) * torch.exp(torch.exp(t) * torch.log(x.abs()))


def _through(
    chart: Callable[[Tensor], Tensor],
    inverse: Callable[[Tensor], Tensor],
    low: float = -math.inf,
    high: float = math.inf,
):
    """The flow that is a translation in `chart`, whose values lie between `low` and `high`."""

    def flow(x: Tensor, t: Tensor) -> Tensor:
        y = chart(x) + t
        return inverse(torch.where((y > low) & (y < high), y, torch.full_like(y, math.nan)))

    return flow


def _sine_flow(x: Tensor, t: Tensor) -> Tensor:
    turns = 2 * math.pi * torch.round(x / (2 * math.pi))
    rest = (x - turns) / 2
    return turns + 2 * torch.atan2(torch.exp(t) * torch.sin(rest), torch.cos(rest))


def _signed_root(x: Tensor, t: Tensor) -> Tensor:
    square = x.square() + 2 * t
    return torch.sign(x) * torch.where(square > 0, square, torch.full_like(square, math.nan)).sqrt()


def _reciprocal_flow(x: Tensor, t: Tensor) -> Tensor:
    denominator = 1 - t * x
    return x / torch.where(denominator > 0, denominator, torch.full_like(denominator, math.nan))


def _cube_flow(x: Tensor, t: Tensor) -> Tensor:
    square = 1 - 2 * t * x.square()
    return x / torch.where(square > 0, square, torch.full_like(square, math.nan)).sqrt()


def _cube_root(x: Tensor) -> Tensor:
    return torch.sign(x) * x.abs().pow(1 / 3)


def _tangent_flow(x: Tensor, t: Tensor) -> Tensor:
    return _through(torch.atan, torch.tan, -math.pi / 2, math.pi / 2)(x, t)


def _mobius_flow(x: Tensor, t: Tensor) -> Tensor:
    tanh = torch.tanh(t)
    denominator = 1 + x * tanh
    return (x + tanh) / torch.where(denominator > 0, denominator, torch.full_like(denominator, math.nan))


def _logistic_flow(x: Tensor, t: Tensor) -> Tensor:
    denominator = 1 - x + x * torch.exp(t)
    return x * torch.exp(t) / torch.where(denominator > 0, denominator, torch.full_like(denominator, math.nan))


def _normal_density_of_quantile(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * torch.special.ndtri(x).square()) / math.sqrt(2 * math.pi)


_ROOT2PI = math.sqrt(2 * math.pi)
_F = ScalarFunction
_positive = lambda x: x > 0  # noqa: E731
_unit = lambda x: (x > 0) & (x < 1)  # noqa: E731
_inside = lambda x: x.abs() < 1  # noqa: E731

CONSTANT = _F("1", torch.ones_like, lambda x, t: x + t, 0)
IDENTITY = _F("x", lambda x: x, lambda x, t: x * torch.exp(t), 1)

LIBRARY: tuple[ScalarFunction, ...] = (
    CONSTANT,
    IDENTITY,
    _F("x^2", torch.square, _reciprocal_flow, 2),
    _F("x log|x|", lambda x: x * torch.log(x.abs()), _power_flow, 3, lambda x: x != 0),
    _F("exp(-x)", lambda x: torch.exp(-x), _through(torch.exp, torch.log, low=0.0), 3),
    _F("exp(x)", torch.exp, _through(lambda x: -torch.exp(-x), lambda y: -torch.log(-y), high=0.0), 3),
    _F("1/x", torch.reciprocal, _signed_root, 3, lambda x: x != 0),
    _F("sin(x)", torch.sin, _sine_flow, 3),
    _F("cos(x)", torch.cos, lambda x, t: _sine_flow(x + math.pi / 2, t) - math.pi / 2, 3),
    _F("sqrt(1 + x^2)", lambda x: (1 + x.square()).sqrt(), _through(torch.asinh, torch.sinh), 4),
    _F("1 + x^2", lambda x: 1 + x.square(), _tangent_flow, 4),
    _F("1 - x^2", lambda x: 1 - x.square(), _mobius_flow, 4),
    _F("x (1 - x)", lambda x: x * (1 - x), _logistic_flow, 4),
    _F("x^3", lambda x: x**3, _cube_flow, 4),
    _F("1/x^2", lambda x: x**-2, _through(lambda x: x**3 / 3, lambda y: _cube_root(3 * y)), 4, lambda x: x != 0),
    _F("sqrt(x)", torch.sqrt, _through(lambda x: 2 * x.sqrt(), lambda y: (y / 2).square(), low=0.0), 4, _positive),
    _F(
        "sqrt(1 - x^2)",
        lambda x: (1 - x.square()).sqrt(),
        _through(torch.asin, torch.sin, -math.pi / 2, math.pi / 2),
        5,
        _inside,
    ),
    _F(
        "sqrt(x^2 - 1)",
        lambda x: (x.square() - 1).sqrt(),
        _through(torch.acosh, torch.cosh, low=0.0),
        5,
        lambda x: x > 1,
    ),
    _F(
        "sqrt(x (1 - x))",
        lambda x: (x * (1 - x)).sqrt(),
        _through(lambda x: 2 * torch.asin(x.sqrt()), lambda y: torch.sin(y / 2).square(), 0.0, math.pi),
        5,
        _unit,
    ),
    _F(
        "cosh(x)",
        torch.cosh,
        _through(
            lambda x: 2 * torch.atan(torch.tanh(x / 2)),
            lambda y: 2 * torch.atanh(torch.tan(y / 2)),
            -math.pi / 2,
            math.pi / 2,
        ),
        5,
    ),
    _F("1/cosh(x)", lambda x: 1 / torch.cosh(x), _through(torch.sinh, torch.asinh), 5),
    _F("cosh(x)^2", lambda x: torch.cosh(x).square(), _through(torch.tanh, torch.atanh, -1.0, 1.0), 5),
    _F(
        "cos(x)^2",
        lambda x: torch.cos(x).square(),
        lambda x, t: torch.atan(torch.tan(x) + t) + math.pi * torch.round(x / math.pi),
        5,
    ),
    _F(
        "cosh(x/2)^2",
        lambda x: torch.cosh(x / 2).square(),
        _through(lambda x: 4 * torch.sigmoid(x), lambda y: torch.logit(y / 4), 0.0, 4.0),
        5,
    ),
    _F(
        "1 + exp(-x)",
        lambda x: 1 + torch.exp(-x),
        _through(torch.nn.functional.softplus, lambda y: y + torch.log(-torch.expm1(-y)), low=0.0),
        5,
    ),
    _F(
        "1 + exp(x)",
        lambda x: 1 + torch.exp(x),
        _through(lambda x: -torch.nn.functional.softplus(-x), lambda y: y - torch.log(-torch.expm1(y)), high=0.0),
        5,
    ),
    _F("log(x)", torch.log, None, 5, _positive),
    _F(
        "x sqrt(x)",
        lambda x: x * x.sqrt(),
        _through(lambda x: -2 / x.sqrt(), lambda y: 4 / y.square(), high=0.0),
        5,
        _positive,
    ),
    _F(
        "1/sqrt(x)",
        lambda x: x.rsqrt(),
        _through(lambda x: x * x.sqrt() / 1.5, lambda y: (1.5 * y).pow(2 / 3), low=0.0),
        5,
        _positive,
    ),
    _F(
        "(1 - x) log(1 - x)",
        lambda x: (1 - x) * torch.log1p(-x),
        _through(lambda x: -torch.log(-torch.log1p(-x)), lambda y: -torch.expm1(-torch.exp(-y))),
        5,
        _unit,
    ),
    _F(
        "exp(x^2/2)",
        lambda x: torch.exp(x.square() / 2),
        _through(
            lambda x: _ROOT2PI * torch.special.ndtr(x), lambda y: torch.special.ndtri(y / _ROOT2PI), 0.0, _ROOT2PI
        ),
        6,
    ),
    _F("exp(-x^2)", lambda x: torch.exp(-x.square()), None, 6),
    _F(
        "normal_density(normal_quantile(x))",
        _normal_density_of_quantile,
        _through(torch.special.ndtri, torch.special.ndtr),
        6,
        _unit,
    ),
)
BY_NAME = {f.name: f for f in LIBRARY}
