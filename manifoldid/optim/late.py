"""Looks at values on an accelerator that nobody waits for."""

import torch
from torch import Tensor

from manifoldid.errors import DegeneratePointError

_MOST_WAITING = 100  # steps that a device may be behind before it is waited for


class LateVerdicts:
    """Flags on their way to the host, each behind the work that it is about, and read once they have arrived.

    A host that prepares steps faster than the device takes them finds the flag of the last step not there yet; it stays in the queue.
    """

    def __init__(self) -> None:
        """Nothing is on its way."""
        self._waiting: list[tuple[Tensor, torch.Event, str]] = []

    def send(self, bad: Tensor, name: str) -> None:
        """Sends the verdict on a point to the host, behind what was asked of the device before.

        Args:
            bad: (), bool, on an accelerator.
            name: What to call the point in messages.
        """
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(bad, non_blocking=True)
        event = torch.Event(device=bad.device)
        event.record()
        self._waiting.append((host, event, name))

    def read(self) -> None:
        """Reads the verdicts that have arrived.

        Raises:
            DegeneratePointError: One is bad; those that were sent later are dropped, they are about the same trouble.
        """
        while self._waiting:
            host, event, name = self._waiting[0]
            if len(self._waiting) > _MOST_WAITING:
                event.synchronize()
            if not event.query():
                return
            del self._waiting[0]
            if bool(host):
                self._waiting.clear()
                raise DegeneratePointError(
                    f"`{name}` had no representative on its orbit, or was not finite, after a step before this one (accelerators are "
                    "not waited for: it may be some steps ago); the loss or its gradient was not finite, or the learning rate is too "
                    "large"
                )
