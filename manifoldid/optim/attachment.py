"""The hooks behind `attach`: one object per optimiser, one pass per bucket of equal points."""

import cmath
import copy
import gc
import math
import operator
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from manifoldid.errors import DegeneratePointError, DetachedWarning, NotInvariantWarning, listed
from manifoldid.groups.base import Canonical, GaugeGroup, checked
from manifoldid.groups.geometry import Check
from manifoldid.invariance import vertical_share
from manifoldid.optim.chart import LogChart
from manifoldid.optim.late import LateVerdicts
from manifoldid.optim.member import Bucket, Member
from manifoldid.optim.sparse import TAKE_SPARSE, SparseStep, is_sparse
from manifoldid.optim.state import move_curvature, restart_curvature
from manifoldid.points import Point, compute_point, map_blocks


class Attachment:
    """The pre and post step hooks of one optimiser."""

    # Whose parameter a tensor is stands nowhere else: an attribute of the tensor would end up in pickled models.
    _living: ClassVar["weakref.WeakSet[Attachment]"] = weakref.WeakSet()

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer
        self.members: list[Member] = []
        self.buckets: list[Bucket] = []
        self._unseen: list[Member] = []
        self._charts: list[LogChart] = []
        self._sparse: list[SparseStep] = []
        self._known: list[Tensor] = []
        self._missed_gradients = False
        self._late = LateVerdicts()
        self._hooks: list[Any] = []

    @staticmethod
    def of(optimizer: Optimizer) -> "Attachment":
        """The attachment of `optimizer`, made on first use."""
        found = vars(optimizer).get("manifoldid_attachment")
        return found if isinstance(found, Attachment) else Attachment(optimizer)

    # ------------------------------------------------------------------------------------------------ members

    def check_new(self, members: list[Member]) -> None:
        """Refuses parameters that are attached already, here or through another optimiser.

        Raises:
            ValueError: One is.
        """
        names = {id(p): member.name for member in members for p in member.parameters.values()}
        if taken := self._owned(names):
            raise ValueError(f"`{names[taken.pop()]}` is attached already: call detach() on its handle first")
        if any(other._owned(names) for other in self._others()):
            gc.collect()  # optimisers that nobody holds any more wait in cycles
        for other in self._others():
            if taken := other._owned(names):
                raise ValueError(
                    f"`{names[taken.pop()]}` is attached already, through another optimiser ({type(other.optimizer).__name__}): both would "
                    "move it to the section, each with momentum of its own; call detach() on that handle, or drop that optimiser, first"
                )

    def _owned(self, names: Mapping[int, str]) -> set[int]:
        """Which of the parameters with these ids are attached here."""
        return {id(p) for member in self.members for p in member.parameters.values() if id(p) in names}

    def _others(self) -> "list[Attachment]":
        return [other for other in self._living if other is not self]

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
        self._leave_charts()
        self._drop(members)
        if not self.members:
            self._uninstall()

    def _drop(self, members: list[Member]) -> None:
        self.members = [member for member in self.members if member not in members]
        self._unseen = [member for member in self._unseen if member not in members]
        for bucket in self.buckets:
            bucket.members = [member for member in bucket.members if member not in members]
        self.buckets = [bucket for bucket in self.buckets if bucket.members]

    def _bucket_of(self, member: Member) -> Bucket:
        # Whether weights, labels and shapes are equal on all ranks is not known here: points that are spread step one by one.
        for bucket in self.buckets if member.group.shards is None else ():
            if bucket.members[0].key() == member.key() and bucket.section == member.section and member.stacks():
                return bucket
        self.buckets.append(Bucket(member.section, []))
        return self.buckets[-1]

    def _install(self) -> None:
        optimizer = self.optimizer
        self._hooks = [optimizer.register_step_pre_hook(self.before), optimizer.register_step_post_hook(self.after)]
        # Optimizer.__getstate__ drops hooks and attributes; instance methods are honoured by copy and pickle.
        own = {"manifoldid_attachment": self, "__deepcopy__": self.deepcopy, "__reduce_ex__": self.reduce}
        vars(optimizer).update(own)
        self._living.add(self)

    def _uninstall(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._living.discard(self)
        for name in ("manifoldid_attachment", "__deepcopy__", "__reduce_ex__"):
            vars(self.optimizer).pop(name, None)

    # ------------------------------------------------------------------------------------------------ one step

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The pre hook: remembers where curved points are, and hands positive parameters over in their logarithm."""
        self._late.read()
        if self._leave_charts():
            raise RuntimeError(
                "the step before this one did not come to its end (an error in it, or in a hook), and left attached positive parameters in "
                "their logarithm; now they and their gradients are back: take the gradients again, and step"
            )
        self._warn_of_replaced()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        self._sparse = []
        for bucket in self.buckets:
            bucket.moving, bucket.old = bucket.members, None
        if closure is None:
            self._meet_gradients()
        for bucket in self.buckets:
            if bucket.moving and not bucket.section.group.flat:
                bucket.old = bucket.copied("old ")
        self._charts = [chart for bucket in self.buckets if bucket.moving for chart in bucket.enter_charts()]
        self._charts += [chart for step in self._sparse for chart in Bucket.of(step.member).enter_charts()]
        if closure is None:
            return None
        wrapped = self._wrapped(closure)
        return ((args[0], wrapped, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": wrapped})

    def _wrapped(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure of the user, who sees the parameters themselves and not their logarithms."""

        def evaluate() -> Any:
            charts, self._charts = self._charts, []  # so that parameters stay themselves where the closure raises
            for chart in charts:
                chart.leave()
            loss = closure()
            self._meet_gradients()
            for chart in charts:
                chart.enter_again()
            self._charts = charts
            return loss

        return evaluate

    def _leave_charts(self) -> bool:
        """Takes parameters out of their logarithm after a step that raised; whether there were any."""
        charts, self._charts = self._charts, []
        for chart in charts:
            chart.leave()
        return bool(charts)

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """The post hook: applies displacements of logarithms, makes curved ones horizontal, puts flat points on the section."""
        for chart in self._charts:
            chart.finish()
        self._charts = []
        skipped = getattr(optimizer, "found_inf", None)  # set by GradScaler while a fused step decides for itself
        for step in self._sparse:
            step.finish(self._finite(step.member.name))
        for bucket in self.buckets:
            if bucket.moving:
                self._settle(bucket, skipped)

    @torch.no_grad()
    def _meet_gradients(self) -> None:
        """Once the gradients of a step are known: a look at the first ones, and which points will move, and how."""
        self._look()
        for bucket in self.buckets:
            bucket.keep(bucket.active())
        if not any(bucket.moving for bucket in self.buckets) and not self._sparse:
            self._warn_of_no_gradients()
        if not isinstance(self.optimizer, TAKE_SPARSE):
            return
        for bucket in self.buckets:
            for member in bucket.moving:
                if is_sparse(member):
                    self._sparse.append(SparseStep(self.optimizer, member))
            taken = {id(step.member) for step in self._sparse}
            bucket.keep([member for member in bucket.moving if id(member) not in taken])

    def _settle(self, bucket: Bucket, skipped: Tensor | None) -> None:
        move = self._put_back if bucket.old is None else self._follow
        if skipped is None:
            move(bucket)
            return
        before = bucket.copied("before ")
        move(bucket)
        after = bucket.stacked()
        bucket.write(map_blocks(lambda a, b: torch.where(skipped.to(a.device) > 0, b, a, out=a), after, before))

    def _put_back(self, bucket: Bucket) -> None:
        """Puts flat points back on their section."""
        group, name = bucket.section.group, bucket.label()
        plain = not isinstance(self.optimizer, LBFGS)  # whose curvature has to know the whole move
        if plain and (form := bucket.settle()) is not None:
            self._check(form, group, form.point, name)
            return
        now = bucket.stacked()
        form = bucket.section.canonical_form(now)
        self._check(form, group, now, name)
        move_curvature(self.optimizer, bucket.moving, form, now)
        bucket.write(form.point)

    def _follow(self, bucket: Bucket) -> None:
        """Makes the steps of curved points horizontal."""
        old, name = bucket.old, bucket.label()
        bucket.old = None
        new = bucket.geometry.follow(old, bucket.stacked(), self._finite(name))
        bucket.write(new)
        restart_curvature(self.optimizer)

    # ------------------------------------------------------------------------------------------------ verdicts

    def _check(self, form: Canonical, group: GaugeGroup, point: Point, name: str) -> None:
        if form.xi.device.type == "cpu":
            self._cpu_check(form, group, point, name)
            return
        bad = ~torch.isfinite(form.xi).all()
        if form.regular is not None:
            bad = bad | ~form.regular.all()
        self._late.send(bad, name)

    @staticmethod
    def _cpu_check(form: Canonical, group: GaugeGroup, point: Point, name: str) -> None:
        if (form.regular is None or bool(form.regular.all())) and math.isfinite(form.xi.sum()):
            return  # what is nearly always so, in one pass without memory of its own
        try:
            checked(form, group, point, f"{name} after this step")
        except DegeneratePointError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{error}; the loss or its gradient was not finite, or the learning rate is too large"
            ) from None

    def _finite(self, name: str) -> Check:
        """Refuses values of the points `name` that are not finite; at once where nobody has to wait for that."""
        return lambda values: self._check_finite(values, name)

    def _check_finite(self, values: Tensor, name: str) -> None:
        if values.device.type == "cpu" and cmath.isfinite(values.sum()):
            return  # one pass without memory of its own; a sum that overflows says nothing yet
        bad = ~torch.isfinite(torch.view_as_real(values) if values.is_complex() else values).all()
        if values.device.type != "cpu":
            self._late.send(bad, name)
        elif bool(bad):
            raise ValueError(
                f"`{name}` after this step must be finite: it has nan or infinite entries; the loss or its gradient was not "
                "finite, or the learning rate is too large"
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
                    f"the gradient of `{member.name}` has a share of {share:.1e} along the {generator} of {member.group}: the "
                    "loss seems to see this gauge (a penalty or prior on the raw point does), and the attached optimiser will "
                    "ignore that part; pass loss= to attach, or call mid.check_invariance, to know",
                    NotInvariantWarning,
                    stacklevel=4,
                )
        self._unseen = [member for member in self._unseen if not member.looked]

    def _warn_of_replaced(self) -> None:
        """Says which attached parameters the optimiser no longer has: what took their place takes plain steps."""
        now = [p for group in self.optimizer.param_groups for p in group["params"]]
        if len(now) == len(self._known) and all(map(operator.is_, now, self._known)):
            return
        self._known, here = now, set(map(id, now))
        gone = [m for m in self.members if not all(id(p) in here for p in m.parameters.values())]
        self._drop(gone)
        for member in gone:
            warnings.warn(
                f"`{member.name}` is no longer among the parameters of the optimiser, so that it is not attached any more: what "
                "took its place takes plain steps; call mid.attach with the new parameter",
                DetachedWarning,
                stacklevel=4,
            )

    def _warn_of_no_gradients(self) -> None:
        """Says once that no attached parameter has a gradient, as after load_state_dict(assign=True) of the model."""
        trained = [(m, [p for p in m.parameters.values() if p.requires_grad]) for m in self.members]
        waiting = [member for member, parameters in trained if parameters]
        found = any(p.grad is not None for _, parameters in trained for p in parameters)  # beside frozen ones, say
        if not waiting or found or self._missed_gradients:
            return
        self._missed_gradients = True
        names = listed([f"`{member.name}`" for member in waiting])
        warnings.warn(
            f"no attached parameter has a gradient in this step ({names}): if the model was given other parameters "
            "(load_state_dict(assign=True), .to() that makes new ones, swapped by hand), the optimiser and its attachment still hold "
            "the old ones; build the optimiser anew and attach again",
            DetachedWarning,
            stacklevel=4,
        )

    # ------------------------------------------------------------------------------------------------ copies

    def deepcopy(self, memo: dict[int, Any]) -> Optimizer:
        """`copy.deepcopy` of the optimiser, attached to the copies of the parameters."""
        old = self.optimizer
        new = type(old).__new__(type(old))
        memo[id(old)] = new
        new.__setstate__(copy.deepcopy(old.__getstate__(), memo))
        attachment = memo[id(self)] = Attachment(new)
        for member in self.members:
            parameters = {name: copy.deepcopy(p, memo) for name, p in member.parameters.items()}
            twin = memo[id(member)] = Member(member.group, member.section, parameters, member.name, member.looked)
            attachment.add([twin])
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attachment":
        """The attachment of a copy of the optimiser; only handles ask for it."""
        copied = copy.deepcopy(self.optimizer, memo)
        return memo.get(id(self)) or Attachment(copied)

    def reduce(self, protocol: Any) -> Any:
        """Pickling drops the hooks of an optimiser: says so."""
        warnings.warn(
            "a pickled optimiser loses its attachment: save optimizer.state_dict() instead, or call mid.attach again after loading",
            DetachedWarning,
            stacklevel=3,
        )
        return type(self.optimizer).__reduce_ex__(self.optimizer, protocol)


def _share_limit(member: Member) -> float:
    """A share above rounding: 1e-6 in float64, 1e-3 in float32, 5e-2 in half precision."""
    eps = max(torch.finfo(p.dtype).eps for p in member.parameters.values())
    return 1e-6 if eps < 1e-12 else 1e-3 if eps < 1e-5 else 5e-2
