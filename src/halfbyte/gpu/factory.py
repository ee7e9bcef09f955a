"""A GPU as a device: what it has room for, and how its executor is made from options.

Importing this module imports no wgpu: a machine without a GPU never needs it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from halfbyte.errors import DeviceError, UsageError
from halfbyte.executors import Limits, Progress
from halfbyte.formats import WeightSource
from halfbyte.options import RunOptions
from halfbyte.plan import Plan

if TYPE_CHECKING:
    from halfbyte.gpu.device.device import Device
    from halfbyte.gpu.run.executor import GpuExecutor

WITHOUT = "no "
"""Before the name of a kernel variant: it is switched off."""


class GpuFactory:
    """The `ExecutorFactory` of GPUs."""

    batch_tokens = 1024
    rank = 2
    survives_fork = False
    chooses_tokens = True

    def available(self) -> tuple[bool, str]:
        """Whether there is a real GPU."""
        from halfbyte.gpu.device.adapters import best_gpu

        try:
            _require_wgpu()
        except DeviceError as missing:
            return False, str(missing)
        found, reason = best_gpu()
        return (True, f"{found.name} was found") if found else (False, reason)

    def part(self, options: RunOptions, place: int, places: int) -> RunOptions:
        """On a real GPU of its own."""
        _require_wgpu()
        from halfbyte.gpu.device.adapters import real_gpus

        if options.gpu is not None and places > 1:
            raise UsageError(
                f"gpu={options.gpu} is one GPU, and there are {places} replicas.",
                "Leave it out: each replica takes a GPU of its own.",
            )
        if options.gpu is not None:
            return options
        gpus, reason = real_gpus()
        if not gpus:
            raise UsageError(reason, "Use device='cpu'.")
        if len(gpus) < places:
            raise UsageError(
                f"{places} replicas need a GPU each, and there are {len(gpus)}.",
                "Start fewer, or use device='cpu'.",
            )
        return replace(options, gpu=gpus[place])

    def open(self, options: RunOptions) -> OpenGpu:
        """Open the GPU.

        Raises:
            DeviceError: There is no such GPU, or wgpu is not installed.
        """
        _require_wgpu()
        from halfbyte.gpu.device.device import open_device

        if options.kernels is not None and not options.kernels.startswith(WITHOUT):
            raise UsageError(
                f"a GPU has no kernels {options.kernels!r}.", f"Write {WITHOUT}NAME, or leave kernels out for all."
            )
        return OpenGpu(open_device(options.gpu))

    def kernels(self, options: RunOptions) -> tuple[str | None, ...]:
        """None for all kernels, then `no NAME` for each variant the GPU can use; `int8` is an option of its own."""
        _require_wgpu()
        from halfbyte.gpu.device.device import open_device
        from halfbyte.gpu.shaders.variants import VARIANTS

        device = open_device(options.gpu)
        offered = [name for name, variant in VARIANTS.items() if variant.offered(device.capabilities)]
        device.close()
        return (None, *(WITHOUT + name for name in offered if name != "int8"))

    def limits(self, executor: GpuExecutor) -> Limits:
        """Of the executor's GPU, measured by kernels."""
        from halfbyte.gpu.checks.bandwidth import read_bandwidth
        from halfbyte.gpu.checks.limits import int8_rate

        return Limits(read_bandwidth(executor.device), 2 * int8_rate(executor.device))

    def read_bandwidth(self, executor: GpuExecutor) -> float:
        """Of the GPU's memory, read by a kernel."""
        from halfbyte.gpu.checks.bandwidth import read_bandwidth

        return read_bandwidth(executor.device)

    def describe(self, executor: GpuExecutor) -> dict[str, str]:
        """Its name, driver and API."""
        device = executor.device
        return {"gpu": device.name, "gpu_driver": device.adapter.driver, "gpu_backend": device.adapter.backend}

    def peak_nbytes(self, executor: GpuExecutor) -> int | None:
        """The most that was allocated on the GPU."""
        return executor.device.peak_nbytes

    def forget_peak(self, executor: GpuExecutor) -> None:
        """Begin with what is allocated."""
        executor.device.peak_nbytes = executor.device.allocated_nbytes

    def timed(self, executor: GpuExecutor) -> AbstractContextManager[None] | None:
        """Its timestamps, where it has them."""
        return executor.timed() if executor.device.capabilities.timestamps else None


def _require_wgpu() -> None:
    """Raises a `DeviceError` where wgpu is not installed, as on machines that it has no wheel for."""
    if find_spec("wgpu") is None:
        raise DeviceError.not_installed("A GPU", "wgpu")


class OpenGpu:
    """The `OpenDevice` of a GPU."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def batch_tokens(self, plan: Plan) -> int:
        """Tokens for which every activation fits one buffer."""
        from halfbyte.gpu.run import budget

        return budget.batch_tokens(plan, self._device)

    def fitting_tokens(self, plan: Plan) -> int:
        """Tokens whose KV cache takes at most half of what weights and scratch leave free."""
        from halfbyte.gpu.run import budget

        return budget.fitting_tokens(plan, self._device, self._free_memory(), share=0.5)

    def build(self, plan: Plan, source: WeightSource, options: RunOptions, progress: Progress) -> GpuExecutor:
        """The executor of a plan, with weights on the GPU and kernels compiled, tested and tuned as is known."""
        from halfbyte.gpu.checks.selftest import faulty_variants
        from halfbyte.gpu.run import budget
        from halfbyte.gpu.run.executor import GpuExecutor
        from halfbyte.gpu.tuning.store import remembered_tuning

        total = budget.needs(plan).weights
        without = {options.kernels.removeprefix(WITHOUT)} if options.kernels else set[str]()
        executor = GpuExecutor(
            plan, source, device=self._device, activations=options.activations or "int8",
            off=faulty_variants(self._device) | without, tuning=remembered_tuning(self._device),
            free_memory=self._free_memory(), progress=lambda nbytes: progress("weights", min(nbytes, total), total),
        )  # fmt: skip
        executor.warm_up(lambda done, kernels: progress("kernels", done, kernels))
        return executor

    def close(self) -> None:
        """Free the GPU."""
        self._device.close()

    def _free_memory(self) -> int | None:
        from halfbyte.gpu.run import budget
        from halfbyte.system import available_memory

        return budget.free_memory(self._device, available_memory())


FACTORY = GpuFactory()
