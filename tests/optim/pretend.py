"""Runs attached steps on an accelerator that is not there, in a process of its own; prints {case: what went wrong or null}.

torch lets a process declare a device type of its own, and fake tensors compute shapes on it. A step that asks for a value, which a real
device would have to be waited for, is an error there; so are tensors on different devices in one operation.
"""

import json
import sys
import traceback
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode

import manifoldid as mid
from manifoldid import points
from manifoldid.distributed.spread import Spread
from manifoldid.optim.attachment import Attachment
from manifoldid.optim.late import LateVerdicts

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 1])
CASES = {
    "translation": (mid.Translation(), {"": (7,)}, None),
    "scaling": (mid.Scaling(), {"": (7,)}, None),
    "affine": (mid.Affine(), {"": (7,)}, None),
    "affine, rows": (mid.Affine(), {"": (3, 7)}, None),
    "positive scaling": (mid.PositiveScaling(), {"": (7,)}, None),
    "translation, weights": (mid.Translation(), {"": (7,)}, torch.arange(1.0, 8.0)),
    "affine, weights": (mid.Affine(), {"": (7,)}, torch.arange(1.0, 8.0)),
    "translation, blocks": (mid.Translation(LABELS), {"": (7,)}, None),
    "affine, blocks": (mid.Affine(LABELS), {"": (7,)}, None),
    "affine, blocks and weights": (mid.Affine(LABELS), {"": (7,)}, torch.arange(1.0, 8.0)),
    "affine, common scale": (mid.Affine(LABELS, common_scale=True), {"": (7,)}, None),
    "shift": (mid.Shift(torch.ones(1, 7)), {"": (7,)}, None),
    "rasch": (mid.Shift({"A": 1, "B": 1}), {"A": (7,), "B": (5,)}, None),
    "orthogonal": (mid.Orthogonal(), {"": (7, 2)}, None),
    "orthogonal, three columns": (mid.Orthogonal(), {"": (7, 3)}, None),
    "general linear": (mid.GeneralLinear("A", "B"), {"A": (8, 3), "B": (6, 3)}, None),
    "the layout of peft": (mid.GeneralLinear("A", "B", rank_dims=(0, -1)), {"A": (3, 8), "B": (6, 3)}, None),
    "location and scale": (mid.LocationScale(locations=("A",), slopes=("B",)), {"A": (8,), "B": (6,)}, None),
    "rescaling": (mid.Rescaling(incoming=("A",), outgoing=("B",)), {"A": (8, 3), "B": (6, 8)}, None),
    "location and scale, weights": (
        mid.LocationScale(locations=("A",), slopes=("B",)),
        {"A": (8,), "B": (6,)},
        {"A": torch.arange(1.0, 9.0)},
    ),
    "rescaling, weights": (
        mid.Rescaling(incoming=("A",), outgoing=("B",)),
        {"A": (8, 3), "B": (6, 8)},
        {"A": torch.arange(1.0, 9.0)},
    ),
    "phase": (mid.Phase(), {"": (7,)}, None),
    "orthogonal, weights": (mid.Orthogonal(), {"": (7, 2)}, torch.arange(1.0, 8.0)),
    "rigid motion": (mid.RigidMotion(), {"": (7, 2)}, None),
    "similarity": (mid.Similarity(), {"": (7, 3)}, None),
    "pointwise": (mid.Pointwise(torch.sinh, torch.asinh), {"": (7,)}, None),
    "product": (mid.Product(A=mid.Translation(), B=mid.Orthogonal()), {"A": (7,), "B": (7, 2)}, None),
}
COMPLEX = ("phase",)
DEVICE = "pretend"


SHARDED = (
    "shift",
    "rasch",
    "translation",
    "scaling",
    "affine",
    "positive scaling",
    "translation, weights",
    "location and scale",
)


WAITING = (
    "cholesky",
    "eigh",
    "eigvalsh",
    "inv",
    "lstsq",
    "matrix_exp",
    "matrix_rank",
    "pinv",
    "solve",
    "svd",
    "svdvals",
)
"""What torch looks at when it has computed it."""


def arriving(mode):
    """Real tensors that a group holds (labels, directions) become fake ones where they are sent to the device."""
    send = torch.Tensor.to

    def to(self, *args, **kwargs):
        real = self.device.type == "cpu" and not isinstance(self, FakeTensor)
        return send(mode.from_tensor(self) if real else self, *args, **kwargs)

    return patch.object(torch.Tensor, "to", to)


@contextmanager
def looked_at_as_real_tensors():
    """`concrete` says of fake tensors that nobody may look; of those on a real accelerator it does not."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("manifoldid.") and module is not points and hasattr(module, "concrete"):
                stack.enter_context(patch.object(module, "concrete", lambda x: True))
        for name in WAITING:
            stack.enter_context(patch.object(torch.linalg, name, side_effect=AssertionError(f"{name} waits")))
        yield


@contextmanager
def waiting_is_allowed():
    """While points are attached: weights are compared, items of all ranks counted."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "equal", lambda a, b: True))
        stack.enter_context(patch.object(sys.modules["manifoldid.optim.attach"], "check_quotient", lambda *args: None))
        stack.enter_context(
            patch.object(Spread, "_counted", lambda self, sizes, _: {n: (k, k) for n, k in sizes.items()})
        )
        yield


def run(name, count, sharded):
    """Three attached steps of `count` points, of which nobody may look at values in the last two."""
    group, shapes, weights = CASES[name]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, arriving(mode):
        group = mid.distributed.sharded(group) if sharded else group
        dtype = torch.complex64 if name in COMPLEX else torch.float32
        values = [
            {block: torch.rand(shape, device=DEVICE, dtype=dtype) + 0.5 for block, shape in shapes.items()}
            for _ in range(count)
        ]
        members = [{block: nn.Parameter(t) for block, t in x.items()} for x in values]
        optimizer = torch.optim.SGD([p for x in members for p in x.values()], lr=0.1)
        weights = None if weights is None else points.map_blocks(lambda w: w.to(DEVICE), weights)
        with waiting_is_allowed():
            for x in members:
                mid.attach(optimizer, group, x.get("", x), weights=weights)
        attachment = optimizer.manifoldid_attachment
        unread = patch.object(LateVerdicts, "read", lambda self: None)  # of flags that are on the host by then
        unlooked = patch.object(Attachment, "_look", lambda self: None)  # at the first gradient, once
        with unread, unlooked:
            for k in range(3):
                for p in optimizer.param_groups[0]["params"]:
                    p.grad = torch.rand_like(p)
                if count > 1 and k == 2:  # one more or less is no reason to look at weights and labels again
                    for p in members[0].values():
                        p.grad = None
                with looked_at_as_real_tensors() if k else ExitStack():
                    optimizer.step()
        flags = [flag.host for flag in attachment._late._waiting]
        assert len(flags) >= 3, "nobody looked at the new points"
        assert all(flag.device.type == "cpu" for flag in flags)


def main():
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(DEVICE)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    sent, found = [], {}
    dist.all_reduce = lambda tensor, *args, **kwargs: sent.append(tensor.device.type)
    cases = [(name, count, False) for name in CASES for count in (1, 3)] + [(name, 1, True) for name in SHARDED]
    for name, count, sharded in cases:
        sent.clear()
        try:
            run(name, count, sharded)
            assert set(sent) == ({DEVICE} if sharded else set()), f"collectives of tensors on {set(sent)}"
            wrong = None
        except Exception:
            wrong = traceback.format_exc()
        found[f"{name}, {'sharded' if sharded else count}"] = wrong
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
