"""The points that an optimiser moves, and the buckets in which they move together."""

import operator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from manifoldid._memory import Memory
from manifoldid.distributed.dtensors import Local, is_spread, local_value, localised
from manifoldid.distributed.spread import has_empty_shard, kept, require_same
from manifoldid.groups.base import Canonical, GaugeGroup, Settler
from manifoldid.groups.geometry import Geometry
from manifoldid.optim.chart import LogChart, gradient_value
from manifoldid.points import HALF, Point, Weights, blocks_of, map_blocks, part_of_weights
from manifoldid.sections import Section


@dataclass(eq=False)
class Member:
    """One point that an optimiser moves: the parameters of one factor of a group."""

    group: GaugeGroup
    section: Section
    parameters: dict[str, Tensor]
    name: str
    looked: bool = False

    @staticmethod
    def of(point: Point, group: GaugeGroup, weights: Weights, name: str) -> "list[Member]":
        """The factors of `group` on `point`, without those of dimension zero (finite groups, the trivial one)."""
        members = []
        for factor, of in group.factors():
            if isinstance(point, Tensor):
                parameters, label = {"": point}, name
            elif isinstance(of, str):
                parameters, label = {"": point[of]}, f"{name}[{of!r}]"
            else:
                parameters, label = {block: point[block] for block in of or point}, name
            here: Local = localised(factor, parameters.get("", parameters), part_of_weights(weights, of))
            factor = kept(here.group, map_blocks(local_value, here.point))
            member = Member(factor, Section(factor, here.weights), parameters, label)
            require_same(factor, member.point(), label)
            if factor.dimension(member.point()):
                members.append(member)
        return members

    def point(self) -> Point:
        """The current value, sharing memory with the parameters."""
        return self.as_point({name: local_value(p) for name, p in self.parameters.items()})

    def active(self) -> bool:
        """Whether all parameters have a gradient. Plain shards without items follow the other ranks, which are asked."""
        waiting = [p for p in self.parameters.values() if p.grad is None]
        if not self.asks_others:
            return not waiting
        here = all(p.requires_grad and not is_spread(p) and not p.numel() for p in waiting)
        return not bool(self.group.across(torch.tensor(0.0 if here else 1.0, device=self.point_device)) > 0)

    @cached_property
    def asks_others(self) -> bool:
        """Whether a rank has no items of a block that are spread: it cannot know of itself whether there are gradients."""
        if self.group.shards is None or any(is_spread(p) for p in self.parameters.values()):
            return False  # gradients of DTensors are on all ranks
        return any(has_empty_shard(self.group, name) for name in self.parameters)

    @property
    def is_spread(self) -> bool:
        """Whether other ranks have a part in it."""
        return self.group.shards is not None or any(is_spread(p) for p in self.parameters.values())

    @property
    def point_device(self) -> torch.device:
        """Where its parameters are."""
        return next(iter(self.parameters.values())).device

    def gradient(self) -> Point | None:
        """The current gradient, or None when a parameter has none."""
        if not self.active():
            return None
        grads = {n: local_value(p) if p.grad is None else gradient_value(p.grad) for n, p in self.parameters.items()}
        return self.as_point({name: g.to_dense() if g.is_sparse else g for name, g in grads.items()})

    def as_point(self, blocks: dict[str, Tensor]) -> Point:
        """Values of the parameters as a point of the group."""
        return blocks.get("", blocks)

    def key(self) -> tuple:
        """What members of one bucket have in common, besides an equal section."""
        return (self.group.flat, tuple((n, p.shape, p.dtype, p.device) for n, p in self.parameters.items()))

    def stacks(self) -> bool:
        """Whether stacking points of this shape gives a batch that the group understands, however many they are."""
        point = self.point()
        ndim, sizes = self.group.batch_ndim(point), {n for t in blocks_of(point).values() for n in t.shape}
        stacked = (map_blocks(lambda t, k=k: t.expand(k, *t.shape), point) for k in {1, *sizes})
        return all(self.group.batch_ndim(many) == ndim + 1 for many in stacked)


