"""How fast a GPU reads its memory, measured now: what decoding can be compared with."""

from __future__ import annotations

import time

from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.program import Extent
from halfbyte.gpu.run.bind import kernel_program
from halfbyte.gpu.run.bound import BoundProgram, Buffer, Command
from halfbyte.gpu.run.recorder import Recorder

MOST_NBYTES = 512 << 20
"""Read over and over: more than caches hold."""
WARM_UP_S = 0.5
"""Idle clocks take about so long to rise."""
MEASURED_S = 0.2

_GROUPS = 2048
_AT_ONCE = 8


class Reader:
    """Reads a buffer of its own from one end to the other.

    Args:
        nbytes: About how much; no more than the largest binding, and in whole turns of all its invocations.

    Attributes:
        nbytes: How much it is.

    Raises:
        DeviceError: There is no room for it.
    """

    def __init__(self, device: Device, nbytes: int = MOST_NBYTES) -> None:
        stride = _GROUPS * 256
        turn = stride * _AT_ONCE * 16
        self.nbytes = max(
            turn, min(nbytes, device.capabilities.max_binding, device.capabilities.max_buffer) // turn * turn
        )
        self._constants = {"COUNT": self.nbytes // 16, "STRIDE": stride, "AT_ONCE": _AT_ONCE}
        words, sums = (Buffer(device.buffer(size, "bandwidth")) for size in (self.nbytes, stride * 4))
        self._device, self._buffers = device, (words, sums)
        self._recorder = Recorder(device)
        self._program = kernel_program(device, "read", self._constants, {"words": words, "sums": sums}, _GROUPS)

    @property
    def commands(self) -> list[Command]:
        """What reads it once."""
        return self._program.commands(Extent(1, 1, 1))

    def copying(self, target: Buffer) -> BoundProgram:
        """What copies it to another buffer as large."""
        buffers = {"words": self._buffers[0], "copied": target}
        return kernel_program(self._device, "copy", self._constants, buffers, _GROUPS)

    def close(self) -> None:
        """Give its memory back."""
        for buffer in self._buffers:
            self._device.free(buffer.handle)

    def rate(self, *, warm_up_s: float = WARM_UP_S, measured_s: float = MEASURED_S) -> float:
        """Bytes a second, once the device has been at work for a while and long enough for a clock on the host."""
        times, began = 1, time.perf_counter()
        while True:
            start = time.perf_counter()
            self._device.wait(self._recorder.submit(self.commands * times))
            end = time.perf_counter()
            if end - start >= measured_s and start - began >= warm_up_s:
                return self.nbytes * times / (end - start)
            times = max(times, min(2 * times, int(1.5 * times * measured_s / (end - start))))


def read_bandwidth(device: Device) -> float:
    """Bytes a second that a kernel reads from the device's memory.

    Raises:
        DeviceError: There is no room for what is read, 512 MiB or the largest binding.
    """
    reader = Reader(device)
    try:
        return reader.rate()
    finally:
        reader.close()
