"""The hooks behind `attach`: one object per optimiser, one batched pass per bucket of equal points."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manifoldid.distributed import Local, kept, local_value, localised
from manifoldid.errors import DegeneratePointError, DetachedWarning, NotInvariantWarning
from manifoldid.groups.base import Canonical, GaugeGroup, checked
from manifoldid.invariance import vertical_share
from manifoldid.optim.chart import LogChart
from manifoldid.optim.state import move_curvature, restart_curvature
from manifoldid.points import HALF, Point, Weights, cast_like, compute_point, map_blocks, part_of_weights
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
            if factor.dimension(member.point()):
                members.append(member)
        return members

    def point(self) -> Point:
        """The current value, sharing memory with the parameters."""
        return self._as_point({name: local_value(p) for name, p in self.parameters.items()})

    def active(self) -> bool:
        """Whether all parameters have a gradient, or no items on this rank, which follows the others."""
        return all(p.grad is not None or self._absent(p) for p in self.parameters.values())

    def _absent(self, parameter: Tensor) -> bool:
        return self.group.shards is not None and not local_value(parameter).numel()

    def gradient(self) -> Point | None:
        """The current gradient, or None when a parameter has none."""
        if not self.active():
            return None
        grads = {n: local_value(p) if p.grad is None else local_value(p.grad) for n, p in self.parameters.items()}
        return self._as_point({name: g.to_dense() if g.is_sparse else g for name, g in grads.items()})

    def charts(self) -> list[LogChart]:
        """Charts of the positive parameters, which the optimiser sees as logarithms."""
        return [LogChart(self.parameters[name]) for name in self.group.positive if name in self.parameters]

    def _as_point(self, blocks: dict[str, Tensor]) -> Point:
        return blocks.get("", blocks)

    def key(self) -> tuple:
        """What members of one bucket have in common, besides an equal section."""
        return (self.group.flat, tuple((n, p.shape, p.dtype, p.device) for n, p in self.parameters.items()))


@dataclass
class Bucket:
    """Members of one group, shape, dtype and device, which move in one batched pass."""

    section: Section
    members: list[Member]
    old: Point | None = None
    moving: list[Member] = field(default_factory=list)
    scratch: Tensor | None = None
    _rows: list[Tensor] = field(default_factory=list)

    def stacked(self) -> Point:
        """The points of the moving members, in the computing dtype, with a leading dimension when there are several."""
        points = [member.point() for member in self.moving]
        return compute_point(points[0] if len(points) == 1 else map_blocks(lambda *ts: torch.stack(ts), *points))

    @staticmethod
    def active(members: list[Member]) -> list[Member]:
        """The members all of whose parameters have a gradient: usually the same list."""
        if all(p.grad is not None for member in members for p in member.parameters.values()):
            return members
        return [member for member in members if member.active()]

    def label(self) -> str:
        """What to call the moving members in messages."""
        name = self.moving[0].name
        return name if len(self.moving) == 1 else f"{name} and others of its shape, stacked,"

    def settle(self) -> Canonical | None:
        """Puts flat points back on their section by the group's short cut; None, with nothing changed, where there is none."""
        if self.section.weights is not None or "" not in self.members[0].parameters:
            return None
        tensors = [_plain(member.parameters[""]) for member in self.moving]
        if tensors[0].dtype in HALF or not all(t.is_contiguous() for t in tensors):
            return None
        if len(tensors) == 1:
            return self.section.group.settle(tensors[0].detach())
        scratch = self._gathered(tensors)
        form = self.section.group.settle(scratch)
        if form is not None:
            torch._foreach_copy_(tensors, self._rows)
        return form

    def _gathered(self, tensors: list[Tensor]) -> Tensor:
        """`tensors` of equal shape in the scratch buffer, which is the only memory that a step takes."""
        like, count = tensors[0], len(tensors)
        scratch = self.scratch
        if scratch is None or (scratch.shape, scratch.dtype, scratch.device) != (
            (count, *like.shape),
            like.dtype,
            like.device,
        ):
            with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside of it
                scratch = torch.empty(count, *like.shape, dtype=like.dtype, device=like.device)
            self.scratch, self._rows = scratch, list(scratch.unbind(0))
        return torch.stack(tensors, out=scratch)

    def write(self, value: Point) -> None:
        """Copies a stacked point into the parameters."""
        for name in self.moving[0].parameters:
            block = value if isinstance(value, Tensor) else value[name]
            targets = [local_value(member.parameters[name]) for member in self.moving]
            sources = [block] if len(targets) == 1 else list(block.unbind(0))
            torch._foreach_copy_(targets, sources)


