"""Programs: lists of dispatches that are bound once and recorded again for every batch, through wgpu's C functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from halfbyte.gpu.device import ffi, passes
from halfbyte.gpu.device.clock import PassClock
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.run.pipelines import Pipeline
from halfbyte.plan.ops import Op

Dimensions = tuple[int, int, int]
Copy = tuple[Any, int, Any, int, int]
KEYS_STEP = 16
"""Grids change only when the number of keys that a token sees passes a multiple of this."""


class Extent(NamedTuple):
    """How much of a program's capacity one batch uses: tokens, rows of logits, and keys that the last token sees."""

    tokens: int
    rows: int
    keys: int


@dataclass(eq=False)
class Buffer:
    """A buffer whose memory may be replaced by more of it; programs bind what it holds at the time.

    Attributes:
        handle: wgpu's buffer.
        version: Counts replacements.
    """

    handle: Any
    version: int = 0

    def replace(self, handle: Any) -> None:
        """Hold other memory from now on."""
        self.handle = handle
        self.version += 1


@dataclass(frozen=True, eq=False)
class Dispatch:
    """One kernel over its buffers.

    Attributes:
        buffers: By the names of the kernel's bindings.
        grid: Workgroups for a batch.
        label: What it computes, for timings.
        step: The plan's step that it belongs to; None for choosing a token.
        long: What runs instead beyond `long_keys` keys, over the same buffers.
    """

    pipeline: Pipeline
    buffers: Mapping[str, Buffer]
    grid: Callable[[Extent], Dimensions]
    label: str = ""
    step: Op | None = None
    long: Dispatch | None = None
    long_keys: int = 0

    def at(self, extent: Extent) -> Dispatch:
        """What runs for a batch of this extent."""
        return self.long if self.long and extent.keys > self.long_keys else self

    @property
    def kernels(self) -> list[Pipeline]:
        """All that may run."""
        return [self.pipeline, *([self.long.pipeline] if self.long else [])]


class Command(tuple[int, int, int, int, int]):
    """Addresses of the pipeline and the bind group, and the workgroups.

    Attributes:
        dispatch: What it was made from.
    """

    dispatch: Dispatch


class Program:
    """Dispatches to run in order."""

    def __init__(self, device: Device, dispatches: Iterable[Dispatch]) -> None:
        self.dispatches = tuple(dispatches)
        self._device = device
        self._groups: dict[Dispatch, Any] = {}
        self._made: dict[tuple[Dispatch, Dimensions], Command] = {}
        self._versions: tuple[int, ...] = ()
        self._recorded: dict[Extent, list[Command]] = {}
        self._volatile = list({id(b): b for d in self.dispatches for b in d.buffers.values()}.values())

    def __len__(self) -> int:
        return len(self.dispatches)

    def commands(self, extent: Extent) -> list[Command]:
        """Every dispatch for a batch of this extent."""
        versions = tuple([buffer.version for buffer in self._volatile])
        if versions != self._versions:
            self._recorded.clear()
            self._groups.clear()
            self._made.clear()
            self._versions = versions
        key = extent._replace(keys=-(-extent.keys // KEYS_STEP) * KEYS_STEP)
        if key not in self._recorded:
            self._recorded[key] = [self._command(dispatch.at(key), key) for dispatch in self.dispatches]
        return self._recorded[key]

    def _command(self, dispatch: Dispatch, extent: Extent) -> Command:
        grid = dispatch.grid(extent)
        if (dispatch, grid) not in self._made:
            if dispatch not in self._groups:
                self._groups[dispatch] = bind_group(self._device, dispatch)
            handles = ffi.handle_of(dispatch.pipeline.handle), ffi.handle_of(self._groups[dispatch])
            made = Command((*map(ffi.address, handles), *grid))
            made.dispatch = dispatch
            self._made[dispatch, grid] = made
        return self._made[dispatch, grid]


def bind_group(device: Device, dispatch: Dispatch) -> Any:
    """The bind group of a dispatch over what its buffers hold now."""
    entries = [
        {"binding": i, "resource": {"buffer": dispatch.buffers[name].handle}}
        for i, name in enumerate(dispatch.pipeline.bindings)
    ]
    with device.guarded(f"binding {dispatch.pipeline.name} failed"):
        return device.handle.create_bind_group(layout=dispatch.pipeline.layout, entries=entries)


class Recording(NamedTuple):
    """A command buffer that is not sent yet.

    Attributes:
        start: When recording it began, by `time.perf_counter`.
    """

    handle: Any
    commands: Sequence[Command]
    start: float


class PassHook(Protocol):
    """What may look over a recorder's shoulder.

    Attributes:
        timestamps: Whether it records the passes itself, through `record`.
        waits: Where each wait for the device is noted, as (start, end).
    """

    timestamps: bool
    waits: list[tuple[float, float]]

    def record(self, encoder: ffi.Handle, commands: Sequence[Command]) -> None:
        """Record dispatches in place of the recorder."""
        ...

    def submitted(self, commands: Sequence[Command], start_s: float) -> None:
        """Note what was submitted, and when recording it began."""
        ...


class Recorder:
    """Records command buffers and submits them.

    Attributes:
        dispatches, submits: How many there have been.
        clock: Times every pass while it is set.
        hook: Sees every pass while it is set.
    """

    def __init__(self, device: Device) -> None:
        self.dispatches = self.submits = 0
        self.clock: PassClock | None = None
        self.hook: PassHook | None = None
        self._device = device
        self._handle = ffi.handle_of(device.handle)
        self._queue = ffi.handle_of(device.handle.queue)

    def submit(self, commands: Sequence[Command], copies: Iterable[Copy] = ()) -> int:
        """Record and send; the submission's index.

        Raises:
            DeviceError: The device is lost or refused the work.
        """
        return self.send(self.record(commands, copies))

    def record(self, commands: Sequence[Command], copies: Iterable[Copy] = ()) -> Recording:
        """Record dispatches in one pass, then copies (source, offset, target, offset, bytes), to be sent.

        It must be sent: wgpu-native keeps a command buffer that is released before it was submitted, and what it holds.

        Raises:
            DeviceError: The device is lost or refused the work.
        """
        start = time.perf_counter()
        with self._device.guarded("the GPU refused work"):
            encoder = ffi.create_encoder(self._handle)
            if self.hook and self.hook.timestamps:
                self.hook.record(encoder, commands)
            else:
                self._record(encoder, commands)
            for copy in copies:
                ffi.copy_buffer(encoder, *copy)
            handle = ffi.finish(encoder)
        return Recording(handle, commands, start)

    def send(self, recording: Recording) -> int:
        """Submit what was recorded; the submission's index.

        Raises:
            DeviceError: The device is lost or refused the work.
        """
        self.submits += 1
        self.dispatches += len(recording.commands)
        with self._device.guarded("the GPU refused work"):
            self._device.stop_if_failed()
            index = ffi.submit(self._queue, recording.handle)
        ffi.release_commands(recording.handle)
        if self.hook:
            self.hook.submitted(recording.commands, recording.start)
        return index

    def _record(self, encoder: ffi.Handle, commands: Sequence[Command]) -> None:
        opened = ffi.begin_pass(encoder, self.clock.next_pass() if self.clock else None)
        passes.dispatch(opened, commands)
        ffi.end_pass(opened)
