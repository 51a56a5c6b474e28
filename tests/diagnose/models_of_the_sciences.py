"""Models of genetics, physics, econometrics, compartments, mixtures and state spaces, with answers worked out by hand.

Written before the first run of `diagnose` on them. The comment at each model is the argument; `fields` are rows that span the
null space of the derivative at a flat point.
"""

import itertools

import torch
from unseen_models import TIMES, Model, normal, rows, uniform

F64 = torch.float64


def scaled(*powers):
    """The field that multiplies coordinate i by exp(t powers[i])."""
    return lambda x: rows(x * torch.tensor(powers, dtype=F64))


def selection(x):  # allele frequency p, fitness of three genotypes: only ratios of fitness move frequencies
    p, *fitness = x
    seen = []
    for _ in range(6):
        common, mixed, rare = p * p * fitness[0], p * (1 - p) * fitness[1], (1 - p) ** 2 * fitness[2]
        p = (common + mixed) / (common + 2 * mixed + rare)
        seen.append(p)
    return torch.stack(seen)


# Means of parents, F1 and F2 of a cross: origin, additive, dominance, additive x additive, dominance x dominance.
# Null vector: a = 0, m + aa = 0, m + d + dd = 0, m + d/2 + dd/4 = 0, so (1, 0, -3, -1, 2).
CROSSES = torch.tensor([[1, 1, 0, 1, 0], [1, -1, 0, 1, 0], [1, 0, 1, 0, 1], [1, 0, 0.5, 0, 0.25]], dtype=F64)


def circuit(x):  # current after a step of voltage V through R and C: V/R and R C are seen
    voltage, resistance, capacity = x
    return voltage / resistance * torch.exp(-TIMES / (resistance * capacity))


def oscillator(x):  # amplitude of a driven oscillator: force, mass, damping, stiffness have one common unit
    force, mass, damping, stiffness = x
    omega = TIMES * 2
    return force / ((stiffness - mass * omega**2) ** 2 + (damping * omega) ** 2).sqrt()


def market(x):
    """Means and covariance of price and quantity where q = a + b p + u and q = c + d p + v, u and v independent.

    Given b, d follows from cov(u, v) = 0, the rest from the moments. With V = var u and W = var v the tangent is
    db = V (d - b), dd = W (d - b), dV = -2 V^2, dW = 2 W^2, da = -V (a - c), dc = -W (a - c): W runs to infinity in finite time
    (a demand curve turns through the vertical).
    """
    a, b, c, d, v, w = x
    slope = d - b
    return torch.stack(
        [
            (a - c) / slope,
            (a * d - c * b) / slope,
            (v + w) / slope**2,
            (d * v + b * w) / slope**2,
            (d**2 * v + b**2 * w) / slope**2,
        ]
    )


def market_field(x):
    a, b, c, d, v, w = x
    return rows(torch.stack([-v * (a - c), v * (d - b), -w * (a - c), w * (d - b), -2 * v**2, 2 * w**2]))


def measurement_error(x):
    """Moments of y = alpha + beta z + e and x = z + u: mean of z, variances of z, u and e.

    beta var z is seen: d var z = var z, d beta = -beta, and from the other moments d var u = -var z, d alpha = beta mean,
    d var e = beta^2 var z.
    """
    alpha, beta, mean, size, noise, error = x
    return torch.stack([mean, alpha + beta * mean, size + noise, beta * size, beta**2 * size + error])


def measurement_error_field(x):
    _, beta, mean, size, _, _ = x
    return rows(torch.stack([beta * mean, -beta, 0 * mean, size, -size, beta**2 * size]))


def two_compartments(x):
    """Concentration in the first of two compartments that exchange and both eliminate: k12, k21, k10, k20, volume.

    The transfer function sees the volume, k21 + k20, k10 + k12 and k12 k21.
    """
    k12, k21, k10, k20, volume = x
    rates = torch.stack([torch.stack([-k10 - k12, k21]), torch.stack([k12, -k20 - k21])])
    return torch.linalg.matrix_exp(TIMES[:, None, None] * rates)[:, 0, 0] / volume


def prey(x):  # only the prey is counted: the predator has no unit
    growth, death_by, death, food, hares, foxes = x
    seen, step = [], 0.05
    state = torch.stack([hares, foxes])

    def velocity(s):
        return torch.stack([growth * s[0] - death_by * s[0] * s[1], food * s[0] * s[1] - death * s[1]])

    for _ in range(30):
        half = state + step / 2 * velocity(state)
        state = state + step * velocity(half)
        seen.append(state[0])
    return torch.stack(seen)


