"""What is written beside every measurement about the machine, and the memory this process has taken."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_PACKAGES = ("numpy", "wgpu")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system, for the record."""
    from halfbyte.cpu.machine import describe

    found = describe()
    return {
        "processor": found.brand, "instruction_set": found.isa, "cores": found.cores,
        "memory_bytes": found.memory_bytes, "system": _system(),
    }  # fmt: skip


def _system() -> str:
    """The kernel's name and number, without what its builder added."""
    return f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}"


def versions() -> dict[str, str]:
    """Versions of Halfbyte, Python and the packages that matter to speed."""
    from importlib.metadata import PackageNotFoundError, version

    from halfbyte._version import __version__

    found = {"halfbyte": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def forget_peak() -> None:
    """Begin a new peak of resident memory, where the system can: without, a peak is that of the whole process."""
    with suppress(OSError):
        _CLEAR.write_text("5")


def peak_resident_bytes() -> int | None:
    """The most memory this process had resident since the peak was forgotten; None where the system does not tell.

    Not getrusage: what that says cannot begin anew, and survives exec.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
