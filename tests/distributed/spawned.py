"""Runs checks in two processes that know each other by gloo: one start for many checks, with a timeout for all of it."""

import datetime
import json
import time
import traceback
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2
PATIENCE = 60  # seconds that a collective waits for the other rank, which may be slow to start on a busy machine


def run(checks, folder, limit=300.0):
    """What went wrong in every check, by its name and rank: {name: [text or None, text or None]}.

    A check is a function of (rank). It must leave both ranks at the same place; after one that fails the rest is not run.
    """
    context = mp.start_processes(_work, (checks, str(folder)), nprocs=RANKS, join=False, start_method="spawn")
    end = time.monotonic() + limit
    while not context.join(timeout=1.0):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"the ranks were still at work after {limit} s")
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    return {check.__name__: [part.get(check.__name__, "not run") for part in found] for check in checks}


def _work(rank, checks, folder):
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "DTensor random operators may not have complete support")  # torch 2.6, on any CPU
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )
    results = {}
    for check in checks:
        try:
            check(rank)
            results[check.__name__] = None
        except Exception:
            results[check.__name__] = traceback.format_exc()
            break
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(results, file)
    dist.destroy_process_group()


def on_two_ranks(checks):
    """The fixture `outcome`, which runs the checks once, and the test that reads it, for a module to hold under these names."""

    @pytest.fixture(scope="module")
    def outcome(tmp_path_factory):
        return run(checks, tmp_path_factory.mktemp("ranks"))

    @pytest.mark.parametrize("check", [check.__name__ for check in checks])
    def test_on_two_ranks(check, outcome):
        for rank, failure in enumerate(outcome[check]):
            assert failure is None, f"rank {rank}:\n{failure}"

    return outcome, test_on_two_ranks
