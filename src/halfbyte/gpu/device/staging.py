"""Reading results back: mapped buffers of our own, which can be in flight while the GPU goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import wgpu
from numpy.typing import NDArray
from wgpu.backends.wgpu_native import ffi, lib

from halfbyte.errors import DeviceError
from halfbyte.gpu.device.device import Device


@ffi.callback("void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)")  # type: ignore[untyped-decorator]
def _on_mapped(status: int, _message: Any, staging: Any, _unused: Any) -> None:
    ffi.from_handle(staging).status = status


class Staging:
    """A buffer that the GPU copies into and the host reads.

    Copy into `buffer`, submit, then `request` with the submission's index; `take` waits for it and reads.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        self.nbytes = -(-nbytes // 16) * 16
        self.buffer = device.buffer(self.nbytes, "staging", usage=wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST)
        self.status: int | None = None
        self._device = device
        self._submission = 0
        self._self = ffi.new_handle(self)
        self._callback = ffi.new("WGPUBufferMapCallbackInfo *")
        self._callback.mode = lib.WGPUCallbackMode_AllowProcessEvents
        self._callback.callback = _on_mapped
        self._callback.userdata1 = self._self

    def request(self, submission: int) -> None:
        """Ask for the contents as they are after a submission."""
        self.status, self._submission = None, submission
        handle = self.buffer._internal
        lib.wgpuBufferMapAsync(handle, lib.WGPUMapMode_Read, 0, self.nbytes, self._callback[0])

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """A copy of the first bytes.

        Raises:
            DeviceError: The device was lost meanwhile.
        """
        while self.status is None:
            self._device.wait(self._submission)
        if self.status != lib.WGPUMapAsyncStatus_Success:
            raise DeviceError(
                f"{self._device.name} gave no results back.", "Load the model again, or use device='cpu'."
            )
        self._device.check_alive("it gave no results back")
        handle = self.buffer._internal
        address = lib.wgpuBufferGetConstMappedRange(handle, 0, self.nbytes)
        values = np.frombuffer(ffi.buffer(address, nbytes), np.uint8).copy()
        lib.wgpuBufferUnmap(handle)
        return values
