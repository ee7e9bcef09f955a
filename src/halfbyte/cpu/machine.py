"""What this machine offers the CPU executor: instruction sets, cores that may be used, memory and its speed."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass

from halfbyte import system
from halfbyte.cpu import _native

_LEAST_MOST_THREADS = 32
_BANDWIDTH_NBYTES = 256 << 20
_BANDWIDTH_SECONDS = 0.25
_RATE_SECONDS = 0.1


@dataclass(frozen=True)
class Machine:
    """A machine as the CPU executor sees it.

    Attributes:
        brand: The processor's name.
        instruction_sets: Vector instructions that it has.
        kernels: Instruction sets that Halfbyte has kernels for here, the best one last.
        isa: The one that is used.
        cores: Physical cores among those this process may run on.
        quota: Processors' worth of time that a container lends, if it limits that.
        threads: What the executor uses unless told otherwise.
    """

    brand: str
    instruction_sets: tuple[str, ...]
    kernels: tuple[str, ...]
    isa: str
    cores: int
    quota: float | None
    threads: int
    memory_bytes: int
    memory_available_bytes: int


def describe() -> Machine:
    """Look at this machine; takes milliseconds."""
    kernels = tuple(_native.isas())
    return Machine(
        brand=_native.processor_name() or platform.processor() or platform.machine(),
        instruction_sets=tuple(_native.processor_features()),
        kernels=kernels,
        isa=kernels[-1],
        cores=system.usable_cores(),
        quota=system.cpu_quota(),
        threads=default_threads(),
        memory_bytes=system.total_memory(),
        memory_available_bytes=system.available_memory(),
    )


def default_threads() -> int:
    """One thread per physical core that this process may use, no more than its container lends (rounded up).

    `OMP_NUM_THREADS` may say another number, as it does to other numerical libraries.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wanted.isdecimal() and int(wanted) > 0:
        return min(int(wanted), processors())
    quota = system.cpu_quota()
    lent = system.usable_cores() if quota is None else math.ceil(quota)
    return max(1, min(system.usable_cores(), lent))


def processors() -> int:
    """Threads that can run at the same moment: the processors that this process may use and its container lends."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = system.cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def most_threads() -> int:
    """The most threads that it makes sense to ask for; more than processors only ever wait for each other."""
    return max(_LEAST_MOST_THREADS, 2 * (os.cpu_count() or 1))


def read_bandwidth(threads: int) -> float:
    """Bytes a second that this many threads read together, measured now over 256 MiB."""
    return _native.read_bandwidth(threads, _BANDWIDTH_NBYTES, _BANDWIDTH_SECONDS)


def copy_bandwidth(threads: int) -> float:
    """Bytes a second, read and written, that this many threads copy together, measured now over 128 MiB."""
    return _native.copy_bandwidth(threads, _BANDWIDTH_NBYTES // 2, _BANDWIDTH_SECONDS)


def int8_rate(threads: int, isa: str = "") -> float:
    """Products of two 8-bit integers a second that so many threads add up; the best instruction set's if none is named.

    Raises:
        ValueError: The processor has no such instruction set.
    """
    return _native.int8_rate(threads, isa, _RATE_SECONDS)
