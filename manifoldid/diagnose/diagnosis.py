"""What a diagnosis hands over."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manifoldid.diagnose.fields import Field
from manifoldid.points import Point, blocks_of, flatten, unflatten

if TYPE_CHECKING:
    from manifoldid.groups.base import GaugeGroup


@dataclass(frozen=True, eq=False)
class Generator:
    """A vector field that predictions cannot see: one infinitesimal move of the gauge.

    Attributes:
        name: Short name.
        formula: The velocity of each coordinate, as text.
        flow_error: Largest relative change of predictions along the flow, over finite moves at random points.
        complete: Whether the flow exists for all times that were tried; if not, there is a field but no group. Long times are not
            tried of fields without a formula, which are not called complete.
        closed_form: Whether the field is a formula, the same at every point; if not, it is a table of one function that is the same
            at every point, or is computed from the null space at x: the formula says which.
        jump: Largest relative jump of predictions across a branch cut (of an angle, of the sign of a root) along the flow; 0 if they
            do not jump. The jump is no part of `flow_error`.
    """

    name: str
    formula: str
    flow_error: float
    complete: bool
    closed_form: bool
    flat_field: Field = field(repr=False)
    like: Point = field(repr=False)
    jump: float = 0.0

    def field(self, x: Point) -> Point:
        """The velocity at a point shaped like the diagnosed one, leading dimensions are batch."""
        ndim = self._batch_ndim(x)
        return unflatten(self.flat_field(flatten(x, ndim)), x, ndim)

    def flow(self, x: Point, t: float | Tensor) -> Point:
        """The point that starts at `x` and moves with the field for time `t`; nan where it has left the domain."""
        ndim = self._batch_ndim(x)
        flat = flatten(x, ndim)
        time = torch.as_tensor(t, dtype=flat.dtype, device=flat.device)
        return unflatten(self.flat_field.flow(flat, time.unsqueeze(-1) if time.ndim else time), x, ndim)

    def _batch_ndim(self, x: Point) -> int:
        shapes = {name: t.ndim for name, t in blocks_of(self.like).items()}
        return next(iter(blocks_of(x)[name].ndim - ndim for name, ndim in shapes.items()))


@dataclass(frozen=True, eq=False, repr=False)
class SymmetryMap:
    """A finite symmetry as a function of points shaped like the diagnosed one, leading dimensions are batch.

    Its repr is the code that makes it, where the diagnosis is called d.

    Attributes:
        formula: The map as text.
        place: Which of `d.discrete` it belongs to.
        move: The map on flat points (..., n).
        block: A block of the point ('' for a tensor), and
        block_ndim: its number of dimensions, which tell a batch.
    """

    formula: str
    place: int
    move: Callable[[Tensor], Tensor]
    block: str
    block_ndim: int

    def __call__(self, x: Point) -> Point:
        ndim = blocks_of(x)[self.block].ndim - self.block_ndim
        return unflatten(self.move(flatten(x, ndim)), x, ndim)

    def __repr__(self) -> str:
        return f"d.discrete[{self.place}].map"


@dataclass(frozen=True, eq=False)
class DiscreteSymmetry:
    """A finite move that predictions cannot see and that no flow reaches.

    Attributes:
        name: What kind of move.
        formula: The move as text.
        map: The move, a function of a point.
        error: Largest relative change of predictions over random points.
    """

    name: str
    formula: str
    map: Callable[[Point], Point] = field(repr=False)
    error: float = 0.0


@dataclass(frozen=True)
class Direction:
    """A combination of parameters at the point, and how well predictions determine it.

    Attributes:
        formula: The combination as text.
        information: Eigenvalue of the Fisher information of unit noise on the predictions: sum of squared changes of
            predictions per squared unit of the direction.
        relative: The same relative to the best determined direction.
        vector: The direction (a unit vector, shaped like the point).
    """

    formula: str
    information: float
    relative: float
    vector: Point = field(repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Which parameters, or combinations of parameters, predictions determine.

    Attributes:
        dim: Dimension of the gauge orbit at generic points.
        null_dim: Dimension of the null space at the given point; larger than `dim` at singular points.
        algebra: Canonical name of the Lie algebra of the gauge.
        generators: Its generators, in closed form where there is one.
        discrete: Finite symmetries that are in no flow.
        group: The group to hand to the rest of the library; None where no group acts (incomplete flows, neither closed form nor
            table).
        directions: Directions from the worst to the best determined, on the complement of the gauge at the point.
        weak: Those among them with little information; identifiable in principle.
        dead: Names of parameters that nothing sees. They count in `dim`; of models with more than 600 parameters they are not among
            the generators, and `group` is that of the others.
        verdict: One line.
        warnings: What to know before trusting it, each with a remedy.
        certainty: Ratio of the smallest singular value that counts to the largest that does not.
        size: Number of real parameters.
        invariants: What predictions determine, as text.
        design: How many of the `dim` directions more varied inputs would determine; 0 if no `inputs` were given.
        unknown: Directions of which nothing is known: the derivative vanishes everywhere, and finite moves change predictions (thresholds).
        more: How many further null directions there are, roughly, that were too many to be handed over; they are not in `dim`, `null_dim`.
        starts: From how many starts second solutions were looked for; 0 where there are too many unknowns for it.
    """

    dim: int
    null_dim: int
    algebra: str
    generators: tuple[Generator, ...]
    discrete: tuple[DiscreteSymmetry, ...]
    group: "GaugeGroup | None"
    directions: tuple[Direction, ...]
    weak: tuple[Direction, ...]
    dead: tuple[str, ...]
    verdict: str
    warnings: tuple[str, ...]
    certainty: float
    size: int
    invariants: str = ""
    design: int = 0
    starts: int = 0
    unknown: int = 0
    more: int = 0

    @property
    def identifiable(self) -> bool | None:
        """Whether there is no gauge (finite symmetries and weak directions aside); None if that is not known."""
        if self.dim or self.more:
            return False
        return None if self.algebra == "unknown" or self.unknown else True

    def concluded(self, warnings: tuple[str, ...]) -> "Diagnosis":
        """The same with its verdict and these warnings."""
        return replace(self, verdict=_verdict(self), warnings=warnings)

    def __str__(self) -> str:
        from manifoldid.diagnose.report import report

        return report(self)


def _verdict(d: Diagnosis) -> str:
    finite = f"{len(d.discrete)} finite symmetr{'y' if len(d.discrete) == 1 else 'ies'}"
    if d.dim:
        more = f" and {finite}" if d.discrete else ""
        name = d.algebra if d.algebra.startswith("unknown") else f"algebra {d.algebra}"
        design = f", {d.design} of it due to the inputs (design)" if d.design else ""
        blind = f"; nothing is known of {d.unknown} direction(s) without derivative" if d.unknown else ""
        rest = f"; about {d.more} further directions are unseen" if d.more else ""
        return f"not identifiable: a gauge of dimension {d.dim} ({name}){more}{design}{blind}{rest}"
    if d.more:
        return f"not identifiable: about {d.more} directions are unseen, none of a form that was looked for"
    if d.unknown:
        return f"no derivative information along {d.unknown} direction(s): of these nothing is known, the others are identifiable"
    if d.null_dim:
        return f"identifiable at generic points; {d.null_dim} direction(s) without derivative at this one"
    if d.discrete:
        return f"locally identifiable, up to {finite}"
    if d.weak:
        return f"identifiable, but weakly in {len(d.weak)} direction(s)"
    return "identifiable (locally, and no finite symmetry was found)"
