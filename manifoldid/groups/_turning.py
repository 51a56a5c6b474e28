"""Steps attached to groups that turn the columns of matrices: in place, in memory that is kept."""

import copy
from abc import abstractmethod

import torch
from torch import Tensor

from manifoldid._linalg import lyapunov
from manifoldid._memory import Memory
from manifoldid.groups._thin import ThinMatrices
from manifoldid.groups.geometry import Geometry


class Turning:
    """Real matrices x (*batch, n, r) where steps begin, and what is known of where they lead."""

    def __init__(self, x: Tensor, weights: Tensor | None):
        """Makes views and memory.

        Args:
            x: Matrices, contiguous. What is written to them later is seen.
            weights: Of the rows, of mean 1, (n, 1).
        """
        self._thin, self._memory = ThinMatrices(x, weights=weights), Memory()
        self._weights, self._roots = weights, None if weights is None else weights.sqrt()
        grams = self._memory.room("grams", (2, *x.shape[:-2], x.shape[-1], x.shape[-1]), x)
        self._grams, (self.square, self.product) = grams, grams  # x'Wx and x'W(y - x)

    def meet(self, y: Tensor) -> None:
        """Takes note of where a step leads (*batch, n, r)."""
        self._thin.grams(y, out=self._grams)

    def spin(self) -> Tensor:
        """S (*batch, r, r), skew, for which x S is the component of y - x along rotations: S x'Wx + x'Wx S = x'Wy - y'Wx."""
        change = self.product - self.product.mT
        if change.shape[-1] != 2:
            return lyapunov(self.square, change)
        total = self.trace(self.square)
        return change / torch.where(total > 0, total, torch.ones_like(total))

    def subtract_product(self, y: Tensor, m: Tensor) -> Tensor:
        """y - x m in the memory of `y`, for m (*batch, r, r)."""
        self._thin.add_product_(y, m, alpha=-1)
        return y

    def mean(self, y: Tensor) -> Tensor:
        """The weighted mean of the rows (*batch, 1, r)."""
        return self._weighted(y, self._weights).mean(-2, keepdim=True)

    def norm(self, y: Tensor) -> Tensor:
        """The root of the weighted sum of squares (*batch, 1, 1)."""
        return torch.linalg.vector_norm(self._weighted(y, self._roots), dim=(-2, -1), keepdim=True)

    @staticmethod
    def trace(m: Tensor) -> Tensor:
        """The trace of matrices (*batch, r, r), as (*batch, 1, 1)."""
        return m.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]

    def _weighted(self, y: Tensor, w: Tensor | None) -> Tensor:
        return y if w is None else torch.mul(y, w, out=self._memory.room("weighted", tuple(y.shape), y))


class TurningGeometry(Geometry):
    """A geometry whose steps are taken by a `Turning`."""

    _keeps: bool = False
    _kept: tuple[Tensor, Turning] | None = None

    def stepping(self) -> "TurningGeometry":
        """See `Geometry.stepping`: it keeps memory."""
        other = copy.copy(self)
        other._keeps, other._kept = True, None
        return other

    @abstractmethod
    def matrices(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A point as real matrices (*batch, n, r), in its memory, and the weights of their rows (n, 1)."""

    def turning(self, x: Tensor) -> Turning:
        """Memory for steps that begin at `x`; that of the last one where it is the same tensor."""
        if self._kept is not None and self._kept[0] is x:
            return self._kept[1]
        turning = Turning(*self.matrices(x))
        if self._keeps:
            self._kept = x, turning
        return turning
