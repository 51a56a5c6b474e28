import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_process():
    """Two xdist workers share two cores; more threads than that only wait for one another."""
    torch.set_num_threads(1)
