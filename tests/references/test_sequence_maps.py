"""Gauges of a pairwise sequence-to-function map, as gaugefixer fixes them: one Shift, three sections."""

import torch
from _data import printed, tensor
from torch import Tensor

import manifoldid as mid

PRINTED = printed("gaugefixer_pairwise_L3")
THETA = tensor(PRINTED["theta"])
PAIRS = [(0, 1), (0, 2), (1, 2)]
LETTERS = 4
SINGLE = [slice(1 + 4 * i, 5 + 4 * i) for i in range(3)]
PAIR = [slice(13 + 16 * k, 29 + 16 * k) for k in range(3)]


def pair_directions() -> Tensor:
    """Adding to all pairs with one letter, subtracted from that letter: 7 of 8 per pair of positions are independent."""
    rows = []
    for k, (i, j) in enumerate(PAIRS):
        for position, letter in [(i, a) for a in range(LETTERS)] + [(j, a) for a in range(LETTERS - 1)]:
            row = torch.zeros(61, dtype=torch.float64)
            table = row[PAIR[k]].view(LETTERS, LETTERS)
            (table[letter] if position == i else table[:, letter]).fill_(1)
            row[SINGLE[position].start + letter] = -1
            rows.append(row)
    return torch.stack(rows)


def single_directions() -> Tensor:
    """Adding to all letters of one position, subtracted from the constant."""
    rows = torch.zeros(3, 61, dtype=torch.float64)
    for i in range(3):
        rows[i, SINGLE[i]] = 1
    rows[:, 0] = -1
    return rows


def landscape(theta: Tensor) -> Tensor:
    """The energies of all 64 sequences."""
    one = theta[0] + sum(theta[SINGLE[i]].reshape([LETTERS if p == i else 1 for p in range(3)]) for i in range(3))
    for k, (i, j) in enumerate(PAIRS):
        one = one + theta[PAIR[k]].reshape([LETTERS if p in (i, j) else 1 for p in range(3)])
    return one


GAUGE = mid.Shift(torch.cat([pair_directions(), single_directions()]))


def least(theta: Tensor, letters: Tensor) -> Tensor:
    """Pairs of least norm, then single letters of least norm: two sections, weighted by the probabilities of letters."""
    pairs, singles = torch.zeros(61, dtype=torch.float64), torch.zeros(61, dtype=torch.float64)
    for k in range(3):
        pairs[PAIR[k]] = (letters[:, None] * letters).reshape(-1)
        singles[SINGLE[k]] = letters
    theta = mid.Section(mid.Shift(pair_directions()), weights=pairs)(theta)
    return mid.Section(mid.Shift(single_directions()), weights=singles)(theta)


def test_the_gauge_leaves_the_landscape_alone():
    assert mid.check_invariance(landscape, THETA, GAUGE) < 1e-12
    assert GAUGE.dimension(THETA) == 24


def test_wild_type_gauge_is_a_reference():
    zeros = [SINGLE[i].start for i in range(3)]
    for k in range(3):
        zeros += [PAIR[k].start + 4 * a + b for a in range(4) for b in range(4) if a == 0 or b == 0]
    found = mid.Reference(GAUGE, zeros)(THETA)
    torch.testing.assert_close(found, tensor(PRINTED["wild-type"]), rtol=0, atol=1e-10)


def test_zero_sum_gauge_is_least_norm_with_equal_letters():
    found = least(THETA, torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(found, tensor(PRINTED["zero-sum"]), rtol=0, atol=1e-10)


def test_hierarchical_gauge_is_least_norm_with_the_letters_of_a_background():
    found = least(THETA, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64))
    torch.testing.assert_close(found, tensor(PRINTED["hierarchical"]), rtol=0, atol=1e-10)


def test_all_printed_gauges_are_one_orbit():
    manifold = mid.QuotientManifold(GAUGE)
    for name in ("zero-sum", "wild-type", "hierarchical"):
        assert float(manifold.dist(THETA, tensor(PRINTED[name]))) < 1e-10
        torch.testing.assert_close(landscape(tensor(PRINTED[name])), landscape(THETA), rtol=0, atol=1e-10)
