"""A maximum-likelihood estimate and everything that can be read off its covariance."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from manifoldid.errors import NotEstimableError
from manifoldid.groups.base import GaugeGroup
from manifoldid.inference.contrast import Contrast
from manifoldid.inference.information import InverseInformation, jacobian
from manifoldid.inference.quasi_variance import QuasiVariances, quasi_variances
from manifoldid.invariance import default_tolerance, largest_change
from manifoldid.points import Weights, blocks_of, detached, event_numel, flatten, unflatten
from manifoldid.sections import SectionLike, as_section


class Estimate:
    """A maximum-likelihood estimate and its covariance; made by `infer`.

    Attributes:
        point: The estimate on the canonical section.
        group: Its gauge.
        weights: Item weights of the canonical section.
    """

    def __init__(self, point: Any, group: GaugeGroup, weights: Weights, inverse: InverseInformation):
        self.point, self.group, self.weights = point, group, weights
        self._inverse = inverse

    def __repr__(self) -> str:
        shapes = {name or "point": tuple(t.shape) for name, t in blocks_of(self.point).items()}
        return f"<Estimate under {self.group!r}, {shapes}>"

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
        """
        start, stop = self._range(block)
        return self._full(section)[start:stop, start:stop].clone()

    def standard_errors(self, section: SectionLike = None) -> Any:
        """Standard errors on a section, shaped like the point. Errors as in `estimate`."""
        return unflatten(self._full(section).diagonal().clamp_min(0).sqrt(), self.point)

    def contrast(self, fn: Callable[[Any], Tensor]) -> Contrast:
        """A differentiable function of the point that is constant on orbits; returns a number or a vector.

        Raises:
            NotEstimableError: `fn` sees the gauge.
            ValueError: `fn` returns a matrix.
        """
        self._check(fn, "`fn`")
        value = torch.as_tensor(fn(self.point)).detach()
        if value.ndim > 1:
            raise ValueError(f"`fn` must return a number or a vector, got shape {tuple(value.shape)}")
        rows = jacobian(lambda v: torch.as_tensor(fn(unflatten(v, self.point))).reshape(-1), flatten(self.point))
        return Contrast(value, self._inverse.times(rows) @ rows.mT)

    def quasi_variances(self, block: str | None = None) -> QuasiVariances:
        """Quasi-variances of the point or of a block; errors as in `covariance` and `mid.quasi_variances`."""
        return quasi_variances(self.covariance(block))

    def table(
        self, names: Sequence[str] | None = None, section: SectionLike = None, block: str | None = None
    ) -> list[dict[str, Any]]:
        """One row per item: item, estimate, standard_error, quasi_standard_error (where there are 3 items or more).

        Raises:
            ValueError: `names` has the wrong length, or `block` is needed.
        """
        start, stop = self._range(block)
        values = flatten(self.estimate(section))[start:stop].tolist()
        errors = flatten(self.standard_errors(section))[start:stop].tolist()
        if names is not None and len(names) != len(values):
            raise ValueError(f"`names` must have one name per item, {len(values)}, got {len(names)}")
        quasi = self.quasi_variances(block).standard_errors.tolist() if len(values) > 2 else None
        rows = []
        for k, (value, error) in enumerate(zip(values, errors, strict=True)):
            row = {"item": k if names is None else names[k], "estimate": value, "standard_error": error}
            rows.append(row if quasi is None else {**row, "quasi_standard_error": quasi[k]})
        return rows

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

    def _covariance_on(self, move: Callable[[Any], Any]) -> Tensor:
        rows = jacobian(lambda v: flatten(move(unflatten(v, self.point))), flatten(self.point))
        return rows @ self._inverse.dense() @ rows.mT

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

    def _check(self, fn: Callable[[Any], Any], who: str) -> None:
        change = largest_change(fn, self.point, self.group)
        if not change.relative <= default_tolerance(self.point):
            raise NotEstimableError(
                f"{who} is not constant on the orbits of {self.group!r}: it changes by {change.relative:.1e} relative under the "
                f"{change.generator}; take differences (ratios, distances), or fix a gauge first: mid.Section(group)(x)"
            )
