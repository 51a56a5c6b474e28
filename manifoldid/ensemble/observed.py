"""Members that saw different items: their joint alignment, and who saw enough for a statistic."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldid.ensemble.members import PADDING
from manifoldid.ensemble.moments import average
from manifoldid.errors import NotConvergedError, NotIdentifiableError, listed
from manifoldid.groups import Affine, PositiveScaling, Scaling, Translation
from manifoldid.groups._items import ItemGroup
from manifoldid.groups.base import GaugeGroup, canonicalise
from manifoldid.points import Point, item_weights

_MOST_SWEEPS = 10_000


def checked_mask(observed: object, members: Point) -> Tensor:
    """`observed` as a mask of its own, on the device of the members.

    Raises:
        TypeError: It is no bool tensor.
        ValueError: Members are not tensors (M, n), or it is not shaped like them.
    """
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        raise TypeError("`observed` must be a bool tensor (M, n)")
    if isinstance(members, Tensor) and members.ndim == 2 and observed.shape == members.shape:
        return observed.detach().to(members.device).clone()
    came = tuple(members.shape) if isinstance(members, Tensor) else f"a dict with the blocks {sorted(members)}"
    padded = isinstance(members, Tensor) and members.ndim > 2
    raise ValueError(
        f"`observed` must have the shape (M, n) of tensor members, got {tuple(observed.shape)} for members of shape {came}"
        + (PADDING if padded else "")
    )


def who_saw_enough(fn: Callable[[Point], Any], members: Tensor, observed: Tensor) -> list[int]:
    """The members that saw all items on which `fn` depends: its value stays as the items that they did not see move.

    Finite moves tell, since comparisons, ranks and maxima have no derivative that does: above all numbers, below them, and all over
    their range, in rising and in falling order.

    Args:
        fn: A function of one point.
        members: Aligned members (M, n).
        observed: What they saw, bool (M, n).
    """
    seen = members[observed]
    low, high = seen.min(), seen.max()
    reach = torch.where(high > low, high - low, torch.ones_like(low))
    # positive numbers stay positive
    bottom, top = (low / 2, 2 * high) if bool(low > 0) else (low - reach, high + reach)
    values = torch.stack([_numbers(fn(member)) for member in members])
    slack = torch.finfo(members.dtype).eps ** 0.5 * values.abs().amax(0)
    found = []
    for k, (member, hidden) in enumerate(zip(members, ~observed, strict=True)):
        count = int(hidden.sum())
        rising = torch.arange(1, count + 1, device=members.device).to(members) / max(count, 1)
        moves = [high + (top - high) * rising, low - (low - bottom) * rising]
        moves += [bottom + (top - bottom) * rising, top - (top - bottom) * rising]
        moved = [_numbers(fn(member.masked_scatter(hidden, move))) for move in moves if count]
        if all(bool(((other - values[k]).abs() <= slack).all()) for other in moved):  # false for nan
            found.append(k)
    return found


def _numbers(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().double()


def check_overlap(observed: Tensor, group: ItemGroup, weights: Tensor | None = None) -> None:
    """Refuses members that cannot be brought to one gauge because they share no items that define it.

    Raises:
        NotIdentifiableError: Members fall into groups without shared items of positive weight (per block), or an item was seen by
            nobody.
    """
    from scipy.sparse import coo_matrix  # here, since it takes as long to import as the rest of this package
    from scipy.sparse.csgraph import connected_components

    members, items = observed.shape
    unseen = (~observed.any(0)).nonzero()[:, 0].tolist()
    if unseen:
        raise NotIdentifiableError(
            f"`observed` has items that no member saw: {listed(unseen)}; leave them out of the ensemble"
        )
    index = torch.zeros(items, dtype=torch.long) if group.partition is None else group.partition.index.cpu()
    linking = observed if weights is None else observed & (weights > 0)
    for block in range(group.block_count):
        part = index == block
        rows, columns = linking[:, part].nonzero(as_tuple=True)
        size = members + int(part.sum())
        graph = coo_matrix(
            (torch.ones(len(rows)).numpy(), (rows.numpy(), (columns + members).numpy())), shape=(size, size)
        )
        _, component = connected_components(graph, directed=False)
        seen = observed[:, part].any(1).nonzero()[:, 0].tolist()
        first = component[seen[0]]
        apart = [m for m in seen if component[m] != first]
        if apart:
            where = "" if group.block_labels is None else f" in block {group.block_labels[block]}"
            what = "items" if weights is None else "items of positive weight"
            raise NotIdentifiableError(
                f"`observed` leaves members {listed(apart)} without {what} shared{where}, directly or through others, with member "
                f"{seen[0]}: they cannot be brought to one gauge; drop them, or make an ensemble of each part"
            )


def align_observed(members: Tensor, group: GaugeGroup, weights: Tensor | None, observed: Tensor) -> Tensor:
    """Members (M, n) that saw different items, aligned jointly by least squares over the items they share.

    Minimises sum over members m and their items i of w_i (g_m x_mi - t_i)^2 over the moves g_m and the consensus t, which is
    put on the canonical section (PositiveScaling: of the logarithms). Linear for Translation and PositiveScaling; alternating
    least squares for Scaling and Affine.

    Returns:
        Aligned members (M, n); entries that a member did not see hold the consensus.

    Raises:
        TypeError: The group is not one of those four.
        ValueError: `weights` do not fit.
        NotIdentifiableError: Members are not connected by shared items of positive weight.
        NotConvergedError: Alternating least squares does not settle.
    """
    if not isinstance(group, (Translation, PositiveScaling, Scaling, Affine)) or getattr(group, "common_scale", False):
        raise TypeError(f"`observed` needs Translation, Scaling, PositiveScaling or Affine, not {group}")
    weights = None if weights is None else item_weights(weights, members.shape[-1:], members)
    check_overlap(observed.cpu(), group, None if weights is None else weights.cpu())
    if isinstance(group, PositiveScaling):
        chart = torch.where(observed, members, torch.ones_like(members))
        canonicalise(group, chart, weights, "members")
        return align_observed(chart.log(), Translation(group.blocks), weights, observed).exp()
    values = torch.where(observed, members, torch.zeros_like(members))
    w = observed * (torch.ones_like(members[0]) if weights is None else weights)
    if isinstance(group, Translation):
        moved, consensus = _shifts(values, group, w, observed)
    else:
        moved, consensus = _alternate(values, group, w, observed)
    form, _ = canonicalise(group, consensus, weights, "consensus of the members")
    carried = group.undo(form.xi, moved)
    return torch.where(observed, carried, form.point)


def _by_block(group: ItemGroup, x: Tensor) -> list[Tensor]:
    """Indices of the items of every block."""
    if group.partition is None:
        return [torch.arange(x.shape[-1], device=x.device)]
    return [(group.partition.index.to(x.device) == k).nonzero()[:, 0] for k in range(group.block_count)]


def _shifts(values: Tensor, group: ItemGroup, w: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares shifts: (L - W D^-1 W') s = right side, after elimination of the consensus."""
    moved = torch.zeros_like(values)
    for items in _by_block(group, values):
        x, v = values[:, items].double(), w[:, items].double()
        total = v.sum(0)
        share = v / torch.where(total > 0, total, torch.ones_like(total))
        normal = torch.diag(v.sum(1)) - v @ share.mT
        right = (v * x).sum(1) - v @ (share * x).sum(0)
        shift = torch.linalg.lstsq(normal, right[:, None], driver="gelsd").solution
        moved[:, items] = (x - shift).to(values.dtype)
    return moved, average(moved, observed)