@dataclass
class Bucket:
    """Members of one group, shape, dtype and device, which move in one batched pass."""

    section: Section
    members: list[Member]
    old: Point | None = None
    moving: list[Member] = field(default_factory=list)
    _memory: Memory = field(default_factory=Memory)
    _lent: dict[str, Tensor] = field(default_factory=dict)
    _rooms: dict[str, tuple[Tensor, list[Tensor]]] = field(default_factory=dict)
    _listed: list[Member] | None = None
    _count: int = 0
    _parameters: list[Tensor] = field(default_factory=list)
    _asking: bool = False
    _lists: dict[str, list[Tensor]] = field(default_factory=dict)
    _charts: dict[tuple[str, int], LogChart] = field(default_factory=dict)

    @staticmethod
    def of(member: Member) -> "Bucket":
        """A bucket for one member alone, which moves."""
        return Bucket(member.section, [member], moving=[member])

    def enter_charts(self) -> list[LogChart]:
        """Hands the positive blocks of the moving members over in their logarithms; the charts, to leave by."""
        entered = []
        for name in self.section.group.positive:
            if name not in self.moving[0].parameters:
                continue
            parameters = [member.parameters[name] for member in self.moving]
            if len(parameters) == 1 or all(local_value(p).is_contiguous() for p in parameters):
                groups = [parameters]
            else:
                groups = [[p] for p in parameters]
            for k, own in enumerate(groups):
                chart = self._charts.setdefault((name, k), LogChart())
                chart.begin(own)
                entered.append(chart)
        return entered

    @cached_property
    def geometry(self) -> Geometry:
        """The geometry of the group, for the steps of this bucket."""
        return self.section.group.geometry(self.section.weights).stepping()

    @cached_property
    def settler(self) -> Settler | None:
        """What puts flat points back on their section in place, for the steps of this bucket."""
        group = self.section.group
        return group.settler(self.section.weights) if _belongs_to_its_section(type(group)) else None

    def stacked(self) -> Point:
        """The points of the moving members, contiguous, in the computing dtype, with a leading dimension when there are several.

        One point shares memory with its parameters where that is possible; else they are copies, good until this is asked for again.
        """
        blocks = {name: self._tensors(name) for name in self.moving[0].parameters}
        if len(self.moving) == 1 and all(t.is_contiguous() and t.dtype not in HALF for (t,) in blocks.values()):
            self._lent = {name: t.detach() for name, (t,) in blocks.items()}
            return self.moving[0].as_point(self._lent)
        return self._copied("now ", blocks)

    def copied(self, name: str) -> Point:
        """Copies of these points in memory that is kept, good until copies of that name are asked for again."""
        return self._copied(name, {block: self._tensors(block) for block in self.moving[0].parameters})

    def active(self) -> list[Member]:
        """The moving members all of whose parameters have a gradient: usually the same list."""
        self._list()
        if not self._asking and all(p.grad is not None for p in self._parameters):
            return self.moving
        return [member for member in self.moving if member.active()]

    def keep(self, members: list[Member]) -> None:
        """Lets only `members`, some of those that move, go on moving."""
        if len(members) == len(self.moving):
            return
        if self.old is not None and members:
            kept = {id(member) for member in members}
            rows = torch.tensor([k for k, member in enumerate(self.moving) if id(member) in kept])
            old = {name: self._rows_of(t, rows, f"kept {name}") for name, t in blocks_of(self.old).items()}
            self.old = members[0].as_point(old)
        self.moving, self.old = members, self.old if members else None

    def _rows_of(self, stacked: Tensor, rows: Tensor, slot: str) -> Tensor:
        room = self._memory.room(slot, (len(rows), *stacked.shape[1:]), stacked)
        torch.index_select(stacked, 0, rows.to(stacked.device), out=room)
        return room if len(rows) > 1 else room[0]

    def label(self) -> str:
        """What to call the moving members in messages."""
        name = self.moving[0].name
        return name if len(self.moving) == 1 else f"{name} and others of its shape, stacked,"

    def settle(self) -> Canonical | None:
        """Puts flat points back on their section by the group's short cut; None, with the points still on their orbits, where there is none."""
        if (settle := self.settler) is None:
            return None
        point = self.stacked()
        form = settle(point)
        # One point also without a form: on other ranks its blocks may have moved along their orbit.
        if form is not None or len(self.moving) == 1:
            self.write(point)
        return form

    def _copied(self, slot: str, blocks: dict[str, list[Tensor]]) -> Point:
        return self.moving[0].as_point({name: self._gathered(t, slot + name) for name, t in blocks.items()})

    def _gathered(self, tensors: list[Tensor], slot: str) -> Tensor:
        """`tensors` of equal shape in the computing dtype; one of them without a leading dimension."""
        like, count = tensors[0], len(tensors)
        dtype = torch.float32 if like.dtype in HALF else like.dtype
        shape = tuple(like.shape) if count == 1 else (count, *like.shape)
        room = self._memory.room(slot, shape, like, dtype)
        if count == 1:
            return room.copy_(like)
        if room is not self._rooms.get(slot, (None, []))[0]:
            self._rooms[slot] = room, list(room.unbind(0))
        if dtype == like.dtype:
            return torch.stack(tensors, out=room)
        torch._foreach_copy_(self._rooms[slot][1], tensors)
        return room

    def _list(self) -> None:
        """Lists what moves anew where that has changed: to walk through a hundred members takes longer than to look at a list."""
        if self._listed is not self.moving or self._count != len(self.moving):
            self._listed, self._count, self._lists = self.moving, len(self.moving), {}
            self._parameters = [p for member in self.moving for p in member.parameters.values()]
            self._asking = any(member.asks_others for member in self.moving)

    def _tensors(self, name: str) -> list[Tensor]:
        """The block `name` of the moving members; the lists are kept from step to step, for parameters that are their own values."""
        self._list()
        if name in self._lists:
            return self._lists[name]
        parameters = [member.parameters[name] for member in self.moving]
        tensors = [_plain(p) for p in parameters]
        if all(map(operator.is_, tensors, parameters)):
            self._lists[name] = tensors
        return tensors

    def write(self, value: Point) -> None:
        """Copies a stacked point into the parameters, if it is not in their memory."""
        for name in self.moving[0].parameters:
            block, tensors = value if isinstance(value, Tensor) else value[name], self._tensors(name)
            if len(tensors) > 1:
                room, parts = self._rooms.get("now " + name, (None, []))
                torch._foreach_copy_(tensors, parts if block is room else list(block.unbind(0)))
            elif block is not self._lent.get(name):
                tensors[0].copy_(block)
        self._lent = {}  # a view would keep memory alive that its parameter has left


def _plain(parameter: Tensor) -> Tensor:
    """A tensor to compute with, without derivatives, that shares the memory of `parameter`; itself where that is enough."""
    return parameter if type(parameter) in (Tensor, nn.Parameter) else local_value(parameter)


def _belongs_to_its_section(kind: type[GaugeGroup]) -> bool:
    """Whether the settler of a group is not that of a class whose canonical representatives it has replaced."""
    settler, canonical = (next(c for c in kind.__mro__ if name in vars(c)) for name in ("settler", "canonical"))
    return issubclass(settler, canonical)
