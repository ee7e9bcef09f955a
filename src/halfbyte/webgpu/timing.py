"""GPU time of recorded commands, by the device's own clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import wgpu
from wgpu.backends.wgpu_native import ffi, lib

from halfbyte.errors import DeviceError
from halfbyte.webgpu.device import Device

Commands = Sequence[tuple[Any, Any, int, int, int]]


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
        self._resolved = device.buffer(
            16, "timestamps", usage=wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
        )

    def seconds(self, commands: Commands) -> float:
        """Seconds that the commands take, run in one pass."""
        encoder = self._device.handle.create_command_encoder()
        writes = {"query_set": self._queries, "beginning_of_pass_write_index": 0, "end_of_pass_write_index": 1}
        recording = encoder.begin_compute_pass(timestamp_writes=writes)
        for pipeline, group, x, y, z in commands:
            lib.wgpuComputePassEncoderSetPipeline(recording._internal, pipeline)
            lib.wgpuComputePassEncoderSetBindGroup(recording._internal, 0, group, 0, ffi.NULL)
            lib.wgpuComputePassEncoderDispatchWorkgroups(recording._internal, x, y, z)
        recording.end()
        encoder.resolve_query_set(self._queries, 0, 2, self._resolved, 0)
        self._device.handle.queue.submit([encoder.finish()])
        begin, end = self._device.read(self._resolved, 16).view(np.uint64)
        return float(end - begin) * 1e-9

    def median(self, commands: Commands, *, repeats: int = 5) -> float:
        """The median of several runs, after one to warm up."""
        self.seconds(commands)
        return float(np.median([self.seconds(commands) for _ in range(repeats)]))
