"""Models of survival, choice, voting, kinetics, twins, spins, radio astronomy and tensors, with answers worked out by hand.

Written before the first run of `diagnose` on them. The comment at each model is the argument; `fields` are rows that span the
null space of the derivative at a flat point.
"""

import itertools

import torch
from unseen_models import FIXED, INPUTS, Model, flat, normal, rows, uniform

F64 = torch.float64
TOKENS = torch.randn(12, 5, 4, generator=FIXED, dtype=F64)
RISKS = torch.randn(2, 8, 3, generator=FIXED, dtype=F64)


def constant(*values):
    return torch.tensor(values, dtype=F64)


def unit(shape, *places):
    """A tensor of zeros with ones at `places`."""
    t = torch.zeros(shape, dtype=F64)
    t[places] = 1
    return t


def cox(
    x,
):  # effects of two strata, three coefficients: the partial likelihood is one softmax per risk set, within strata
    score = x[:2, None] + RISKS @ x[2:]
    return torch.stack([score[:, t] - torch.logsumexp(score[:, t:], dim=1) for t in range(7)])


def mixed_logit(
    x,
):  # constants of 3 alternatives, mean and spread of one random slope, scale: a shift, and all in one unit
    nodes = constant(-1.8, -0.9, 0.0, 0.9, 1.8)
    attribute = INPUTS[:24, 0].reshape(8, 3)
    utility = (x[:3] + attribute * (x[3] + x[4] * nodes[:, None, None])) / x[5]
    return torch.log(torch.softmax(utility, dim=2).mean(0))


def nested_logit(
    x,
):  # constants of 4 alternatives in 2 nests, a slope, 2 dissimilarities: a shift, the upper level has unit 1
    attribute = INPUTS[:24, 1].reshape(6, 2, 2)
    inside = (x[:4].reshape(2, 2) + x[4] * attribute) / x[5:, None]
    sums = x[5:] * torch.logsumexp(inside, dim=2)
    return torch.log_softmax(inside, 2) + torch.log_softmax(sums, 1)[:, :, None]


def hidden_states(p):  # transitions of 3 states as logits, uniform start, normal emissions: one shift per row of logits
    moves = torch.softmax(p["logits"], dim=1)
    seen = []
    for signal in INPUTS[:30, 0].reshape(6, 5):
        state = torch.full((3,), 1 / 3, dtype=F64)
        for y in signal:
            state = (state * torch.exp(-0.5 * (y - p["means"]) ** 2)) @ moves
        seen.append(torch.log(state.sum()))
    for y in torch.linspace(-3, 3, 12, dtype=F64):
        state = torch.exp(-0.5 * (y - p["means"]) ** 2) @ moves
        seen.append(torch.log((state * torch.exp(-0.5 * (1 - p["means"]) ** 2) @ moves).sum()))
        seen.append(torch.log((state * torch.exp(-0.5 * (y + p["means"] + 1) ** 2)).sum()))
    return torch.stack(seen)


def roll_call(x):
    """Voters v (5, 2); for 4 bills the places of yea and nay: |v - nay|^2 - |v - yea|^2 = 2 d . (v - m), d = yea - nay, m the middle.

    v -> A v + t, m -> A m + t, d -> A^-T d, and m moves along its bill's line, by J d: linear fields, scaled by tr A.
    """
    voters, yea, nay = x[:10].reshape(5, 1, 2), x[10:18].reshape(4, 2), x[18:].reshape(4, 2)
    return torch.sigmoid((voters - nay).square().sum(2) - (voters - yea).square().sum(2))


def roll_call_fields(x):
    voters, yea, nay = x[:10].reshape(5, 2), x[10:18].reshape(4, 2), x[18:].reshape(4, 2)
    middle, d, found = (yea + nay) / 2, yea - nay, []
    for a, b in itertools.product(range(2), repeat=2):
        e = unit((2, 2), a, b)
        found.append(flat(v=voters @ e, y=middle @ e - d @ e.T / 2, n=middle @ e + d @ e.T / 2))
    for a in range(2):
        found.append(
            flat(v=unit((5, 2), slice(None), a), y=unit((4, 2), slice(None), a), n=unit((4, 2), slice(None), a))
        )
    for j in range(4):
        turned = torch.zeros(4, 2, dtype=F64)
        turned[j] = torch.stack([-d[j, 1], d[j, 0]])
        found.append(flat(v=0 * voters, y=turned, n=turned))
    return rows(*found)


def deep_homogeneous(p):  # every hidden unit of two layers that are homogeneous of degree 1 has a scale of its own
    act = lambda t: torch.nn.functional.leaky_relu(t, 0.3)  # noqa: E731
    return act(act(2 * INPUTS @ p["W1"].T + p["b1"]) @ p["W2"].T + p["b2"]) @ p["v"]


def low_rank_update(p):  # alpha B A: bases of the middle space, and alpha against A
    return p["alpha"] * p["B"] @ p["A"]


