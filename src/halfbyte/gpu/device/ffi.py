"""wgpu's private names, all of them: C functions that its Python API lacks, or makes too slow for every token.

A C handle is what a wgpu object keeps in `_internal`. Nothing outside this module knows these names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from wgpu.backends.wgpu_native import _api, ffi, lib
from wgpu.backends.wgpu_native.extras import set_instance_extras

Handle = Any
"""A C handle."""

_LISTENER = "halfbyte"
_ENCODER = ffi.new("WGPUCommandEncoderDescriptor *")
_FINISH = ffi.new("WGPUCommandBufferDescriptor *")


def handle_of(thing: Any) -> Handle:
    """The C handle of a wgpu object."""
    return thing._internal


def address(handle: Handle) -> int:
    """The memory address that a C handle points to."""
    return int(ffi.cast("uintptr_t", handle))


DISPATCH_FUNCTIONS = (
    address(lib.wgpuComputePassEncoderSetPipeline),
    address(lib.wgpuComputePassEncoderSetBindGroup),
    address(lib.wgpuComputePassEncoderDispatchWorkgroups),
)
"""Addresses of the C functions that record a dispatch."""


def make_unchecked_instance() -> bool:
    """Ask for an instance without wgpu's own checks, which cost time in every dispatch; False if one exists already."""
    try:
        set_instance_extras(backends=["Primary"], flags=["Empty"])
    except RuntimeError:
        return False
    return True


def capture_errors() -> None:
    """Collect what wgpu reports on this thread until `release_errors`."""
    _api.error_handler.capture(_LISTENER)


def release_errors() -> str | None:
    """The error that was reported since `capture_errors`; None if there was none."""
    reported = _api.error_handler.release(_LISTENER)
    return str(reported[1]) if reported else None


def pending_error() -> str:
    """The error that was reported so far since `capture_errors`; empty if there was none."""
    slots = _api.error_handler._get_proxy_stack()
    return str(slots[-1].message or "") if slots else ""


def trusted_module(device: Any, label: str, source: str) -> Any:
    """A shader module without the loop counters and index clamps that wgpu adds to code from strangers."""
    code = ffi.new("char[]", source.encode())
    chained = ffi.new("WGPUShaderSourceWGSL *")
    chained.chain.sType = lib.WGPUSType_ShaderSourceWGSL
    chained.code.data, chained.code.length = code, len(code) - 1
    descriptor = ffi.new("WGPUShaderModuleDescriptor *")
    descriptor.nextInChain = ffi.cast("WGPUChainedStruct *", chained)
    module = _api.libf.wgpuDeviceCreateShaderModuleTrusted(device._internal, descriptor, 0)
    return _api.GPUShaderModule(label, module, device)


def poll(device: Handle, submission: int | None) -> None:
    """Wait until a submission, or everything, is done, and run its callbacks."""
    index = ffi.NULL if submission is None else ffi.new("WGPUSubmissionIndex *", submission)
    lib.wgpuDevicePoll(device, True, index)


def timestamp_period(queue: Handle) -> float:
    """Nanoseconds between two counts of the timestamps of a queue's device."""
    return float(lib.wgpuQueueGetTimestampPeriod(queue))


def create_encoder(device: Handle) -> Handle:
    """A command encoder."""
    return lib.wgpuDeviceCreateCommandEncoder(device, _ENCODER)


def release_encoder(encoder: Handle) -> None:
    """Give an encoder back that was not finished."""
    lib.wgpuCommandEncoderRelease(encoder)


class BindGroup:
    """Buffers bound to the numbers of a layout, in order; they are kept as long as it is."""

    def __init__(self, device: Any, layout: Any, buffers: Sequence[Any]) -> None:
        entries = ffi.new("WGPUBindGroupEntry[]", len(buffers))
        for number, buffer in enumerate(buffers):
            entries[number].binding, entries[number].buffer = number, buffer._internal
            entries[number].size = buffer.size
        descriptor = ffi.new("WGPUBindGroupDescriptor *")
        descriptor.layout, descriptor.entryCount, descriptor.entries = layout._internal, len(buffers), entries
        self.handle: Handle = lib.wgpuDeviceCreateBindGroup(device._internal, descriptor)

    def __del__(self) -> None:
        lib.wgpuBindGroupRelease(self.handle)


