"""Thirty small models whose gauge freedom is known in closed form.

Every model is a `GaugeCase`: a function `predict` of a flat float64 vector that returns everything the likelihood can see
(log-probabilities, means, natural parameters), and the moves of that vector which `predict` cannot see.

    from public_cases import CASES, CASES_BY_NAME
    case = CASES_BY_NAME["irt_2pl"]
    point = case.sample(torch.Generator().manual_seed(0))
    case.predict(point)                    # what the likelihood sees
    case.generators(point)                 # (k, size): k vector fields along the orbit, evaluated at the point
    case.flows[0](point, 0.7)              # the finite move of the first field; predict does not change
    case.finite_maps[0](point)             # a discrete move; predict does not change

Conventions
-----------
* `dim` is the dimension of the null space of the Jacobian of `predict` at a generic point, which is the dimension of the orbit.
  At the listed `singular_points` the null space is larger (each comes with its dimension there), which says nothing about the
  generic gauge: the derivative may vanish at an identifiable point (`cubic_no_gauge`), or more may be free just there
  (`rank_drops_on_a0`).
* `flows[k]` is the flow of row k of `generators`: flow(x, 0) = x, and its velocity at time 0 is that row.
* `complete` is False when at least one flow leaves the domain in finite time: there are generators, but no group acts.
  A model without flows counts as complete.
* `finite_maps` are invariances that belong to no flow (signs, swaps, permutations, reflections), not a list of the whole group.
* `algebra` names the Lie algebra of the generators: `trivial`, `R`, `R^k`, `aff(1)`, `so(k)`, `gl(k)`, `sl(2)`, `e(k)`.
  One-dimensional algebras are all alike, so their name follows the action: a rotation in 2D, whose flow is periodic, is `so(2)`;
  a translation, a scaling, and whatever a change of variable turns into one, is `R`; k of those that commute are `R^k`.
  The finite part of a group never shows in its algebra: a model with nothing but a swap is `trivial`.

"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

DTYPE = torch.float64


@dataclass(frozen=True)
class Flow:
    """A one-parameter family of moves that `predict` cannot see, and the vector field that generates it."""

    formula: str
    field: Callable[[Tensor], Tensor]
    move: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, point: Tensor, time: float | Tensor) -> Tensor:
        return self.move(point, torch.as_tensor(time, dtype=point.dtype))


@dataclass(frozen=True)
class GaugeCase:
    """A model, and everything that is known about what its likelihood cannot see. The module docstring has the conventions."""

    name: str
    formula: str
    group: str
    algebra: str
    dim: int
    size: int
    predict: Callable[[Tensor], Tensor]
    sample: Callable[[torch.Generator], Tensor]
    flows: tuple[Flow, ...] = ()
    finite_maps: tuple[Callable[[Tensor], Tensor], ...] = ()
    complete: bool = True
    singular_points: tuple[tuple[Tensor, int], ...] = ()

    def generators(self, point: Tensor) -> Tensor:
        """The fields along the orbit at `point`, one per row; shape (0, size) when the model is locally identifiable."""
        rows = [flow.field(point) for flow in self.flows]
        return torch.stack(rows) if rows else point.new_zeros(0, self.size)


class Layout:
    """Named blocks that lie one after the other in a flat vector."""

    def __init__(self, **shapes: tuple[int, ...]):
        self.shapes = shapes
        self.size = sum(math.prod(shape) for shape in shapes.values())

    def split(self, point: Tensor) -> tuple[Tensor, ...]:
        """The blocks of `point`, in the order of their declaration."""
        pieces = point.split([math.prod(shape) for shape in self.shapes.values()])
        return tuple(piece.reshape(shape) for piece, shape in zip(pieces, self.shapes.values(), strict=True))

    def join(self, **blocks: Tensor) -> Tensor:
        """The flat vector of `blocks`; a block that is not named is zero."""
        return torch.cat([blocks.get(name, zeros(*shape)).reshape(-1) for name, shape in self.shapes.items()])


# ---------------------------------------------------------------------------------------------------- building blocks


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DTYPE)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=DTYPE)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=DTYPE)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=DTYPE)


def uniform(generator: torch.Generator, *shape: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=DTYPE)


def fixed_normal(*shape: int, seed: int) -> Tensor:
    """A constant of the model (its design, its probe inputs): the same at every import."""
    return normal(torch.Generator().manual_seed(seed), *shape)


def alternating_signs(count: int) -> Tensor:
    """1, -1, 1, -1, ..."""
    return 1.0 - 2.0 * (torch.arange(count) % 2).to(DTYPE)


def normal_points(size: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: normal(generator, size)


def positive_points(size: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: uniform(generator, size, low=0.3, high=3.0)


def signed_points(size: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: uniform(generator, size, low=0.3, high=3.0) * alternating_signs(size)


def all_pairs(count: int) -> tuple[Tensor, Tensor]:
    """The first and the second member of every pair out of `count` items."""
    first, second = torch.combinations(torch.arange(count)).T
    return first, second


def shift(direction: Tensor, formula: str) -> Flow:
    """x -> x + t direction."""
    return Flow(formula, lambda point: direction, lambda point, time: point + time * direction)


def rescale(exponents: Tensor, formula: str) -> Flow:
    """x -> exp(t exponents) x, coordinate by coordinate."""
    return Flow(formula, lambda point: exponents * point, lambda point, time: torch.exp(time * exponents) * point)


def negate(point: Tensor) -> Tensor:
    return -point


def swap(point: Tensor) -> Tensor:
    return point.flip(0)


def flip_signs(*signs: float) -> Callable[[Tensor], Tensor]:
    return lambda point: vector(*signs) * point


def rotation(angle: Tensor) -> Tensor:
    """Turns the rows of a matrix by `angle` when it multiplies from the right."""
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cosine, sine]), torch.stack([-sine, cosine])])


QUARTER_TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DTYPE)  # the derivative of `rotation` at 0


# ---------------------------------------------------------------------------------------------------- items and their utilities


def log_win_probabilities(
    utility: Callable[[Tensor], Tensor], pairs: tuple[Tensor, Tensor]
) -> Callable[[Tensor], Tensor]:
    """Bradley-Terry: the log-probability of either result of every comparison of utility(x)."""
    first, second = pairs

    def predict(point: Tensor) -> Tensor:
        value = utility(point)
        margin = value[first] - value[second]
        return torch.cat([logsigmoid(margin), logsigmoid(-margin)])

    return predict


def identity(point: Tensor) -> Tensor:
    return point


def log_ratio_probabilities(point: Tensor) -> Tensor:
    """A race of exponential clocks: who wins each pair, and who wins among all."""
    first, second = all_pairs(4)
    pair_wins = torch.log(point[first] / (point[first] + point[second]))
    return torch.cat([pair_wins, torch.log(point / point.sum())])


def log_race_densities(point: Tensor) -> Tensor:
    """The same race when the finishing time is recorded too: log-density at three times."""
    return torch.cat([torch.log(point) - point.sum() * time for time in (0.1, 0.5, 1.0)])


def pair_ratios(point: Tensor) -> Tensor:
    first, second = all_pairs(4)
    return point[first] / point[second]


def ratios_of_differences(point: Tensor) -> Tensor:
    left, base, right = torch.tensor(list(permutations(range(5), 3))).T
    return (point[left] - point[base]) / (point[right] - point[base])


def log_ratios_of_logs(point: Tensor) -> Tensor:
    first, second = all_pairs(4)
    return torch.log(point[first]) / torch.log(point[second])


def sample_both_sides_of_one(generator: torch.Generator) -> Tensor:
    return torch.exp(0.7 * signed_points(4)(generator))


def cross_ratios(point: Tensor) -> Tensor:
    rest = point[3:]
    return (point[0] - rest) * (point[1] - point[2]) / ((point[0] - point[2]) * (point[1] - rest))


POWER_FLOW = Flow(
    "x log x",
    field=lambda point: point * torch.log(point),
    move=lambda point, time: point ** torch.exp(time),
)
INVERSE_SHIFT_FLOW = Flow(  # a translation of 1/x; x runs to infinity at time 1/x
    "x^2",
    field=lambda point: point**2,
    move=lambda point, time: point / (1.0 - time * point),
)

UTILITY_CASES = [
    GaugeCase(
        name="bt_translation",
        formula="log sigmoid(l_i - l_j), all pairs of 5 items",
        group="R, common translation",
        algebra="R",
        dim=1,
        size=5,
        predict=log_win_probabilities(identity, all_pairs(5)),
        sample=normal_points(5),
        flows=(shift(ones(5), "1"),),
    ),
    GaugeCase(
        name="bt_two_components",
        formula="log sigmoid(l_i - l_j), items {0,1,2} and {3,4,5} never meet",
        group="R^2, one translation per connected component",
        algebra="R^2",
        dim=2,
        size=6,
        predict=log_win_probabilities(identity, (torch.tensor([0, 0, 1, 3, 3, 4]), torch.tensor([1, 2, 2, 4, 5, 5]))),
        sample=normal_points(6),
        flows=(shift(vector(1, 1, 1, 0, 0, 0), "1 on items 0-2"), shift(vector(0, 0, 0, 1, 1, 1), "1 on items 3-5")),
    ),
    GaugeCase(
        name="bt_isolated_items",
        formula="log sigmoid(l_i - l_j), all pairs of items 0-2; items 3 and 4 are never compared",
        group="R^3, one translation and two parameters that nothing sees",
        algebra="R^3",
        dim=3,
        size=5,
        predict=log_win_probabilities(identity, all_pairs(3)),
        sample=normal_points(5),
        flows=(
            shift(vector(1, 1, 1, 0, 0), "1 on items 0-2"),
            shift(vector(0, 0, 0, 1, 0), "1 on item 3"),
            shift(vector(0, 0, 0, 0, 1), "1 on item 4"),
        ),
    ),
    GaugeCase(
        name="race_ratio",
        formula="log l_i / (l_i + l_j) and log l_i / sum l, l > 0",
        group="positive scaling",
        algebra="R",
        dim=1,
        size=4,
        predict=log_ratio_probabilities,
        sample=positive_points(4),
        flows=(rescale(ones(4), "l"),),
    ),
    GaugeCase(
        name="race_with_time",
        formula="log l_i - time * sum l: the winner and the finishing time, l > 0",
        group="trivial",
        algebra="trivial",
        dim=0,
        size=4,
        predict=log_race_densities,
        sample=positive_points(4),
    ),
    GaugeCase(
        name="ratio_signed",
        formula="l_i / l_j, l of both signs",
        group="scaling by a non-zero number",
        algebra="R",
        dim=1,
        size=4,
        predict=pair_ratios,
        sample=signed_points(4),
        flows=(rescale(ones(4), "l"),),
        finite_maps=(negate,),
    ),
    GaugeCase(
        name="affine_ratio_of_differences",
        formula="(l_i - l_j) / (l_k - l_j)",
        group="Aff(1), l -> a l + b with a != 0",
        algebra="aff(1)",
        dim=2,
        size=5,
        predict=ratios_of_differences,
        sample=normal_points(5),
        flows=(shift(ones(5), "1"), rescale(ones(5), "l")),
        finite_maps=(lambda point: 1.0 - 2.0 * point,),
    ),
    GaugeCase(
        name="power_gauge",
        formula="log l_i / log l_j, l > 0 on both sides of 1",
        group="l -> l^c with c != 0",
        algebra="R",
        dim=1,
        size=4,
        predict=log_ratios_of_logs,
        sample=sample_both_sides_of_one,
        flows=(POWER_FLOW,),
        finite_maps=(torch.reciprocal,),
    ),
    GaugeCase(
        name="inverse_square_gauge",
        formula="log sigmoid(1/l_i - 1/l_j), l > 0",
        group="local R, l -> l / (1 - t l), which leaves l > 0 in finite time",
        algebra="R",
        dim=1,
        size=5,
        predict=log_win_probabilities(torch.reciprocal, all_pairs(5)),
        sample=positive_points(5),
        flows=(INVERSE_SHIFT_FLOW,),
        complete=False,
    ),
    GaugeCase(
        name="moebius_cross_ratio",
        formula="cross ratios (l_0, l_1; l_2, l_k)",
        group="PGL(2, R), local on the line: a point can run to infinity",
        algebra="sl(2)",
        dim=3,
        size=6,
        predict=cross_ratios,
        sample=normal_points(6),
        flows=(shift(ones(6), "1"), rescale(ones(6), "l"), INVERSE_SHIFT_FLOW),
        finite_maps=(negate, torch.reciprocal),
        complete=False,
    ),
]


# ---------------------------------------------------------------------------------------------------- heads and Beta densities


def two_heads(point: Tensor) -> Tensor:
    """One output head is seen through ratios, the other through differences."""
    first, second = all_pairs(4)
    rates, levels = point.split(4)
    return torch.cat([torch.log(rates[first] / rates[second]), levels[first] - levels[second]])


def sample_two_heads(generator: torch.Generator) -> Tensor:
    return torch.cat([positive_points(4)(generator), normal(generator, 4)])


BETA_PROBES = vector(0.05, 0.2, 0.45, 0.7, 0.93)


def log_beta_densities(point: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Beta(a, b) log-densities of every pair, with a = (l_i + l_j) / (l_i l_j) and b = l_i l_j."""
    left, right = point[pairs[0]][:, None], point[pairs[1]][:, None]
    shape_a, shape_b = (left + right) / (left * right), left * right
    normaliser = torch.lgamma(shape_a) + torch.lgamma(shape_b) - torch.lgamma(shape_a + shape_b)
    return ((shape_a - 1) * torch.log(BETA_PROBES) + (shape_b - 1) * torch.log1p(-BETA_PROBES) - normaliser).reshape(-1)


