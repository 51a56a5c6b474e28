"""Ensembles: means, standard deviations, covariances and contrasts that do not depend on anybody's origin or unit."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manifoldid.distributed.dtensors import whole
from manifoldid.ensemble.align import align_members
from manifoldid.ensemble.bootstrap import Data, replicates
from manifoldid.ensemble.members import PADDING, member, require_finite, stacked, warn_of_rounding
from manifoldid.ensemble.moments import average, covariance_of, standard_deviation
from manifoldid.ensemble.observed import align_observed, checked_mask, who_saw_enough
from manifoldid.ensemble.report import ensemble_picture, ensemble_rows, ensemble_text
from manifoldid.errors import DegeneratePointError, listed
from manifoldid.groups.base import GaugeGroup, check_quotient, require_group
from manifoldid.inference.contrast import Contrast
from manifoldid.inference.linear import Linear, as_function
from manifoldid.inference.names import Names, checked_names, chosen_names, item_labels, real_shape
from manifoldid.inference.pairwise import PairwiseContrasts
from manifoldid.inference.pools import differences, pools_of, require_pairs
from manifoldid.inference.quasi_variance import QuasiVariances, quasi_variances
from manifoldid.invariance import (
    TAKE_DIFFERENCES,
    largest_change,
    largest_change_of_maps,
    leaves_torch,
    require_estimable,
)
from manifoldid.points import (
    Point,
    Weights,
    blocks_of,
    first,
    flatten,
    is_dict,
    map_blocks,
    own_copy,
    part_of,
    part_of_weights,
)
from manifoldid.quotient.frechet import frechet_mean
from manifoldid.sections import SectionLike, as_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONSEQUENCE = ", so its value says which gauge a member is in"
_TAKE_SYMMETRIC = (
    "; take a function that the maps leave alone (of what is exchanged the sum, the product, the sorted values)"
)


class Ensemble:
    """Points that estimate the same thing, each in its own gauge: networks of an ensemble, bootstrap replicates, chains, seeds.

    Args:
        members: A stacked tensor (M, *event) or dict of such tensors, or a list of tensors or of dicts. Copied, not changed.
        group: The gauge group.
        weights: Item weights (n,), not member weights; a dict for dict points.
        observed: Which items each member saw, bool (M, n), for tensor points under Translation, Scaling, PositiveScaling and
            Affine: then members are aligned jointly by least squares over the items they share, entries that a member did
            not see are ignored (nan is allowed there), and every statistic of an item uses the members that saw it.
        names: What the items are called in tables, pictures and errors: a list, or for dicts a dict from block to list.

    Attributes:
        members: As they came, (M, *event) or a dict.
        aligned: The members, each moved along its own orbit: flat gauges to the canonical section, others next to the Frechet mean.
            With `observed`, entries that a member did not see hold the consensus of the others.
        dropped: Of a bootstrap: replicates without an estimate, by reason.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: There are fewer than two members, shapes differ, or entries are not finite.
        DegeneratePointError: A member has no representative; it is named.
        NotIdentifiableError: With `observed`, members do not share items.

    Warns:
        UserWarning: Members of a `Translation` in half precision are rounded by as much as they differ.
    """

    def __init__(
        self,
        members: Any,
        group: GaugeGroup,
        weights: Weights = None,
        observed: Tensor | None = None,
        names: Names = None,
    ):
        require_group(group)
        self.group = group
        self.weights = own_copy(weights)
        self.members: Point = map_blocks(torch.clone, group.validate(stacked(members), "members"))
        sizes = {t.shape[0] if t.ndim else 0 for t in blocks_of(self.members).values()}
        if len(sizes) > 1 or min(sizes) < 2:
            raise ValueError(
                f"`members` must be stacked along the first dimension, at least two of them, got leading sizes {sorted(sizes)}"
            )
        if not group.batch_ndim(self.members) and group.dimension(self.members):
            shapes = {block or "members": tuple(t.shape) for block, t in blocks_of(self.members).items()}
            raise ValueError(f"`members` must be stacked along the first dimension, (M, n); got one point, {shapes}")
        check_quotient(group, self.members, "members")
        self._size = sizes.pop()
        self.observed = None if observed is None else checked_mask(observed, self.members)
        self.members = self._hidden_entries(self.members)
        hint = PADDING if group.batch_ndim(self.members) > 1 else "; observed= says which items a member did not see"
        require_finite(self.members, hint if self.observed is None else "")
        self.names = checked_names(names, member(self.members, 0))
        self.dropped: dict[str, int] = {}  # replicates of a bootstrap without an estimate, by reason
        self.aligned: Point = self._align()  # now: what cannot be aligned is an error where it was handed in
        warn_of_rounding(self.members, self.aligned, group)

    @classmethod
    def from_bootstrap(
        cls,
        nll: Callable[[Any, Data], Tensor],
        resample: Callable[[torch.Generator], Data],
        size: int,
        start: Any,
        group: GaugeGroup,
        weights: Weights = None,
        failures: str = "raise",
        names: Names = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> "Ensemble":
        """Bootstrap replicates of a maximum-likelihood estimate: `size` times new data, and `fit` from `start`.

        Every replicate is checked as `infer` does. One without an estimate (separated, disconnected) is an error: leaving it out is a
        choice, since what is left is the distribution under the condition that there is an estimate.

        Args:
            nll: Negative log-likelihood of a point and a data set: `nll(point, data)`, the sum.
            resample: Draws a data set with the generator that it is given: indices, counts or weights of the observations.
            size: Replicates to try, at least 2.
            start: Where every fit starts; the estimate of the whole data is a good place.
            group: What leaves `nll` unchanged.
            weights: Item weights.
            failures: 'raise', or 'drop' to leave out replicates without an estimate; then `dropped` and `str` count them.
            names: What the items are called.
            generator: Handed to `resample`; None is a private one seeded 0.
            progress: Whether to show a progress bar (on the standard error).

        Raises:
            UnboundedEstimateError: A replicate is separated.
            NotIdentifiableError: A replicate does not connect the items.
            NotConvergedError: A fit stopped early.
            DegeneratePointError: A replicate has no representative.
            ValueError: `size` or `failures` is wrong, or fewer than two replicates are left.
        """
        points, dropped = replicates(nll, resample, size, start, group, weights, failures, names, generator, progress)
        ensemble = cls(points, group, weights, names=names)
        ensemble.dropped = dropped
        return ensemble

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        shapes = {name or "point": tuple(t.shape[1:]) for name, t in blocks_of(self.members).items()}
        seen = "" if self.observed is None else f", items seen by {int(self.counts.min())} to {int(self.counts.max())}"
        return f"<Ensemble of {len(self)} members under {self.group}, {shapes}{seen}>"

    # ------------------------------------------------------------------------------------------------ alignment

    @property
    def counts(self) -> Tensor:
        """How many members saw each item, (n,); without `observed` that is all of them, shaped like the point (first block)."""
        if self.observed is not None:
            return self.observed.sum(0)
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
        other = getattr(section, "group", self.group)
        self._check_gauge(move, "`section`" if other == self.group else f"`section`, which is of {other},")
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
        entrywise = average(self.in_section(section), self.observed)
        if self.observed is not None or self.group.arithmetic:
            return entrywise
        if isinstance(self.members, Tensor):
            middle: Point = frechet_mean(self.group, self.members, self.weights)
            return middle if section is None else as_section(section, self.group, self.weights)(middle)
        centre = dict(average(self.aligned, None))
        curved: set[str] = set()  # blocks whose mean is a Frechet mean
        for factor, of in self.group.factors():
            chosen = part_of(self.members, of)
            if not factor.arithmetic and factor.dimension(chosen):
                middle = frechet_mean(factor, chosen, part_of_weights(self.weights, of))
                part = {of: middle} if isinstance(of, str) else dict(middle)
                centre.update(part)
                curved.update(part)
        reported = centre if section is None else as_section(section, self.group, self.weights)(centre)
        return {name: reported[name] if name in curved else t for name, t in entrywise.items()}

    def std(self, section: SectionLike = None) -> Point:
        """Standard deviation of one member, entry by entry, ddof 1, shaped like one point.

        An item that is alone in its block, or has the whole weight of it, is the origin of that block: its deviation is 0, which says
        nothing about how well it is known.

        Raises:
            ValueError: With `observed`, an item was seen by fewer than two members.
            NotEstimableError: `section` is a callable that is not constant on orbits.
        """
        few = [] if self.observed is None else (self.counts < 2).nonzero()[:, 0].tolist()
        if few:
            names = listed([self.labels()[k] for k in few])
            raise ValueError(f"`observed`: items {names} were seen by one member only, which has no spread")
        return self.spread(section)

    def spread(self, section: SectionLike = None) -> Point:
        """As `std`, but nan where only one member saw an item."""
        return standard_deviation(self.in_section(section), self.observed)

    def covariance(self, section: SectionLike = None, block: str | None = None) -> Tensor:
        """Covariance of one member, (n, n) over the flattened point or block, ddof 1.

        With `observed`, every pair of items over the members that saw both.

        Raises:
            ValueError: A dict point has several blocks and `block` is not given, or with `observed` two items were seen together
                by fewer than two members.
            NotEstimableError: `section` is a callable that is not constant on orbits.
        """
        aligned = self.block_of(self.in_section(section), block)
        return covariance_of(aligned, self.observed, self.labels(None, block))

    def contrast(self, fn: Linear, minus: str | int | None = None, block: str | None = None) -> Contrast:
        """A function of one point that does not see the gauge, over the members.

        Args:
            fn: Takes one point, returns a number or a vector (k,); or coefficients or an item, as in `Estimate.contrast`.
            minus: The item that is subtracted, if `fn` is one.
            block: Of dict points: the block of these coefficients or items.

        Returns:
            Its mean, and the spread of one member (not of the mean).

        Raises:
            NotEstimableError: `fn` is not constant on orbits; the message names the generator, or the map of a `Finite` group.
            ValueError: `fn` returns a matrix, or with `observed` fewer than two members saw all items that it uses.
        """
        fn = as_function(fn, minus, lambda: self.labels(None, block), lambda x: self.block_of(x, block))
        self._check_gauge(fn, "`fn`")
        self._check_branches(fn, "`fn`")
        aligned = whole(self.aligned)  # `fn` may use any two items
        who = range(len(self)) if self.observed is None else who_saw_enough(fn, aligned, self.observed)
        if len(who) < 2:
            raise ValueError(f"`fn` uses items that only {len(who)} member(s) saw together: no spread")
        values = torch.stack([torch.as_tensor(fn(member(aligned, k))) for k in who])
        if not values.is_floating_point():
            values = values.to(flatten(self.aligned, 1).dtype)  # comparisons and ranks: shares and mean ranks
        if values.ndim > 2:
            raise ValueError(f"`fn` must return a number or a vector, got shape {tuple(values.shape[1:])}")
        rest = (values - values.mean(0)).reshape(len(values), -1)
        return Contrast(values.mean(0), rest.mT @ rest / (len(values) - 1), values)

    def quasi_variances(self, block: str | None = None, section: SectionLike = None) -> QuasiVariances:
        """Quasi-variances of one member, of tensor points or of a block, pool by pool (`blocks=`).

        Errors as in `covariance` and `mid.quasi_variances`.
        """
        return quasi_variances(whole(self.covariance(section, block)), self.labels(None, block), self._pools(block))

    def pairwise(self, block: str | None = None, section: SectionLike = None) -> PairwiseContrasts:
        """The differences of all pairs of items: means, and the spread of one member, with intervals that hold together.

        Pairs of different pools (`blocks=`) have no difference: they are nan, in any section.

        Args:
            block: Of dict points.
            section: Where the differences are taken; needed where they depend on it (a gauge with a scale: the unit).

        Raises:
            NotEstimableError: A difference sees the gauge, or the branch of a `Finite` group, and no `section` is given.
            ValueError: `block` is needed or unknown, there is no pair, or with `observed` a pair was seen together by fewer than two
                members.
        """
        pools, labels = self._pools(block), self.labels(None, block)
        require_pairs(pools, len(labels))
        if section is None:
            fn, who = lambda x: differences(self.block_of(x, block), pools), "the difference of two items"
            self._check_gauge(fn, who, " or say which section=")
            self._check_branches(fn, who, ", or say which section= (a function of a point that does)")
        scores = flatten(whole(self.block_of(self.mean(section), block)))
        return PairwiseContrasts(scores, whole(self.covariance(section, block)), labels, pools)

    def labels(self, names: Names = None, block: str | None = None) -> list[str | int]:
        """What the numbers of the points, or of one of their blocks, are called: names, else indices. Errors as in `table`."""
        one = member(self.members, 0)
        self.block_of(one, block)
        of = next(iter(blocks_of(one))) if block is None else block
        return item_labels(chosen_names(names, self.names, one, block), of, real_shape(blocks_of(one)[of]))

    def block_of(self, x: Point, block: str | None = None) -> Tensor:
        """One block of a point of this kind: the tensor itself, the only block, or the one that is named.

        Raises:
            ValueError: `block` is needed or unknown.
        """
        if isinstance(x, Tensor):
            if block is not None:
                raise ValueError(f"`block` is {block!r}, but the members are tensors without blocks")
            return x
        if block is None and len(x) > 1:
            raise ValueError(f"`block` is needed: the members have the blocks {sorted(x)}")
        if block is not None and block not in x:
            raise ValueError(f"`block` is {block!r}, but the members have the blocks {sorted(x)}")
        return x[block if block is not None else next(iter(x))]

    def table(self, names: Names = None, section: SectionLike = None, block: str | None = None) -> list[dict[str, Any]]:
        """One row per number, for `pandas.DataFrame(...)`: item, mean, standard_deviation, members.

        Members of several blocks have one more column, `block`, unless one is chosen.

        Args:
            names: One name per item (of the chosen block), or a dict from block to names; default those of the ensemble.
            section: Where to report.
            block: One block only.

        Raises:
            ValueError: `names` has the wrong length, or `block` is unknown.
        """
        return ensemble_rows(self, names, section, block)

    def plot(
        self, axes: "Axes | None" = None, names: Names = None, block: str | None = None, order: bool = True
    ) -> "Axes":
        """Draws members before and after alignment, item by item, with mean and standard deviation of one member.

        Args:
            axes: Where to draw; default a figure of its own.
            names: As in `table`.
            block: Of dict points.
            order: Whether the largest mean comes first; else items keep their order.

        Returns:
            The axes; `axes.figure.savefig(path)` writes the picture.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: `block` is needed or unknown, or `names` has the wrong length.
        """
        return ensemble_picture(self, axes, names, block, order)

    def __str__(self) -> str:
        return ensemble_text(self)

    # ------------------------------------------------------------------------------------------------ private

    def _align(self) -> Point:
        if self.observed is not None:
            return align_observed(self.members, self.group, self.weights, self.observed)
        return align_members(self.members, self.group, self.weights)

    def _hidden_entries(self, members: Point) -> Point:
        """Entries that nobody saw, as 1: nan there is the caller's way to say so."""
        return members if self.observed is None else torch.where(self.observed, members, torch.ones_like(members))

    def _pools(self, block: str | None) -> Tensor | None:
        """The pools of the items of tensor points, or of a block; errors as in `block_of`."""
        one = member(self.members, 0)
        self.block_of(one, block)
        return pools_of(self.group, one, next(iter(blocks_of(one))) if block is None else block)

    def _each(self, function: Callable[[Point], Point], members: Point) -> Point:
        results = []
        for k in range(len(self)):
            try:
                results.append(function(member(members, k)))
            except DegeneratePointError as error:
                raise DegeneratePointError(f"member {k} of the ensemble cannot be put on `section`: {error}") from error
        if is_dict(results[0]):
            return {name: torch.stack([result[name] for result in results]) for name in results[0]}
        return torch.stack(results)

    def _check_gauge(self, fn: Callable[[Point], Any], who: str, instead: str = "") -> None:
        point = member(whole(self.aligned), 0)
        try:
            change = largest_change(fn, point, self.group)
        except RuntimeError as error:
            if not leaves_torch(error):
                raise
            change = largest_change(fn, point, self.group, derivatives=False)  # `fn` leaves torch: finite moves tell
        require_estimable(change, point, self.group, who, _CONSEQUENCE + TAKE_DIFFERENCES + instead)

    def _check_branches(self, fn: Callable[[Point], Any], who: str, instead: str = "") -> None:
        """The same of the maps of `Finite` groups, whose sections leave points alone."""
        point = member(whole(self.aligned), 0)
        change = largest_change_of_maps(fn, point, self.group)
        require_estimable(change, point, self.group, who, _CONSEQUENCE + _TAKE_SYMMETRIC + instead)
