"""Steps with sparse gradients: only the rows that a gradient touches are displaced.

Embeddings with `sparse=True` under SGD, SparseAdam or Adagrad. Where rows are points of their own (batch), the rows that were
touched step as ever and the others are not looked at. Where rows are the items of one point, its metric is restricted to the
items that were touched: they step as if they were the whole point. Flat gauges give them back the frame that they had, so
that their mean and size, and with them those of all items, do not change and the whole point stays on its section; curved
gauges make their displacement horizontal among themselves. A gauge of dimension d therefore takes d numbers from every
step's own items: of fewer items nothing moves, and a loss that does not see the gauge asks for no such move.
"""

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam

from manifoldid.groups._items import ItemGroup
from manifoldid.groups.base import GaugeGroup
from manifoldid.groups.geometry import Check
from manifoldid.optim.member import Member
from manifoldid.points import Point, Weights, blocks_of, cast_like, compute_point, first, map_blocks
from manifoldid.sections import Section

TAKE_SPARSE = (SGD, SparseAdam, Adagrad)
"""Optimisers of torch whose steps displace the rows of a sparse gradient only."""


def is_sparse(member: Member) -> bool:
    """Whether all gradients of `member` are sparse; items that are spread over ranks step together."""
    grads = [p.grad for p in member.parameters.values()]
    return member.group.shards is None and all(g is not None and g.layout == torch.sparse_coo for g in grads)


class SparseStep:
    """The touched rows of one member before a step, and what becomes of them after it."""

    def __init__(self, optimizer: Optimizer, member: Member):
        """Remembers the rows.

        Args:
            optimizer: The optimiser that is about to step.
            member: A member with sparse gradients.

        Raises:
            TypeError: The group cannot act on some of its items alone.
            ValueError: Items that are touched have weight 0.
        """
        self.member = member
        rows = {name: _rows(optimizer, p) for name, p in member.parameters.items()}
        group, weights = member.group, member.section.weights
        if group.batch_ndim(member.point()):  # rows are points: they move in all blocks when they are touched in one
            union = torch.unique(torch.cat(list(rows.values())))
            rows = dict.fromkeys(rows, union)
        else:
            group, weights = group.on_items(rows), _weights_at(weights, rows, member.name)
        self.rows, self.section = rows, Section(group, weights)
        self.old = self._now()

    def _now(self) -> Point:
        return compute_point(self.member.as_point({name: t[self.rows[name]] for name, t in self._blocks().items()}))

    def _blocks(self) -> dict[str, Tensor]:
        return dict(blocks_of(self.member.point()))

    def finish(self, check: Check) -> None:
        """Puts the touched rows where the gauge lets them go.

        Args:
            check: Is handed the new values, before they are written; may raise.
        """
        group, now = self.section.group, self._now()
        if not all(len(rows) for rows in self.rows.values()):
            return
        if not group.flat:
            new = group.geometry(self.section.weights).follow(self.old, now)
        elif group.batch_ndim(now) > 0:
            new = self.section.canonical_form(now).point
        else:
            new = self._with_old_frame(group, now)
        for values in blocks_of(new).values():
            check(values)
        written = blocks_of(cast_like(new, self.member.point()))
        for name, t in self._blocks().items():
            t.index_copy_(0, self.rows[name], written[name])

    def _with_old_frame(self, group: GaugeGroup, now: Point) -> Point:
        """The representative of `now` with the frame of the old rows; what has no frame (one item, say) stays where it was."""
        before, after = self.section.canonical_form(self.old), self.section.canonical_form(now)
        new = group.act(before.xi, after.point)
        if before.regular is None or after.regular is None:
            return new
        regular = before.regular & after.regular
        by_block = isinstance(group, ItemGroup) and regular.shape[-1] > 1
        regular = group.at_items(regular) if by_block else regular.all(-1)
        return map_blocks(lambda n, o: torch.where(regular, n, o), new, self.old)


def _rows(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """The rows (k,) that a step displaces, sorted: those of the gradient, and those that sparse momentum still moves."""
    sparse = [parameter.grad, optimizer.state.get(parameter, {}).get("momentum_buffer")]
    found = [t._indices()[0] for t in sparse if isinstance(t, Tensor) and t.layout == torch.sparse_coo]
    return torch.unique(torch.cat(found))


def _weights_at(weights: Weights, rows: dict[str, Tensor], name: str) -> Weights:
    if weights is None:
        return None
    if isinstance(weights, Tensor):
        chosen: Weights = weights[first(rows).to(weights.device)]
    else:
        chosen = {block: w[rows[block].to(w.device)] for block, w in weights.items()}
    if not all(bool((w > 0).all()) for w in blocks_of(chosen).values()):
        raise ValueError(
            f"`weights` of `{name}` are 0 at items that a sparse gradient touches: without dense gradients, items of weight 0 "
            "cannot be told where the origin is; use nn.Embedding(sparse=False) or positive weights"
        )
    return chosen
