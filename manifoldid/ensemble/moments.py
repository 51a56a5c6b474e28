"""Means, deviations and covariances of aligned members (M, *event), entry by entry; with `observed` (M, n) over who saw an item."""

from collections.abc import Sequence

import torch
from torch import Tensor

from manifoldid.points import Point, flatten, map_blocks


def average(members: Point, observed: Tensor | None) -> Point:
    """The mean of every entry."""
    if observed is None:
        return map_blocks(lambda t: t.mean(0), members)
    return torch.where(observed, members, torch.zeros_like(members)).sum(0) / observed.sum(0)


def standard_deviation(members: Point, observed: Tensor | None) -> Point:
    """The standard deviation of every entry, ddof 1; nan where only one member saw an item."""
    if observed is None:
        return map_blocks(lambda t: _absolute(t - t.mean(0)).square().sum(0).div(len(t) - 1).sqrt(), members)
    return (_deviations(members, observed).square().sum(0) / (observed.sum(0) - 1)).sqrt()


def covariance_of(members: Tensor, observed: Tensor | None, labels: Sequence[str | int]) -> Tensor:
    """The covariance (n, n) of flattened members, ddof 1; with `observed` of every pair of items over the members that saw both.

    Args:
        members: One block of them.
        observed: Who saw what.
        labels: What the items are called, for errors.

    Raises:
        ValueError: Two items were seen together by fewer than two members.
    """
    if observed is None:
        rest = flatten(members, 1)
        rest = rest - rest.mean(0)
        return rest.mT @ rest / (len(members) - 1)
    together = observed.to(members.dtype)
    together = together.mT @ together
    if bool((together < 2).any()):
        i, j = (labels[k] for k in (together < 2).nonzero()[0].tolist())
        raise ValueError(f"`observed`: items {i} and {j} were seen together by fewer than two members: no covariance")
    rest = _deviations(members, observed)
    return rest.mT @ rest / (together - 1)


def _deviations(members: Tensor, observed: Tensor) -> Tensor:
    rest = members - average(members, observed)
    return torch.where(observed, rest, torch.zeros_like(rest))


def _absolute(t: Tensor) -> Tensor:
    return t.abs() if t.is_complex() else t