def sum_of_reciprocals(point: Tensor) -> Tensor:
    return (1.0 / point).sum()[None]


def sample_unequal_pair(generator: torch.Generator) -> Tensor:
    low, high = uniform(generator, 1, low=0.5, high=0.9), uniform(generator, 1, low=1.2, high=2.0)
    return torch.cat([low, high])


OPPOSITE_INVERSE_SHIFT_FLOW = Flow(  # moves 1/l_0 down and 1/l_1 up by the same amount
    "(l_0^2, -l_1^2)",
    field=lambda point: alternating_signs(2) * point**2,
    move=lambda point, time: point / (1.0 - time * alternating_signs(2) * point),
)

PAIR_CASES = [
    GaugeCase(
        name="product_scale_shift",
        formula="two output heads: log l_i / l_j and m_i - m_j",
        group="positive scaling of one head, translation of the other",
        algebra="R^2",
        dim=2,
        size=8,
        predict=two_heads,
        sample=sample_two_heads,
        flows=(
            rescale(torch.cat([ones(4), zeros(4)]), "l on the first head"),
            shift(torch.cat([zeros(4), ones(4)]), "1 on the second head"),
        ),
    ),
    GaugeCase(
        name="seed_beta_p1_pair",
        formula="log Beta((l_0 + l_1) / (l_0 l_1), l_0 l_1), one pair, l > 0",
        group="finite: the swap, and nothing else",
        algebra="trivial",
        dim=0,
        size=2,
        predict=lambda point: log_beta_densities(point, all_pairs(2)),
        sample=sample_unequal_pair,
        finite_maps=(swap,),
        singular_points=((vector(1.3, 1.3), 1),),
    ),
    GaugeCase(
        name="seed_beta_p1_triangle",
        formula="the same density for all pairs of 3 items",
        group="trivial: the third item breaks the swap",
        algebra="trivial",
        dim=0,
        size=3,
        predict=lambda point: log_beta_densities(point, all_pairs(3)),
        sample=lambda generator: uniform(generator, 3, low=0.5, high=2.0),
    ),
    GaugeCase(
        name="seed_a_only_pair",
        formula="1/l_0 + 1/l_1, l > 0",
        group="local R, 1/l moves by +t and -t; the swap reflects the orbit",
        algebra="R",
        dim=1,
        size=2,
        predict=sum_of_reciprocals,
        sample=sample_unequal_pair,
        flows=(OPPOSITE_INVERSE_SHIFT_FLOW,),
        finite_maps=(swap,),
        complete=False,
    ),
]


