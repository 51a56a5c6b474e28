"""The code on the pages of docs/ runs from top to bottom, and prints what the page says that it prints."""

import contextlib
import doctest
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import manifoldid as mid

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"examples", "_build"} & set(page.relative_to(DOCS).parts))
# a fence of python, and, if it comes next, the fence of text with what is printed
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\s*^```text\n(?P<output>.*?)^```\n)?", re.M | re.S)


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def printed_by(page):
    """Runs the blocks of a page in one namespace; yields (code, what the page says, what was printed)."""
    namespace = {"__name__": "page"}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text[: block.start("code")].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block["code"], str(page), "exec"), namespace)
        yield block["code"], block["output"] or "", printed.getvalue()


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")], ids=name_of)
def test_code_of_the_page_prints_what_the_page_says(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    checker = doctest.OutputChecker()
    for code, expected, printed in printed_by(page):
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert checker.check_output(expected, printed, flags), (
            f"{code}\nprints\n{printed}\nand the page says\n{expected}"
        )


def test_the_diagnosis_on_the_front_page_begins_as_that_page_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code, quoted = re.search(r"```python\n(def predict.*?)```\s*```text\n(.*?)```", text, re.S).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"torch": torch, "mid": mid})
    assert printed.getvalue().startswith(quoted)


def test_every_public_name_is_in_the_reference():
    modules = re.findall(r"automodule:: (\S+)", "".join(p.read_text() for p in (DOCS / "reference").glob("*.md")))
    documented = set()
    for module in map(importlib.import_module, modules):
        public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        documented |= {id(getattr(module, name)) for name in public}
    missing = [name for name in mid.__all__ if id(getattr(mid, name)) not in documented]
    assert [name for name in missing if not hasattr(getattr(mid, name), "__path__")] == []  # nn, conformance: pages


def test_every_public_name_has_a_docstring():
    assert [name for name in mid.__all__ if not getattr(mid, name).__doc__] == []


def test_pictures_on_the_pages_are_drawn_by_the_command_that_the_pages_name(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(DOCS / "pictures.py"), str(tmp_path)]
    quiet = "ignore::FutureWarning:torch.jit._script"  # of what torch 2.14 uses itself
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": quiet}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = set(re.findall(r"images/(\w+\.svg)", text))
    assert shown == {path.name for path in tmp_path.iterdir()}
    assert shown <= {path.name for path in (DOCS / "images").iterdir()}


def test_gallery_has_every_notebook_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    gallery = importlib.import_module("gallery")
    gallery.write(ROOT / "examples", tmp_path / "examples")
    index = (tmp_path / "examples" / "index.md").read_text(encoding="utf-8")
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        assert f"]({notebook.name})" in index
        assert (tmp_path / "examples" / notebook.name).read_bytes() == notebook.read_bytes()
