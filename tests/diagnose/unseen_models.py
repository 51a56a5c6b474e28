"""Models that the method was never tuned on: written with their answers, worked out by hand, before the first run on them.

Every entry: what predictions are, the dimension of the orbit, the algebra, the fields that span it at a point, and whether
the flows exist for all times.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldid.points import Point

F64 = torch.float64


@dataclass(frozen=True)
class Model:
    """A model and its known gauge; `fields` returns rows that span the null space at a flat point."""

    name: str
    predict: Callable
    sample: Callable[[torch.Generator], Point]
    dim: int
    algebra: str
    fields: Callable[[Tensor], Tensor] | None = None
    complete: bool = True


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=F64)


def uniform(generator: torch.Generator, *shape: int, low: float = 0.4, high: float = 2.5) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=F64)


def pairs(n: int) -> tuple[Tensor, Tensor]:
    i, j = torch.combinations(torch.arange(n)).T
    return i, j


def differences(chart: Callable[[Tensor], Tensor], n: int) -> Callable[[Tensor], Tensor]:
    i, j = pairs(n)
    return lambda x: torch.nn.functional.logsigmoid(chart(x)[i] - chart(x)[j])


def rows(*fields: Tensor) -> Tensor:
    return torch.stack([f.reshape(-1) for f in fields])


def flat(**blocks: Tensor) -> Tensor:
    return torch.cat([b.reshape(-1) for b in blocks.values()])


FIXED = torch.Generator().manual_seed(11)
TIMES = torch.linspace(0.1, 3.0, 12, dtype=F64)
INPUTS = torch.randn(60, 2, generator=FIXED, dtype=F64)


def thurstone(x):  # means 0:4, spreads 4:8
    i, j = pairs(4)
    return torch.special.log_ndtr((x[i] - x[j]) / (x[4 + i].square() + x[4 + j].square()).sqrt())


def infusion(x):  # dose fraction F, absorption a, elimination k, volume V: one-compartment model with absorption
    f, a, k, v = x
    return f * a / (v * (a - k)) * (torch.exp(-k * TIMES) - torch.exp(-a * TIMES))


def tensor_rank_one(x):
    return torch.einsum("i,j,k->ijk", x[:3], x[3:5], x[5:8])


def mirt(x):  # theta (6, 2), slopes (5, 2), intercepts (5): logit = theta . a + d
    theta, slope, intercept = x[:12].reshape(6, 2), x[12:22].reshape(5, 2), x[22:]
    return torch.sigmoid(theta @ slope.T + intercept)


def mirt_fields(x):
    theta, slope = x[:12].reshape(6, 2), x[12:22].reshape(5, 2)
    found = []
    for a in range(2):
        for b in range(2):
            unit = torch.zeros(2, 2, dtype=F64)
            unit[a, b] = 1
            found.append(flat(t=theta @ unit, s=-slope @ unit.T, d=torch.zeros(5, dtype=F64)))
        shift = torch.zeros(6, 2, dtype=F64)
        shift[:, a] = 1
        found.append(flat(t=shift, s=torch.zeros(10, dtype=F64), d=-slope[:, a]))
    return rows(*found)


def gram3(x):
    places = x.reshape(5, 3)
    return places @ places.T


def gram3_fields(x):
    places, found = x.reshape(5, 3), []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        turn = torch.zeros(3, 3, dtype=F64)
        turn[a, b], turn[b, a] = 1, -1
        found.append(places @ turn)
    return rows(*found)


def distance_ratios(x):
    places = x.reshape(5, 2)
    i, j = pairs(5)
    square = (places[i] - places[j]).square().sum(1)
    return torch.log(square / square.sum())


def similarity_fields(x):
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    places = x.reshape(5, 2)
    shift = [torch.tensor(e, dtype=F64).repeat(5) for e in ([1.0, 0.0], [0.0, 1.0])]
    return rows(*shift, places @ turn, places)


def linear_network(x):  # W2 (3, 2) W1 (2, 4)
    return x[:6].reshape(3, 2) @ x[6:].reshape(2, 4)


def linear_network_fields(x):
    second, first, found = x[:6].reshape(3, 2), x[6:].reshape(2, 4), []
    for a in range(2):
        for b in range(2):
            unit = torch.zeros(2, 2, dtype=F64)
            unit[a, b] = 1
            found.append(flat(w2=second @ unit, w1=-unit @ first))
    return rows(*found)


def state_space(x):  # A (2, 2), B (2,), C (2,): impulse response C A^k B
    a, b, c = x[:4].reshape(2, 2), x[4:6], x[6:8]
    state, seen = b, []
    for _ in range(6):
        seen.append(c @ state)
        state = a @ state
    return torch.stack(seen)


def state_space_fields(x):
    a, b, c, found = x[:4].reshape(2, 2), x[4:6], x[6:8], []
    for i in range(2):
        for j in range(2):
            unit = torch.zeros(2, 2, dtype=F64)
            unit[i, j] = 1
            found.append(flat(a=unit @ a - a @ unit, b=unit @ b, c=-c @ unit))
    return rows(*found)


def age_period_cohort(x):  # age (4), period (4), cohort (7)
    age, period = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    return x[:4][age] + x[4:8][period] + x[8:][period - age + 3]


def apc_fields(x):
    one = lambda k: torch.ones(k, dtype=F64)  # noqa: E731
    zero = lambda k: torch.zeros(k, dtype=F64)  # noqa: E731
    trend = torch.arange(4, dtype=F64)
    return rows(
        torch.cat([one(4), -one(4), zero(7)]),
        torch.cat([one(4), zero(4), -one(7)]),
        torch.cat([trend, -trend, torch.arange(7, dtype=F64) - 3]),
    )


def phase_retrieval(x):  # five complex numbers seen through |<a, z>|^2
    z = torch.view_as_complex(x.reshape(5, 2))
    probes = torch.complex(INPUTS[:50, 0], INPUTS[:50, 1]).reshape(10, 5)
    return (probes @ z).abs().square()


def phase_fields(x):
    pairs_ = x.reshape(5, 2)
    return rows(torch.stack([-pairs_[:, 1], pairs_[:, 0]], 1))


def softmax_temperature(x):  # logits 0:5, temperature 5
    return torch.log_softmax(x[:5] / x[5], 0)


def ordinal(x):  # abilities 0:5, cut points of 3 items x 2 thresholds
    cuts = x[5:].reshape(3, 2)
    return torch.sigmoid(x[:5, None, None] - cuts)


def amplitude_shift(x):  # A exp(-(r t + c)), with r
    return x[0] * torch.exp(-(x[1] * TIMES + x[2]))


def barycentric(x):  # ratios of triangle areas of 6 places in the plane: affine shape
    p = x.reshape(6, 2)
    triples = torch.combinations(torch.arange(6), 3)
    u, v = p[triples[:, 1]] - p[triples[:, 0]], p[triples[:, 2]] - p[triples[:, 0]]
    area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    return area[1:] / area[0]


def barycentric_fields(x):
    p, found = x.reshape(6, 2), []
    for a in range(2):
        shift = torch.zeros(6, 2, dtype=F64)
        shift[:, a] = 1
        found.append(shift)
        for b in range(2):
            unit = torch.zeros(2, 2, dtype=F64)
            unit[a, b] = 1
            found.append(p @ unit)
    return rows(*found)


def hidden_power(x):  # p log(l_i): exponent and rates
    return x[4] * torch.log(x[:4])


def seed_unknown_power(x):  # a = 1/l1 + 1/l2, b = l1 l2^p
    return torch.stack([1 / x[0] + 1 / x[1], torch.log(x[0]) + x[2] * torch.log(x[1])])


def bipartite_sums(x):
    users, items = torch.meshgrid(torch.arange(3), torch.arange(3, 7), indexing="ij")
    return (x[users] + x[items]).reshape(-1)


def odd_cycle_sums(x):
    i, j = pairs(3)
    return torch.cat([x[i] + x[j], x[2:3] * x[3:4]])


def batch_norm(x):  # scale-invariant rows
    w = x.reshape(3, 4)
    return torch.tanh(w / w.norm(dim=1, keepdim=True))


def attention(point):  # dict: queries, keys (6, 2)
    tokens = INPUTS[:24].reshape(8, 6)
    return torch.softmax(tokens @ point["Q"] @ point["K"].T @ tokens.T, dim=-1)


def attention_fields(x):
    q, k, found = x[:12].reshape(6, 2), x[12:].reshape(6, 2), []
    for a in range(2):
        for b in range(2):
            unit = torch.zeros(2, 2, dtype=F64)
            unit[a, b] = 1
            found.append(flat(q=q @ unit, k=-k @ unit.T))
    return rows(*found)


def sir(
    x,
):  # transmission b, recovery g, population N, reporting r: only r * incidence is seen, b / N with S, I in people
    beta, gamma, size, rho = x
    susceptible, infected, seen = 0.99 * size, 0.01 * size, []
    for _ in range(12):
        new = 0.1 * beta * susceptible * infected / size
        susceptible, infected = susceptible - new, infected + new - 0.1 * gamma * infected
        seen.append(rho * new)
    return torch.stack(seen)


UNSEEN = [
    Model(
        "asinh_differences",
        differences(torch.asinh, 5),
        lambda g: 2 * normal(g, 5),
        1,
        "R",
        lambda x: rows((1 + x.square()).sqrt()),
    ),
    Model(
        "exp_differences",
        differences(torch.exp, 5),
        lambda g: normal(g, 5),
        1,
        "R",
        lambda x: rows(torch.exp(-x)),
        False,
    ),
    Model(
        "logit_differences",
        differences(torch.logit, 5),
        lambda g: uniform(g, 5, low=0.05, high=0.95),
        1,
        "R",
        lambda x: rows(x * (1 - x)),
    ),
    Model(
        "softplus_differences",
        differences(torch.nn.functional.softplus, 5),
        lambda g: normal(g, 5),
        1,
        "R",
        lambda x: rows(1 + torch.exp(-x)),
        False,
    ),
    Model(
        "odd_chart_differences",
        differences(lambda x: x**3 + x, 5),
        lambda g: normal(g, 5),
        1,
        "R",
        lambda x: rows(1 / (3 * x.square() + 1)),
    ),
    Model(
        "thurstone",
        thurstone,
        lambda g: torch.cat([normal(g, 4), uniform(g, 4)]),
        2,
        "aff(1)",
        lambda x: rows(torch.cat([torch.ones(4), torch.zeros(4)]).to(F64), x),
    ),
    Model(
        "infusion",
        infusion,
        lambda g: torch.stack(
            [*uniform(g, 1), *uniform(g, 1, low=2.0, high=3.0), *uniform(g, 1, low=0.3, high=1.0), *uniform(g, 1)]
        ),
        1,
        "R",
        lambda x: rows(x * torch.tensor([1.0, 0, 0, 1], dtype=F64)),
    ),
    Model(
        "tensor_rank_one",
        tensor_rank_one,
        lambda g: normal(g, 8),
        2,
        "R^2",
        lambda x: rows(torch.cat([x[:3], -x[3:5], 0 * x[5:]]), torch.cat([x[:3], 0 * x[3:5], -x[5:]])),
    ),
    Model("mirt", mirt, lambda g: normal(g, 27), 6, "gl(2) x| R^2", mirt_fields),
    Model("gram3", gram3, lambda g: normal(g, 15), 3, "so(3)", gram3_fields),
    Model("distance_ratios", distance_ratios, lambda g: normal(g, 10), 4, "sim(2)", similarity_fields),
    Model("linear_network", linear_network, lambda g: normal(g, 14), 4, "gl(2)", linear_network_fields),
    Model("state_space", state_space, lambda g: normal(g, 8), 4, "gl(2)", state_space_fields),
    Model("age_period_cohort", age_period_cohort, lambda g: normal(g, 15), 3, "R^3", apc_fields),
    Model("phase_retrieval", phase_retrieval, lambda g: normal(g, 10), 1, "so(2)", phase_fields),
    Model(
        "softmax_temperature",
        softmax_temperature,
        lambda g: torch.cat([normal(g, 5), uniform(g, 1)]),
        2,
        "aff(1)",
        lambda x: rows(torch.tensor([1.0, 1, 1, 1, 1, 0], dtype=F64), x),
    ),
    Model("ordinal", ordinal, lambda g: normal(g, 11), 1, "R", lambda x: rows(torch.ones(11, dtype=F64))),
    Model(
        "amplitude_shift",
        amplitude_shift,
        lambda g: torch.cat([uniform(g, 2), normal(g, 1)]),
        1,
        "R",
        lambda x: rows(torch.stack([x[0], 0 * x[0], 1 + 0 * x[0]])),
    ),
    Model("barycentric", barycentric, lambda g: normal(g, 12), 6, "gl(2) x| R^2", barycentric_fields),
    Model(
        "hidden_power",
        hidden_power,
        lambda g: 1 + uniform(g, 5),
        1,
        "R",
        lambda x: rows(torch.cat([-x[:4] * torch.log(x[:4]), x[4:]])),
    ),
    Model(
        "seed_unknown_power",
        seed_unknown_power,
        lambda g: torch.cat([uniform(g, 1, low=1.2, high=2.0), uniform(g, 1, low=0.5, high=0.9), uniform(g, 1)]),
        1,
        "R",
        lambda x: rows(torch.stack([x[0] ** 2, -(x[1] ** 2), (x[2] * x[1] - x[0]) / torch.log(x[1])])),
        False,
    ),
    Model(
        "bipartite_sums",
        bipartite_sums,
        lambda g: normal(g, 7),
        1,
        "R",
        lambda x: rows(torch.tensor([1.0, 1, 1, -1, -1, -1, -1], dtype=F64)),
    ),
    Model("odd_cycle_sums", odd_cycle_sums, lambda g: normal(g, 4), 0, "trivial"),
    Model("batch_norm", batch_norm, lambda g: normal(g, 12), 3, "R^3", lambda x: torch.block_diag(*x.reshape(3, 1, 4))),
    Model(
        "attention",
        attention,
        lambda g: {"Q": 0.5 * normal(g, 6, 2), "K": 0.5 * normal(g, 6, 2)},
        4,
        "gl(2)",
        attention_fields,
    ),
    Model("sir", sir, lambda g: uniform(g, 4), 1, "R", lambda x: rows(x * torch.tensor([0.0, 0, 1, -1], dtype=F64))),
    Model(
        "lone_length",
        lambda x: x.norm()[None],
        lambda g: normal(g, 3),
        2,
        "so(3)",
        lambda x: rows(torch.stack([-x[1], x[0], 0 * x[0]]), torch.stack([0 * x[0], -x[2], x[1]])),
    ),
    Model(
        "two_factorisations",
        lambda x: torch.cat(
            [
                (x[:6].reshape(3, 2) @ x[6:12].reshape(3, 2).T).reshape(-1),
                (x[12:18].reshape(3, 2) @ x[18:24].reshape(3, 2).T).reshape(-1),
            ]
        ),
        lambda g: normal(g, 24),
        8,
        "gl(2) + gl(2)",
    ),
    Model(
        "arctan_differences",
        differences(torch.atan, 5),
        lambda g: normal(g, 5),
        1,
        "R",
        lambda x: rows(1 + x.square()),
        False,
    ),
    Model(
        "power_ratio_per_group",
        lambda x: torch.cat([torch.log(x[:3])[1:] / torch.log(x[:1]), torch.log(x[3:6] / x[3:4])[1:]]),
        lambda g: 1.2 + uniform(g, 6),
        2,
        "R^2",
        lambda x: rows(torch.cat([x[:3] * torch.log(x[:3]), 0 * x[3:]]), torch.cat([0 * x[:3], x[3:]])),
    ),
    Model(
        "angles_only",
        lambda x: torch.stack([torch.cos(x[0] - x[1]), torch.sin(x[1] - x[2]), torch.cos(x[0] - x[2])]),
        lambda g: normal(g, 3),
        1,
        "R",
        lambda x: rows(torch.ones(3, dtype=F64)),
    ),
    Model("exponent_identified", lambda x: x[0] * TIMES ** x[1] + x[2], lambda g: uniform(g, 3), 0, "trivial"),
]
