"""What can be known of accelerators without one: nobody waits for values, and tensors are where they belong (see pretend.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import manifoldid as mid
from manifoldid.optim import late
from manifoldid.optim.late import LateVerdicts

SCRIPT = Path(__file__).with_name("pretend.py")


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="torch before 2.9 has no device types made in Python")
def test_steps_on_an_accelerator_wait_for_nothing_and_collectives_have_its_tensors():
    """Every group of the catalogue, one point and several; shards are all-reduced where they are, as nccl asks for."""
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 40
    wrong = {case: text for case, text in found.items() if text is not None}
    assert not wrong, "\n".join(f"{case}: {text}" for case, text in wrong.items())


class Event:
    """Of a device that has come so far as `done` says."""

    done = 0

    def __init__(self, device):
        Event.made += 1
        self.number = Event.made

    def record(self):
        pass

    def query(self):
        return self.number <= Event.done

    def synchronize(self):
        Event.done = max(Event.done, self.number)


@pytest.fixture
def verdicts(monkeypatch):
    """Verdicts of a device whose progress is a number; memory is not pinned, which needs one."""
    Event.made = Event.done = 0
    zeros = torch.zeros
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch, "get_device_module", lambda device: None)
    monkeypatch.setattr(torch, "zeros", lambda *args, pin_memory, **kwargs: zeros(*args, **kwargs))
    return LateVerdicts()


def test_a_verdict_is_read_when_it_arrives_and_not_lost_before(verdicts):
    for step in range(5):
        verdicts.read()
        verdicts.send(torch.tensor(step == 2), f"step {step}")
    Event.done = 2
    verdicts.read()
    Event.done = 4
    with pytest.raises(mid.DegeneratePointError, match=r"step 2.*learning rate"):
        verdicts.read()
    Event.done = 5
    verdicts.read()  # what was sent after it is about the same trouble


def test_a_device_that_is_many_steps_behind_is_waited_for(verdicts, monkeypatch):
    """Steps count, and not the verdicts of one, of which there is one a bucket."""
    monkeypatch.setattr(late, "_MOST_BEHIND", 3)
    for step in range(4):
        verdicts.read()
        for bucket in range(50):
            verdicts.send(torch.tensor(step == 0 and bucket == 7), f"bucket {bucket}")
    assert Event.done == 0
    with pytest.raises(mid.DegeneratePointError, match="bucket 7"):
        verdicts.read()
    assert Event.done == 8