def _alternate(values: Tensor, group: ItemGroup, w: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Alternating least squares: consensus from moves, moves from consensus (regression of the consensus on a member)."""
    moved = values.clone()
    fit: Callable[[Tensor, Tensor, Tensor], Tensor] = _regress if isinstance(group, Affine) else _rescale
    consensus = canonicalise(group, average(moved, observed), None, "consensus of the members")[0].point
    for _ in range(_MOST_SWEEPS):
        for items in _by_block(group, values):
            moved[:, items] = fit(values[:, items], consensus[items], w[:, items])
        new = canonicalise(group, average(moved, observed), None, "consensus of the members")[0].point
        change = float((new - consensus).abs().max())
        consensus = new
        if change <= 64 * torch.finfo(values.dtype).eps:
            for items in _by_block(group, values):
                moved[:, items] = fit(values[:, items], consensus[items], w[:, items])
            return moved, consensus
    raise NotConvergedError(
        f"the joint alignment has not settled after {_MOST_SWEEPS} sweeps: members share too few items"
    )


def _rescale(x: Tensor, to: Tensor, w: Tensor) -> Tensor:
    factor = (w * x * to).sum(1, keepdim=True) / (w * x * x).sum(1, keepdim=True)
    return x * _positive(factor)


def _regress(x: Tensor, to: Tensor, w: Tensor) -> Tensor:
    total = w.sum(1, keepdim=True)
    mean, target = (w * x).sum(1, keepdim=True) / total, (w * to).sum(1, keepdim=True) / total
    factor = (w * (x - mean) * (to - target)).sum(1, keepdim=True) / (w * (x - mean).square()).sum(1, keepdim=True)
    return target + _positive(factor) * (x - mean)


def _positive(factor: Tensor) -> Tensor:
    bad = (~(factor > 0))[:, 0].nonzero()[:, 0].tolist()
    if bad:
        raise NotIdentifiableError(
            f"`observed`: members {listed(bad)} have no positive scale that brings them to the others on the items they share: "
            "too few shared items, or a member that disagrees in sign"
        )
    return factor
