"""One vectorised run of many members is many runs one after the other."""

import pytest
import torch
from torch import nn

import manifoldid as mid

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, :1] * X[:, 1:2]).sin()
DATA = (X, Y)


def make():
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def one_by_one(make_model, seed, steps, optimizer, batch_size, data=DATA):
    """A plain training loop, as the docstring of `train_ensemble` describes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model()
    order, stepper = torch.Generator().manual_seed(seed), optimizer(list(model.parameters()))
    left = []
    for _ in range(steps):
        batch = data
        if batch_size is not None:
            if not left:
                left = list(torch.randperm(len(X), generator=order).split(batch_size))
                left = [index for index in left if len(index) == batch_size]
            index = left.pop(0)
            batch = tuple(t[index] for t in data)
        stepper.zero_grad()
        loss(model, batch).backward()
        stepper.step()
    return model.eval()


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_are_those_of_runs_one_by_one(name, batch_size):
    optimizer = OPTIMIZERS[name]
    trained = mid.train_ensemble(
        make, loss, data=DATA, size=4, steps=25, optimizer=optimizer, batch_size=batch_size, progress=False
    )
    for seed, member in zip(trained.seeds, trained, strict=True):
        alone = one_by_one(make, seed, 25, optimizer, batch_size)
        torch.testing.assert_close(member(X), alone(X), rtol=1e-5, atol=1e-5)
    assert trained.losses.shape == (25, 4)
    torch.testing.assert_close(trained(X), torch.stack([m(X) for m in trained]), rtol=1e-5, atol=1e-6)


def test_batch_norm_statistics_belong_to_the_member():
    def normalised():
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    # A bias before batch norm has gradient zero, of which Adam would make a random walk of rounding errors.
    trained = mid.train_ensemble(
        normalised, loss, data=DATA, size=3, steps=10, batch_size=20, progress=False, optimizer=OPTIMIZERS["momentum"]
    )
    for seed, member in zip(trained.seeds, trained, strict=True):
        alone = one_by_one(normalised, seed, 10, OPTIMIZERS["momentum"], 20)
        torch.testing.assert_close(member[1].running_mean, alone[1].running_mean)
        assert int(member[1].num_batches_tracked) == 10
        torch.testing.assert_close(member(X), alone(X), rtol=1e-5, atol=1e-5)


def test_the_result_becomes_an_ensemble_that_does_not_see_the_origin():
    def pairwise(model, batch):
        return nn.functional.softplus(model(batch["worse"]) - model(batch["better"])).mean()

    data = {"better": X[:30], "worse": X[30:]}
    trained = mid.train_ensemble(make, pairwise, data=data, size=4, steps=5, progress=False)
    ens = trained.ensemble(mid.Translation(), X)
    assert len(ens) == 4
    assert ens.mean().shape == (60,)
    torch.testing.assert_close(ens.aligned.mean(-1), torch.zeros(4), atol=1e-6, rtol=0)


def test_heads_and_frozen_and_tied_parameters_inside():
    class Ranker(nn.Module):
        def __init__(self):
            super().__init__()
            self.fixed = nn.Linear(5, 5).requires_grad_(False)
            self.tied = nn.Linear(5, 5)
            self.again = self.tied
            self.score = nn.Linear(5, 1)
            self.head = mid.nn.GaugeFix(mid.Affine(), over="batch")

        def forward(self, x):
            return self.head(self.score(self.again(self.tied(self.fixed(x)).tanh())))

    def within(model, batch):
        x, y = batch
        return (mid.Section(mid.Affine())(model(x)[:, 0]) - y[:, 0]).square().mean()

    trained = mid.train_ensemble(Ranker, within, data=DATA, size=3, steps=5, progress=False)
    with torch.random.fork_rng():
        torch.manual_seed(trained.seeds[1])
        fresh = Ranker()
    assert torch.equal(trained[1].fixed.weight, fresh.fixed.weight)
    assert trained[1].again is trained[1].tied
    assert not torch.equal(trained[1].tied.weight, fresh.tied.weight)
    for member in trained:
        mid.nn.calibrate(member, [X])
    outputs = trained(X)[..., 0]
    torch.testing.assert_close(outputs.mean(-1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.std(-1, correction=0), torch.ones(3))


def test_dropout_differs_between_members_and_repeats_with_the_seed():
    def noisy():
        model = nn.Sequential(nn.Linear(5, 1), nn.Dropout(0.5))
        nn.init.ones_(model[0].weight)
        nn.init.zeros_(model[0].bias)
        return model

    runs = [
        mid.train_ensemble(
            noisy, loss, data=DATA, size=3, steps=1, generator=torch.Generator().manual_seed(s), progress=False
        )
        for s in (1, 1, 2)
    ]
    assert torch.equal(runs[0].losses, runs[1].losses)
    assert not torch.equal(runs[0].losses, runs[2].losses)
    assert len(set(runs[0].losses[0].tolist())) == 3


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    mid.train_ensemble(make, loss, data=DATA, size=2, steps=2, progress=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_bad_member_is_named():
    def log_of_first(model, batch):
        return model(batch[0]).mean() + model[0].bias[0].log()

    models = iter([make(), make(), make()])

    def next_model():
        model = next(models)
        nn.init.constant_(model[0].bias, 1.0 if len(made) != 1 else -1.0)
        made.append(model)
        return model

    made = []
    with pytest.raises(mid.NotConvergedError, match=r"member\(s\) 1 is not finite at step 0"):
        mid.train_ensemble(next_model, log_of_first, data=DATA, size=3, steps=3, progress=False)


SAME = make()


class TotalNorm(torch.optim.SGD):
    def step(self, closure=None):
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.1)
        return super().step(closure)


@pytest.mark.parametrize(
    "optimizer", [TotalNorm, lambda p, lr: torch.optim.LBFGS(p, lr=lr), lambda p, lr: torch.optim.Adafactor(p, lr=lr)]
)
def test_an_optimiser_that_couples_members_is_refused_by_name(optimizer):
    with pytest.raises(ValueError, match=r"TotalNorm|LBFGS|Adafactor"):
        mid.train_ensemble(
            make, loss, data=DATA, size=3, steps=1, optimizer=lambda p: optimizer(p, lr=0.1), progress=False
        )


def branching(model, batch):
    value = loss(model, batch)
    return value if value.item() > 0 else -value


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"size": 0}, ValueError, "`size`"),
        ({"steps": 0}, ValueError, "`steps`"),
        ({"batch_size": 61}, ValueError, "`batch_size` must be between 1 and the number of examples, 60"),
        ({"data": (X, Y[:-1])}, ValueError, "`data` must have as many examples"),
        ({"data": ([1, 2],)}, TypeError, "`data` must be"),
        ({"make_model": make()}, TypeError, "`make_model` must be a function"),
        ({"make_model": lambda: 3}, TypeError, "`make_model` must make an nn.Module"),
        ({"make_model": lambda: SAME}, ValueError, "same model twice"),
        ({"loss": lambda m, b: m(b[0])}, TypeError, "`loss` must return a scalar"),
        ({"loss": lambda m, b: b[0].mean()}, ValueError, "does not depend on the parameters"),
        ({"loss": branching}, ValueError, "cannot be vectorised"),
        ({"optimizer": lambda p: 3}, TypeError, "`optimizer` must make a torch optimiser"),
    ],
)
def test_mistakes_name_the_argument(changes, error, message):
    arguments = {"make_model": make, "loss": loss, "data": DATA, "size": 2, "steps": 1, "progress": False, **changes}
    with pytest.raises(error, match=message):
        mid.train_ensemble(arguments.pop("make_model"), arguments.pop("loss"), **arguments)


def test_members_of_different_shapes_are_refused():
    widths = iter([3, 4])
    with pytest.raises(ValueError, match="member 1 differs from member 0"):
        mid.train_ensemble(lambda: nn.Linear(5, next(widths)), loss, data=DATA, size=2, steps=1, progress=False)
