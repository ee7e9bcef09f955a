"""What a GPU could do at most, measured in about two seconds: memory, arithmetic, and what each dispatch costs.

A faulty driver can crash or hang whoever asks it. `measure_apart` asks in a process of its own, `python -m
halfbyte.gpu.checks.limits`, which prints JSON: one entry for each real GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from halfbyte.gpu.checks.bandwidth import Reader
from halfbyte.gpu.device.device import Device, enumerate_adapters, open_device
from halfbyte.gpu.device.staging import Staging
from halfbyte.gpu.lowering.program import Extent
from halfbyte.gpu.run.bind import kernel_program
from halfbyte.gpu.run.bound import BoundProgram, Buffer
from halfbyte.gpu.run.recorder import Recorder

CHAIN = 512
"""Dispatches in a row, each waiting for the one before it."""
TRIPS = 30
PEAK_GROUPS, PEAK_SUMS, PEAK_ROUNDS = 4096, 16, 256
SECONDS = 0.2
"""Each measurement lasts at least so long, but for single trips."""
_EXTENT = Extent(1, 1, 1)


@dataclass(frozen=True)
class GpuLimits:
    """What a GPU could do at most.

    Attributes:
        read_bandwidth: Bytes a second that a kernel reads.
        copy_bandwidth: Bytes a second that a kernel reads and writes together.
        int8_rate: Products of two 8-bit integers a second that are added up (`dot4I8Packed`).
        dispatch_s: Seconds of one dispatch in a chain of them.
        encode_s: Seconds of the host to record and submit one dispatch.
        round_trip_s: Seconds from a submit until a few of its bytes have been read back.
    """

    read_bandwidth: float
    copy_bandwidth: float
    int8_rate: float
    dispatch_s: float
    encode_s: float
    round_trip_s: float


def measure(device: Device) -> GpuLimits:
    """Measure a device, after a warm-up.

    Raises:
        DeviceError: It failed, or has no room for 512 MiB or its largest binding, twice.
    """
    reader = Reader(device)
    try:
        with _buffers(device) as buffer:
            return GpuLimits(
                read_bandwidth=reader.rate(),
                copy_bandwidth=_copy_bandwidth(device, reader, buffer),
                int8_rate=_int8_rate(device, buffer),
                **_costs(device, buffer),
            )
    finally:
        reader.close()


def int8_rate(device: Device) -> float:
    """Products of two 8-bit integers a second that a device adds up.

    Raises:
        DeviceError: It failed.
    """
    with _buffers(device) as buffer:
        return _int8_rate(device, buffer)


@contextmanager
def _buffers(device: Device) -> Iterator[Callable[[int], Buffer]]:
    """Makes buffers of so many bytes, and gives them back at the end."""
    made: list[Buffer] = []

    def buffer(nbytes: int) -> Buffer:
        made.append(Buffer(device.buffer(nbytes, "limits")))
        return made[-1]

    try:
        yield buffer
    finally:
        for each in made:
            device.free(each.handle)


def _copy_bandwidth(device: Device, reader: Reader, buffer: Callable[[int], Buffer]) -> float:
    return 2 * reader.nbytes * _rate(device, reader.copying(buffer(reader.nbytes)))


def _int8_rate(device: Device, buffer: Callable[[int], Buffer]) -> float:
    seeds = buffer(1024)
    device.write(seeds.handle, 0, np.random.default_rng(1).integers(1, 1 << 32, 256, np.uint32))
    buffers = {"seeds": seeds, "sums": buffer(PEAK_GROUPS * 1024)}
    program = kernel_program(device, "peak", {"SUMS": PEAK_SUMS, "ROUNDS": PEAK_ROUNDS}, buffers, PEAK_GROUPS)
    return PEAK_GROUPS * 256 * PEAK_SUMS * PEAK_ROUNDS * 4 * _rate(device, program)


def _costs(device: Device, buffer: Callable[[int], Buffer]) -> dict[str, float]:
    """What a dispatch costs on the device and on the host, and what waiting for a result costs."""
    number, recorder = buffer(16), Recorder(device)
    program = kernel_program(device, "count", {}, {"number": number}, 1)
    commands = program.commands(_EXTENT) * CHAIN
    device.wait(recorder.submit(commands))
    encoding = []
    for _ in range(TRIPS):
        began = time.perf_counter()
        submission = recorder.submit(commands)
        encoding.append(time.perf_counter() - began)
        device.wait(submission)
    staging, trips = Staging(device, 16), []
    for _ in range(TRIPS):
        began = time.perf_counter()
        staging.request(recorder.submit(commands[:1], [(number.handle, 0, staging.buffer, 0, 16)]))
        staging.take(16)
        trips.append(time.perf_counter() - began)
    return {
        "dispatch_s": 1 / _rate(device, program, CHAIN) / CHAIN,
        "encode_s": median(encoding) / CHAIN,
        "round_trip_s": median(trips),
    }


def _rate(device: Device, program: BoundProgram, repeats: int = 1) -> float:
    """Submits a second of so many runs of a program, the host always ahead of the device."""
    recorder, commands, times = Recorder(device), program.commands(_EXTENT) * repeats, 1
    while True:
        began = time.perf_counter()
        device.wait([recorder.submit(commands) for _ in range(times)][-1])
        spent = time.perf_counter() - began
        if spent >= SECONDS:
            return times / spent
        times = max(times + 1, min(8 * times, int(1.5 * times * SECONDS / spent)))


def measure_apart(*, timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """Name, driver and limits of each real GPU; those that could not be measured have an `error` instead of `limits`.

    Empty where there is none, or the process did not answer.
    """
    command = [sys.executable, "-m", "halfbyte.gpu.checks.limits"]
    try:
        asked = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
        found: list[dict[str, Any]] = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
    return found


def _measure_all() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for index, adapter in enumerate(enumerate_adapters()):
        if adapter.software:
            continue
        about = {"name": adapter.name, "driver": adapter.driver}
        try:
            device = open_device(index)
            found.append(about | {"limits": asdict(measure(device))})
            device.close()
        except Exception as error:
            found.append(about | {"error": str(error)})
    return found


if __name__ == "__main__":
    print(json.dumps(_measure_all()))
