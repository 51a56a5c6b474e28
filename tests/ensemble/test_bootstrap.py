"""Ensembles of bootstrap replicates."""

import pytest
import torch

import manifoldid as mid

F64 = torch.float64
NAMES = ["Ann", "Bob", "Cyd", "Dan"]
FIRST, SECOND = torch.triu_indices(4, 4, offset=1)
GAMES = torch.cat([torch.stack([FIRST, SECOND], 1), torch.stack([SECOND, FIRST], 1)]).repeat(6, 1)  # (winner, loser)
GAMES = torch.cat([GAMES, torch.stack([FIRST, SECOND], 1).repeat(4, 1)])


def nll(x, games):
    return -torch.nn.functional.logsigmoid(x[games[:, 0]] - x[games[:, 1]]).sum()


def resample(generator):
    return GAMES[torch.randint(len(GAMES), (len(GAMES),), generator=generator)]


def bootstrap(size=60, draw=resample, **kwargs):
    start = torch.zeros(4, dtype=F64)
    return mid.Ensemble.from_bootstrap(nll, draw, size, start, mid.Translation(), **kwargs)


def test_members_are_the_fits_of_resampled_data():
    ensemble = bootstrap(3, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    for member in ensemble.members:
        games = resample(generator)
        fit = mid.fit(lambda x, games=games: nll(x, games), torch.zeros(4, dtype=F64), mid.Translation())
        torch.testing.assert_close(member, fit.point)


@pytest.mark.slow
def test_the_spread_is_near_the_error_of_the_estimate():
    ensemble = bootstrap(names=NAMES)
    fit = mid.fit(lambda x: nll(x, GAMES), torch.zeros(4, dtype=F64), mid.Translation())
    estimate = mid.infer(lambda x: nll(x, GAMES), fit.point, mid.Translation())
    contrast = [model.contrast(lambda x: x[0] - x[3]) for model in (ensemble, estimate)]
    # a standard deviation of 60 replicates is known to 1 / sqrt(120) = 9 %, three of them and the bias of second order
    torch.testing.assert_close(contrast[0].standard_error, contrast[1].standard_error, rtol=0.35, atol=0)
    assert [row["item"] for row in ensemble.table()] == NAMES
    assert ensemble.dropped == {}
    assert "dropped" not in str(ensemble)


def test_progress_is_shown_on_the_standard_error_only_when_asked_for(capsys):
    shown = bootstrap(2, progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err
    torch.testing.assert_close(bootstrap(2).members, shown.members)
    assert capsys.readouterr().err == ""


def some(bad):
    """Every third replicate is `bad`."""
    count = iter(range(1000))
    return lambda generator: bad if next(count) % 3 == 1 else resample(generator)


SEPARATED = GAMES[(GAMES[:, 1] != 2)]  # Cyd never loses
APART = GAMES[(GAMES // 2)[:, 0] == (GAMES // 2)[:, 1]]  # Ann and Bob against each other only


@pytest.mark.parametrize(
    ("bad", "error", "reason"),
    [
        (SEPARATED, mid.UnboundedEstimateError, "separated"),
        (APART, mid.NotIdentifiableError, "not identifiable"),
    ],
)
def test_a_replicate_without_an_estimate_is_an_error_unless_it_is_to_be_dropped(bad, error, reason):
    with pytest.raises(error, match=r"bootstrap replicate 1 of 6: .*failures='drop'"):
        bootstrap(6, some(bad))
    ensemble = bootstrap(6, some(bad), failures="drop")
    assert len(ensemble) == 4
    assert ensemble.dropped == {reason: 2}
    assert f"2 of 6 replicates had no estimate and were dropped: 2 {reason}." in str(ensemble)


def test_names_are_used_where_a_replicate_falls_apart():
    with pytest.raises(mid.NotIdentifiableError, match="items Ann, Bob; items Cyd, Dan"):
        bootstrap(6, some(APART), names=NAMES)
    with pytest.raises(mid.UnboundedEstimateError, match="Cyd"):
        bootstrap(6, some(SEPARATED), names=NAMES)


def test_errors_of_the_caller_are_not_taken_for_failures():
    with pytest.raises(IndexError):
        bootstrap(4, lambda generator: GAMES + 2, failures="drop")


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="`size` must be at least 2"):
        bootstrap(1)
    with pytest.raises(ValueError, match="`failures` must be 'raise' or 'drop'"):
        bootstrap(3, failures="ignore")
    with pytest.raises(ValueError, match=r"leaves 0 of 3 replicates with an estimate \(3 separated\)"):
        bootstrap(3, lambda generator: SEPARATED, failures="drop")


def test_the_default_generator_is_private_and_repeatable():
    state = torch.get_rng_state()
    assert torch.equal(bootstrap(3).members, bootstrap(3).members)
    assert torch.equal(torch.get_rng_state(), state)