def softmax_mixture(x):  # log-density of three components, weights as logits: one shift of the logits
    grid = torch.linspace(-4, 4, 30, dtype=F64)[:, None]
    return torch.logsumexp(torch.log_softmax(x[:3], 0) - 0.5 * (grid - x[3:]) ** 2, dim=1)


def latent_classes(
    x,
):  # two classes, three binary items: 7 cells, 7 parameters, identifiable up to the names of the classes
    weights = torch.stack([x[0], 1 - x[0]])
    cells = []
    for answer in itertools.product((0, 1), repeat=3):
        yes = torch.tensor(answer, dtype=F64)
        cells.append((weights * (yes * x[1:].reshape(2, 3) + (1 - yes) * (1 - x[1:].reshape(2, 3))).prod(1)).sum())
    return torch.log(torch.stack(cells))


def dynamic_factors(x):
    """Autocovariances of y = L s, s' = P s + G e: bases of s turn L, P and G together, and G G' does not see rotations of e."""
    loading, step, noise = x[:8].reshape(4, 2), x[8:12].reshape(2, 2), x[12:].reshape(2, 2)
    covariance, power, seen = noise @ noise.T, torch.eye(2, dtype=F64), []
    for _ in range(4):
        seen.append(loading @ power @ covariance @ loading.T)
        power = step @ power
    return torch.stack(seen)


def dynamic_factors_fields(x):
    loading, step, noise = x[:8].reshape(4, 2), x[8:12].reshape(2, 2), x[12:].reshape(2, 2)
    found = []
    for place in itertools.product(range(2), repeat=2):
        unit = torch.zeros(2, 2, dtype=F64)
        unit[place] = 1
        found.append(
            torch.cat([(-loading @ unit).flatten(), (unit @ step - step @ unit).flatten(), (unit @ noise).flatten()])
        )
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    found.append(torch.cat([torch.zeros(12, dtype=F64), (noise @ turn).flatten()]))
    return rows(*found)


def hidden_chain(x):
    """Probabilities of strings of five of a two-state chain with binary emissions: identifiable up to the names of the states."""
    stay, back, first, second = x
    moves = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([back, 1 - back])])
    start = torch.stack([back, 1 - stay]) / (1 - stay + back)
    ones = torch.stack([first, second])
    seen = []
    for string in itertools.product((0, 1), repeat=5):
        state = start
        for symbol in string:
            state = (state * (ones if symbol else 1 - ones)) @ moves
        seen.append(state.sum())
    return torch.log(torch.stack(seen))


def inside(generator, n):
    return uniform(generator, n, low=0.1, high=0.9)


SCIENCES = [
    Model(
        "selection",
        selection,
        lambda g: torch.cat([inside(g, 1), uniform(g, 3)]),
        1,
        "R",
        scaled(0.0, 1.0, 1.0, 1.0),
    ),
    Model(
        "generation_means",
        lambda x: CROSSES @ x,
        lambda g: normal(g, 5),
        1,
        "R",
        lambda x: rows(torch.tensor([1.0, 0, -3, -1, 2], dtype=F64)),
    ),
    Model("circuit", circuit, lambda g: uniform(g, 3), 1, "R", scaled(1.0, 1.0, -1.0)),
    Model("oscillator", oscillator, lambda g: uniform(g, 4), 1, "R", scaled(1.0, 1.0, 1.0, 1.0)),
    Model(
        "market",
        market,
        lambda g: torch.cat([normal(g, 1), -uniform(g, 1), normal(g, 1), uniform(g, 3)]),
        1,
        "R",
        market_field,
        False,
    ),
    Model(
        "measurement_error",
        measurement_error,
        lambda g: torch.cat([normal(g, 3), uniform(g, 3)]),
        1,
        "R",
        measurement_error_field,
    ),
    Model(
        "two_compartments",
        two_compartments,
        lambda g: uniform(g, 5),
        1,
        "R",
        lambda x: rows(torch.stack([x[0], -x[1], -x[0], x[1], 0 * x[0]])),
    ),
    Model(
        "prey",
        prey,
        lambda g: uniform(g, 6, low=0.5, high=1.5),
        1,
        "R",
        scaled(0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
    ),
    Model(
        "softmax_mixture",
        softmax_mixture,
        lambda g: normal(g, 6),
        1,
        "R",
        lambda x: rows(torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=F64)),
    ),
    Model("latent_classes", latent_classes, lambda g: inside(g, 7), 0, "trivial"),
    Model(
        "dynamic_factors", dynamic_factors, lambda g: 0.6 * normal(g, 16), 5, "gl(2) + so(2)", dynamic_factors_fields
    ),
    Model("hidden_chain", hidden_chain, lambda g: inside(g, 4), 0, "trivial"),
]
