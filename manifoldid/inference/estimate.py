"""A maximum-likelihood estimate and everything that can be read off its covariance."""

import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manifoldid.groups.base import GaugeGroup
from manifoldid.inference.contrast import Contrast, correlation_of, half_of
from manifoldid.inference.information import DenseInverse, InverseInformation, jacobian
from manifoldid.inference.linear import Linear, as_function
from manifoldid.inference.names import Names, checked_names, chosen_names, item_labels, real_shape
from manifoldid.inference.pairwise import PairwiseContrasts
from manifoldid.inference.pools import differences, pools_of, require_pairs
from manifoldid.inference.presentation import Column, rendered
from manifoldid.inference.quasi_variance import QuasiVariances, fitted, quasi_variances, refusal
from manifoldid.invariance import TAKE_DIFFERENCES, largest_change, leaves_torch, require_estimable
from manifoldid.plots import caterpillar
from manifoldid.points import Weights, blocks_of, detached, event_numel, flatten, own_copy, unflatten
from manifoldid.sections import SectionLike, as_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Quasi = dict[str, tuple[QuasiVariances, list[str | int]]]  # of blocks that have them, and what their items are called
_BY_ROWS = 500  # a block up to this size of a larger point is solved for by itself
_SHOWN = 2_000  # a point with more numbers is not printed: its covariance would be formed for nothing


