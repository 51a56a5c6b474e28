"""Ensembles: means, standard deviations, covariances and contrasts that do not depend on anybody's origin or unit."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from manifoldid.ensemble.align import align_members, align_observed, stacked
from manifoldid.errors import DegeneratePointError, NotEstimableError, listed
from manifoldid.groups.base import GaugeGroup, check_quotient
from manifoldid.inference.contrast import Contrast
from manifoldid.inference.quasi_variance import QuasiVariances, quasi_variances
from manifoldid.invariance import default_tolerance, largest_change
from manifoldid.points import (
    Point,
    Weights,
    blocks_of,
    first,
    flatten,
    is_dict,
    like_point,
    map_blocks,
    part_of_weights,
)
from manifoldid.quotient.frechet import frechet_mean
from manifoldid.sections import SectionLike, as_section


class Ensemble:
    """Points that estimate the same thing, each in its own gauge: networks of an ensemble, bootstrap replicates, chains, seeds.

    Args:
        members: A stacked tensor (M, *event) or dict of such tensors, or a list of tensors or of dicts. Copied, not changed.
        group: The gauge group.
        weights: Item weights (n,), not member weights; a dict for dict points.
        observed: Which items each member saw, bool (M, n), for tensor points under Translation, Scaling, PositiveScaling and
            Affine: then members are aligned jointly by least squares over the items they share, entries that a member did
            not see are ignored (nan is allowed there), and every statistic of an item uses the members that saw it.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: There are fewer than two members, shapes differ, or entries are not finite.
        DegeneratePointError: A member has no representative; it is named.
        NotIdentifiableError: With `observed`, members do not share items.
    """

    def __init__(self, members: Any, group: GaugeGroup, weights: Weights = None, observed: Tensor | None = None):
        if not isinstance(group, GaugeGroup):
            raise TypeError(f"`group` must be a gauge group, such as mid.Translation(), got {group!r}")
        self.group = group
        self.weights = weights
        self.members: Point = map_blocks(torch.clone, group.validate(stacked(members), "members"))
        sizes = {t.shape[0] if t.ndim else 0 for t in blocks_of(self.members).values()}
        if len(sizes) > 1 or min(sizes) < 2:
            raise ValueError(
                f"`members` must be stacked along the first dimension, at least two of them, got leading sizes {sorted(sizes)}"
            )
        check_quotient(group, self.members, "members")
        self._size = sizes.pop()
        self._observed = None if observed is None else self._checked_mask(observed)
        self.members = self._hidden_entries(self.members)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        shapes = {name or "point": tuple(t.shape[1:]) for name, t in blocks_of(self.members).items()}
        seen = "" if self._observed is None else f", items seen by {int(self.counts.min())} to {int(self.counts.max())}"
        return f"<Ensemble of {len(self)} members under {self.group!r}, {shapes}{seen}>"

    # ------------------------------------------------------------------------------------------------ alignment

    @cached_property
    def aligned(self) -> Point:
        """The members, each moved along its own orbit: flat gauges to the canonical section, others next to the Frechet mean.

        With `observed`, entries that a member did not see hold the consensus of the others.
        """
        if self._observed is not None:
            return align_observed(self.members, self.group, self.weights, self._observed)
        parts = dict(blocks_of(self.members))
        for factor, of in self.group.factors():
            if isinstance(self.members, Tensor):
                return align_members(self.members, factor, self.weights)
            chosen = (
                self.members[of] if isinstance(of, str) else {name: self.members[name] for name in of or self.members}
            )
            moved = align_members(chosen, factor, part_of_weights(self.weights, of))
            parts.update({of: moved} if isinstance(of, str) else moved)
        return like_point(parts, self.members)

    @property
    def counts(self) -> Tensor:
        """How many members saw each item, (n,); without `observed` that is all of them, shaped like the point (first block)."""
        if self._observed is not None:
            return self._observed.sum(0)
        return torch.full(first(self.members).shape[1:], len(self), dtype=torch.long)

    def in_section(self, section: SectionLike = None) -> Point:
        """The members on a section; None is `aligned`.

        Raises:
            DegeneratePointError: A member has no representative on `section`; it is named.
            NotEstimableError: `section` is a callable that is not constant on orbits.
        """
        if section is None:
            return self.aligned
        move = as_section(section, self.group, self.weights)
        members = self._each(move, self.aligned)
        self._check_estimable(move, "`section`")
        return members

    # ------------------------------------------------------------------------------------------------ statistics

    def mean(self, section: SectionLike = None) -> Point:
        """The mean, shaped like one point.

        Entry by entry on the section for Translation, Shift and PositiveScaling; else the Frechet mean of the quotient, put on
        the section. With `observed`, every item over the members that saw it (the least-squares consensus).

        Args:
            section: Where to report it: a section, a dict of sections, or a callable; None is the canonical one.

        Raises:
            NotConvergedError: The Frechet mean does not settle.
            DegeneratePointError: A member has no representative on `section`; it is named.
            NotEstimableError: `section` is a callable that is not constant on orbits.
        """
        average = self._average(self.in_section(section))
        if self._observed is not None or self.group.arithmetic:
            return average
        if isinstance(self.members, Tensor):
            middle: Point = frechet_mean(self.group, self.members, self.weights)
            return middle if section is None else as_section(section, self.group, self.weights)(middle)
        centre = dict(self._average(self.aligned))
        curved: set[str] = set()  # blocks whose mean is a Frechet mean
        for factor, of in self.group.factors():
            chosen = self._chosen(of)
            if not factor.arithmetic and factor.dimension(chosen):
                middle = frechet_mean(factor, chosen, part_of_weights(self.weights, of))
                part = {of: middle} if isinstance(of, str) else dict(middle)
                centre.update(part)
                curved.update(part)
        reported = centre if section is None else as_section(section, self.group, self.weights)(centre)
        return {name: reported[name] if name in curved else t for name, t in average.items()}

    def std(self, section: SectionLike = None) -> Point:
        """Standard deviation of one member, entry by entry, ddof 1, shaped like one point.

        Raises:
            ValueError: With `observed`, an item was seen by fewer than two members.
            NotEstimableError: `section` is a callable that is not constant on orbits.
        """
        aligned = self.in_section(section)
        if self._observed is None:
            return map_blocks(lambda t: _absolute(t - t.mean(0)).square().sum(0).div(len(self) - 1).sqrt(), aligned)
        few = (self.counts < 2).nonzero()[:, 0].tolist()
        if few:
            raise ValueError(f"`observed`: items {listed(few)} were seen by one member only, which has no spread")
        rest = self._deviations(aligned)
        return (rest.square().sum(0) / (self.counts - 1)).sqrt()

    def covariance(self, section: SectionLike = None, block: str | None = None) -> Tensor:
        """Covariance of one member, (n, n) over the flattened point or block, ddof 1.

        With `observed`, every pair of items over the members that saw both.

        Raises:
            ValueError: A dict point has several blocks and `block` is not given, or with `observed` two items were seen together
                by fewer than two members.
            NotEstimableError: `section` is a callable that is not constant on orbits.
        """
        aligned = self._block(self.in_section(section), block)
        if self._observed is None:
            rest = flatten(aligned, 1)
            rest = rest - rest.mean(0)
            return rest.mT @ rest / (len(self) - 1)
        together = self._observed.to(aligned.dtype)
        together = together.mT @ together
        if bool((together < 2).any()):
            i, j = (together < 2).nonzero()[0].tolist()
            raise ValueError(
                f"`observed`: items {i} and {j} were seen together by fewer than two members: no covariance"
            )
        rest = self._deviations(aligned)
        return rest.mT @ rest / (together - 1)

    def contrast(self, fn: Callable[[Point], Tensor]) -> Contrast:
        """A function of one point that does not see the gauge, over the members.

        Args:
            fn: Takes one point, returns a number or a vector (k,).

        Returns:
            Its mean, and the spread of one member (not of the mean).

        Raises:
            NotEstimableError: `fn` is not constant on orbits; the message names the generator.
            ValueError: `fn` returns a matrix, or with `observed` fewer than two members saw all items that it uses.
        """
        self._check_estimable(fn, "`fn`")
        values = torch.stack([torch.as_tensor(fn(_member(self.aligned, k))) for k in self._who_saw(fn)])
        if not values.is_floating_point():
            values = values.to(flatten(self.aligned, 1).dtype)  # comparisons and ranks: shares and mean ranks
        if values.ndim > 2:
            raise ValueError(f"`fn` must return a number or a vector, got shape {tuple(values.shape[1:])}")
        rest = (values - values.mean(0)).reshape(len(values), -1)
        return Contrast(values.mean(0), rest.mT @ rest / (len(values) - 1), values)

    def quasi_variances(self, block: str | None = None, section: SectionLike = None) -> QuasiVariances:
        """Quasi-variances of one member, of tensor points or of a block; errors as in `covariance` and `mid.quasi_variances`."""
        return quasi_variances(self.covariance(section, block))

    def table(
        self, names: Sequence[str] | None = None, section: SectionLike = None, block: str | None = None
    ) -> list[dict[str, Any]]:
        """One row per item, for `pandas.DataFrame(...)`: item, mean, standard_deviation, members.

        Raises:
            ValueError: `names` has the wrong length, or `block` is needed.
        """
        mean = flatten(self._block(self.mean(section), block)).tolist()
        deviation = flatten(self._block(self.std(section), block)).tolist()
        if names is not None and len(names) != len(mean):
            raise ValueError(f"`names` must have one name per item, {len(mean)}, got {len(names)}")
        counts = self.counts.tolist() if self._observed is not None else [len(self)] * len(mean)
        return [
            {
                "item": names[k] if names is not None else k,
                "mean": mean[k],
                "standard_deviation": deviation[k],
                "members": counts[k],
            }
            for k in range(len(mean))
        ]

    # ------------------------------------------------------------------------------------------------ private

    def _checked_mask(self, observed: Tensor) -> Tensor:
        if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
            raise TypeError("`observed` must be a bool tensor (M, n)")
        if is_dict(self.members) or observed.shape != self.members.shape:
            shape = {name: tuple(t.shape) for name, t in blocks_of(self.members).items()}
            raise ValueError(
                f"`observed` must have the shape (M, n) of tensor members, got {tuple(observed.shape)} for {shape}"
            )
        return observed.detach().to(self.members.device).clone()

    def _hidden_entries(self, members: Point) -> Point:
        """Entries that nobody saw, as 1: nan there is the caller's way to say so."""
        return members if self._observed is None else torch.where(self._observed, members, torch.ones_like(members))

    def _chosen(self, of: tuple[str, ...] | str) -> Point:
        return self.members[of] if isinstance(of, str) else {name: self.members[name] for name in of or self.members}

    def _average(self, members: Point) -> Point:
        if self._observed is None:
            return map_blocks(lambda t: t.mean(0), members)
        return torch.where(self._observed, members, torch.zeros_like(members)).sum(0) / self.counts

    def _deviations(self, members: Tensor) -> Tensor:
        rest = members - self._average(members)
        return rest if self._observed is None else torch.where(self._observed, rest, torch.zeros_like(rest))

    def _each(self, function: Callable[[Point], Point], members: Point) -> Point:
        results = []
        for k in range(len(self)):
            try:
                results.append(function(_member(members, k)))
            except DegeneratePointError as error:
                raise DegeneratePointError(f"member {k} of the ensemble cannot be put on `section`: {error}") from error
        if is_dict(results[0]):
            return {name: torch.stack([result[name] for result in results]) for name in results[0]}
        return torch.stack(results)

    def _block(self, x: Point, block: str | None) -> Point:
        if isinstance(x, Tensor):
            if block is not None:
                raise ValueError(f"`block` is {block!r}, but the members are tensors without blocks")
            return x
        if block is None and len(x) > 1:
            raise ValueError(f"`block` is needed: the members have the blocks {sorted(x)}")
        if block is not None and block not in x:
            raise ValueError(f"`block` is {block!r}, but the members have the blocks {sorted(x)}")
        return x[block if block is not None else next(iter(x))]

    def _check_estimable(self, fn: Callable[[Point], Any], who: str) -> None:
        point = _member(self.aligned, 0)
        change = largest_change(fn, point, self.group)
        if not change.relative <= default_tolerance(point):
            raise NotEstimableError(
                f"{who} is not constant on the orbits of {self.group!r}: it changes by {change.relative:.1e} relative under the "
                f"{change.generator}, so its value says which gauge a member is in; take differences (ratios, distances), or "
                "fix a gauge first: mid.Section(group)(x)"
            )

    def _who_saw(self, fn: Callable[[Point], Any]) -> list[int]:
        """Members that saw every item on which `fn` depends."""
        if self._observed is None:
            return list(range(len(self)))
        with torch.enable_grad():
            x = _member(self.aligned, 0).clone().requires_grad_()
            jacobian = torch.autograd.functional.jacobian(lambda t: torch.as_tensor(fn(t)).reshape(-1), x)
        used = (jacobian != 0).any(0)
        members = (self._observed | ~used).all(1).nonzero()[:, 0].tolist()
        if len(members) < 2:
            raise ValueError(f"`fn` uses items that only {len(members)} member(s) saw together: no spread")
        return members


def _member(members: Point, k: int) -> Point:
    return map_blocks(lambda t: t[k], members)


def _absolute(t: Tensor) -> Tensor:
    return t.abs() if t.is_complex() else t
