"""Recording dispatches into an open compute pass, through wgpu's C functions and without Python between them."""

from __future__ import annotations

from collections.abc import Sequence

from halfbyte.errors import DeviceError
from halfbyte.gpu.device import ffi

try:
    from halfbyte.gpu.device import _record
except ImportError as missing:
    raise DeviceError.not_compiled("GPUs", missing) from missing


def dispatch(opened: ffi.Handle, commands: Sequence[tuple[int, int, int, int, int]]) -> None:
    """Record dispatches in order: (address of the pipeline, of the bind group, workgroups in x, y and z)."""
    _record.record(ffi.DISPATCH_FUNCTIONS, ffi.address(opened), list(commands))
