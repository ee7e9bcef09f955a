"""Reading results back: mapped buffers of our own, which can be in flight while the GPU goes on."""

from __future__ import annotations

import numpy as np
import wgpu
from numpy.typing import NDArray

from halfbyte.errors import DeviceError
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.device.ffi import Mapping


class Staging:
    """A buffer that the GPU copies into and the host reads.

    Copy into `buffer`, submit, then `request` with the submission's index; `take` waits for it and reads.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        size = -(-nbytes // 16) * 16
        self.buffer = device.buffer(size, "staging", usage=wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST)
        self._device = device
        self._submission = 0
        self._requested = False
        self._mapping = Mapping(self.buffer, size)

    def request(self, submission: int) -> None:
        """Ask for the contents after a submission."""
        self._submission, self._requested = submission, True
        self._mapping.request()

    def drop(self) -> None:
        """Have it free for another submission, if what was requested last was not taken."""
        if self._requested:
            self.take(0)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """A copy of the first bytes.

        Raises:
            DeviceError: The device was lost meanwhile.
        """
        self._requested = False
        while self._mapping.status is None:
            self._device.wait(self._submission)
        if not self._mapping.mapped:
            raise DeviceError(
                f"{self._device.name} gave no results back.", "Load the model again, or use device='cpu'."
            )
        self._device.check_alive("it gave no results back")
        return self._mapping.take(nbytes)
