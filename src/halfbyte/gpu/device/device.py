"""One GPU through WebGPU: choosing an adapter, what its device may do, buffers, submits, and its failures as errors.

Everything that wgpu or a driver reports becomes a `DeviceError`, so that a process survives a lost device.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import wgpu
from numpy.typing import NDArray

from halfbyte.errors import DeviceError, UsageError
from halfbyte.gpu.device import ffi
from halfbyte.gpu.device.adapters import Adapter, ask_drivers
from halfbyte.gpu.shaders.capabilities import Capabilities
from halfbyte.units import quantity

FEATURES = (
    "shader-f16",
    "subgroup",
    "subgroup-barrier",
    "timestamp-query",
    "timestamp-query-inside-passes",
    "memory-decoration-coherent",
)
USAGE = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
CHUNK_NBYTES = 32 << 20
"""Bytes a write hands to the queue at once: what the driver's staging memory holds beside the model."""

_SUBGROUPS = {0x10DE: 32, 0x106B: 32}
"""Lanes by the vendor's PCI id: NVIDIA, Apple. wgpu does not tell the sizes that the driver names."""


def enumerate_adapters() -> list[Adapter]:
    """Every usable adapter, in the order that `gpu` counts them; asks the drivers in this process."""
    _prepare_instance()
    return ask_drivers()


def choose_adapter(gpu: int | None = None, *, software: bool = False) -> Adapter:
    """The adapter to use.

    Args:
        gpu: Index into `enumerate_adapters()`; the first real one if None.
        software: Take a software adapter, for tests.

    Raises:
        DeviceError: There is none.
        UsageError: `gpu` names none.
    """
    adapters = enumerate_adapters()
    if gpu is not None:
        if not 0 <= gpu < len(adapters):
            names = ", ".join(f"{i}: {adapter.name}" for i, adapter in enumerate(adapters)) or "none"
            raise UsageError(f"there is no GPU {gpu}.", f"Found: {names}.")
        return adapters[gpu]
    for adapter in adapters:
        if adapter.software == software:
            return adapter
    if adapters and not software:
        raise DeviceError(f"only a software GPU was found ({adapters[0].name}).", "Use device='cpu', which is faster.")
    raise DeviceError("no GPU was found.", "Install the driver of your GPU (Vulkan on Linux), or use device='cpu'.")