class Estimate:
    """A maximum-likelihood estimate and its covariance; made by `infer`.

    Attributes:
        point: The estimate on the canonical section.
        group: Its gauge.
        weights: Item weights of the canonical section.
        names: What items are called, by block ('' for a tensor point); blocks without names are left out.
        origin: Where the standard errors come from, in words: observed information, sandwich or scores.
    """

    def __init__(
        self,
        point: Any,
        group: GaugeGroup,
        weights: Weights,
        inverse: InverseInformation,
        names: Names = None,
        origin: str = "",
    ):
        self.point, self.group, self.weights = point, group, own_copy(weights)
        self.names = checked_names(names, point)
        self._inverse, self.origin = inverse, origin

    def __repr__(self) -> str:
        shapes = {name or "point": tuple(t.shape) for name, t in blocks_of(self.point).items()}
        return f"<Estimate under {self.group}, {shapes}>"

    @property
    def weak(self) -> list[Any]:
        """Directions, shaped like the point, that are identified but hardly: all but collinear columns, items with next to no ties.

        Their curvature is below a millionth of the largest, every number in its own unit. They are answered with the large standard
        errors that they have; empty for points of more than 5,000 numbers, which are not looked at that closely.
        """
        found = self._inverse.weak if isinstance(self._inverse, DenseInverse) else []
        return [unflatten(direction, self.point) for direction in found]

    def estimate(self, section: SectionLike = None) -> Any:
        """The estimate on a section, shaped like the point.

        Raises:
            NotEstimableError: `section` is a callable that is not constant on orbits.
            DegeneratePointError: The estimate has no representative on it.
        """
        return detached(self._section(section)(self.point))

    def covariance(self, block: str | None = None, section: SectionLike = None) -> Tensor:
        """Covariance (n, n) of the flattened point or block on a section. Errors as in `estimate`.

        Raises:
            ValueError: The point has several blocks and `block` is not given, or it is unknown.
            NotImplementedError: The point has more than 5,000 numbers, and `block` more than 500.
        """
        start, stop = self._range(block)
        if stop - start <= _BY_ROWS < event_numel(self.point):
            return self._covariance_on(self._section(section), start, stop)
        return self._full(section)[start:stop, start:stop].clone()

    def standard_errors(self, section: SectionLike = None) -> Any:
        """Standard errors on a section, shaped like the point. Errors as in `estimate`."""
        return unflatten(_errors(self._full(section)), self.point)

    def contrast(self, fn: Linear, minus: str | int | None = None, block: str | None = None) -> Contrast:
        """A differentiable function of the point that is constant on orbits.

        The maps of `Finite` groups are not looked at: value and error are those of the branch that the estimate is on (its labelling).

        Args:
            fn: The function, which returns a number or a vector; or coefficients, (n,) or (k, n) for k contrasts, which sum to 0 over
                what moves together; or the name or index of an item.
            minus: The item that is subtracted, if `fn` is one.
            block: Of a dict point: the block of these coefficients or items.

        Raises:
            TypeError: `fn` and `minus` do not fit together.
            NotEstimableError: `fn` sees the gauge.
            ValueError: `fn` returns a matrix, has no autograd graph to the point, or names no item; or `block` is needed.
        """
        fn = as_function(fn, minus, lambda: item_labels(self.names, *self._chosen(block)), self._taker(block))
        self._check(fn, "`fn`")
        value = torch.as_tensor(fn(self.point)).detach()
        if value.ndim > 1:
            raise ValueError(
                f"`fn` must return a number or a vector, got shape {tuple(value.shape)}; use .flatten(), or pairwise()"
            )
        rows = jacobian(
            lambda v: torch.as_tensor(fn(unflatten(v, self.point))).reshape(-1), flatten(self.point), "`fn`"
        )
        return Contrast(value, self._inverse.times(rows) @ rows.mT)

    def sample(self, size: int, generator: torch.Generator | None = None, section: SectionLike = None) -> Any:
        """Draws of the estimator's normal approximation on a section, (size, *point): for ranks and other functions without a derivative.

        The covariance on a section is singular; the draws are in its range, so that what the section fixes is fixed in all of them.
        Errors as in `covariance`.

        Args:
            size: How many.
            generator: None is a private one seeded 0.
            section: Where to draw; contrasts of the draws do not depend on it under translations.

        Raises:
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"`size` must be at least 1, got {size}")
        half = half_of(self._full(section).double())
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        noise = torch.randn(size, half.shape[-1], generator=generator, device=generator.device, dtype=torch.float64)
        middle = flatten(self.estimate(section))
        return unflatten(middle + (noise.to(half) @ half.mT).to(middle), self.point)

    def quasi_variances(self, block: str | None = None, section: SectionLike = None) -> QuasiVariances:
        """Quasi-variances of the point or of a block; errors as in `covariance` and `mid.quasi_variances`.

        Under a translation the section does not matter; under scalings it says in which unit. Pools with an origin of their own
        (`blocks=`) are taken one by one; items of a pool of fewer than 3 get nan.
        """
        of, shape = self._chosen(block)
        pools = pools_of(self.group, self.point, of)
        return quasi_variances(self.covariance(block, section), item_labels(self.names, of, shape), pools)

    def correlation(self, block: str | None = None, section: SectionLike = None) -> Tensor:
        """Correlations (n, n) on a section; nan for numbers that the section fixes. Errors as in `covariance`."""
        return correlation_of(self.covariance(block, section))

    def pairwise(self, block: str | None = None, section: SectionLike = None) -> PairwiseContrasts:
        """The differences of all pairs of numbers of the point or of a block, with intervals that hold together.

        Pairs of different pools (`blocks=`) have no difference: they are nan, in any section.

        Args:
            block: Of a dict point.
            section: Where the differences are taken; needed where they depend on it (a gauge with a scale: the unit).

        Raises:
            NotEstimableError: A difference sees the gauge and no `section` is given.
            ValueError: `block` is needed or unknown, or there is no pair.
        """
        of, shape = self._chosen(block)
        pools = pools_of(self.group, self.point, of)
        require_pairs(pools, shape.numel())
        if section is None:
            self._check(
                lambda x: differences(blocks_of(x)[of], pools), "the difference of two items", " or say which section="
            )
        scores = flatten(blocks_of(self.estimate(section))[of])
        return PairwiseContrasts(scores, self.covariance(block, section), item_labels(self.names, of, shape), pools)

    def table(
        self, names: Names = None, section: SectionLike = None, block: str | None = None, sort: bool = False
    ) -> list[dict[str, Any]]:
        """One row per number, for `pandas.DataFrame(...)`: item, estimate, standard_error, quasi_standard_error.

        A point of several blocks has one more column, `block`, unless one is chosen. Quasi-standard errors are there for blocks that
        have them: 3 items or more, and every difference has a variance; pool by pool where there are pools.

        Args:
            names: One name per item (of the chosen block), or a dict from block to names; default those given to `infer`.
            section: Where to report.
            block: One block only.
            sort: Whether the largest estimate comes first (block by block); else items keep their order.

        Raises:
            TypeError: `names` is text or no list.
            ValueError: `names` has the wrong length, or `block` is unknown.
            NotEstimableError: `section` is a callable that is not constant on orbits.

        Warns:
            UserWarning: A quasi-variance is negative: its standard error is nan.
        """
        rows, quasi = self._rows(names, section, block)
        if sort:
            place = {of: k for k, of in enumerate(blocks_of(self.point))}
            rows.sort(key=lambda row: (place.get(row.get("block", ""), 0), -row["estimate"]))
        _warn(quasi.values(), stacklevel=3)
        return rows

    def plot(
        self,
        axes: "Axes | None" = None,
        names: Names = None,
        block: str | None = None,
        section: SectionLike = None,
        order: bool = True,
    ) -> "Axes":
        """Draws the scores with bars of two quasi-standard errors, which can be compared by eye whatever the origin.

        Where there are none (fewer than 3 items, a gauge with components), the bars are standard errors on the section, and the label
        of the axis says so.

        Args:
            axes: Where to draw; default a figure of its own.
            names: As in `table`.
            block: Of a dict point.
            section: Where to report.
            order: Whether the largest score comes first; else items keep their order.

        Returns:
            The axes; `axes.figure.savefig(path)` writes the picture.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: `block` is needed or unknown, or `names` has the wrong length.
            NotEstimableError: `section` is a callable that is not constant on orbits.
        """
        of, shape = self._chosen(block)
        labels = item_labels(chosen_names(names, self.names, self.point, block), of, shape)
        covariance = self.covariance(block, section)
        quasi = self._quasi(covariance, of, labels)
        if quasi is not None:
            _warn([(quasi, labels)], stacklevel=3)
        errors = _errors(covariance) if quasi is None else quasi.standard_errors
        what = "standard errors on the section" if quasi is None else "quasi-standard errors"
        scores = flatten(blocks_of(self.estimate(section))[of])
        return caterpillar(scores, errors, labels, f"estimate, bars: 2 {what}", axes, order)

    def __str__(self) -> str:
        if event_numel(self.point) > _SHOWN:
            return f"{self!r}: too large to print, ask for contrasts: contrast(fn)"
        rows, quasi_of = self._rows(None, None, None)
        for row in rows:
            row["item"] = "" if row["item"] == row.get("block") else row["item"]  # a single number is its block
        keys = [key for key in ("block", "item") if key in rows[0]]
        columns = [*map(Column, keys), Column("estimate", "standard_error"), Column("standard_error")]
        notes = [f"Standard errors: {self.origin}."] if self.origin else []
        if quasi_of:
            columns.append(Column("quasi_standard_error", "standard_error"))
        for of, (quasi, labels) in quasi_of.items():
            (low, high), (lowest, highest) = quasi.worst_pair_errors, quasi.worst_errors
            where = f" of {of}" if of else ""
            notes.append(
                f"Quasi-standard errors{where} give those of differences to {low:+.1%} .. {high:+.1%}, "
                f"of all contrasts to {lowest:+.1%} .. {highest:+.1%}."
            )
            warning = quasi.warning(labels)
            notes += [f"Note: {warning}."] if warning else []
        title = f"Estimate under {self.group}, on its canonical section"
        if self.weak:
            notes.append(f"{len(self.weak)} direction(s) are identified but hardly: see `weak`.")
        return rendered(title, columns, rows, notes)

    # ------------------------------------------------------------------------------------------------ private

    def _section(self, section: SectionLike) -> Callable[[Any], Any]:
        move = as_section(section, self.group, self.weights)
        if section is not None:
            self._check(move, "`section`")
        return move

    def _full(self, section: SectionLike) -> Tensor:
        return self._canonical if section is None else self._covariance_on(self._section(section))

    @cached_property
    def _canonical(self) -> Tensor:
        return self._covariance_on(self._section(None))

    def _covariance_on(self, move: Callable[[Any], Any], start: int | None = None, stop: int | None = None) -> Tensor:
        """The covariance of the numbers from `start` to `stop`; all of them where these are None."""
        inverse = self._inverse.dense() if start is None else None
        rows = jacobian(lambda v: flatten(move(unflatten(v, self.point)))[start:stop], flatten(self.point), "`section`")
        return (self._inverse.times(rows) if inverse is None else rows @ inverse) @ rows.mT

    def _taker(self, block: str | None) -> Callable[[Any], Tensor]:
        return lambda x: blocks_of(x)[self._chosen(block)[0]]

    def _range(self, block: str | None) -> tuple[int, int]:
        blocks = blocks_of(self.point)
        known = [name for name in blocks if name]
        if (block is not None and block not in known) or (block is None and len(blocks) > 1):
            raise ValueError(f"`block` must be one of the blocks {known} of the point, got {block!r}")
        start = 0
        for name, t in blocks.items():
            size = event_numel(t)
            if block is None or name == block:
                return start, start + size
            start += size
        raise AssertionError("unreachable")

    def _chosen(self, block: str | None) -> tuple[str, torch.Size]:
        """Name and real shape of a block, errors as in `_range`."""
        self._range(block)
        name = next(iter(blocks_of(self.point))) if block is None else block
        return name, real_shape(blocks_of(self.point)[name])

    def _rows(self, names: Names, section: SectionLike, block: str | None) -> tuple[list[dict[str, Any]], _Quasi]:
        """The rows of `table`, and the quasi-variances in them."""
        chosen = None if block is None else [self._chosen(block)[0]]
        called = chosen_names(names, self.names, self.point, block)
        values = blocks_of(self.estimate(section))
        rows: list[dict[str, Any]] = []
        found: _Quasi = {}
        for of in chosen or values:
            labels = item_labels(called, of, real_shape(values[of]))
            covariance = self.covariance(of or None, section)
            columns = {"estimate": flatten(values[of]).tolist(), "standard_error": _errors(covariance).tolist()}
            quasi = self._quasi(covariance, of, labels)
            if quasi is not None:
                found[of] = quasi, labels
                columns["quasi_standard_error"] = quasi.standard_errors.tolist()
            place = {"block": of} if len(values) > 1 and block is None else {}
            for k, label in enumerate(labels):
                rows.append({**place, "item": label, **{key: column[k] for key, column in columns.items()}})
        return rows, found

    def _quasi(self, covariance: Tensor, of: str, labels: list[str | int]) -> QuasiVariances | None:
        """Quasi-variances of the block `of` with this covariance, if it has them."""
        pools = pools_of(self.group, self.point, of)
        return None if refusal(covariance, labels, pools) else fitted(covariance, labels, pools)

    def _check(self, fn: Callable[[Any], Any], who: str, instead: str = "") -> None:
        try:
            change = largest_change(fn, self.point, self.group)
        except RuntimeError as error:
            if not leaves_torch(error):
                raise
            raise ValueError(
                f"{who} leaves torch for numpy, where it has no derivative: write it in torch, or draw it: fn of sample(size)"
            ) from error
        require_estimable(change, self.point, self.group, who, TAKE_DIFFERENCES + instead)


def _errors(covariance: Tensor) -> Tensor:
    return covariance.diagonal().clamp_min(0).sqrt()


def _warn(quasi: Iterable[tuple[QuasiVariances, list[str | int]]], stacklevel: int) -> None:
    """One warning per block with negative quasi-variances, where the caller of the caller stands."""
    for found, labels in quasi:
        warning = found.warning(labels)
        if warning:
            warnings.warn(warning, UserWarning, stacklevel=stacklevel)
