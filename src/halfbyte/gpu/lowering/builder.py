"""Collects the dispatches of one program: scratch memory that is used again, values by name, shaders by number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.lowering.passes import Schedule, Section
from halfbyte.gpu.lowering.program import Axis, Dispatch, Grid, Ref
from halfbyte.gpu.lowering.tensor import DeviceTensor
from halfbyte.plan import ops
from halfbyte.plan.plan import LOGITS

Bound = Mapping[str, Ref | None]
"""Buffers by the names that kernels give them; what is None is not bound."""


class Builder:
    """Builds the program of a section.

    Args:
        name: The program's. Its scratch buffers are called after what comes before the first dot, by which it shares
            them with other programs: those run one after the other, and leave each other nothing but outputs.
        inputs: Values made by other programs.

    Attributes:
        values: By their names, those that have been made and not given back.
        index: The place in the section of the step that is being lowered.
        head: The first dispatch that only logits need.
    """

    def __init__(self, schedule: Schedule, name: str, inputs: Mapping[str, DeviceTensor]) -> None:
        self.schedule = schedule
        self.section: Section = schedule.section
        self.context: LoweringContext = schedule.section.context
        self.values: dict[str, DeviceTensor] = dict(inputs)
        self.dispatches: list[Dispatch] = []
        self.index = self.head = 0
        self._family = name.partition(".")[0]
        self._inputs = frozenset(inputs)
        self._free: dict[int, list[Ref]] = {}
        self._made = Counter[tuple[str, int]]()
        self._counters: Ref | None = None

    @property
    def step(self) -> ops.Op:
        """The step that is being lowered."""
        return self.section.steps[self.index]

    @property
    def tokens(self) -> Axis:
        """One workgroup for each token."""
        return Axis(count="tokens")

    @property
    def decodes(self) -> Axis:
        """One workgroup for each token that is alone of its sequence."""
        return Axis(count="decodes")

    def row_steps(self, base: int = 1, step: int = 1) -> Axis:
        """Workgroups for every `step` of this section's rows: tokens, or rows of logits."""
        return Axis(base, "rows" if self.section.rows else "tokens", step)

    def take(self, nbytes: int) -> Ref:
        """Scratch memory, used before if some of that size was given back."""
        free = self._free.get(nbytes)
        return free.pop() if free else self._buffer("scratch", nbytes)

    def give_back(self, ref: Ref) -> None:
        """Let later steps use scratch memory."""
        self._free.setdefault(self.context.buffers[ref.name], []).append(ref)

    def counters(self, count: int) -> Ref:
        """Counters that are zero between dispatches; each dispatch that uses them leaves them so."""
        if self._counters is None or self.context.buffers[self._counters.name] < count * 4:
            self._counters = self._buffer("counters", count * 4)
        return self._counters

    def _buffer(self, kind: Any, nbytes: int) -> Ref:
        self._made[kind, nbytes] += 1
        return self.context.buffer(Ref(kind, f"{self._family}/{kind}/{nbytes}/{self._made[kind, nbytes]}"), nbytes)

    def value(
        self, name: str, width: int, *, f32: bool = True, int8: bool = False, eps: float | None = None
    ) -> DeviceTensor:
        """Make a value in scratch memory, in one form or both."""
        value = DeviceTensor(width, eps=eps)
        values = self.section.capacity * value.stride
        if f32:
            value.f32 = self.context.logits() if name == LOGITS else self.take(values * 4)
        if int8:
            value.x8, value.xm = self.take(values), self.take(values // 2)
        self.values[name] = value
        return value

    def release_read(self, *, keep: str) -> None:
        """Give back what no later step reads, but for the value called `keep`."""
        last = self.schedule.last_reads
        for name in [n for n in self.values if last.get(n, self.index) == self.index]:
            if name != keep and name not in self._inputs:
                self._release(name)

    def _release(self, name: str) -> None:
        value = self.values.pop(name)
        for ref in value.refs:
            if not any(ref in other.refs for other in self.values.values()):
                self.give_back(ref)

    def add(self, kernel: str, constants: Mapping[str, Any], bound: Bound, grid: Grid, label: str) -> None:
        """Append a dispatch."""
        self.dispatches.append(self.dispatch(kernel, constants, bound, grid, label))

    def dispatch(self, kernel: str, constants: Mapping[str, Any], bound: Bound, grid: Grid, label: str) -> Dispatch:
        """A kernel for the step that is being lowered."""
        return dispatch(self.context, kernel, constants, bound, grid, label, step=self.section.first + self.index)


def dispatch(
    context: LoweringContext,
    kernel: str,
    constants: Mapping[str, Any],
    bound: Bound,
    grid: Grid,
    label: str,
    *,
    step: int | None = None,
) -> Dispatch:
    """A kernel with what every kernel is told and given; it binds what its shader names.

    Raises:
        DemandError: The shader takes more than the device has.
        KeyError: The shader names a buffer that it is not given.
    """
    common = {"SUBGROUP": context.config.subgroup, **context.state.offsets}
    number = context.shaders.number(kernel, {**common, **constants})
    context.shaders.shaders[number].check(context.capabilities)
    given = {name: ref for name, ref in bound.items() if ref is not None} | {"state": Ref("state")}
    bindings = {name: given[name] for name in context.shaders.shaders[number].accesses}
    return Dispatch(number, bindings, grid, label, step)