# ---------------------------------------------------------------------------------------------------- statistical models

RASCH = Layout(ability=(4,), difficulty=(3,))
IRT = Layout(ability=(5,), difficulty=(4,), slope=(4,))
SOFTMAX = Layout(weight=(3, 2), bias=(3,))
SOFTMAX_INPUTS = fixed_normal(6, 2, seed=1)
LOGISTIC_INPUTS = fixed_normal(8, 3, seed=2)
COLLINEAR_INPUTS = torch.cat([LOGISTIC_INPUTS[:, :2], LOGISTIC_INPUTS[:, :2].sum(1, keepdim=True)], dim=1)
MIXTURE_PROBES = torch.linspace(-4, 4, 25, dtype=DTYPE)
DECAY_TIMES = torch.linspace(0, 4, 30, dtype=DTYPE)


def rasch_log_probabilities(point: Tensor) -> Tensor:
    ability, difficulty = RASCH.split(point)
    return logsigmoid(ability[:, None] - difficulty).reshape(-1)


def irt_log_probabilities(point: Tensor) -> Tensor:
    ability, difficulty, slope = IRT.split(point)
    return logsigmoid(slope * (ability[:, None] - difficulty)).reshape(-1)


def sample_irt(generator: torch.Generator) -> Tensor:
    return torch.cat([normal(generator, 9), uniform(generator, 4, low=0.5, high=2.0)])


