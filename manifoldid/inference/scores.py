"""The scores: derivatives of the terms of a likelihood, one row per observation, and the information in their spread."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldid.inference.objective import Likelihood
from manifoldid.invariance import default_tolerance
from manifoldid.optim.local_model import Expansion
from manifoldid.points import Point, flatten, unflatten


class Scores:
    """The matrix S (observations, N) of derivatives of `nll_terms` at a point, in products.

    Args:
        nll: The sum of the terms.
        nll_terms: The terms, a vector, of a point.
        x: The point.

    Raises:
        TypeError: `nll_terms` cannot be called.
        ValueError: It returns no vector, a single term, is not finite, has no graph, or does not sum to `nll`.
    """

    def __init__(self, nll: Likelihood, nll_terms: Callable[[Any], Tensor], x: Point):
        if not callable(nll_terms):
            raise TypeError(f"`nll_terms` must be a function of the point, got {type(nll_terms).__name__}")
        with torch.enable_grad():
            self._leaf = flatten(x).detach().clone().requires_grad_()
            terms = nll_terms(unflatten(self._leaf, x))
        if not isinstance(terms, Tensor) or terms.ndim != 1:
            raise ValueError(
                f"`nll_terms` must return a vector, one term per observation, got {getattr(terms, 'shape', terms)}"
            )
        if len(terms) == 1:
            raise ValueError(
                "`nll_terms` must return a term for every independent observation or cluster, got 1 term: one has no spread"
            )
        if not terms.requires_grad:
            raise ValueError("`nll_terms` has no autograd graph to the point: detach(), numpy or no_grad() cuts it")
        total, value = float(terms.detach().sum()), float(nll(x).detach())
        size = max(abs(total), abs(value), float(terms.detach().abs().sum()))
        if not abs(total - value) <= default_tolerance(x) * size:
            raise ValueError(
                f"`nll_terms` sum to {total:.8g}, but `nll` is {value:.8g}: nll must be their sum, not their mean"
            )
        self._terms = terms
        with torch.enable_grad():  # linear in `dual`, so that its derivative is the product with S itself
            self._dual = torch.zeros_like(terms).requires_grad_()
            self._pulled = torch.autograd.grad(terms, self._leaf, self._dual, create_graph=True)[0]

    def __len__(self) -> int:
        return len(self._terms)

    def times(self, v: Tensor) -> Tensor:
        """S v, one number per observation."""
        return torch.autograd.grad(self._pulled, self._dual, v, retain_graph=True)[0]

    def transposed(self, w: Tensor) -> Tensor:
        """S' w, beside the flat point."""
        return torch.autograd.grad(self._terms, self._leaf, w, retain_graph=True)[0]

    def information(self, v: Tensor) -> Tensor:
        """S' S v."""
        return self.transposed(self.times(v))

    def matrix(self) -> Tensor:
        """S' S, the information (N, N) by outer products of scores."""
        if len(self._terms) < len(self._leaf):
            unit = torch.eye(len(self._terms), dtype=self._terms.dtype, device=self._terms.device)
            scores = torch.stack([self.transposed(row) for row in unit])
        else:
            unit = torch.eye(len(self._leaf), dtype=self._leaf.dtype, device=self._leaf.device)
            scores = torch.stack([self.times(row) for row in unit], dim=1)
        return scores.mT @ scores


class ScoreObjective:
    """A likelihood whose curvature is that of its scores.

    Args:
        whole: The likelihood's own expansion at the point.
        scores: Its scores there.
    """

    def __init__(self, whole: Expansion, scores: Scores):
        self._expansion = Expansion(whole.value, whole.covector, scores.information)

    def value(self, x: Point) -> float:
        del x
        return float(self._expansion.value)

    def expand(self, x: Point) -> Expansion:
        del x
        return self._expansion
