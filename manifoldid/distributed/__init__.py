"""Points whose items are spread over the ranks of `torch.distributed`: each rank keeps its items, only sums travel.

A gauge distributes for free: what a rank must know of the items of the others is one number per dimension of the group. Groups
reduce over items in one place (`Measure`), and are handed the sum over ranks from here. `DTensor` points, which are what FSDP2
makes of parameters, say themselves how they are spread; for plain shards, `sharded` does::

    group = mid.distributed.sharded(mid.Translation())        # items on all ranks of the default process group
    mid.attach(optimizer, group, my_scores)                   # my_scores: the items of this rank
    mid.Section(group)(my_scores)

Every call with such a point is collective: all ranks make it, in the same order, and all get an error when the point is not
finite or degenerate anywhere. A rank that does not take part is an error on the others after the timeout of the process group.

Of a dict point some blocks may be spread and others be the same on all ranks, as DTensors that are replicated, or by name::

    group = mid.distributed.sharded(mid.LocationScale(("theta", "beta"), slopes=("alpha",)), replicated=("beta", "alpha"))

What travels are sums and largest values, as tensors on the device of the point: the backend of the process group has to serve it
(gloo for CPU, nccl for CUDA). After the first, a step of an attached optimiser moves dim G numbers, with item weights and blocks,
too, and one more where a plain shard has no items, which cannot know whether the others have gradients; LocationScale with
weights, and sections, take several passes for their accurate sums. When points are attached, blocks that all ranks have are
compared, once. Labels of blocks are exchanged as objects, when a group is made for shards or blocks are given to a call; nccl
asks for `torch.cuda.set_device` before.

Derivatives. For plain tensors the loss is the sum of those of all ranks: what replicated blocks get on every rank is to be added up,
as always. For DTensors it is one number, and gradients are spread as their tensors are.

Limits. Other groups (rotations, GL(r)) need all items in one place: replicate their parameters, which step alike on all ranks
under DDP. `Ensemble.covariance`, contrasts, tables and quasi-variances speak of the items here for plain shards,
of all items for DTensors. `Reference` names items by their place among all, and needs them in one place.
"""

from collections.abc import Collection

import torch.distributed as dist

from manifoldid.distributed.spread import Spread
from manifoldid.groups import GaugeGroup


def sharded(
    group: GaugeGroup, process_group: "dist.ProcessGroup | None" = None, *, replicated: Collection[str] = ()
) -> GaugeGroup:
    """The gauge group, on points of which every rank has some items: plain tensors (*batch, items here).

    Use it wherever a group is taken: `Section`, `attach`, `Ensemble`, inside `Product`. Results are the shards of what the
    whole point would give. `blocks`, directions and item weights are those of the items here; a block may have items on several
    ranks. A rank may have no items at all, as a tensor (*batch, 0). Not needed for DTensors.

    Args:
        group: Translation, Scaling, PositiveScaling, Affine, Shift or LocationScale, or a product of them. Every block of a dict
            point that is spread has a number of items of its own (none, on some ranks).
        process_group: The ranks that have the items; None is the default group.
        replicated: Blocks of a dict point of which all ranks have all items, with the same values.

    Returns:
        A group of the same kind. It cannot be pickled, as process groups cannot.

    Raises:
        TypeError: The group needs all items in one place, or `replicated` is no collection of names.
        ValueError: The group names no such block.
        RuntimeError: `torch.distributed` is not initialised.
    """
    if not isinstance(group, GaugeGroup):
        raise TypeError(f"`group` must be a gauge group, such as mid.Translation(), got {group!r}")
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("`sharded` needs a process group: call torch.distributed.init_process_group first")
    if isinstance(replicated, str) or not all(isinstance(name, str) for name in replicated):
        raise TypeError(f"`replicated` must be a collection of names of blocks, got {replicated!r}")
    if unknown := sorted(set(replicated) - set(group.block_names)):
        raise ValueError(f"`replicated` names {unknown}, but {group} acts on the blocks {sorted(group.block_names)}")
    return group.on_shards(Spread((process_group or dist.group.WORLD,), blocks=dict.fromkeys(replicated)))


__all__ = ["sharded"]
