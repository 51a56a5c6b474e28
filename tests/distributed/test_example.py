import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


COMMAND = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_sharded_scores_runs_under_torchrun_and_gives_what_one_process_gives():
    run = subprocess.run(
        [*COMMAND, str(ROOT / "examples" / "sharded_scores.py"), "--scores", "2001", "--check"],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2,001 scores on 2 ranks" in run.stdout
    assert run.stdout.count("largest difference from one process") == 2