def softmax_log_probabilities(point: Tensor) -> Tensor:
    weight, bias = SOFTMAX.split(point)
    return torch.log_softmax(SOFTMAX_INPUTS @ weight.T + bias, dim=1).reshape(-1)


def choice_log_probabilities(point: Tensor) -> Tensor:
    """Scores of 3 responses to each of 4 prompts, compared within their prompt only."""
    return torch.log_softmax(point.reshape(4, 3), dim=1).reshape(-1)


def mixture_log_density(point: Tensor) -> Tensor:
    """Two normal components, up to the constant log sqrt(2 pi)."""
    weights, means, deviations = torch.stack([point[0], 1 - point[0]]), point[1:3], point[3:5]
    scaled = (MIXTURE_PROBES - means[:, None]) / deviations[:, None]
    return torch.logsumexp(torch.log(weights / deviations)[:, None] - scaled**2 / 2, dim=0)


def sample_mixture(generator: torch.Generator) -> Tensor:
    return vector(0.3, -1.0, 1.5, 0.8, 1.2) + 0.1 * normal(generator, 5)


def exchange_components(point: Tensor) -> Tensor:
    return torch.cat([1 - point[:1], point[1:3].flip(0), point[3:5].flip(0)])


def sum_of_exponentials(point: Tensor) -> Tensor:
    amplitude, rate = point.reshape(2, 3)
    return (amplitude[:, None] * torch.exp(-rate[:, None] * DECAY_TIMES)).sum(0)


