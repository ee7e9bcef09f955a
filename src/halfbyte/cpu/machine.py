"""What this machine offers the CPU executor: instruction sets, cores that may be used, memory and its speed."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from halfbyte.cpu import _native

_LEAST_MOST_THREADS = 32
_BANDWIDTH_NBYTES = 256 << 20
_BANDWIDTH_SECONDS = 0.25
_RATE_SECONDS = 0.1
_CGROUPS = Path("/sys/fs/cgroup")


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
        cores=usable_cores(),
        quota=cpu_quota(),
        threads=default_threads(),
        memory_bytes=total_memory(),
        memory_available_bytes=available_memory(),
    )


def default_threads() -> int:
    """One thread a physical core that this process may use, no more than its container lends (rounded up)."""
    quota = cpu_quota()
    lent = usable_cores() if quota is None else math.ceil(quota)
    return max(1, min(usable_cores(), lent))


def processors() -> int:
    """Threads that can run at the same moment: the processors that this process may use and its container lends."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
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


def usable_cores() -> int:
    """Physical cores among the processors that this process may run on; processors, where cores are not known."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    """The processors that share a core with this one, as Linux lists them."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def cpu_quota(root: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processors' worth of time that the control groups of this process lend; None where there is no limit."""
    return min(_quotas(root, membership), default=None)


def _quotas(root: Path, membership: Path) -> Iterator[float]:
    for folder in _group_folders(root, membership, "cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            quota, period, *_ = [*" ".join(_read(folder / name) for name in names).split(), "", ""]
            if quota.isdigit() and period.isdigit() and int(period) > 0:
                yield int(quota) / int(period)


def _group_folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups, of both versions, that this process is in, from its own up to the root.

    Inside a container the path may not exist under the root that is mounted there; the root itself then counts.
    """
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        relative = Path(path.lstrip("/"))
        yield from (base / folder for folder in (relative, *relative.parents))


def total_memory() -> int:
    """Bytes of memory that this process could use: the machine's, or what its container lends."""
    physical = _meminfo().get("MemTotal", 0) or _sysconf("SC_PHYS_PAGES")
    return min([physical, *_memory_limits("memory.max", "memory.limit_in_bytes")])


def available_memory() -> int:
    """Bytes of memory that are free to use now, within what the container lends."""
    free = _meminfo().get("MemAvailable", 0) or _sysconf("SC_AVPHYS_PAGES") or total_memory() // 2
    limits = _memory_limits("memory.max", "memory.limit_in_bytes")
    used = _memory_limits("memory.current", "memory.usage_in_bytes")
    return max(0, min([free, *(limit - use for limit, use in zip(limits, used, strict=False))]))


def _memory_limits(*names: str) -> list[int]:
    folders = _group_folders(_CGROUPS, Path("/proc/self/cgroup"), "memory")
    found = (_read(folder / name).strip() for folder in folders for name in names)
    return [int(value) for value in found if value.isdigit()]


def _meminfo() -> dict[str, int]:
    """Linux's /proc/meminfo in bytes; empty elsewhere."""
    pairs = (line.split()[:2] for line in _read(Path("/proc/meminfo")).splitlines())
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes in pairs}


def _sysconf(pages: str) -> int:
    """A number of pages in bytes, as POSIX systems tell it; 0 where they do not."""
    names = getattr(os, "sysconf_names", {})
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages in names else 0


def _read(path: Path) -> str:
    """The text of a small file; empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