class TimestampWrites:
    """Where a pass writes the times of its beginning and its end: two queries of a query set."""

    def __init__(self, queries: Any) -> None:
        self.pointer = ffi.new("WGPUPassTimestampWrites *")
        self.pointer.querySet = queries._internal

    def at(self, begin: int, end: int) -> TimestampWrites:
        """The same object with these queries; valid for one pass."""
        self.pointer.beginningOfPassWriteIndex, self.pointer.endOfPassWriteIndex = begin, end
        return self


def begin_pass(encoder: Handle, writes: TimestampWrites | None = None) -> Handle:
    """Begin a compute pass."""
    descriptor = ffi.new("WGPUComputePassDescriptor *")
    if writes is not None:
        descriptor.timestampWrites = writes.pointer
    return lib.wgpuCommandEncoderBeginComputePass(encoder, descriptor)


def write_timestamp(opened: Handle, queries: Any, index: int) -> None:
    """Write a timestamp inside a pass."""
    lib.wgpuComputePassEncoderWriteTimestamp(opened, queries._internal, index)


def end_pass(opened: Handle) -> None:
    """End a pass; its handle is invalid afterwards."""
    lib.wgpuComputePassEncoderEnd(opened)
    lib.wgpuComputePassEncoderRelease(opened)


def copy_buffer(encoder: Handle, source: Any, from_offset: int, target: Any, to_offset: int, nbytes: int) -> None:
    """Record a copy between two buffers."""
    lib.wgpuCommandEncoderCopyBufferToBuffer(
        encoder, source._internal, from_offset, target._internal, to_offset, nbytes
    )


def finish(encoder: Handle) -> Handle:
    """The command buffer of an encoder, whose handle is invalid afterwards."""
    commands = lib.wgpuCommandEncoderFinish(encoder, _FINISH)
    lib.wgpuCommandEncoderRelease(encoder)
    return commands


def submit(queue: Handle, commands: Handle) -> int:
    """Submit a command buffer; the submission's index."""
    return int(lib.wgpuQueueSubmitForIndex(queue, 1, ffi.new("WGPUCommandBuffer[1]", [commands])))


def release_commands(commands: Handle) -> None:
    """Give a command buffer back that was submitted."""
    lib.wgpuCommandBufferRelease(commands)


@ffi.callback("void(WGPUMapAsyncStatus, WGPUStringView, void *, void *)")  # type: ignore[untyped-decorator]
def _on_mapped(status: int, _message: Any, mapping: Any, _unused: Any) -> None:
    ffi.from_handle(mapping).status = status


class Mapping:
    """Maps one buffer for reading, again and again.

    Attributes:
        status: None until wgpu answers the last request.
    """

    def __init__(self, buffer: Any, nbytes: int) -> None:
        self.status: int | None = None
        self._buffer, self._nbytes = buffer._internal, nbytes
        self._self = ffi.new_handle(self)
        self._callback = ffi.new("WGPUBufferMapCallbackInfo *")
        self._callback.mode = lib.WGPUCallbackMode_AllowProcessEvents
        self._callback.callback = _on_mapped
        self._callback.userdata1 = self._self

    def request(self) -> None:
        """Ask for the contents after everything submitted so far."""
        self.status = None
        lib.wgpuBufferMapAsync(self._buffer, lib.WGPUMapMode_Read, 0, self._nbytes, self._callback[0])

    @property
    def mapped(self) -> bool:
        """Whether the last request succeeded."""
        return bool(self.status == lib.WGPUMapAsyncStatus_Success)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """A copy of the first bytes; the buffer is unmapped afterwards."""
        start = lib.wgpuBufferGetConstMappedRange(self._buffer, 0, self._nbytes)
        values = np.frombuffer(ffi.buffer(start, nbytes), np.uint8).copy()
        lib.wgpuBufferUnmap(self._buffer)
        return values
