"""A model as a function from flat float64 vectors to flat float64 vectors, its Jacobian, and the points where it is probed."""

import itertools
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from manifoldid.invariance import leaves_torch
from manifoldid.points import as_point, blocks_of, detached, flatten, is_dict, map_blocks, unflatten

_TRIES = 40  # draws before a domain counts as missed
_CALLS = 12  # further calls of a model that draws random numbers
_GRADIENTS_AT_ONCE = 256
_NUMBERS_AT_ONCE = 1_000_000  # of predictions at many points


class Probe:
    """`predict` behind a flat float64 interface, with everything that can be wrong about it found by name.

    Attributes:
        like: The caller's point in double precision; results are shaped like it.
        point: The same as a flat vector (n,).
        size: n, the number of real parameters.
        exact: Whether `predict` computes in float64; False when it only works in the caller's lower precision.
        notes: What the caller should know about `predict`.
    """

    def __init__(
        self,
        predict: Any,
        point: Any,
        sample: Callable[[], Any] | None = None,
        generator: torch.Generator | None = None,
    ):
        """Looks at `predict` and `point`.

        Args:
            predict: Everything the likelihood sees, as a function of one point.
            point: Where to start.
            sample: Draws a random generic point; default: around `point`.
            generator: Source of randomness; default a private one seeded with 0.

        Raises:
            TypeError: `predict` is no function, or does not return numbers.
            ValueError: `point` or the predictions are not finite, predictions are random, or `predict` writes into its input.
        """
        if not callable(predict):
            raise TypeError(f"`predict` must be a function of one point, got {type(predict).__name__}")
        original = detached(as_point(point))
        self._predict, self._sample = predict, sample
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.like = map_blocks(_widened, original)
        self.point = flatten(self.like).clone()
        self.size = self.point.numel()
        if self.size == 0:
            raise ValueError("`point` has no entries: there is nothing to diagnose")
        if not bool(torch.isfinite(self.point).all()):
            raise ValueError("`point` must be finite: it has nan or infinite entries")
        self.exact, self.notes = True, []
        self._dtypes = {name: t.dtype for name, t in blocks_of(original).items()}
        self.outputs = self._first_look()
        self._sketch: Tensor | None = None

    def of(self, predict: Any) -> "Probe":
        """Another model at the same point with the same samples; errors as when one is made."""
        return Probe(predict, self.like, self._sample, self.generator)

    # ------------------------------------------------------------------------------------------------ predictions

    def predict(self, vector: Tensor) -> Tensor:
        """Predictions (p,) at a flat point (n,), with gradient."""
        x = unflatten(vector, self.like)
        if not self.exact:
            x = {name: t.to(self._dtypes[name]) for name, t in blocks_of(x).items()}
            x = x if is_dict(self.like) else x[""]
        return flat_outputs(self._predict(x))

    def _tracked(self, x: Tensor) -> Tensor:
        """Predictions with gradient; says what to do where `predict` leaves torch."""
        try:
            return self.predict(x)
        except RuntimeError as error:
            if not leaves_torch(error):
                raise
            raise TypeError(
                "`predict` turns its input into numpy, where derivatives end: write it with torch functions throughout "
                "(torch.exp for np.exp; after .detach() there is nothing to diagnose)"
            ) from error

    def values(self, vector: Tensor) -> Tensor:
        """Predictions (p,) at a flat point, without gradient."""
        with torch.no_grad():
            return self.predict(vector.detach().clone())

    @cached_property
    def vectorised(self) -> bool:
        """Whether `predict` can be called with many points at once, by vmap; not where it looks at its values."""
        try:
            twice = self._together(torch.stack([self.point, self.point]))
        except Exception:  # whatever `predict` raises when it meets a batch
            return False
        return twice.shape == (2, len(self.outputs)) and torch.allclose(twice, self.outputs, rtol=1e-9)

    def many_values(self, points: Tensor) -> Tensor:
        """Predictions (m, p) at flat points (m, n), without gradient; nan where `predict` refuses a point."""
        if self.vectorised:
            try:
                return self._together(points)
            except (ValueError, RuntimeError):  # one of them lies outside the domain
                pass
        found = torch.full((len(points), len(self.outputs)), torch.nan, dtype=torch.float64)
        for row, x in zip(found, points, strict=True):
            try:
                row[:] = self.values(x)
            except (ValueError, RuntimeError):
                continue
        return found

    def _together(self, points: Tensor) -> Tensor:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*batching rule", UserWarning)
            size = max(1, _NUMBERS_AT_ONCE // max(len(self.outputs), 1))
            return torch.func.vmap(self.predict, chunk_size=size)(points.clone()).double()

    def _first_look(self) -> Tensor:
        try:
            first = self._checked_call()
        except RuntimeError as error:
            if "dtype" not in str(error) and "expected scalar type" not in str(error):
                raise
            self.exact = False
            first = self._checked_call()
        if self.exact and not first.is_floating_point():
            raise TypeError(
                f"`predict` must return floating numbers, got dtype {first.dtype}: return probabilities, not decisions"
            )
        if first.numel() and not bool(torch.isfinite(first).all()):
            bad = int((~torch.isfinite(first)).sum())
            raise ValueError(
                f"`predict` is not finite at `point`: {bad} of {first.numel()} outputs are nan or infinite; "
                "start inside the domain, or return log-probabilities that are finite there"
            )
        if first.shape != self._again.shape or not torch.equal(first, self._again):
            raise ValueError(
                "`predict` returns different values for the same point (random output, or it depends on state that it changes): "
                "make it deterministic (model.eval(), fixed noise, no dropout)"
            )
        if first.numel() == 0:
            raise ValueError("`predict` returns nothing: it must return everything that the likelihood can see")
        if not self.exact or first.dtype != torch.float64:
            self.exact = False
            self.notes.append(
                f"`predict` computes in {_precision(first)}: its derivatives cannot tell a gauge from a very weak direction; "
                "use float64 parameters and constants"
            )
        return first.double()

    def _checked_call(self) -> Tensor:
        given = self.point.clone()
        x = unflatten(given, self.like)
        if not self.exact:
            x = {name: t.to(self._dtypes[name]) for name, t in blocks_of(x).items()}
            x = x if is_dict(self.like) else x[""]
        before = map_blocks(torch.clone, x)
        state = torch.get_rng_state()
        with torch.no_grad():
            outputs = self._predict(x)
            self._again = flat_outputs(self._predict(map_blocks(torch.clone, before)))
            drawn = not torch.equal(state, torch.get_rng_state())
            first = flat_outputs(outputs)
            for _ in range(_CALLS if drawn else 0):  # masks of dropout coincide once in a while
                if first.shape != self._again.shape or not torch.equal(first, self._again):
                    break
                self._again = flat_outputs(self._predict(map_blocks(torch.clone, before)))
        torch.set_rng_state(state)
        for name, t in blocks_of(before).items():
            if not torch.equal(t, blocks_of(x)[name]):
                where = f"the block {name!r} of " if name else ""
                raise ValueError(f"`predict` writes into {where}its input: work on a copy (x = x.clone())")
        if drawn:
            self.notes.append("`predict` draws from torch's global random state")
        return flat_outputs(outputs)

    # ------------------------------------------------------------------------------------------------ derivatives

    def jacobian(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions and their derivative (p, n) at a flat point; with many outputs, random combinations of them.

        Raises:
            ValueError: A derivative is not finite.
        """
        x = vector.detach().clone().requires_grad_()
        y = self._tracked(x)
        values = y.detach().double()
        if not y.requires_grad:
            return values, torch.zeros(1, self.size, dtype=torch.float64)
        rows = self._rows(y, x, self._combinations(y)).double()
        if not bool(torch.isfinite(rows).all()):
            where = "`point`" if bool((vector == self.point).all()) else "a random point"
            raise ValueError(
                f"`predict` has a derivative that is nan or infinite at {where}, where its value is finite: move off the edge of "
                "the domain, or give both branches of torch.where safe arguments (the unused one is differentiated, too)"
            )
        return values, rows

    def full_jacobian(self, vector: Tensor, most: int) -> Tensor | None:
        """The derivative of all predictions (p, n) at a flat point; None if it has more than `most` entries."""
        if self.outputs.numel() * self.size > most:
            return None
        x = vector.detach().clone().requires_grad_()
        y = self._tracked(x)
        if not y.requires_grad:
            return torch.zeros(1, self.size, dtype=torch.float64)
        return self._rows(y, x, torch.eye(y.numel(), dtype=y.dtype)).double()

    def _combinations(self, y: Tensor) -> Tensor:
        outputs, wanted = y.numel(), 2 * self.size + 20
        if outputs <= max(wanted, 60):
            return torch.eye(outputs, dtype=y.dtype)
        if self._sketch is None or self._sketch.shape[1] != outputs:
            draw = torch.randn(wanted, outputs, generator=self.generator, dtype=torch.float64)
            self._sketch = draw / outputs**0.5
        return self._sketch.to(y.dtype)

    def _rows(self, y: Tensor, x: Tensor, combinations: Tensor) -> Tensor:
        rows = []
        for chunk in combinations.split(_GRADIENTS_AT_ONCE):
            try:
                (grad,) = torch.autograd.grad(
                    y, x, chunk.to(y.device), retain_graph=True, is_grads_batched=True, allow_unused=True
                )
            except RuntimeError:  # an operation whose backward cannot be batched
                singles = [torch.autograd.grad(y, x, row, retain_graph=True, allow_unused=True)[0] for row in chunk]
                grad = None if singles[0] is None else torch.stack(singles)
            rows.append(torch.zeros(len(chunk), self.size, dtype=torch.float64) if grad is None else grad.detach())
        return torch.cat(rows)

    # ------------------------------------------------------------------------------------------------ points

    def draw(self) -> Tensor:
        """A random generic point (n,) at which the predictions are finite.

        Raises:
            ValueError: `sample` gives points of another shape, or predictions are never finite.
        """
        for attempt in range(_TRIES):
            x = self._given() if self._sample is not None else self._around(0.5 * 0.85**attempt)
            values = self.values(x)
            if values.numel() == self.outputs.numel() and bool(torch.isfinite(values).all()):
                return x
        where = "the points of `sample`" if self._sample is not None else "points around `point`"
        raise ValueError(
            f"`predict` is not finite at {where} ({_TRIES} tries): pass `sample`, a function that draws points of its domain"
        )

    @property
    def sampled(self) -> bool:
        """Whether points come from the caller's `sample`."""
        return self._sample is not None

    def _given(self) -> Tensor:
        assert self._sample is not None
        x = detached(as_point(self._sample(), "sample()"))
        shapes = {name: tuple(t.shape) for name, t in blocks_of(x).items()}
        wanted = {name: tuple(t.shape) for name, t in blocks_of(self.like).items()}
        if shapes != wanted:
            raise ValueError(f"`sample` must draw points shaped like `point`, {wanted}, got {shapes}")
        x = {name: x[name] if name else x for name in wanted} if is_dict(self.like) else x
        return flatten(map_blocks(_widened, x))

    def _around(self, spread: float) -> Tensor:
        """Each number times a random positive factor, so that signs stay; zeros get a random value of the size of the rest."""
        draws = torch.randn(2, self.size, generator=self.generator, dtype=torch.float64)
        pieces = []
        for start, stop in self.spans().values():
            x = self.point[start:stop]
            size = x.abs().max() if x.numel() else x.new_ones(())
            size = size if size > 0 else torch.ones_like(size)
            moved = torch.where(
                x.abs() > 1e-14 * size,
                x * torch.exp(spread * draws[0, start:stop]),
                2 * spread * size * draws[1, start:stop],
            )
            pieces.append(moved)
        return torch.cat(pieces)

    def spans(self) -> dict[str, tuple[int, int]]:
        """Where each block lies in the flat vector."""
        sizes = {name: t.numel() * (2 if t.is_complex() else 1) for name, t in blocks_of(self.like).items()}
        ends = list(itertools.accumulate(sizes.values()))
        return {name: (end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def _widened(t: Tensor) -> Tensor:
    return t.detach().to(device="cpu", dtype=torch.complex128 if t.is_complex() else torch.float64)


def flat_outputs(outputs: Any) -> Tensor:
    """All numbers of predictions, a nest of tensors, as one vector (p,).

    Raises:
        TypeError: There is something else in the nest.
        ValueError: It is empty.
    """
    pieces = list(_tensors(outputs))
    if not pieces:
        raise ValueError("`predict` returns nothing: it must return everything that the likelihood can see")
    flat = [(torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).reshape(-1) for t in pieces]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _tensors(outputs: Any):
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (int, float)) and not isinstance(outputs, bool):
        yield torch.tensor(float(outputs), dtype=torch.float64)
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from _tensors(value)
    else:
        raise TypeError(
            f"`predict` must return a tensor, or a list or dict of tensors, got {type(outputs).__name__}; "
            "return everything that the likelihood can see: log-probabilities, means, natural parameters"
        )


def _precision(outputs: Tensor) -> str:
    return str(outputs.dtype).removeprefix("torch.")
