import subprocess
import sys

import pytest

import manifoldid
from manifoldid import cli


def run(*arguments, **options):
    """`python -m manifoldid` in a process of its own, warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "manifoldid", *arguments]
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
def test_help_explains(arguments, capsys):
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
    assert done.stderr == ""
