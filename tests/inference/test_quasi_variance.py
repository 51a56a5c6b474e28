"""Quasi-variances against numbers of R's qvcalc."""

import pytest
import torch

from manifoldid.inference import quasi_variances

F64 = torch.float64
# R, package qvcalc: factor `type` of MASS::ships (Firth & de Menezes 2004)
SHIPS = [
    [0, 0, 0, 0, 0],
    [0, 0.0533319206640679, 0.0428036059253155, 0.0389911926752482, 0.0404237368054373],
    [0, 0.0428036059253155, 0.183087668742217, 0.0384039775482028, 0.0411621810778216],
    [0, 0.0389911926752482, 0.0384039775482028, 0.142783531786485, 0.0386861709057453],
    [0, 0.0404237368054373, 0.0411621810778216, 0.0386861709057453, 0.0940872438802754],
]
SHIPS_SE = [0.200965853501369, 0.112705161723464, 0.375250492322657, 0.323893536427565, 0.232171862907782]
SHIPS_WORST = [-0.0209942747885948, 0.0156366129367809]
# R, package BradleyTerry2: citations between four journals of statistics
CITATIONS = [
    [0, 0, 0, 0],
    [0, 0.0105155458061165, 0.00227454711886455, 0.00146041939920181],
    [0, 0.00227454711886455, 0.00367099411087275, 0.0016835576782738],
    [0, 0.00146041939920181, 0.0016835576782738, 0.0050168839568755],
]
CITATIONS_SE = [0.0421209767521365, 0.0922359583187086, 0.0428458788327912, 0.0585159420886964]
CITATIONS_WORST = [-0.0597072715829918, 0.0563384699188219]


@pytest.mark.parametrize(
    ("matrix", "errors", "worst"), [(SHIPS, SHIPS_SE, SHIPS_WORST), (CITATIONS, CITATIONS_SE, CITATIONS_WORST)]
)
def test_quasi_variances_and_worst_errors_are_those_of_qvcalc(matrix, errors, worst):
    quasi = quasi_variances(torch.tensor(matrix, dtype=F64))
    # qvcalc stops its own iteration at about 1e-5
    torch.testing.assert_close(quasi.standard_errors, torch.tensor(errors, dtype=F64), rtol=1e-4, atol=0)
    assert quasi.worst_errors == pytest.approx(worst, rel=1e-2)


def test_the_gauge_and_the_unit_do_not_matter():
    matrix = torch.tensor(SHIPS, dtype=F64)
    shift = torch.linspace(-1, 1, 5, dtype=F64)
    quasi = quasi_variances(matrix).variances
    torch.testing.assert_close(quasi_variances(matrix + shift + shift[:, None]).variances, quasi)
    torch.testing.assert_close(quasi_variances(matrix * 1e-12).variances * 1e12, quasi)


def test_independent_scores_have_their_own_variances():
    variances = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    quasi = quasi_variances(torch.diag(variances) + 7)
    torch.testing.assert_close(quasi.variances, variances)
    assert quasi.worst_errors == pytest.approx((0, 0), abs=1e-9)


def test_a_negative_quasi_variance_is_nan_with_a_warning():
    # item 0 lies half way between the others: its differences vary less than those of the others among themselves
    noise = torch.eye(3, dtype=F64)
    map_ = torch.cat([torch.full((1, 3), 1 / 3, dtype=F64), noise])
    with pytest.warns(UserWarning, match=r"item\(s\) 0 is negative"):
        quasi = quasi_variances(map_ @ map_.mT + 1e-3 * torch.eye(4, dtype=F64))
    assert quasi.variances[0] < 0
    assert torch.isnan(quasi.standard_errors[0])


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (torch.eye(2), "at least 3 items"),
        (torch.ones(3, 3), "rank-deficient"),
        (torch.full((3, 3), torch.nan), "finite"),
        (torch.eye(3)[:2], "square"),
        (torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]), "symmetric"),
    ],
)
def test_what_cannot_be_answered_is_an_error(matrix, text):
    with pytest.raises(ValueError, match=text):
        quasi_variances(matrix)


def test_pools_are_one_label_per_score():
    with pytest.raises(ValueError, match=r"`pools` must have shape \(4,\), one label per score, got \(3,\)"):
        quasi_variances(torch.eye(4), pools=torch.zeros(3))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating"):
        quasi_variances(torch.eye(3, dtype=torch.long))


def test_items_are_called_by_their_names():
    parts = torch.block_diag(torch.eye(3, dtype=F64) - 1 / 3, torch.eye(2, dtype=F64) - 1 / 2)
    with pytest.raises(ValueError, match=r"the mean of items d, e minus that of items a, b, c|of items a, b, c minus"):
        quasi_variances(parts, names=list("abcde"))
    with pytest.raises(ValueError, match="one name per item, 5, got 2"):
        quasi_variances(parts, names=["a", "b"])
    half = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=F64)
    with pytest.warns(UserWarning, match=r"item\(s\) middle is negative"):
        quasi_variances(half @ half.mT + 1e-3 * torch.eye(4, dtype=F64), names=["middle", "b", "c", "d"])


@pytest.mark.parametrize("n", [3, 7, 150])
def test_the_result_is_a_minimum_of_the_sum_of_squares(n):
    factor = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(n), dtype=F64)
    matrix = factor @ factor.mT + 3 * n * torch.eye(n, dtype=F64)  # no negative ones
    q = quasi_variances(matrix).variances.requires_grad_()
    i, j = torch.triu_indices(n, n, offset=1)
    v = matrix.diagonal()[i] + matrix.diagonal()[j] - 2 * matrix[i, j]
    objective = ((q[i] + q[j]).log() - v.log()).square().sum()
    (slope,) = torch.autograd.grad(objective, q)
    assert float((slope * q.detach()).abs().max()) < 1e-9


def test_worst_errors_are_the_extremes_over_all_contrasts():
    matrix = torch.tensor(SHIPS, dtype=F64)
    quasi = quasi_variances(matrix)
    contrast = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    contrast -= contrast.mean(1, keepdim=True)
    fitted = (contrast.square() @ quasi.variances).sqrt()
    errors = fitted / ((contrast @ matrix) * contrast).sum(1).sqrt() - 1
    low, high = quasi.worst_errors
    assert low <= float(errors.min()) < 0.8 * low
    assert 0.8 * high < float(errors.max()) <= high