def low_rank_fields(x):  # alpha, B (5, 2), A (2, 4)
    alpha, b, a, found = x[:1], x[1:11].reshape(5, 2), x[11:].reshape(2, 4), []
    for i, j in itertools.product(range(2), repeat=2):
        e = unit((2, 2), i, j)
        found.append(flat(alpha=0 * alpha, b=b @ e, a=-e @ a))
    return rows(*found, flat(alpha=alpha, b=0 * b, a=-a))


def canonical_polyadic(p):  # three-way factors of rank 2: per component two scales
    return torch.einsum("ir,jr,kr->ijk", p["A"], p["B"], p["C"])


def polyadic_fields(x):
    a, b, c, found = x[:8].reshape(4, 2), x[8:14].reshape(3, 2), x[14:].reshape(3, 2), []
    for r in range(2):
        e = torch.diag(unit(2, r))
        found += [flat(a=a @ e, b=-b @ e, c=0 * c), flat(a=a @ e, b=0 * b, c=-c @ e)]
    return rows(*found)


def tucker(p):  # a core between three bases: GL(2) for each
    return torch.einsum("abc,ia,jb,kc->ijk", p["core"], p["U"], p["V"], p["W"])


def tucker_fields(x):
    core, factors = x[:8].reshape(2, 2, 2), [x[8:16].reshape(4, 2), x[16:22].reshape(3, 2), x[22:].reshape(3, 2)]
    found = []
    for k, (a, b) in itertools.product(range(3), itertools.product(range(2), repeat=2)):
        e = unit((2, 2), a, b)
        moved = torch.movedim(torch.movedim(core, k, 2) @ -e.T, 2, k)
        found.append(
            torch.cat([moved.flatten(), *((f @ e if i == k else 0 * f).flatten() for i, f in enumerate(factors))])
        )
    return rows(*found)


def enzyme(x):
    """E + S <-> C -> E + P, P seen in an unknown unit: k1, k-1, k2, E, S, unit.

    y'' in terms of y, y', y'^2 and y y' gives unit k1 k2 E S, k1 (S + E) + k-1 + k2, k1 k2 E, k1 / (unit k2) and k1 / unit: all
    but the unit of concentrations.
    """
    on, off, speed, enzyme_, substrate, size = x
    bound, product, seen, step = 0 * on, 0 * on, [], 0.05

    def velocity(c, p):
        return on * (enzyme_ - c) * (substrate - c - p) - (off + speed) * c, speed * c

    for _ in range(40):
        dc, dp = velocity(bound, product)
        dc, dp = velocity(bound + step / 2 * dc, product + step / 2 * dp)
        bound, product = bound + step * dc, product + step * dp
        seen.append(size * product)
    return torch.stack(seen)


def twins(x):
    """Covariances of twins, additive a, common c, dominance d, own e: a^2 + c^2 + d^2, a^2/2 + c^2 + d^2/4, the variance.

    Squares move by (-3, 1, 2, 0): so -3/a, 1/c, 2/d, and a^2 reaches 0.
    """
    a, c, d, e = x.square()
    return torch.stack([a + c + d, a / 2 + c + d / 4, a + c + d + e])


def potts(p):  # three sites of three states: 26 probabilities, of which the model reaches 6 + 12 dimensions
    states = torch.tensor(list(itertools.product(range(3), repeat=3)))
    energy = p["h"][torch.arange(3), states].sum(1)
    for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        energy = energy + p["J"][k, states[:, i], states[:, j]]
    return torch.log_softmax(energy, 0)


def potts_fields(x):
    found = []
    for i in range(3):
        found.append(flat(h=unit((3, 3), i), J=torch.zeros(3, 3, 3, dtype=F64)))
    for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        for b in range(3):
            found.append(flat(h=-unit((3, 3), j, b), J=unit((3, 3, 3), k, slice(None), b)))
            found.append(flat(h=-unit((3, 3), i, b), J=unit((3, 3, 3), k, b)))
    return rows(*found)


def antennas(p):  # visibilities flux g_i conj(g_j): a common phase of the gains, and their size against the flux
    i, j = torch.combinations(torch.arange(4)).T
    return p["flux"] * p["gain"][i] * p["gain"][j].conj()


def antenna_fields(x):  # flux, then real and imaginary parts in turn
    gain = x[1:].reshape(4, 2)
    return rows(flat(f=0 * x[:1], g=torch.stack([-gain[:, 1], gain[:, 0]], 1)), flat(f=-2 * x[:1], g=gain))


def recommender(p):
    """U V' + a + b': GL(2); U + 1 t' against V t in b; V + 1 s' against U s in a; a against b.

    The two kinds of shift do not commute: their bracket is the last field (Heisenberg), so that no name of the list fits.
    """
    return p["U"] @ p["V"].T + p["a"][:, None] + p["b"]


