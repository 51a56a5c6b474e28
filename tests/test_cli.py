"""The command line: errors are one line, the status is the verdict, nothing on stdout but the answer."""

import os
import subprocess
import sys

import pytest

import manifoldid
from manifoldid import cli
from manifoldid.diagnose import stages

pytestmark = pytest.mark.slow


def run(*arguments, **options):
    """`python -m manifoldid` in a process of its own, warnings as errors."""
    folder = "ignore:Implicitly cleaning up:ResourceWarning"  # that torch.distributed makes on import, up to torch 2.6
    command = [sys.executable, "-W", "error", "-W", folder, "-m", "manifoldid", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def exit_status(*arguments):
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "COMMAND"),
        (("nope",), "nope"),
        (("demo", "--members", "1"), "2 to 500"),
        (("demo", "--members", "many"), "'many'"),
        (("demo", "--seed", "-1"), "--seed"),
        (("demo", "--memb", "8"), "--memb"),
        (("demo", "surplus"), "surplus"),
    ],
)
def test_wrong_option_is_one_line_and_status_2(arguments, words, capsys):
    assert exit_status(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert "--help" in err


def test_folder_that_cannot_be_written_is_one_line_before_any_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cli, "run_demo", lambda *_: pytest.fail("started to work"))
    assert exit_status("demo", "--output", str(tmp_path / "file" / "folder")) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert str(tmp_path / "file" / "folder") in err


@pytest.mark.parametrize("error", [OSError(28, "No space left", "demo.png"), OSError(28, "No space left")])
def test_failure_to_write_is_one_line(error, tmp_path, capsys, monkeypatch):
    def full_disk(*_):
        raise error

    monkeypatch.setattr(cli, "run_demo", full_disk)
    assert exit_status("demo", "--output", str(tmp_path)) == 1
    where = error.filename or "the output"
    assert capsys.readouterr().err == f"manifoldid demo: error: cannot write {where}: No space left\n"


def test_interrupt_is_no_traceback(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_demo", interrupted)
    assert exit_status("demo", "--output", str(tmp_path)) == 130
    assert capsys.readouterr().err == "manifoldid demo: interrupted\n"


@pytest.mark.parametrize("arguments", [("--help",), ("demo", "--help")])
def test_help_names_the_commands_and_every_option_with_its_default(arguments, capsys):
    assert exit_status(*arguments) == 0
    out = capsys.readouterr().out
    assert "demo" in out
    if arguments[0] == "demo":
        for word in ("--members", "--seed", "--output", "picture", "log-loss", "default 64"):
            assert word in out


def test_version_is_the_package_s(capsys):
    assert exit_status("--version") == 0
    assert capsys.readouterr().out == f"manifoldid {manifoldid.__version__}\n"


def test_module_is_the_command():
    assert run("--version").stdout == f"manifoldid {manifoldid.__version__}\n"


def test_reader_that_leaves_early_is_no_traceback(tmp_path):
    command = f"'{sys.executable}' -m manifoldid demo --members 2 --output '{tmp_path}' | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Training 2 networks")
    assert [
        line for line in done.stderr.splitlines() if not line.startswith("demo: ")
    ] == []  # what takes its time may say so


def test_pipe_gets_plain_text_and_says_on_stderr_what_takes_its_time(tmp_path):
    environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    done = run("demo", "--members", "2", "--output", str(tmp_path), env=environment)
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout + done.stderr
    assert "  mode    as emitted" in done.stdout
    assert [line for line in done.stderr.splitlines() if not line.startswith("demo: ")] == []


def test_every_command_is_introduced_in_one_voice(capsys):
    exit_status("--help")
    overview = capsys.readouterr().out
    for command in ("demo", "diagnose"):
        assert command in overview
        assert exit_status(command, "--help") == 0
        text = capsys.readouterr().out
        assert f"usage: manifoldid {command} [-h]" in text
        assert "show this help message and exit" in text
        assert max(map(len, text.splitlines())) <= 132


