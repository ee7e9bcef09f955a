"""Compiled kernels: each WGSL text once for a device, several at a time on threads of their own."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import wgpu

from halfbyte.gpu.device import ffi
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.shaders.shader import Shader

COMPILERS = min(8, os.cpu_count() or 1)
"""Kernels that are compiled at once."""


class Pipeline:
    """A kernel that is compiled, or being compiled by another thread: what needs it waits."""

    def __init__(self, name: str, device: Device, compiled: Future[tuple[Any, Any]]) -> None:
        self.name = name
        self._device = device
        self._compiled = compiled

    @property
    def handle(self) -> Any:
        """wgpu's pipeline; raises as `wait` does."""
        return self.wait()[0]

    @property
    def layout(self) -> Any:
        """The layout of its one bind group; raises as `wait` does."""
        return self.wait()[1]

    def wait(self) -> tuple[Any, Any]:
        """Handle and layout, once they are there.

        Raises:
            DeviceError: The driver did not accept the kernel.
        """
        if self._compiled.done() and not self._compiled.exception():
            return self._compiled.result()
        with self._device.guarded(f"kernel {self.name} was not accepted"):
            return self._compiled.result()


class Pipelines:
    """The compiled kernels of a device, each compiled once, several at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._made: dict[str, Pipeline] = {}
        self._compilers = ThreadPoolExecutor(COMPILERS, "compiler")

    def get(self, shader: Shader) -> Pipeline:
        """The pipeline of a shader, which may still be compiling."""
        if shader.code not in self._made:
            compiled = self._compilers.submit(_compile, self._device.handle, shader)
            self._made[shader.code] = Pipeline(shader.kernel, self._device, compiled)
        return self._made[shader.code]


def _compile(device: Any, shader: Shader) -> tuple[Any, Any]:
    """A pipeline, and the layout of its bind group."""
    kinds = {"read": "read-only-storage", "read_write": "storage"}
    entries = [
        {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kinds[access]}}
        for i, access in enumerate(shader.accesses.values())
    ]
    layout = device.create_bind_group_layout(entries=entries)
    pipeline = device.create_compute_pipeline(
        layout=device.create_pipeline_layout(bind_group_layouts=[layout]),
        compute={"module": ffi.trusted_module(device, shader.kernel, shader.code), "entry_point": "main"},
    )
    return pipeline, layout