def recommender_fields(x):  # U (6, 2), V (5, 2), a (6), b (5)
    u, v, found = x[:12].reshape(6, 2), x[12:22].reshape(5, 2), []
    zero = {"u": 0 * u, "v": 0 * v, "a": torch.zeros(6, dtype=F64), "b": torch.zeros(5, dtype=F64)}
    for i, j in itertools.product(range(2), repeat=2):
        e = unit((2, 2), i, j)
        found.append(flat(**{**zero, "u": u @ e, "v": -v @ e.T}))
    for i in range(2):
        found.append(flat(**{**zero, "u": unit((6, 2), slice(None), i), "b": -v[:, i]}))
        found.append(flat(**{**zero, "v": unit((5, 2), slice(None), i), "a": -u[:, i]}))
    return rows(*found, flat(**{**zero, "a": torch.ones(6, dtype=F64), "b": -torch.ones(5, dtype=F64)}))


def heads(
    p,
):  # two heads of width 2 on tokens of length 4, as a leading dimension: GL(2) between Q and K, V and O of each
    scores = torch.einsum("ntd,hdk,hek,nse->hnts", TOKENS, p["Q"], p["K"], TOKENS)
    return torch.einsum("hnts,nsd,hdk,hke->nte", torch.softmax(scores, -1), TOKENS, p["V"], p["O"])


def sliced_heads(p):  # the same as slices of matrices
    cut = lambda t: t.reshape(4, 2, 2).movedim(1, 0)  # noqa: E731
    return heads({"Q": cut(p["Q"]), "K": cut(p["K"]), "V": cut(p["V"]), "O": p["O"].reshape(2, 2, 4)})


def blocks(generator, **shapes):
    return {name: normal(generator, *shape) for name, shape in shapes.items()}


def head_blocks(generator, first, last):
    return {"Q": normal(generator, *first), "K": normal(generator, *first), "V": normal(generator, *first),
            "O": normal(generator, *last)}  # fmt: skip


PRACTICE = [
    Model("cox", cox, lambda g: normal(g, 5), 2, "R^2", lambda x: torch.eye(5, dtype=F64)[:2]),
    Model(
        "mixed_logit",
        mixed_logit,
        lambda g: torch.cat([normal(g, 4), uniform(g, 2)]),
        2,
        "aff(1)",
        lambda x: rows(constant(1, 1, 1, 0, 0, 0), x),
    ),
    Model(
        "nested_logit",
        nested_logit,
        lambda g: torch.cat([normal(g, 5), uniform(g, 2, low=0.3, high=0.9)]),
        1,
        "R",
        lambda x: rows(constant(1, 1, 1, 1, 0, 0, 0)),
    ),
    Model(
        "hidden_states",
        hidden_states,
        lambda g: blocks(g, logits=(3, 3), means=(3,)),
        3,
        "R^3",
        lambda x: torch.block_diag(*torch.ones(3, 1, 3, dtype=F64), torch.zeros(1, 3, dtype=F64))[:3],
    ),
    Model("roll_call", roll_call, lambda g: normal(g, 26), 10, "gl(2) x| R^6", roll_call_fields),
    Model(
        "deep_homogeneous",
        deep_homogeneous,
        lambda g: blocks(g, W1=(3, 2), b1=(3,), W2=(3, 3), b2=(3,), v=(3,)),
        6,
        "R^6",
    ),
    Model(
        "low_rank_update",
        low_rank_update,
        lambda g: blocks(g, alpha=(1,), B=(5, 2), A=(2, 4)),
        5,
        "gl(2) + R",
        low_rank_fields,
    ),
    Model(
        "canonical_polyadic",
        canonical_polyadic,
        lambda g: blocks(g, A=(4, 2), B=(3, 2), C=(3, 2)),
        4,
        "R^4",
        polyadic_fields,
    ),
    Model(
        "tucker",
        tucker,
        lambda g: blocks(g, core=(2, 2, 2), U=(4, 2), V=(3, 2), W=(3, 2)),
        12,
        "gl(2) + gl(2) + gl(2)",
        tucker_fields,
    ),
    Model("enzyme", enzyme, lambda g: uniform(g, 6), 1, "R", lambda x: rows(x * constant(-1, 0, 0, 1, 1, -1))),
    Model("twins", twins, lambda g: uniform(g, 4), 1, "R", lambda x: rows(constant(-3, 1, 2, 0) / x), False),
    Model("potts", potts, lambda g: blocks(g, h=(3, 3), J=(3, 3, 3)), 18, "R^18", potts_fields),
    Model(
        "antennas",
        antennas,
        lambda g: {"flux": uniform(g, 1), "gain": torch.view_as_complex(normal(g, 4, 2))},
        2,
        "so(2) + R",
        antenna_fields,
    ),
    Model(
        "recommender",
        recommender,
        lambda g: blocks(g, U=(6, 2), V=(5, 2), a=(6,), b=(5,)),
        9,
        "unknown(dim=9)",
        recommender_fields,
    ),
    Model("heads", heads, lambda g: head_blocks(g, (2, 4, 2), (2, 2, 4)), 16, "gl(2) + gl(2) + gl(2) + gl(2)"),
    Model("sliced_heads", sliced_heads, lambda g: head_blocks(g, (4, 4), (4, 4)), 16, "gl(2) + gl(2) + gl(2) + gl(2)"),
]
