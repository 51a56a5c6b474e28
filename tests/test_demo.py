"""The demo prints what the README quotes, the same for every run of a seed, in any terminal."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import manifoldid as mid
from manifoldid.demo import baseball, run_demo, travel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"\d+\.\d+|\d+")


def nothing():
    pass


def printed(folder, members=6, seed=0, **options):
    stream = io.StringIO()
    run_demo(members, seed, folder, Console(file=stream, width=80, highlight=False, **options))
    return stream.getvalue()


@pytest.fixture(scope="module")
def season():
    return baseball.load_season()


@pytest.fixture(scope="module")
def start():
    return torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return printed(folder, members=64), folder


def test_data_is_what_its_source_says():
    learn, held_out = travel.load_travellers()
    assert len(learn.chosen) + len(held_out.chosen) == 210
    taken = torch.bincount(torch.cat([learn.chosen, held_out.chosen]))
    assert taken.tolist() == [58, 63, 30, 59]  # Greene and Hensher's air, train, bus, car
    season = baseball.load_season()
    assert len(season.teams) == 7
    assert int(season.won.sum() + season.lost.sum()) == 7 * 6 // 2 * 13  # 13 games for every two teams


def test_members_train_as_if_alone():
    learn, held_out = travel.load_travellers()
    both = travel.train_members(learn, 2, torch.Generator().manual_seed(3), nothing)(held_out.features)
    assert not torch.allclose(both[0], both[1], atol=0.1)
    again = travel.train_members(learn, 2, torch.Generator().manual_seed(3), nothing)(held_out.features)
    torch.testing.assert_close(both, again, rtol=0, atol=0)


def test_choice_sees_differences_within_a_traveller_only():
    _, held_out = travel.load_travellers()
    utilities = torch.randn(*held_out.features.shape[:2], generator=torch.Generator().manual_seed(0)).double()
    mid.check_invariance(held_out.log_likelihood, utilities, mid.Translation())
    with pytest.raises(mid.NotInvariantError):
        mid.check_invariance(held_out.log_likelihood, utilities, mid.Scaling())


def test_penalty_collapses_the_unit_and_the_likelihood_does_not_notice(season, start):
    penalised = baseball.fit_penalised(season, start, nothing)
    section = baseball.fit_on_section(season, start, nothing)
    assert penalised.spread[-1] < 1e-3 * penalised.spread[0]
    assert abs(penalised.nll - section.nll) < 1e-5
    torch.testing.assert_close(torch.tensor(section.spread[1:]), torch.ones(baseball.ROUNDS), rtol=0, atol=1e-6)


def test_section_fit_does_not_depend_on_the_start_s_origin_and_unit(season, start):
    here = baseball.fit_on_section(season, start, nothing)
    far = baseball.fit_on_section(season, 10 * start + 5, nothing)
    assert abs(here.slope - far.slope) < 1e-6
    assert abs(here.nll - far.nll) < 1e-9 * here.nll


def test_readme_quotes_the_default_run(default_run):
    text, _ = default_run
    quoted = re.search(r"With the defaults the demo prints.*?```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = quoted.group(1).splitlines()
    assert len(lines) > 5
    for line in filter(None, map(str.split, lines)):
        match = [shown for shown in map(str.split, map(_plain, text.splitlines())) if _words(shown) == _words(line)]
        assert match, f"the demo prints no line like {line}"
        assert _numbers(match[0]) == pytest.approx(_numbers(line), rel=0.05), line


def _plain(line):
    return re.sub("[│┃|]", " ", line)


def _words(parts):
    return [NUMBER.sub("#", part) for part in parts]


def _numbers(parts):
    return [float(number) for part in parts for number in NUMBER.findall(part)]


def test_alignment_takes_out_most_of_the_naive_spread(default_run):
    mean = next(line for line in map(_plain, default_run[0].splitlines()) if line.split()[:1] == ["mean"])
    naive, aligned, ratio = _numbers(mean.split())
    assert naive / aligned == pytest.approx(ratio, abs=0.05)
    assert ratio > 2


def test_picture_is_saved_and_small(default_run):
    text, folder = default_run
    picture = folder / "demo.png"
    assert str(picture) in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000


@pytest.fixture
def short(monkeypatch):
    """Little training, where it is the printing that matters."""
    monkeypatch.setattr(travel, "STEPS", 20)
    monkeypatch.setattr(baseball, "ROUNDS", 2)


def test_same_seed_prints_the_same_and_the_global_generator_is_left_alone(short, tmp_path):
    before = torch.get_rng_state()
    first, second, other = printed(tmp_path), printed(tmp_path), printed(tmp_path, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    timeless = [text.partition("Done in")[0] for text in (first, second, other)]
    assert timeless[0] == timeless[1] != timeless[2]


def test_without_matplotlib_it_says_how_to_install_it(short, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'manifoldid[plot]'" in printed(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "no_color": True}])
def test_output_reads_without_colour(short, tmp_path, options, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    text = printed(tmp_path, **options)
    assert "\x1b[3" not in text
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize("width", [30, 80])
def test_ascii_terminal_of_any_width_can_show_it(short, tmp_path, width):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    run_demo(2, 0, tmp_path, Console(file=stream, width=width))
    stream.flush()


def test_terminal_gets_a_progress_bar(short, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "travel modes" in printed(tmp_path, force_terminal=True)
    assert "travel modes" not in printed(tmp_path)
