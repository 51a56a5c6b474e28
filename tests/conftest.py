import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_process():
    """Two xdist workers share two cores; more threads than that only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture
def annotations_unchecked(monkeypatch):
    """Without the run-time check of annotations, which would answer before the error message that is tested here."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def fresh_compiler():
    """Graphs of one test do not count towards the recompile limit of another."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
