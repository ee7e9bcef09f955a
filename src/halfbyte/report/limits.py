"""Upper limits of the processor and the GPUs of this machine: measured once, then remembered with the date.

A processor's entry is found by its name, cores, instruction set and threads, a GPU's by its name and driver.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from halfbyte import user_cache

SCHEMA = 1


@dataclass(frozen=True)
class CpuLimits:
    """Upper limits of a processor, with one thread and with all that would be used.

    Attributes:
        read_bandwidth: Bytes read per second with one thread; `all_read_bandwidth` with all.
        copy_bandwidth: Bytes per second of a copy, reads and writes added.
        int8_rate: Products of two 8-bit integers per second, each added to a sum.
        threads: The number of all threads.
        measured: When, in ISO 8601, UTC.
    """

    read_bandwidth: float
    all_read_bandwidth: float
    copy_bandwidth: float
    all_copy_bandwidth: float
    int8_rate: float
    all_int8_rate: float
    threads: int
    measured: str


def limits_file() -> Path:
    """Where limits are kept."""
    return user_cache.folder() / "limits.json"


def cpu_limits(*, again: bool = False, path: Path | None = None) -> CpuLimits:
    """The processor's limits; measuring them takes about two seconds.

    Args:
        again: Measure even if they are known.
        path: Where they are kept, if not in the user's cache.
    """
    from halfbyte.cpu import machine

    path, about = path or limits_file(), machine.describe()
    key = f"{about.brand} | {about.cores} cores | {about.isa} | {about.threads} threads"
    known = user_cache.load(path, SCHEMA)
    if not again:
        try:
            return CpuLimits(**known[key])
        except (KeyError, TypeError):
            pass
    measured = {
        f"{prefix}{name}": find(threads)
        for name, find in (
            ("read_bandwidth", machine.read_bandwidth),
            ("copy_bandwidth", machine.copy_bandwidth),
            ("int8_rate", machine.int8_rate),
        )
        for prefix, threads in (("", 1), ("all_", about.threads))
    }
    limits = CpuLimits(threads=about.threads, measured=_now(), **measured)
    user_cache.store_if_possible(path, SCHEMA, {**known, key: asdict(limits)})
    return limits


def gpu_limits(
    adapters: list[dict[str, Any]], *, again: bool = False, path: Path | None = None
) -> list[dict[str, Any]]:
    """Of each real GPU among adapters: `name`, `driver`, `measured` (when), and `limits` or `error`.

    Measuring takes about two seconds per GPU, in a separate process.
    """
    path = path or limits_file()
    known = user_cache.load(path, SCHEMA)
    real = [a for a in adapters if a["type"] != "CPU" and a["backend"] != "OpenGL"]
    if again or any(_gpu_key(adapter) not in known for adapter in real):
        from halfbyte.gpu.checks.limits import measure_apart

        found = {_gpu_key(each): {**each, "measured": _now()} for each in measure_apart()}
        known |= found
        right = {key: values for key, values in known.items() if "error" not in values}
        user_cache.store_if_possible(path, SCHEMA, right)
    return [known[key] for key in dict.fromkeys(map(_gpu_key, real)) if isinstance(known.get(key), dict)]


def known_read_bandwidth(name: str, driver: str, *, path: Path | None = None) -> float | None:
    """Bytes per second that a GPU reads; None if it was not measured."""
    match user_cache.load(path or limits_file(), SCHEMA).get(_gpu_key({"name": name, "driver": driver})):
        case {"limits": {"read_bandwidth": float(rate)}} if rate > 0:
            return rate
    return None


def _gpu_key(adapter: dict[str, Any]) -> str:
    return f"{adapter['name']} | {adapter['driver']}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="minutes")