def sample_close_rates(generator: torch.Generator) -> Tensor:
    return torch.cat([1 + 0.1 * normal(generator, 3), vector(0.8, 1.2, 1.7) + 0.05 * normal(generator, 3)])


def permute_exponentials(point: Tensor) -> Tensor:
    return point.reshape(2, 3)[:, [2, 0, 1]].reshape(-1)


STATISTICAL_CASES = [
    GaugeCase(
        name="rasch",
        formula="log sigmoid(ability_p - difficulty_i)",
        group="R, abilities and difficulties move together",
        algebra="R",
        dim=1,
        size=RASCH.size,
        predict=rasch_log_probabilities,
        sample=normal_points(RASCH.size),
        flows=(shift(ones(RASCH.size), "1"),),
    ),
    GaugeCase(
        name="irt_2pl",
        formula="log sigmoid(slope_i (ability_p - difficulty_i))",
        group="Aff(1): ability -> a ability + b, difficulty -> a difficulty + b, slope -> slope / a",
        algebra="aff(1)",
        dim=2,
        size=IRT.size,
        predict=irt_log_probabilities,
        sample=sample_irt,
        flows=(
            shift(IRT.join(ability=ones(5), difficulty=ones(4)), "1 on ability and difficulty"),
            rescale(IRT.join(ability=ones(5), difficulty=ones(4), slope=-ones(4)), "(ability, difficulty, -slope)"),
        ),
        finite_maps=(negate,),
    ),
    GaugeCase(
        name="softmax_regression",
        formula="log softmax(W x + b), 3 classes, 2 inputs",
        group="R^3: one vector for every row of W, one number for every entry of b",
        algebra="R^3",
        dim=3,
        size=SOFTMAX.size,
        predict=softmax_log_probabilities,
        sample=normal_points(SOFTMAX.size),
        flows=(
            shift(SOFTMAX.join(weight=vector(1, 0).expand(3, 2)), "1 on the first column of W"),
            shift(SOFTMAX.join(weight=vector(0, 1).expand(3, 2)), "1 on the second column of W"),
            shift(SOFTMAX.join(bias=ones(3)), "1 on b"),
        ),
    ),
    GaugeCase(
        name="reward_model_per_prompt",
        formula="log softmax of the scores of 3 responses, for each of 4 prompts",
        group="R^4, one translation per prompt",
        algebra="R^4",
        dim=4,
        size=12,
        predict=choice_log_probabilities,
        sample=normal_points(12),
        flows=tuple(
            shift(direction, f"1 on prompt {prompt}")
            for prompt, direction in enumerate(torch.eye(4, dtype=DTYPE).repeat_interleave(3, dim=1))
        ),
    ),
    GaugeCase(
        name="control_logistic",
        formula="log sigmoid(x . w), 8 inputs of full rank",
        group="trivial",
        algebra="trivial",
        dim=0,
        size=3,
        predict=lambda point: logsigmoid(LOGISTIC_INPUTS @ point),
        sample=normal_points(3),
    ),
    GaugeCase(
        name="logistic_collinear",
        formula="log sigmoid(x . w), x_2 = x_0 + x_1 in every input",
        group="R, a translation of w that belongs to the design and not to the model",
        algebra="R",
        dim=1,
        size=3,
        predict=lambda point: logsigmoid(COLLINEAR_INPUTS @ point),
        sample=normal_points(3),
        flows=(shift(vector(1, 1, -1), "(1, 1, -1)"),),
    ),
    GaugeCase(
        name="gmm2_label_switching",
        formula="log (w N(m_0, s_0) + (1 - w) N(m_1, s_1))",
        group="finite: exchange of the components",
        algebra="trivial",
        dim=0,
        size=5,
        predict=mixture_log_density,
        sample=sample_mixture,
        finite_maps=(exchange_components,),
        singular_points=((vector(0.3, 0.5, 0.5, 1.0, 1.0), 3),),
    ),
]


