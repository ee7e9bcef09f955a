"""Recording dispatches into an open compute pass, through wgpu's C functions and without Python between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wgpu.backends.wgpu_native import ffi, lib

from halfbyte.errors import DeviceError

try:
    from halfbyte.gpu.device import _record
except ImportError as missing:
    raise DeviceError.not_compiled("GPUs", missing) from missing


def address(handle: Any) -> int:
    """Where the thing lies that a C handle points to."""
    return int(ffi.cast("uintptr_t", handle))


_FUNCTIONS = (
    address(lib.wgpuComputePassEncoderSetPipeline),
    address(lib.wgpuComputePassEncoderSetBindGroup),
    address(lib.wgpuComputePassEncoderDispatchWorkgroups),
)


def dispatch(recording: Any, commands: Sequence[tuple[int, int, int, int, int]]) -> None:
    """Record dispatches in order: (address of the pipeline, of the bind group, workgroups in x, y and z)."""
    _record.record(_FUNCTIONS, address(recording), list(commands))


def end(recording: Any) -> None:
    """End a pass; the C handle is gone afterwards."""
    lib.wgpuComputePassEncoderEnd(recording)
    lib.wgpuComputePassEncoderRelease(recording)
