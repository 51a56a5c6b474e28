"""Notebooks run from top to bottom, and what they saved is what a clean run prints."""

import os
import re
import shutil
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LIMIT = 300  # seconds; a guard against a notebook that hangs, not a benchmark: each takes 5 to 25 on a free core


@pytest.fixture(autouse=True)
def _nothing_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))


notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def execute(path, folder):
    """Runs a copy of a notebook in `folder`, with the package of this tree and nothing of the user's configuration."""
    notebook = nbformat.read(shutil.copy(path, folder), as_version=4)
    shutil.copytree(ROOT / "examples" / "data", folder / "data", dirs_exist_ok=True)
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search),
        # Warnings inside show up as output on stderr, which is looked at below; torch 2.14 warns of what it uses itself.
        "PYTHONWARNINGS": "ignore::FutureWarning:torch.jit._script",
        "IPYTHONDIR": str(folder / ".ipython"),
        "OMP_NUM_THREADS": "1",
    }
    end = time.monotonic() + LIMIT
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        timeout_func=lambda cell: max(1, int(end - time.monotonic())),
    )
    client.execute(env=environment)
    return notebook


def warnings_of(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.text for output in outputs if output.get("name") == "stderr" and "Warning" in output.text]


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
def test_notebook_runs_from_top_to_bottom_without_errors_and_warnings(path, tmp_path):
    assert warnings_of(execute(path, tmp_path)) == []


@notebooks
def test_saved_outputs_are_those_of_one_clean_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    assert [o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"] == []


@notebooks
def test_saved_notebook_is_small_and_names_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert re.findall(r"(?:/(?:home|root|tmp|work|Users)/|[A-Z]:\\\\)\S*|site-packages", text) == []


def test_notebook_with_an_error_fails(tmp_path):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2, 'a broken example'")])
    (tmp_path / "run").mkdir()
    nbformat.write(broken, tmp_path / "broken.ipynb")
    with pytest.raises(CellExecutionError, match="a broken example"):
        execute(tmp_path / "broken.ipynb", tmp_path / "run")


def test_warning_in_a_notebook_is_seen(tmp_path):
    source = "import warnings\nwarnings.warn('old habits')"
    loud = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    (tmp_path / "run").mkdir()
    nbformat.write(loud, tmp_path / "loud.ipynb")
    assert len(warnings_of(execute(tmp_path / "loud.ipynb", tmp_path / "run"))) == 1