# ---------------------------------------------------------------------------------------------------- matrices and geometry

FACTORS = Layout(loading=(6, 2), uniqueness=(6,))
FACTORISATION = Layout(left=(4, 2), right=(5, 2))


def factor_covariance(point: Tensor) -> Tensor:
    loading, uniqueness = FACTORS.split(point)
    covariance = loading @ loading.T + torch.diag(uniqueness)
    row, column = torch.triu_indices(6, 6)
    return covariance[row, column]


def sample_factors(generator: torch.Generator) -> Tensor:
    return torch.cat([normal(generator, 12), uniform(generator, 6, low=0.3, high=1.0)])


def rotated_loadings_field(point: Tensor) -> Tensor:
    return FACTORS.join(loading=FACTORS.split(point)[0] @ QUARTER_TURN)


def rotate_loadings(point: Tensor, time: Tensor) -> Tensor:
    loading, uniqueness = FACTORS.split(point)
    return FACTORS.join(loading=loading @ rotation(time), uniqueness=uniqueness)


def swap_factors(point: Tensor) -> Tensor:
    loading, uniqueness = FACTORS.split(point)
    return FACTORS.join(loading=loading.flip(1), uniqueness=uniqueness)


def negate_first_factor(point: Tensor) -> Tensor:
    loading, uniqueness = FACTORS.split(point)
    return FACTORS.join(loading=loading * vector(-1, 1), uniqueness=uniqueness)


def product_of_factors(point: Tensor) -> Tensor:
    left, right = FACTORISATION.split(point)
    return (left @ right.T).reshape(-1)


