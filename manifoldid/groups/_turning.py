"""Steps attached to groups that turn the columns of matrices: in place, in memory that is kept."""

import copy

import torch
from torch import Tensor

from manifoldid._linalg import MOST_IN_SYSTEM, lyapunov, sylvester_by_system
from manifoldid._memory import Kept, Memory
from manifoldid.groups._thin import ThinMatrices
from manifoldid.groups.geometry import Geometry
from manifoldid.points import Weights, item_weights


class Turning:
    """Real matrices x (*batch, n, r) where steps begin, and what is known of where they lead."""

    def __init__(self, x: Tensor, weights: Tensor | None):
        """Makes views and memory.

        Args:
            x: Matrices. What is written to `x` of this object later is seen.
            weights: Of the rows, of mean 1, (n, 1).
        """
        self.x, self._memory = x.contiguous(), Memory()
        self._thin = ThinMatrices(self.x, weights=weights, memory=self._memory)
        self._weights, self._roots = weights, None if weights is None else weights.sqrt()
        grams = self._memory.room("grams", (2, *x.shape[:-2], x.shape[-1], x.shape[-1]), x)
        self._grams, (self.square, self.product) = grams, grams  # x'Wx and x'W(y - x)

    def meet(self, y: Tensor) -> None:
        """Takes note of where a step leads (*batch, n, r)."""
        self._thin.grams(y, out=self._grams)

    def spin(self) -> Tensor:
        """S (*batch, r, r), skew, for which x S is the component of y - x along rotations: S x'Wx + x'Wx S = x'Wy - y'Wx."""
        change = self.product - self.product.mT
        if change.shape[-1] == 2:
            total = trace(self.square)
            return change / torch.where(total > 0, total, torch.ones_like(total))
        if change.device.type != "cpu" and change.shape[-1] <= MOST_IN_SYSTEM:
            return sylvester_by_system(self.square, self.square, change)
        return lyapunov(self.square, change)

    def subtract_product(self, y: Tensor, m: Tensor) -> None:
        """Subtracts x m from `y`, in place, for m (*batch, r, r)."""
        self._thin.add_product_(y, m, alpha=-1.0)

    def mean(self, y: Tensor) -> Tensor:
        """The weighted mean of the rows (*batch, 1, r)."""
        return self._weighted(y, self._weights).mean(-2, keepdim=True)

    def norm(self, y: Tensor) -> Tensor:
        """The root of the weighted sum of squares (*batch, 1, 1)."""
        return torch.linalg.vector_norm(self._weighted(y, self._roots), dim=(-2, -1), keepdim=True)

    def _weighted(self, y: Tensor, w: Tensor | None) -> Tensor:
        return y if w is None else torch.mul(y, w, out=self._memory.room("weighted", tuple(y.shape), y))


class TurningGeometry(Geometry):
    """A geometry whose steps are taken by a `Turning`."""

    _kept: Kept[Turning] | None = None

    def stepping(self) -> "TurningGeometry":
        """See `Geometry.stepping`: it keeps memory."""
        other = copy.copy(self)
        other._kept = Kept()
        return other

    def matrices(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A point as real matrices (*batch, n, r), in its memory, and the weights of their rows (n, 1)."""
        return x, row_weights(x, self.weights)

    def turning(self, x: Tensor) -> Turning:
        """What steps that begin at `x` need."""

        def make() -> Turning:
            return Turning(*self.matrices(x))

        return make() if self._kept is None else self._kept.of([x], make)


def row_weights(x: Tensor, weights: Weights) -> Tensor | None:
    """Weights of the rows of `x` (*batch, n, r), of mean 1, (n, 1); None when they are equal."""
    if weights is None:
        return None
    if isinstance(weights, dict):
        raise ValueError(f"`weights` of a tensor point must be a tensor (n,), got a dict with {sorted(weights)}")
    return item_weights(weights, x.shape[-2:-1], x)[:, None]


def trace(m: Tensor) -> Tensor:
    """The trace of matrices (*batch, r, r), as (*batch, 1, 1)."""
    return m.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
