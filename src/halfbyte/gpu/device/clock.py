"""GPU time of recorded commands, by the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import wgpu

from halfbyte.errors import DeviceError
from halfbyte.gpu.device import ffi, passes
from halfbyte.gpu.device.device import Device

Commands = Sequence[tuple[int, int, int, int, int]]
REPEATS = 8
SHORTEST_S = 1e-9
"""What a difference of times on the host is at least, lest noise makes it negative."""
RESOLVED = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
"""How a buffer is used that timestamps are written to."""
PASSES = 1024
"""Passes that a `PassClock` keeps the times of before it has to wait for them and add them up."""


class Clock:
    """Times passes on a device.

    Raises:
        DeviceError: The device has no timestamps.
    """

    def __init__(self, device: Device) -> None:
        if not device.capabilities.timestamps:
            raise DeviceError(f"{device.name} has no timestamps.", "Time whole generations instead.")
        self._device = device
        self._queries = device.handle.create_query_set(type="timestamp", count=2)
        self._resolved = device.buffer(16, "timestamps", usage=RESOLVED)

    def seconds(self, commands: Commands, *, before: Commands = ()) -> float:
        """Seconds that the commands take, run in one pass, after others that do not count."""
        encoder = self._device.handle.create_command_encoder()
        if before:
            _record(encoder.begin_compute_pass(), before)
        writes = {"query_set": self._queries, "beginning_of_pass_write_index": 0, "end_of_pass_write_index": 1}
        _record(encoder.begin_compute_pass(timestamp_writes=writes), commands)
        encoder.resolve_query_set(self._queries, 0, 2, self._resolved, 0)
        self._device.handle.queue.submit([encoder.finish()])
        begin, end = self._device.read(self._resolved, 16).view(np.uint64)
        return float(end - begin) * tick_seconds(self._device)

    def median(self, commands: Commands, *, repeats: int = 5) -> float:
        """The median of several runs, after one to warm up."""
        self.seconds(commands)
        return float(np.median([self.seconds(commands) for _ in range(repeats)]))


class WallClock:
    """Times passes from outside, where a device has no timestamps: what running them more often takes longer.

    Args:
        submit: Submits commands; returns the submission, as `Recorder.submit` does.
    """

    def __init__(self, device: Device, submit: Callable[[Any], int]) -> None:
        self._device = device
        self._submit = submit

    def seconds(self, commands: Commands, *, before: Commands = ()) -> float:
        """Seconds that the commands take, each time after others that do not count."""
        few = self._wall([*before, *commands] + [*before] * (REPEATS - 1))
        many = self._wall([*before, *commands] * REPEATS)
        return max((many - few) / (REPEATS - 1), SHORTEST_S)

    def _wall(self, commands: Commands) -> float:
        began = time.perf_counter()
        self._device.wait(self._submit(commands))
        return time.perf_counter() - began


class PassClock:
    """Adds up the GPU time of passes as they are submitted, without waiting for each.

    Raises:
        DeviceError: The device has no timestamps.
    """

    def __init__(self, device: Device) -> None:
        if not device.capabilities.timestamps:
            raise DeviceError(f"{device.name} has no timestamps.", "Time whole generations instead.")
        self._device = device
        self._queries = device.handle.create_query_set(type="timestamp", count=2 * PASSES)
        self._resolved = device.buffer(16 * PASSES, "timestamps", usage=RESOLVED)
        self._writes = ffi.TimestampWrites(self._queries)
        self._used = 0
        self._seconds = 0.0

    def next_pass(self) -> ffi.TimestampWrites:
        """Where the next pass writes its times, valid until the next call."""
        if self._used == PASSES:
            self.seconds()
        first = 2 * self._used
        self._used += 1
        return self._writes.at(first, first + 1)

    def seconds(self) -> float:
        """Seconds that all passes so far took, once they are done."""
        if self._used:
            encoder = self._device.handle.create_command_encoder()
            encoder.resolve_query_set(self._queries, 0, 2 * self._used, self._resolved, 0)
            self._device.handle.queue.submit([encoder.finish()])
            times = self._device.read(self._resolved, 16 * self._used).view(np.uint64).reshape(-1, 2)
            self._seconds += float((times[:, 1] - times[:, 0]).sum()) * tick_seconds(self._device)
            self._used = 0
        return self._seconds

    def close(self) -> None:
        """Give its memory back."""
        self._device.free(self._resolved)


def _record(opened: Any, commands: Commands) -> None:
    passes.dispatch(ffi.handle_of(opened), commands)
    opened.end()


def tick_seconds(device: Device) -> float:
    """Seconds between two counts of a device's timestamps."""
    return ffi.timestamp_period(ffi.handle_of(device.handle.queue)) * 1e-9