def general_linear_flow(row: int, column: int) -> Flow:
    """left -> left exp(t E), right -> right exp(-t E)^T, with E the matrix unit at (row, column)."""
    unit = zeros(2, 2)
    unit[row, column] = 1.0

    def field(point: Tensor) -> Tensor:
        left, right = FACTORISATION.split(point)
        return FACTORISATION.join(left=left @ unit, right=-right @ unit.T)

    def move(point: Tensor, time: Tensor) -> Tensor:
        left, right = FACTORISATION.split(point)
        return FACTORISATION.join(
            left=left @ torch.matrix_exp(time * unit), right=right @ torch.matrix_exp(-time * unit).T
        )

    return Flow(f"(U E_{row}{column}, -V E_{column}{row})", field, move)


def swap_factor_columns(point: Tensor) -> Tensor:
    left, right = FACTORISATION.split(point)
    return FACTORISATION.join(left=left.flip(1), right=right.flip(1))


def squared_distances(point: Tensor) -> Tensor:
    first, second = all_pairs(5)
    places = point.reshape(5, 2)
    return ((places[first] - places[second]) ** 2).sum(1)


ROTATE_PLACES = Flow(
    "(y, -x) of every place",
    field=lambda point: (point.reshape(5, 2) @ QUARTER_TURN).reshape(-1),
    move=lambda point, time: (point.reshape(5, 2) @ rotation(time)).reshape(-1),
)

MATRIX_CASES = [
    GaugeCase(
        name="factor_analysis_6_2",
        formula="L L^T + diag(psi), 6 variables, 2 factors",
        group="O(2), L -> L Q",
        algebra="so(2)",
        dim=1,
        size=FACTORS.size,
        predict=factor_covariance,
        sample=sample_factors,
        flows=(Flow("L J, J the quarter turn", rotated_loadings_field, rotate_loadings),),
        finite_maps=(swap_factors, negate_first_factor),
    ),
    GaugeCase(
        name="matrix_factorisation_gl2",
        formula="U V^T, rank 2",
        group="GL(2), U -> U G, V -> V G^-T",
        algebra="gl(2)",
        dim=4,
        size=FACTORISATION.size,
        predict=product_of_factors,
        sample=normal_points(FACTORISATION.size),
        flows=tuple(general_linear_flow(row, column) for row in range(2) for column in range(2)),
        finite_maps=(swap_factor_columns,),
        singular_points=((ones(FACTORISATION.size), 10),),
    ),
    GaugeCase(
        name="distance_geometry_2d",
        formula="|x_i - x_j|^2, 5 places in the plane",
        group="E(2), rigid motions",
        algebra="e(2)",
        dim=3,
        size=10,
        predict=squared_distances,
        sample=normal_points(10),
        flows=(
            shift(vector(1, 0).repeat(5), "1 on every x"),
            shift(vector(0, 1).repeat(5), "1 on every y"),
            ROTATE_PLACES,
        ),
        finite_maps=(lambda point: point * vector(-1, 1).repeat(5),),
    ),
]


# ---------------------------------------------------------------------------------------------------- networks

NETWORK = Layout(weight=(4, 2), bias=(4,), outgoing=(4,), offset=(1,))
NETWORK_INPUTS = 2.5 * fixed_normal(400, 2, seed=3)


