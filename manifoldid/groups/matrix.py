"""MatrixGroup: X -> X exp(xi) for a matrix group of your own."""

from abc import abstractmethod

import torch
from torch import Tensor

from manifoldid.groups.base import GaugeGroup


class MatrixGroup(GaugeGroup):
    """X -> X G(xi) for matrices X (n, r), from the matrices alone: a subclass gives `dim` and `exp`.

    Volume-preserving maps, the Lorentz group, triangular or block-diagonal matrices::

        class Shear(mid.MatrixGroup):
            dim = 1
            def exp(self, xi):
                generator = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=xi.dtype, device=xi.device)
                return torch.linalg.matrix_exp(xi[..., None] * generator)

    Everything else has the defaults of `GaugeGroup`; moves are undone by solving with the matrix. The coordinates need not be
    exponential: any G with G(0) = 1 whose matrices form a group will do.
    """

    event_dim = 2

    @abstractmethod
    def exp(self, xi: Tensor) -> Tensor:
        """The matrix G (*batch, r, r) with coordinates `xi` (*batch, dim); `exp(0)` is the identity."""

    def act(self, xi: Tensor, x: Tensor) -> Tensor:
        return x @ self.exp(xi)

    def undo(self, xi: Tensor, x: Tensor) -> Tensor:
        return torch.linalg.solve(self.exp(xi), x, left=False)