MODELS = """
import torch

pairs = torch.combinations(torch.arange(4)).T
point = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64)


def predict(x):
    return torch.sigmoid(x[pairs[0]] - x[pairs[1]])


def anchored(x):
    return torch.cat([predict(x), x[:1]])


def comparison(x):
    return (x[pairs[0]] > x[pairs[1]]).double()


def outside(x):
    return torch.log(x - 100)


def too_short(x):
    return x[7]


network = torch.nn.Linear(2, 3, dtype=torch.float64)
"""


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("", 3, "mid.Translation()"),
        (":predict", 3, "not identifiable"),
        (":anchored", 0, "identifiable"),
        (":comparison", 4, "no derivative information"),
    ],
)
def test_diagnose_prints_the_report_and_the_status_is_the_verdict(name, status, words, models, capsys):
    assert exit_status("diagnose", f"{models}{name}") == status
    out, err = capsys.readouterr()
    assert words in out
    assert [line for line in err.splitlines() if not line.startswith("diagnose: ")] == []  # progress, on a slow machine
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nowhere.py", ("nowhere.py", "does not exist", "FILE.py:predict")),
        (".", ("is a folder",)),
        ("models.py:nothing", ("models.py", "`nothing`", "predict, anchored", "FILE.py:NAME")),
        ("models.py:outside", ("models.py", "`outside` is not finite at `point`", "start inside the domain")),
        ("models.py:too_short", ("models.py", "`too_short`", "line 25", "IndexError")),
        ("models.py:pairs", ("models.py", "`pairs` must be a function")),
        ("models.py:network", ("models.py", "`inputs`", "network is a network")),
        ("empty.py", ("empty.py", "`predict`", "no function")),
        ("lonely.py", ("lonely.py", "neither `point` nor `sample`", "torch.randn")),
        ("broken.py", ("broken.py", "line 2", "SyntaxError")),
        ("failing.py", ("failing.py", "line 1", "ZeroDivisionError")),
        ("leaving.py", ("leaving.py", "exits", "__main__")),
    ],
)
def test_a_file_that_cannot_be_diagnosed_is_one_line_with_its_remedy(target, words, models, capsys, monkeypatch):
    monkeypatch.chdir(models.parent)
    (models.parent / "empty.py").write_text("x = 1\n")
    (models.parent / "lonely.py").write_text("def predict(x):\n    return x\n")
    (models.parent / "broken.py").write_text("x = 1\ndef predict(x:\n")
    (models.parent / "failing.py").write_text("x = 1 / 0\n")
    (models.parent / "leaving.py").write_text("raise SystemExit(5)\n")
    assert exit_status("diagnose", target) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_diagnose_takes_samplers_with_and_without_a_generator_and_files_beside_the_file(tmp_path, capsys):
    (tmp_path / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    body = "import torch\nfrom beside import twice\npredict = lambda x: twice(x).sum()[None]\n"
    draw = "torch.randn(2, dtype=torch.float64"
    for k, sample in enumerate(
        (f"def sample():\n    return {draw})", f"def sample(generator):\n    return {draw}, generator=generator)")
    ):
        path = tmp_path / f"sampled{k}.py"
        path.write_text(f"{body}\n{sample}\n")
        assert exit_status("diagnose", str(path)) == 3
        assert "dx[0] = 1, dx[1] = -1" in capsys.readouterr().out


def test_diagnose_of_a_network_has_two_levels(tmp_path, capsys):
    path = tmp_path / "network.py"
    path.write_text(
        "import torch\nmodel = torch.nn.Linear(2, 3)\ninputs = torch.randn(20, 2)\n"
        "likelihood = lambda y: torch.log_softmax(y, -1)\n"
    )
    assert exit_status("diagnose", f"{path}:model") == 3
    out = capsys.readouterr().out
    assert "OUTPUTS" in out
    assert "WEIGHTS" in out


def test_a_slow_diagnosis_says_on_stderr_what_it_does(models, capsys, monkeypatch):
    monkeypatch.setattr(stages, "_PATIENCE", 0.0)
    assert exit_status("diagnose", str(models)) == 3
    out, err = capsys.readouterr()
    assert "generators" in err
    assert "generators ..." not in out


def test_diagnose_explains_its_status():
    help_text = run("diagnose", "--help").stdout
    for words in ("0 no gauge", "3 there is a gauge", "4 nothing is known", "FILE.py", "`sample`", "`point`"):
        assert words in help_text