def two_layer_network(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def predict(point: Tensor) -> Tensor:
        weight, bias, outgoing, offset = NETWORK.split(point)
        return activation(NETWORK_INPUTS @ weight.T + bias) @ outgoing + offset

    return predict


def sample_network(generator: torch.Generator) -> Tensor:
    """Incoming weights of length 0.7 to 1.5 and small biases: every hidden unit bends inside the inputs."""
    direction = torch.nn.functional.normalize(normal(generator, 4, 2), dim=1)
    return NETWORK.join(
        weight=direction * uniform(generator, 4, 1, low=0.7, high=1.5),
        bias=uniform(generator, 4, low=-0.6, high=0.6),
        outgoing=uniform(generator, 4, low=0.5, high=1.5) * alternating_signs(4),
        offset=normal(generator, 1),
    )


def rescale_unit(unit: int) -> Flow:
    chosen = torch.eye(4, dtype=DTYPE)[unit]
    exponents = NETWORK.join(weight=chosen[:, None].expand(4, 2), bias=chosen, outgoing=-chosen)
    return rescale(exponents, f"(w, b, -v) of unit {unit}")


def permute_units(point: Tensor) -> Tensor:
    weight, bias, outgoing, offset = NETWORK.split(point)
    order = [2, 0, 3, 1]
    return NETWORK.join(weight=weight[order], bias=bias[order], outgoing=outgoing[order], offset=offset)


def negate_two_units(point: Tensor) -> Tensor:
    weight, bias, outgoing, offset = NETWORK.split(point)
    signs = vector(-1, 1, 1, -1)
    return NETWORK.join(weight=weight * signs[:, None], bias=bias * signs, outgoing=outgoing * signs, offset=offset)


ONE_UNIT_NEVER_ACTIVE = NETWORK.join(
    weight=vector(1.0, 0.3, -0.4, 1.1, -0.9, -0.5, 0.7, -1.2).reshape(4, 2),
    bias=vector(-60, 0.1, 0.2, 0.3),
    outgoing=ones(4),
)

NETWORK_CASES = [
    GaugeCase(
        name="relu_2layer",
        formula="v . relu(W x + b) + c, 4 hidden units",
        group="positive rescaling of each unit; w -> -w is not in it",
        algebra="R^4",
        dim=4,
        size=NETWORK.size,
        predict=two_layer_network(torch.relu),
        sample=sample_network,
        flows=tuple(rescale_unit(unit) for unit in range(4)),
        finite_maps=(permute_units,),
        singular_points=((ONE_UNIT_NEVER_ACTIVE, 7),),
    ),
    GaugeCase(
        name="tanh_2layer",
        formula="v . tanh(W x + b) + c, 4 hidden units",
        group="finite: permutations and signs of the units",
        algebra="trivial",
        dim=0,
        size=NETWORK.size,
        predict=two_layer_network(torch.tanh),
        sample=sample_network,
        finite_maps=(permute_units, negate_two_units),
    ),
]


# ---------------------------------------------------------------------------------------------------- sloppiness and traps


def product_value_and_square(point: Tensor) -> Tensor:
    return torch.stack([point[0] * point[1], point[2], point[3] ** 2])


def products_with_the_first(point: Tensor) -> Tensor:
    return point[0] * point[1:]


TRAP_CASES = [
    GaugeCase(
        name="sloppy_exponentials",
        formula="sum_k A_k exp(-r_k time), close rates",
        group="finite: permutations; tiny singular values that are not a gauge",
        algebra="trivial",
        dim=0,
        size=6,
        predict=sum_of_exponentials,
        sample=sample_close_rates,
        finite_maps=(permute_exponentials,),
        singular_points=((vector(1, 1, 1, 1, 1, 2), 2),),
    ),
    GaugeCase(
        name="partial_identifiable",
        formula="(a b, c, d^2)",
        group="scaling of a against b; c is identifiable, d up to its sign",
        algebra="R",
        dim=1,
        size=4,
        predict=product_value_and_square,
        sample=signed_points(4),
        flows=(rescale(vector(1, -1, 0, 0), "(a, -b, 0, 0)"),),
        finite_maps=(flip_signs(-1, -1, 1, 1), flip_signs(1, 1, 1, -1)),
    ),
    GaugeCase(
        name="rank_drops_on_a0",
        formula="(a b, a c); at a = 0 every (b, c) is the same",
        group="scaling of a against (b, c)",
        algebra="R",
        dim=1,
        size=3,
        predict=products_with_the_first,
        sample=signed_points(3),
        flows=(rescale(vector(1, -1, -1), "(a, -b, -c)"),),
        finite_maps=(negate,),
        singular_points=((vector(0, 1, 2), 2),),
    ),
    GaugeCase(
        name="cubic_no_gauge",
        formula="l^3, whose derivative vanishes at 0 although l is identifiable",
        group="trivial",
        algebra="trivial",
        dim=0,
        size=1,
        predict=lambda point: point**3,
        sample=lambda generator: 2.0 + normal(generator, 1),
        singular_points=((zeros(1), 1),),
    ),
]

CASES: list[GaugeCase] = [*UTILITY_CASES, *PAIR_CASES, *STATISTICAL_CASES, *MATRIX_CASES, *NETWORK_CASES, *TRAP_CASES]
CASES_BY_NAME: dict[str, GaugeCase] = {case.name: case for case in CASES}
