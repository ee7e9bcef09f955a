"""Records commands into command buffers and submits them, through wgpu's C functions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from halfbyte.gpu.device import ffi, passes
from halfbyte.gpu.device.clock import PassClock
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.run.bound import Command

Copy = tuple[Any, int, Any, int, int]
"""Source, offset, target, offset, bytes."""


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
