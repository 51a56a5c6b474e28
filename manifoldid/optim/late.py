"""Looks at values on an accelerator that nobody waits for."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldid.errors import DegeneratePointError

_MOST_BEHIND = 100  # steps that a device may be behind before it is waited for


class _Flag(NamedTuple):
    """A verdict on its way."""

    host: Tensor
    event: torch.Event
    name: str
    step: int
    kind: str


class LateVerdicts:
    """Flags on their way to the host, each behind the work that it is about, and read once they have arrived.

    A host that prepares steps faster than the device takes them finds the flag of the last step not there yet; it stays in the queue.
    While a CUDA graph is recorded there is nothing to look at.
    """

    def __init__(self) -> None:
        """Nothing is on its way."""
        self._waiting: list[_Flag] = []
        self._step = 0

    def send(self, bad: Tensor, name: str) -> None:
        """Sends the verdict on a point to the host, behind what was asked of the device before.

        Args:
            bad: (), bool, on an accelerator.
            name: What to call the point in messages.
        """
        if _recording(bad.device.type):
            return
        host = torch.zeros((), dtype=torch.bool, pin_memory=True)
        on = getattr(
            torch.get_device_module(bad.device), "device", None
        )  # an event belongs to the device that is current
        with nullcontext() if on is None else on(bad.device):
            host.copy_(bad, non_blocking=True)
            event = torch.Event(device=bad.device)
            event.record()
        self._waiting.append(_Flag(host, event, name, self._step, bad.device.type))

    def read(self) -> None:
        """Reads the verdicts that have arrived; once a step.

        Raises:
            DegeneratePointError: One is bad; those that were sent later are dropped, they are about the same trouble.
        """
        self._step += 1
        while self._waiting:
            flag = self._waiting[0]
            if _recording(flag.kind):
                return
            if self._step - flag.step > _MOST_BEHIND:
                flag.event.synchronize()
            if not flag.event.query():
                return
            del self._waiting[0]
            if bool(flag.host):
                self._waiting.clear()
                raise DegeneratePointError(
                    f"`{flag.name}` had no representative on its orbit, or was not finite, after a step before this one (accelerators are "
                    "not waited for: it may be some steps ago); the loss or its gradient was not finite, or the learning rate is too "
                    "large"
                )


def _recording(kind: str) -> bool:
    """Whether a CUDA graph is being recorded."""
    return kind == "cuda" and torch.cuda.is_current_stream_capturing()
