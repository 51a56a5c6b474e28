"""The likeliest mistakes of a newcomer: each is one error that says what was expected, what came, and what to do."""

import numpy as np
import pytest
import torch

import manifoldid as mid

SHIFT = mid.Translation()
X = torch.tensor([0.3, -1.2, 0.8, 0.1, 1.4], dtype=torch.float64)
WINS = torch.tensor([[0, 3, 2, 4, 1], [2, 0, 1, 2, 2], [3, 4, 0, 3, 2], [1, 3, 2, 0, 2], [4, 3, 3, 3, 0]]).double()
NETWORK = torch.nn.Linear(3, 1)
EMBEDDING = torch.nn.Embedding(10, 1)


def nll(x):
    return -(WINS * torch.nn.functional.logsigmoid(x[:, None] - x)).sum()


def terms(x):
    return -(WINS * torch.nn.functional.logsigmoid(x[:, None] - x)).flatten()


def adam(*parameters):
    return torch.optim.Adam(list(parameters), lr=0.1)


def parameter():
    return torch.nn.Parameter(X.clone())


MISTAKES = {
    "a numpy array": (lambda: mid.Section(SHIFT)(np.zeros(5)), TypeError, ["`point`", "ndarray", "torch.as_tensor"]),
    "integers": (lambda: mid.Section(SHIFT)(torch.arange(5)), TypeError, ["`point`", "torch.int64", ".double()"]),
    "outputs (N, 1) of a network": (
        lambda: mid.nn.GaugeFix(SHIFT)(X[:, None]),
        mid.DegeneratePointError,
        ["(5, 1)", "over='batch'", "squeeze(-1)"],
    ),
    "one member instead of several": (
        lambda: mid.Ensemble(X, SHIFT),
        ValueError,
        ["`members`", "first dimension", "(M, n)", "(5,)"],
    ),
    "members of different shapes": (
        lambda: mid.Ensemble([X, X[:4]], SHIFT),
        ValueError,
        ["`members`", "(4,)", "(5,)", "observed="],
    ),
    "group and members exchanged": (
        lambda: mid.Ensemble(SHIFT, X[None]),
        TypeError,
        ["`group`", "mid.Translation()", "got Tensor"],
    ),
    "a class instead of a group": (
        lambda: mid.Section(mid.Translation),
        TypeError,
        ["`group`", "class Translation", "forget the parentheses"],
    ),
    "weights of the wrong length": (
        lambda: mid.Section(SHIFT, weights=torch.ones(4))(X),
        ValueError,
        ["`weights`", "(5,)", "one weight per item", "(4,)"],
    ),
    "negative weights": (
        lambda: mid.Section(SHIFT, weights=torch.tensor([1.0, -1, 1, -2, 1]))(X),
        ValueError,
        ["`weights`", "not negative", "1, 3"],
    ),
    "blocks of the wrong length": (
        lambda: mid.Section(mid.Translation(blocks=torch.tensor([0, 0, 1])))(X),
        ValueError,
        ["`blocks`", "3 labels", "5 items"],
    ),
    "a reference item out of range": (
        lambda: mid.Reference(SHIFT, 7)(X),
        ValueError,
        ["`index`", "7", "5 items"],
    ),
    "one reference item where two are needed": (
        lambda: mid.Reference(mid.Affine(), 0)(X),
        ValueError,
        ["`index`", "2 items (i, j)", "the index 0"],
    ),
    "a dict for a group on a tensor": (
        lambda: mid.Section(SHIFT)({"skill": X}),
        ValueError,
        ["`point`", "'skill'", "mid.Product(skill=Translation())"],
    ),
    "a group on a dict for geoopt": (
        lambda: mid.QuotientManifold(mid.LocationScale(locations=("theta",))),
        TypeError,
        ["`group`", "dict of tensors", "mid.attach"],
    ),
    "the module instead of its rates": (
        lambda: mid.attach(adam(*NETWORK.parameters()), SHIFT, NETWORK),
        TypeError,
        ["`params`", "Linear", "not rates", "GaugeFix"],
    ),
    "all parameters instead of the rates": (
        lambda: mid.attach(adam(*NETWORK.parameters()), SHIFT, NETWORK.parameters()),
        TypeError,
        ["`params`", "model.parameters()", "not rates", "GaugeFix"],
    ),
    "a table of one column": (
        lambda: mid.attach(adam(EMBEDDING.weight), SHIFT, EMBEDDING.weight),
        mid.DegeneratePointError,
        ["`params`", "(10, 1)", "parameter (n,)", "table[index]", "nn.Embedding(n, 1)"],
    ),
    "a loss instead of a function": (
        lambda: mid.attach(adam(*NETWORK.parameters()), SHIFT, list(NETWORK.parameters()), loss=X.sum()),
        TypeError,
        ["`loss`", "function without arguments", "got Tensor"],
    ),
    "every item in a block of its own": (
        lambda: mid.Section(mid.Translation(blocks=torch.arange(5)))(X),
        mid.DegeneratePointError,
        ["every block has one item"],
    ),
    "a contrast across many blocks": (
        lambda: mid.Ensemble(torch.eye(4, 400), mid.Translation(torch.arange(400) // 2)).contrast(
            lambda x: x[0] - x[2]
        ),
        mid.NotEstimableError,
        ["Translation(400 items in 200 blocks)", "translation of block 0"],
    ),
    "a parameter of another optimiser": (
        lambda: mid.attach(adam(parameter()), SHIFT, parameter()),
        ValueError,
        ["`params`", "same Parameter object"],
    ),
    "group and optimiser exchanged": (
        lambda: mid.attach(SHIFT, adam(parameter()), parameter()),
        TypeError,
        ["`optimizer`", "torch optimiser", "Translation"],
    ),
    "a likelihood cut from the graph": (
        lambda: mid.fit(lambda x: nll(x).detach(), X, SHIFT),
        ValueError,
        ["`nll`", "no autograd graph", "no_grad()"],
    ),
    "terms instead of their sum": (lambda: mid.fit(terms, X, SHIFT), ValueError, ["`nll`", "(25,)", ".sum()"]),
    "the mean instead of the sum": (
        lambda: mid.infer(lambda x: nll(x) / 25, mid.fit(nll, X, SHIFT).point, SHIFT, nll_terms=terms),
        ValueError,
        ["`nll_terms`", "not their mean"],
    ),
    "the fit instead of its point": (
        lambda: mid.infer(nll, mid.fit(nll, X, SHIFT), SHIFT),
        TypeError,
        ["`point`", "FitResult", "`.point`"],
    ),
    "a point that is no estimate": (
        lambda: mid.infer(nll, X, SHIFT),
        mid.NotConvergedError,
        ["standard errors from the optimum", "mid.fit"],
    ),
    "a penalty on the raw scores": (
        lambda: mid.fit(lambda x: nll(x) + x.square().sum(), X, SHIFT),
        mid.NotInvariantError,
        ["`nll`", "penalty", "mid.Section(group)(x)"],
    ),
    "one item as a contrast": (
        lambda: mid.infer(nll, mid.fit(nll, X, SHIFT).point, SHIFT).contrast(lambda x: x[0]),
        mid.NotEstimableError,
        ["`fn`", "take differences"],
    ),
}


@pytest.mark.usefixtures("annotations_unchecked")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_first_mistake_is_answered_with_what_was_expected_what_came_and_what_to_do(mistake):
    make, kind, essentials = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        make()
    message = str(caught.value)
    assert [words for words in essentials if words not in message] == [], message
    assert "tensor([" not in message, "never the data"
    assert len(message) < 500


def test_attach_before_the_change_of_dtype_goes_on():
    model = torch.nn.ParameterDict({"score": torch.randn(5, generator=torch.Generator().manual_seed(0))})
    optimizer = adam(*model.parameters())
    mid.attach(optimizer, SHIFT, model["score"])
    model.to(torch.float64)
    nll(model["score"]).backward()
    optimizer.step()
    assert abs(float(model["score"].detach().mean())) < 1e-12
