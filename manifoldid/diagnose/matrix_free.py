"""Null spaces of models with many parameters: derivatives only as products with vectors, never as a matrix.

A random vector z minus its least-squares reconstruction from what is seen is its projection on the null space. A few such
projections span it; that they do is seen when the next one, with the span taken out of z beforehand, has nothing left.
Iterations are conjugate gradients on the normal equations, so that their number goes with the condition number of the model
and not with its size; a model too badly conditioned for that is reported as uncertain, not as having a gauge.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.diagnose.nullspace import null_of
from manifoldid.diagnose.probe import Probe

_ITERATIONS = 1000  # at least; more of small models
_WORK = 4e8  # numbers that go through the iterations of one projection
_REFINEMENTS = 150
DENSE = 3000  # parameters up to which one dense decomposition is affordable
_QUICK = 1500  # parameters up to which one decomposition costs less than more projections than
_FEW = 4
_CONVERGED = 1e-11  # gradient of the normal equations, relative to its start
_NULL = 1e-11  # |J u| / |u| of a null vector, relative to that of a random one: rounding
_WEAK = 1e-8  # below this and above _NULL a direction is weak, or its iteration has not converged
_CHANCE = 1e-3  # share of a random vector in the null space, relative to its expectation, that chance does not undercut


class Linearised:
    """The derivative of predictions at one point, in the scaled coordinates x / scale, as products with vectors.

    Coordinates of infinite scale are left out: they are 0 in all vectors.

    Attributes:
        x: The flat point (n,).
        scale: Units (n,) of the coordinates.
        unit: The same with 0 for infinity.
        live: 1.0 (n,) for the coordinates that are not left out, and
        size: their number.
        outputs: p, the number of predictions.
        constant: Whether predictions have no derivative at all.
    """

    def __init__(self, probe: Probe, x: Tensor, scale: Tensor):
        """Evaluates the model once and keeps the graph."""
        self.x = x
        self._measure(scale)
        self._input = x.detach().clone().requires_grad_()
        self._output = probe.predict(self._input)
        self.outputs = self._output.numel()
        self.constant = not self._output.requires_grad
        if self.constant:
            return
        self._dual = torch.zeros_like(self._output).requires_grad_()
        (self._pulled,) = torch.autograd.grad(
            self._output, self._input, self._dual, create_graph=True, allow_unused=True
        )
        self.constant = self._pulled is None
        self._linear = not self.constant and self._pulled.requires_grad

    def _measure(self, scale: Tensor) -> None:
        self.scale = scale
        self.unit = scale.masked_fill(scale.isinf(), 0.0)
        self.live = (self.unit != 0).double()
        self.size = int(self.live.sum())

    def in_units(self, scale: Tensor) -> "Linearised":
        """The same derivative in other units."""
        other = copy.copy(self)
        other._measure(scale)
        return other

    def pull(self, w: Tensor) -> Tensor:
        """J' w (n,) for w (p,)."""
        if self.constant:
            return torch.zeros_like(self.scale)
        (g,) = torch.autograd.grad(self._output, self._input, w.to(self._output.dtype), retain_graph=True)
        return g.double() * self.unit

    def push(self, u: Tensor) -> Tensor:
        """J u (p,) for u (n,)."""
        if not self._linear:
            return torch.zeros(self.outputs, dtype=torch.float64)
        along = (u * self.unit).to(self._pulled.dtype)
        try:
            (v,) = torch.autograd.grad(self._pulled, self._dual, along, retain_graph=True)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise TypeError(
                f"`predict` must have second derivatives where there are more than 600 parameters; torch says: {error} Write that "
                "operation with others, such as nn.Embedding and a mean in place of nn.EmbeddingBag"
            ) from error
        return v.double()

    def random(self, generator: torch.Generator) -> Tensor:
        """A random vector (n,)."""
        return torch.randn(len(self.x), generator=generator, dtype=torch.float64) * self.live


def project(
    model: Linearised, z: Tensor, root: Tensor, enough: float = 0.0, most: int | None = None
) -> tuple[Tensor, bool]:
    """z minus the least-squares solution s of A s = A z, A = J diag(root), by conjugate gradients on the normal equations.

    Args:
        model: The linearised model.
        z: A vector (n,) in the coordinates x / root.
        root: Positive (n,): inverse sizes of the columns of J.
        enough: Length below which the null part counts as nothing and the iteration may stop.
        most: Number of iterations; default what the size of the model allows.

    Returns:
        The null part of z, and whether the iteration came to an end.
    """
    if most is None:  # where a dense decomposition is affordable, more iterations are not
        most = _ITERATIONS if model.size <= DENSE else max(_ITERATIONS, int(_WORK / (model.size + model.outputs)))
    null = z.clone()
    residual = model.push(root * z)
    gradient = root * model.pull(residual)
    direction = gradient
    energy = float(gradient @ gradient)
    first = energy
    for k in range(most):
        if energy <= _CONVERGED**2 * first or energy == 0:
            return null, True
        if enough and k % 8 == 7 and float(null.norm()) < enough:
            return null, True
        seen = model.push(root * direction)
        curvature = float(seen @ seen)
        if curvature == 0:
            return null, True
        step = energy / curvature
        null -= step * direction
        residual -= step * seen
        gradient = root * model.pull(residual)
        new = float(gradient @ gradient)
        direction = gradient + (new / energy) * direction
        energy = new
    return null, False