class Attachment:
    """The pre and post step hooks of one optimiser."""

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self.members: list[Member] = []
        self.buckets: list[Bucket] = []
        self._unseen: list[Member] = []
        self._charts: list[LogChart] = []
        self._late: list[tuple[Tensor, str]] = []
        self._hooks: list[Any] = []

    @staticmethod
    def of(optimizer: Optimizer) -> "Attachment":
        """The attachment of `optimizer`, made on first use."""
        found = vars(optimizer).get("manifoldid_attachment")
        return found if isinstance(found, Attachment) else Attachment(optimizer)

    # ------------------------------------------------------------------------------------------------ members

    def check_new(self, members: list[Member]) -> None:
        """Refuses parameters that are attached already.

        Raises:
            ValueError: One is.
        """
        mine = {id(p) for member in self.members for p in member.parameters.values()}
        for member in members:
            if any(id(p) in mine for p in member.parameters.values()):
                raise ValueError(f"`{member.name}` is attached already: call detach() on its handle first")

    def add(self, members: list[Member]) -> None:
        """Starts to move `members`."""
        self.members += members
        self._unseen += [member for member in members if not member.looked]
        for member in members:
            self._bucket_of(member).members.append(member)
        if self.members and not self._hooks:
            self._install()

    def remove(self, members: list[Member]) -> None:
        """Stops to move `members`."""
        self.members = [member for member in self.members if member not in members]
        self._unseen = [member for member in self._unseen if member not in members]
        for bucket in self.buckets:
            bucket.members = [member for member in bucket.members if member not in members]
        self.buckets = [bucket for bucket in self.buckets if bucket.members]
        if not self.members:
            self._uninstall()

    def _bucket_of(self, member: Member) -> Bucket:
        for bucket in self.buckets:
            if bucket.members[0].key() == member.key() and bucket.section == member.section and _stacks(member):
                return bucket
        self.buckets.append(Bucket(member.section, []))
        return self.buckets[-1]

    def _install(self) -> None:
        optimizer = self.optimizer
        self._hooks = [optimizer.register_step_pre_hook(self.before), optimizer.register_step_post_hook(self.after)]
        # Optimizer.__getstate__ drops hooks and attributes; instance methods are honoured by copy and pickle.
        own = {"manifoldid_attachment": self, "__deepcopy__": self.deepcopy, "__reduce_ex__": self.reduce}
        vars(optimizer).update(own)

    def _uninstall(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for name in ("manifoldid_attachment", "__deepcopy__", "__reduce_ex__"):
            vars(self.optimizer).pop(name, None)

    # ------------------------------------------------------------------------------------------------ one step

    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The pre hook: remembers where curved points are, and hands positive parameters over in their logarithm."""
        self._raise_late()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._look()
        moving = []
        for bucket in self.buckets:
            bucket.moving = bucket.members if closure is not None else bucket.active(bucket.members)
            bucket.old = None
            if bucket.section.group.positive:
                moving += bucket.moving
            if bucket.moving and not bucket.section.group.flat:
                bucket.old = map_blocks(torch.clone, bucket.stacked())
        self._charts = [chart for member in moving for chart in member.charts()]
        for chart in self._charts:
            chart.enter()
        if closure is None:
            return None
        wrapped = self._wrapped(closure)
        return ((args[0], wrapped, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": wrapped})

    def _wrapped(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure of the user, who sees the parameters themselves and not their logarithms."""

        def evaluate() -> Any:
            for chart in self._charts:
                chart.leave()
            try:
                loss = closure()
                self._look()
            finally:
                for chart in self._charts:
                    chart.enter_again()
            return loss

        return evaluate

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The post hook: applies displacements of logarithms, makes curved ones horizontal, puts flat points on the section."""
        for chart in self._charts:
            chart.finish()
        self._charts = []
        skipped = getattr(optimizer, "found_inf", None)  # set by GradScaler while a fused step decides for itself
        for bucket in self.buckets:
            if bucket.old is None:
                bucket.moving = bucket.active(bucket.moving)
            if bucket.moving:
                self._settle(bucket, skipped)

    def _settle(self, bucket: Bucket, skipped: Tensor | None) -> None:
        group = bucket.section.group
        if bucket.old is None and skipped is None and (form := bucket.settle()) is not None:
            self._check(form, group, form.point, bucket.label())
            move_curvature(self.optimizer, bucket.moving, form, form.point)
            return
        now = bucket.stacked()
        name = bucket.label()
        if bucket.old is None:
            form = bucket.section.canonical_form(now)
            self._check(form, group, now, name)
            new = form.point
            move_curvature(self.optimizer, bucket.moving, form, now)
        else:
            geometry = group.geometry(bucket.section.weights).remembering()
            new = geometry.follow(bucket.old, map_blocks(torch.sub, now, bucket.old))
            self._check_finite(new, name)
            restart_curvature(self.optimizer)
            bucket.old = None
        if skipped is not None:
            new = map_blocks(lambda n, t: torch.where(skipped.to(n.device) > 0, t, n), new, now)
        bucket.write(cast_like(new, now))

    # ------------------------------------------------------------------------------------------------ verdicts

    def _check(self, form: Canonical, group: GaugeGroup, point: Point, name: str) -> None:
        if form.xi.device.type == "cpu":
            self._cpu_check(form, group, point, name)
            return
        bad = ~torch.isfinite(form.xi).all()
        if form.regular is not None:
            bad = bad | ~form.regular.all()
        self._later(bad, name)

    @staticmethod
    def _cpu_check(form: Canonical, group: GaugeGroup, point: Point, name: str) -> None:
        try:
            checked(form, group, point, f"{name} after this step")
        except DegeneratePointError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{error}; the loss or its gradient was not finite, or the learning rate is too large"
            ) from None

    def _check_finite(self, point: Point, name: str) -> None:
        for t in [point] if isinstance(point, Tensor) else point.values():
            bad = ~torch.isfinite(torch.view_as_real(t) if t.is_complex() else t).all()
            if t.device.type != "cpu":
                self._later(bad, name)
            elif bool(bad):
                raise ValueError(
                    f"`{name}` after this step must be finite: it has nan or infinite entries; the loss or its gradient was not "
                    "finite, or the learning rate is too large"
                )

    def _later(self, bad: Tensor, name: str) -> None:
        """Sends a verdict to the host without waiting for it; it is read before the next step."""
        host = torch.zeros((), dtype=torch.bool, pin_memory=True)
        host.copy_(bad, non_blocking=True)
        self._late.append((host, name))

    def _raise_late(self) -> None:
        late, self._late = self._late, []
        for flag, name in late:
            if bool(flag):
                raise DegeneratePointError(
                    f"`{name}` had no representative on its orbit, or was not finite, after the step before this one"
                )

    def _look(self) -> None:
        """Warns once per member when its first gradient has a component along the orbit."""
        if not self._unseen:
            return
        for member in self._unseen:
            gradient = member.gradient()
            if gradient is None:
                continue
            member.looked = True
            point = member.point()
            share, generator = vertical_share(compute_point(point), compute_point(gradient), member.group)
            if share > _share_limit(member):
                warnings.warn(
                    f"the gradient of `{member.name}` has a share of {share:.1e} along the {generator} of {member.group!r}: the "
                    "loss seems to see this gauge (a penalty or prior on the raw point does), and the attached optimiser will "
                    "ignore that part; pass loss= to attach, or call mid.check_invariance, to know",
                    NotInvariantWarning,
                    stacklevel=4,
                )
        self._unseen = [member for member in self._unseen if not member.looked]

    # ------------------------------------------------------------------------------------------------ copies

    def deepcopy(self, memo: dict[int, Any]) -> Optimizer:
        """`copy.deepcopy` of the optimiser, attached to the copies of the parameters."""
        old = self.optimizer
        new = type(old).__new__(type(old))
        memo[id(old)] = new
        new.__setstate__(copy.deepcopy(old.__getstate__(), memo))
        members = [
            Member(
                member.group,
                member.section,
                {name: copy.deepcopy(p, memo) for name, p in member.parameters.items()},
                member.name,
                member.looked,
            )
            for member in self.members
        ]
        Attachment(new).add(members)
        return new

    def reduce(self, protocol: Any) -> Any:
        """Pickling drops the hooks of an optimiser: says so."""
        warnings.warn(
            "a pickled optimiser loses its attachment: save optimizer.state_dict() instead, or call mid.attach again after loading",
            DetachedWarning,
            stacklevel=3,
        )
        return type(self.optimizer).__reduce_ex__(self.optimizer, protocol)


def _plain(parameter: Tensor) -> Tensor:
    """A tensor to compute with, without derivatives, that shares the memory of `parameter`; itself where that is enough."""
    return parameter if type(parameter) in (Tensor, nn.Parameter) else local_value(parameter)


def _stacks(member: Member) -> bool:
    """Whether stacking points of this shape gives a batch that the group understands."""
    point = member.point()
    return member.group.batch_ndim(map_blocks(lambda t: t[None], point)) == member.group.batch_ndim(point) + 1


def _share_limit(member: Member) -> float:
    """A share above rounding: 1e-6 in float64, 1e-3 in float32, 5e-2 in half precision."""
    eps = max(torch.finfo(p.dtype).eps for p in member.parameters.values())
    return 1e-6 if eps < 1e-12 else 1e-3 if eps < 1e-5 else 5e-2
