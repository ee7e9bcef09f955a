"""Programs bound to a device's buffers: what they take for a batch is recorded once, and kept for the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from halfbyte.gpu.device import ffi
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.program import Dimensions, Extent, Grid
from halfbyte.gpu.run.pipelines import Pipeline

KEYS_STEP = 16
"""Grids change only when the number of keys that a token sees passes a multiple of this."""
MOST_RECORDED = 512
"""Extents whose commands a program keeps; the one that was used longest ago goes first."""
MOST_GRIDS = 64
"""Commands that a program keeps for each of its dispatches on average, for other extents to share."""


@dataclass(eq=False)
class Buffer:
    """A buffer that programs bind.

    Attributes:
        handle: wgpu's buffer.
        grows: Whether its memory may be replaced by more of it; programs bind what it holds at the time.
        version: Counts replacements.
    """

    handle: Any
    grows: bool = False
    version: int = 0

    def replace(self, handle: Any) -> None:
        """Hold other memory from now on.

        Raises:
            TypeError: Programs do not expect that of it.
        """
        if not self.grows:
            raise TypeError("the memory of this buffer stays")
        self.handle = handle
        self.version += 1


@dataclass(frozen=True, eq=False)
class BoundDispatch:
    """A compiled kernel over the buffers of a device.

    Attributes:
        buffers: By the names of the kernel's bindings, in the order of their numbers.
        grid, label, step, long, long_keys: As those of the lowered `Dispatch`.
    """

    pipeline: Pipeline
    buffers: Mapping[str, Buffer]
    grid: Grid
    label: str = ""
    step: int | None = None
    long: BoundDispatch | None = None
    long_keys: int = 0

    def at(self, extent: Extent) -> BoundDispatch:
        """What runs for a batch of this extent."""
        return self.long if self.long and extent.keys > self.long_keys else self

    @property
    def kernels(self) -> list[Pipeline]:
        """All that may run."""
        return [self.pipeline, *([self.long.pipeline] if self.long else [])]

    @property
    def grows(self) -> bool:
        """Whether it binds a buffer that may be replaced."""
        return any(buffer.grows for buffer in self.buffers.values())

    @property
    def every_buffer(self) -> list[Buffer]:
        """The buffers of all that may run."""
        return [*self.buffers.values(), *(self.long.buffers.values() if self.long else ())]


class Command(tuple[int, int, int, int, int]):
    """Addresses of the pipeline and the bind group, and the workgroups.

    Attributes:
        dispatch: What it was made from.
    """

    dispatch: BoundDispatch


@dataclass(frozen=True)
class BoundOutput:
    """What a program leaves: float32 rows of `width` values, `stride` values from one to the next."""

    buffer: Buffer
    width: int
    stride: int


class BoundProgram:
    """Dispatches to run in order.

    Attributes:
        output, head: As those of the lowered `Program`.
    """

    def __init__(
        self, device: Device, dispatches: Iterable[BoundDispatch], output: BoundOutput | None = None, head: int = 0
    ) -> None:
        self.dispatches = tuple(dispatches)
        self.head = head
        self._output = output
        self._device = device
        self._groups: dict[BoundDispatch, ffi.BindGroup] = {}
        self._made: dict[tuple[BoundDispatch, Dimensions], Command] = {}
        self._versions: tuple[int, ...] = ()
        self._recorded: dict[Extent, list[Command]] = {}
        self._growing = list({id(b): b for d in self.dispatches for b in d.every_buffer if b.grows}.values())

    def __len__(self) -> int:
        return len(self.dispatches)

    @property
    def output(self) -> BoundOutput:
        """What it leaves in rows.

        Raises:
            TypeError: It leaves none.
        """
        if self._output is None:
            raise TypeError("this program leaves no rows")
        return self._output

    def commands(self, extent: Extent) -> list[Command]:
        """Every dispatch that a batch of this extent has work for."""
        versions = tuple([buffer.version for buffer in self._growing])
        if versions != self._versions:
            self._recorded.clear()
            self._made.clear()
            self._groups = {dispatch: group for dispatch, group in self._groups.items() if not dispatch.grows}
            self._versions = versions
        key = extent._replace(keys=-(-extent.keys // KEYS_STEP) * KEYS_STEP)
        commands = self._recorded.pop(key, None)
        if commands is None:
            commands = self._record(key)
        self._recorded[key] = commands
        return commands

    def _record(self, extent: Extent) -> list[Command]:
        """Commands for an extent that is not kept; makes room for them."""
        if len(self._recorded) >= MOST_RECORDED:
            del self._recorded[next(iter(self._recorded))]
        if len(self._made) >= MOST_GRIDS * len(self.dispatches):
            self._made.clear()
        commands = [self._command(dispatch.at(extent), extent) for dispatch in self.dispatches]
        return [command for command in commands if all(command[2:])]

    def _command(self, dispatch: BoundDispatch, extent: Extent) -> Command:
        x, y, z = dispatch.grid
        grid = x.at(extent), y.at(extent), z.at(extent)
        if (dispatch, grid) not in self._made:
            if dispatch not in self._groups:
                self._groups[dispatch] = bind_group(self._device, dispatch)
            handles = ffi.handle_of(dispatch.pipeline.handle), self._groups[dispatch].handle
            made = Command((*map(ffi.address, handles), *grid))
            made.dispatch = dispatch
            self._made[dispatch, grid] = made
        return self._made[dispatch, grid]


def bind_group(device: Device, dispatch: BoundDispatch) -> ffi.BindGroup:
    """The bind group of a dispatch over what its buffers hold now."""
    buffers = [buffer.handle for buffer in dispatch.buffers.values()]
    with device.guarded(f"binding {dispatch.pipeline.name} failed"):
        return ffi.BindGroup(device.handle, dispatch.pipeline.layout, buffers)
