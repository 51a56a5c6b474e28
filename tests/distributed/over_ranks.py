"""What checks on several ranks share."""

import functools

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

FULLY_SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")  # not torch 2.6


@functools.cache
def mesh():
    return init_device_mesh("cpu", (2,))


def close(actual, expected, tolerance=1e-9):
    actual = actual.full_tensor() if isinstance(actual, DTensor) else actual
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


class counted_bytes:
    """The bytes that collectives of this rank were handed."""

    def __enter__(self):
        self.bytes, self._real = 0, dist.all_reduce

        def reduce(tensor, *args, **kwargs):
            self.bytes += tensor.numel() * tensor.element_size()
            return self._real(tensor, *args, **kwargs)

        dist.all_reduce = reduce
        return self

    def __exit__(self, *_):
        dist.all_reduce = self._real