@dataclass
class LargeNull:
    """The null space of a large model at one point.

    Attributes:
        basis: Orthonormal columns (n, d) in scaled coordinates.
        certain: Whether all iterations converged and nothing was close to the threshold.
        more: How many further directions there are, roughly, that were too many to look for.
    """

    basis: Tensor
    certain: bool
    more: int


def large_null(model: Linearised, generator: torch.Generator, known: Tensor | None = None, most: int = 64) -> LargeNull:
    """Random projections on the null space until nothing is left.

    Args:
        model: The linearised model.
        generator: Source of random vectors.
        known: Orthonormal columns (n, k) known to lie in the null space.
        most: How many further directions are looked for.

    Returns:
        The null space, `known` included.
    """
    n = model.size
    weight = diagonal_weight(model, generator)
    root = (
        weight.sqrt()
    )  # in the coordinates x / root columns of J are of one size, and conjugate gradients project orthogonally
    basis = model.x.new_zeros(len(model.x), 0) if known is None else torch.linalg.qr(known / root[:, None])[0]
    certain, more = True, 0.0
    for _ in range(most + 1):
        z = model.random(generator)
        z = z - basis @ (basis.mT @ z)
        null, converged = project(model, z, root, 0.5 * _CHANCE * float(z.norm()) / n**0.5)
        more = float(null.square().sum())  # chi-squared with as many degrees of freedom as there are directions left
        null, leak = _refined(model, null, z, root, basis, converged)
        small = float(null.norm()) < _CHANCE * float(z.norm()) / n**0.5
        if n <= DENSE and (not converged or more > 2 * most + 20 or (n <= _QUICK and more > _FEW)):
            return dense_null(model, generator)
        if small or leak > _WEAK:
            return LargeNull(_original(basis, root), certain and converged and small, 0)
        if more > 2 * most + 20:
            return LargeNull(_original(basis, root), certain, round(more))
        certain = certain and leak < _NULL
        basis = torch.cat([basis, (null / null.norm())[:, None]], dim=1)
        if basis.shape[1] == n:
            more = 1.0
            break
    return LargeNull(_original(basis, root), certain, round(max(more - 1, 0)))


def _refined(
    model: Linearised, null: Tensor, z: Tensor, root: Tensor, basis: Tensor, converged: bool
) -> tuple[Tensor, float]:
    """A null vector without what is known and without what predictions still see of it, and how much they do see."""
    top = float(model.push(root * z).norm()) / float(z.norm())
    for attempt in range(3):
        null = null - basis @ (basis.mT @ null)
        leak = float(model.push(root * null).norm()) / max(float(null.norm()), 1e-300) / max(top, 1e-300)
        small = float(null.norm()) < _CHANCE * float(z.norm()) / model.size**0.5
        if leak < _NULL or small or not converged or attempt == 2:
            break
        null, _ = project(model, null, root, most=_REFINEMENTS)
    null = null - basis @ (basis.mT @ null)
    return null, leak


def _original(basis: Tensor, root: Tensor) -> Tensor:
    """Orthonormal columns in the coordinates of the model."""
    return torch.linalg.qr(root[:, None] * basis)[0]


def dense_null(model: Linearised, generator: torch.Generator) -> LargeNull:
    """The null space by one decomposition, where iterations do not converge and the size allows it."""
    wanted = 2 * model.size + 20
    if model.outputs <= wanted:
        rows = [model.pull(row) for row in torch.eye(model.outputs, dtype=torch.float64)]
    else:
        rows = [
            model.pull(torch.randn(model.outputs, generator=generator, dtype=torch.float64) / model.outputs**0.5)
            for _ in range(wanted)
        ]
    live = model.live.nonzero()[:, 0]
    null = null_of(torch.stack(rows)[:, live], model.x[live])
    basis = null.null.new_zeros(len(model.x), null.null.shape[1]).index_copy(0, live, null.null)
    return LargeNull(basis, null.dropped < 1e-2 * null.kept, 0)


def diagonal_weight(model: Linearised, generator: torch.Generator, count: int = 8) -> Tensor:
    """1 / diag(J'J) (n,), estimated by random signs and bounded: Jacobi's preconditioner."""
    total = torch.zeros_like(model.scale)
    for _ in range(count):
        signs = torch.randint(0, 2, (model.outputs,), generator=generator).double() * 2 - 1
        total += model.pull(signs).square()
    size = total / count
    floor = 1e-8 * size.sum() / max(model.size, 1)
    return (1 / size.clamp_min(floor)) if floor > 0 else torch.ones_like(size)
