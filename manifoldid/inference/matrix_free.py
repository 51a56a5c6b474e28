"""The information of large models, in Hessian products: solves instead of an inverse, probes instead of eigenvalues."""

from collections.abc import Callable

import torch
from torch import Tensor

from manifoldid.errors import NotConvergedError
from manifoldid.optim.local_model import LocalModel
from manifoldid.optim.steihaug import diagonal

_STEPS = 5000  # conjugate gradient steps of one solve
_DIAGONALS = 4  # refinements of the preconditioner
_PROBES = 6  # random vectors that span the null directions


class Solver:
    """The inverse of the information on the horizontal space at a minimum, by preconditioned conjugate gradients.

    Args:
        model: The likelihood around its minimum.
    """

    def __init__(self, model: LocalModel):
        self.model = model
        self.scale = diagonal(model)
        for _ in range(_DIAGONALS - 1):
            self.scale = diagonal(model, self.scale)

    def preconditioned(self, covector: Tensor) -> Tensor:
        """A horizontal vector that roughly solves for `covector`."""
        return self.model.horizontal(self.model.lowered(self.model.raised(covector)) / self.scale)

    def solve(self, covector: Tensor) -> tuple[Tensor, float]:
        """Horizontal p with H p = `covector` on horizontal vectors, and the share of `covector` that is left.

        Stops where no better solution is in sight: at rounding, at a direction without curvature, or after 5000 steps.
        """
        model = self.model
        p, r = torch.zeros_like(covector), covector
        z = self.preconditioned(r)
        d, rz = z, float((r * z).sum())
        first, best, best_rz, since = rz, p, rz, 0
        for _ in range(min(_STEPS, 20 * len(p) + 20)):
            if not rz > first * model.precision**1.6 or since > 50:
                break
            hd = model.curvature(d)
            bend = float((d * hd).sum())
            if not bend > 0:
                break
            alpha = rz / bend
            p, r = p + alpha * d, r - alpha * hd
            z = self.preconditioned(r)
            new = float((r * z).sum())
            d, rz = z + (new / rz) * d, new
            best, best_rz, since = (p, rz, 0) if rz < best_rz else (best, best_rz, since + 1)
        return best, (max(best_rz, 0.0) / first) ** 0.5 if first > 0 else 0.0

    def null_directions(self) -> Tensor:
        """Horizontal directions (m, N) without curvature, in units of the preconditioner; (0, N) where there are none.

        A random z less the solution y of H y = H z lies in the null space of H, because conjugate gradients never leave its range.
        One z shows whether there is any; up to six are taken to span it.
        """
        model, generator = self.model, torch.Generator().manual_seed(0)
        root = self.scale.sqrt()
        cut = 100 * len(root) * model.precision
        found: list[Tensor] = []
        for _ in range(_PROBES):
            noise = torch.randn(len(root), generator=generator, device=generator.device, dtype=torch.float64).to(root)
            v = start = model.horizontal(noise / root)
            for _ in range(2):  # the second time removes what the first left by rounding
                v = v - self.solve(model.curvature(v))[0]
            length, bend = float((root * v).norm()), float((v * model.curvature(v)).sum())
            if not length > 1e-5 * float((root * start).norm()) or bend > cut * length**2:
                break
            unit = root * v / length
            for other in found:
                unit = unit - (unit @ other) * other
            if not float(unit.norm()) > 1e-4:
                break
            found.append(unit / unit.norm())
        return torch.stack(found) if found else root.new_zeros(0, len(root))


class IterativeInverse:
    """An inverse of the information that is never formed; see `InverseInformation`.

    Args:
        solver: The information at the minimum.
        between: For the sandwich: the information in the middle, applied to a vector. None for the inverse itself.
    """

    def __init__(self, solver: Solver, between: Callable[[Tensor], Tensor] | None = None):
        self._solver, self._between = solver, between

    def times(self, rows: Tensor) -> Tensor:
        return torch.stack([self._times(row) for row in rows]) if len(rows) else rows

    def dense(self) -> Tensor:
        count = len(self._solver.model.slope)
        raise NotImplementedError(
            f"the covariance of all {count:,} numbers is a matrix of {8 * count**2 / 1e9:.3g} GB, which is not formed for more than 5,000; "
            "ask for what you need: contrast(fn) for differences, for scores on a section (lambda x: mid.Section(group)(x)[:20]), or "
            "covariance(block=...) of a small block"
        )

    def _times(self, row: Tensor) -> Tensor:
        solution = self._solved(row)
        return solution if self._between is None else self._solved(self._between(solution))

    def _solved(self, row: Tensor) -> Tensor:
        solution, left = self._solver.solve(row)
        if not left <= self._solver.model.precision**0.5:
            raise NotConvergedError(
                f"a contrast could not be solved for: conjugate gradients left {left:.1e} of it. It runs along a direction that the data "
                "hardly identify; another contrast, or more data"
            )
        return solution
