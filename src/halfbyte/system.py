"""What the operating system lends this process: processors and memory, within what its container allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_parts = 1


def divide_memory(parts: int) -> None:
    """Let this process count on one of so many equal parts of the memory that is free: others want the same."""
    global _parts
    _parts = parts


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
    """Bytes of memory that are free to use now, within what the container lends and others are to have."""
    free = _meminfo().get("MemAvailable", 0) or _sysconf("SC_AVPHYS_PAGES") or total_memory() // 2
    limits = _memory_limits("memory.max", "memory.limit_in_bytes")
    used = _memory_limits("memory.current", "memory.usage_in_bytes")
    return max(0, min([free, *(limit - use for limit, use in zip(limits, used, strict=False))])) // _parts


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