class Device:
    """An open device. Made by `open_device`.

    Attributes:
        allocated_nbytes: Bytes of its buffers; `peak_nbytes` the most there have been.
        waited_s: Seconds spent waiting for it.
        waits: Where each wait is noted, as (start, end), while somebody wants to know.
    """

    def __init__(self, adapter: Adapter, handle: Any, capabilities: Capabilities) -> None:
        self.adapter = adapter
        self.handle = handle
        self.capabilities = capabilities
        self.allocated_nbytes = self.peak_nbytes = 0
        self.waited_s = 0.0
        self.waits: list[tuple[float, float]] | None = None
        self._errors = _Errors()
        logging.getLogger("wgpu").addHandler(self._errors)
        self._unheard = weakref.finalize(self, logging.getLogger("wgpu").removeHandler, self._errors)

    @property
    def name(self) -> str:
        """The GPU's name."""
        return self.adapter.name

    def buffer(self, nbytes: int, label: str = "", *, usage: int = USAGE) -> Any:
        """A zeroed buffer.

        Raises:
            DeviceError: The device has no room for it, or no buffer may be so large.
        """
        size = max(16, -(-nbytes // 16) * 16)
        most = self.capabilities.max_buffer
        if size > most:
            raise DeviceError(
                f"{label or 'a buffer'} takes {quantity(size, 'B')}, but {self.name} allows {quantity(most, 'B')}.",
                "Use a smaller context, or device='cpu'.",
            )
        with self.guarded(
            f"there is no room for {quantity(size, 'B')} ({label}) beside {quantity(self.allocated_nbytes, 'B')}"
        ):
            made = self.handle.create_buffer(size=size, usage=usage, label=label)
        self.allocated_nbytes += size
        self.peak_nbytes = max(self.peak_nbytes, self.allocated_nbytes)
        weakref.finalize(made, self._gone, size).atexit = False
        return made

    def free(self, buffer: Any) -> None:
        """Give a buffer's memory back once the GPU is done with it; it counts until nothing refers to it."""
        buffer.destroy()

    def _gone(self, nbytes: int) -> None:
        self.allocated_nbytes -= nbytes

    def write(self, buffer: Any, offset: int, values: NDArray[Any]) -> None:
        """Copy an array into a buffer, before whatever is submitted next; large ones in chunks."""
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        tail = raw.size % 4
        with self.guarded("writing to the GPU failed"):
            for start in range(0, raw.size - tail, CHUNK_NBYTES):
                piece = raw[start : min(start + CHUNK_NBYTES, raw.size - tail)]
                self.handle.queue.write_buffer(buffer, offset + start, piece)
                if start:
                    self.stop_if_failed()
                    self.handle.queue.submit([])
            if tail:
                padded = np.zeros(4, np.uint8)
                padded[:tail] = raw[-tail:]
                self.handle.queue.write_buffer(buffer, offset + raw.size - tail, padded)

    def flush(self) -> None:
        """Wait until what was written has arrived: until then it takes host memory once more."""
        self._submit([], "writing to the GPU failed")
        self.wait()

    def copy(self, copies: Iterable[tuple[Any, int, Any, int, int]]) -> None:
        """Copy between buffers: (source, offset, target, offset, bytes), all of them multiples of 4."""
        what = "copying on the GPU failed"
        with self.guarded(what):
            encoder = self.handle.create_command_encoder()
            for source, from_offset, target, to_offset, nbytes in copies:
                encoder.copy_buffer_to_buffer(source, from_offset, target, to_offset, nbytes)
            commands = encoder.finish()
        self._submit([commands], what)

    def _submit(self, commands: list[Any], what: str) -> None:
        with self.guarded(what):
            self.stop_if_failed()
            self.handle.queue.submit(commands)

    def read(self, buffer: Any, nbytes: int, offset: int = 0) -> NDArray[np.uint8]:
        """Bytes of a buffer once all that was submitted is done. Makes a staging buffer: for tests and set-up."""
        self.check_alive("reading from the GPU failed")
        with self.guarded("reading from the GPU failed"):
            size = -(-nbytes // 4) * 4
            return np.frombuffer(self.handle.queue.read_buffer(buffer, offset, size), np.uint8)[:nbytes]

    def wait(self, submission: int | None = None) -> None:
        """Wait until a submission, or everything, is done, and deliver its callbacks."""
        began = time.perf_counter()
        with self.guarded("waiting for the GPU failed"):
            ffi.poll(ffi.handle_of(self.handle), submission)
        ended = time.perf_counter()
        self.waited_s += ended - began
        if self.waits is not None:
            self.waits.append((began, ended))

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Turn whatever wgpu reports inside into a `DeviceError` that begins with `what`."""
        self._errors.listen()
        ffi.capture_errors()
        try:
            yield
        except (wgpu.GPUError, RuntimeError) as error:
            raise _device_error(what, self.name, str(error)) from error
        finally:
            reported = ffi.release_errors()
            logged = self._errors.heard()
        if reported is not None or logged:
            raise _device_error(what, self.name, "\n".join([*logged, reported or ""]))

    def check_alive(self, what: str) -> None:
        """Ask for the smallest thing there is: what follows would end the process on a lost device.

        Raises:
            DeviceError: It is lost.
        """
        with self.guarded(what):
            ffi.release_encoder(ffi.create_encoder(ffi.handle_of(self.handle)))

    def stop_if_failed(self) -> None:
        """Inside `guarded`, leave if something was reported: a submit to a lost device would end the process."""
        if message := ffi.pending_error():
            raise RuntimeError(message)

    def close(self) -> None:
        """Let go of the device and all its memory."""
        self._unheard()
        self.handle.destroy()


def open_device(
    gpu: int | None = None, *, software: bool = False, subgroups: bool = True, limits: Capabilities | None = None
) -> Device:
    """Open a GPU with the features and limits that kernels can use.

    Args:
        gpu: As for `choose_adapter`.
        software: Take a software adapter, for tests.
        subgroups: False leaves subgroup operations alone.
        limits: Pretend the device offers no more than this.

    Raises:
        DeviceError, UsageError: As for `choose_adapter`, or the driver refused.
    """
    adapter = choose_adapter(gpu, software=software)
    features = [name for name in FEATURES if name in adapter.features]
    try:
        handle = adapter.handle.request_device_sync(required_features=features, required_limits={})
    except (wgpu.GPUError, RuntimeError) as error:
        raise _device_error("the driver refused to open it", adapter.name, str(error)) from error
    capabilities = _capabilities(adapter, handle.limits, features)
    if not subgroups:
        capabilities = replace(capabilities, subgroup=0)
    return Device(adapter, handle, _at_most(capabilities, limits) if limits else capabilities)


def _capabilities(adapter: Adapter, limits: dict[str, int], features: Sequence[str]) -> Capabilities:
    return Capabilities(
        subgroup=_subgroup_size(adapter) if "subgroup" in features else 0,
        workgroup_storage=limits["max-compute-workgroup-storage-size"],
        invocations=min(limits["max-compute-invocations-per-workgroup"], limits["max-compute-workgroup-size-x"]),
        storage_buffers=limits["max-storage-buffers-per-shader-stage"],
        max_binding=limits["max-storage-buffer-binding-size"],
        max_buffer=limits["max-buffer-size"],
        timestamps="timestamp-query" in features,
        coherent="memory-decoration-coherent" in features and adapter.backend == "Vulkan",
    )


def _at_most(offered: Capabilities, limits: Capabilities) -> Capabilities:
    return Capabilities(
        *(min(getattr(offered, name), getattr(limits, name)) for name in Capabilities.__dataclass_fields__)
    )


def _subgroup_size(adapter: Adapter) -> int:
    """Lanes of a subgroup on makes that have just one size; 0 on others, whose drivers choose one for each kernel."""
    if adapter.vendor in _SUBGROUPS:
        return _SUBGROUPS[adapter.vendor]
    vector = adapter.name.partition(" bits)")[0].rpartition(", ")[2] if "llvmpipe" in adapter.name else ""
    return int(vector) // 32 if vector.isdigit() else 0


_prepared = False


def _prepare_instance() -> None:
    """Ask for an instance without wgpu's own checks, which cost time in every dispatch; the first one stays."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    if not ffi.make_unchecked_instance():
        logging.getLogger(__name__).debug("wgpu was in use before; its instance is used as it is")


def _device_error(what: str, name: str, reported: str) -> DeviceError:
    """The error for what wgpu reported: its first line says the kind, its last one the cause."""
    if "lost" in reported.lower():
        return DeviceError(
            f"{name} was lost ({what}): its driver reset it, or it is no longer there.",
            "Load the model again, or use device='cpu'.",
        )
    lines = [line.strip() for line in reported.splitlines() if line.strip()] or ["no reason was given"]
    return DeviceError(
        f"{name}: {what}: {': '.join(dict.fromkeys((lines[0], lines[-1])))}",
        "Load the model again, or use device='cpu'.",
    )


class _Errors(logging.Handler):
    """Hears what wgpu logs about errors that no call raises, such as a lost device.

    The log does not say which device is meant: only what the thread that uses this one causes meanwhile counts.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._thread: int | None = None
        self._messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._messages.append(record.getMessage())

    def listen(self) -> None:
        """Begin to hear this thread's errors."""
        self._thread = threading.get_ident()

    def heard(self) -> list[str]:
        """What was logged since; nothing more is heard."""
        messages, self._messages, self._thread = self._messages, [], None
        return messages
