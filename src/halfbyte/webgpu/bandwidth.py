"""How fast a GPU reads its memory, measured now: what decoding can be compared with."""

from __future__ import annotations

import time

from halfbyte.webgpu.device import Device
from halfbyte.webgpu.program import Buffer, Dispatch, Extent, Program, Recorder
from halfbyte.webgpu.shader import Pipelines

MOST_NBYTES = 512 << 20
"""Read over and over: more than caches hold."""
WARM_UP_S = 0.5
"""Idle clocks take about so long to rise."""
MEASURED_S = 0.2

_GROUPS = 2048
_AT_ONCE = 8


def read_bandwidth(device: Device) -> float:
    """Bytes a second that a kernel reads from the device's memory.

    Raises:
        DeviceError: There is no room for what is read, 512 MiB or the largest binding.
    """
    stride = _GROUPS * 256
    turn = stride * _AT_ONCE * 16
    nbytes = max(turn, min(MOST_NBYTES, device.capabilities.max_binding, device.capabilities.max_buffer) // turn * turn)
    constants = {"COUNT": nbytes // 16, "STRIDE": stride, "AT_ONCE": _AT_ONCE}
    words, sums = (Buffer(device.buffer(size, "bandwidth")) for size in (nbytes, stride * 4))
    try:
        pipeline = Pipelines(device).get("read", constants)
        dispatch = Dispatch(pipeline, {"words": words, "sums": sums}, lambda _: (_GROUPS, 1, 1), "read")
        return nbytes * _rate(device, Program(device, [dispatch]))
    finally:
        for buffer in (words, sums):
            device.free(buffer.handle)


def _rate(device: Device, program: Program) -> float:
    """Runs a second, once the device has been at work for a while and long enough for a clock on the host."""
    recorder, commands, times = Recorder(device), program.commands(Extent(1, 1, 1)), 1
    began = time.perf_counter()
    while True:
        start = time.perf_counter()
        device.wait(recorder.submit(commands * times))
        end = time.perf_counter()
        if end - start >= MEASURED_S and start - began >= WARM_UP_S:
            return times / (end - start)
        times = max(times, min(2 * times, int(1.5 * times * MEASURED_S / (end - start))))
