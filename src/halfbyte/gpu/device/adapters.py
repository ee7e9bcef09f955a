"""Which GPU adapters this machine has, with their features and limits as wgpu sees them; and whether one is real.

A faulty driver can crash or hang the process that asks it. So a process of its own asks, `python -m
halfbyte.gpu.checks.apart`, which prints JSON; whatever becomes of it, the caller gets a list or a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from halfbyte import user_cache

SCHEMA = 2
APART = "halfbyte.gpu.checks.apart"
"""The module that is run in a process of its own."""
NO_ADAPTER = "wgpu finds no adapter: there is no GPU, or no Vulkan, Metal or D3D12 driver for it."
REMEMBERED_S = 86_400
"""How long it is remembered that there is no GPU: a day, where a new driver leaves no trace that is quick to see."""

_RANK = {"DiscreteGPU": 0, "IntegratedGPU": 1, "CPU": 3}
_NODES = ("dri/renderD*", "nvidia[0-9]*", "dxg", "kgsl-3d0", "mali*")
"""Device files of GPUs under /dev, on Linux."""
_DRIVER_LISTS = ("/etc/vulkan/icd.d", "/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")


@dataclass(frozen=True)
class Adapter:
    """One way to reach one GPU.

    Attributes:
        name: The device, as the driver calls it.
        type: `DiscreteGPU`, `IntegratedGPU`, `CPU` (a GPU in software) or `Unknown`.
        backend: `Vulkan`, `Metal` or `D3D12`.
        driver: The driver's own description.
        features: What a device may be asked for, by WebGPU's names.
        limits: WebGPU's limits by name.
        vendor, device: PCI ids; 0 where the driver gives none.
        handle: wgpu's adapter, in the process that found it.
    """

    name: str
    type: str
    backend: str
    driver: str
    features: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    vendor: int = 0
    device: int = 0
    handle: Any = field(default=None, repr=False, compare=False)

    @property
    def software(self) -> bool:
        """Whether it is a GPU in software."""
        return self.type == "CPU"


def counted(adapters: Iterable[Adapter]) -> list[Adapter]:
    """Adapters in the order of `--gpu N`: discrete first, software last, and OpenGL's, which lack much, left out."""
    usable = [adapter for adapter in adapters if adapter.backend != "OpenGL"]
    return sorted(usable, key=lambda adapter: _RANK.get(adapter.type, 2))


def ask_drivers() -> list[Adapter]:
    """Every usable adapter, in the order of `--gpu N`; asks the drivers in this process."""
    import wgpu

    return counted(map(_described, wgpu.gpu.enumerate_adapters_sync()))


def _described(handle: Any) -> Adapter:
    """What wgpu's adapter tells about itself."""
    info = handle.info
    return Adapter(
        name=info["device"],
        type=info["adapter_type"],
        backend=info["backend_type"],
        driver=info["description"],
        features=tuple(sorted(handle.features)),
        limits={name: int(value) for name, value in sorted(handle.limits.items())},
        vendor=info.get("vendor_id", 0),
        device=info.get("device_id", 0),
        handle=handle,
    )


@dataclass(frozen=True)
class Adapters:
    """What was found, in the order of `--gpu N`; when nothing was, `reason` is a sentence that says why."""

    found: tuple[Adapter, ...]
    reason: str = ""


@dataclass(frozen=True)
class SelfTest:
    """Whether an adapter computes what kernels say.

    Attributes:
        off: Kernel variants that are wrong there and stay off.
        seconds: What the test took when it ran.
        reason: Why the adapter cannot be used; empty if it can.
    """

    off: tuple[str, ...] = ()
    seconds: float = 0.0
    reason: str = ""


def find_adapters(*, timeout_s: float = 30.0) -> Adapters:
    """All adapters of this machine; never raises because of wgpu or a driver."""
    described = _ask((), timeout_s)
    if isinstance(described, str):
        return Adapters((), described)
    found = tuple(_adapter(values) for values in described)
    return Adapters(found, "" if found else NO_ADAPTER)


def self_test(gpu: int, *, timeout_s: float = 120.0) -> SelfTest:
    """What the self-test finds, or found, on adapter `gpu`; never raises because of wgpu or a driver."""
    found = _ask((str(gpu),), timeout_s)
    if isinstance(found, str):
        return SelfTest(reason=found)
    off, seconds, reason = found
    return SelfTest(tuple(off), seconds, reason)


def best_gpu() -> tuple[Adapter | None, str]:
    """The first real GPU, or None and a sentence that says why there is none; in milliseconds after the first time."""
    known = _known_adapters()
    for adapter in known.found:
        if not adapter.software:
            return adapter, ""
    if known.found:
        return None, f"only a software GPU was found ({known.found[0].name})."
    return None, known.reason


def real_gpus() -> tuple[list[int], str]:
    """The real GPUs by their numbers, each once, as the best one is reached; or why there is none, as `best_gpu`."""
    best, reason = best_gpu()
    if best is None:
        return [], reason
    found = enumerate(_known_adapters().found)
    return [number for number, each in found if not each.software and each.backend == best.backend], ""


def _known_adapters() -> Adapters:
    """The adapters of this machine as they were found, now or before."""
    if find_spec("wgpu") is None:
        return Adapters((), "wgpu is not installed.")
    nodes = sorted(_nodes())
    if sys.platform == "linux" and not nodes:
        return Adapters((), "there is no GPU: /dev has no device of one.")
    file, mark = user_cache.folder() / "gpu-adapters.json", _mark(nodes)
    known = _remembered(user_cache.load(file, SCHEMA), mark)
    if known is None:
        known = find_adapters()
        user_cache.store_if_possible(file, SCHEMA, {"mark": mark, "time": time.time(), **asdict(known)})
    return known


def _nodes() -> Iterator[str]:
    for pattern in _NODES:
        yield from map(str, Path("/dev").glob(pattern))


def _mark(nodes: list[str]) -> str:
    """Changes with wgpu, the system, the drivers that are listed, and the devices."""
    spec, listed = find_spec("wgpu"), []
    chosen = [os.environ.get(name, "") for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "WGPU_BACKEND_TYPE")]
    for place in (spec.origin if spec else "", "/proc/version", *_DRIVER_LISTS):
        try:
            listed.append(f"{place} {os.stat(place or '').st_mtime_ns if place != '/proc/version' else _text(place)}")
        except OSError:
            continue
    return " | ".join([sys.platform, *chosen, *nodes, *listed])


def _text(place: str) -> str:
    return Path(place).read_text(encoding="utf-8").strip()


def _remembered(known: dict[str, Any], mark: str) -> Adapters | None:
    """What was found the last time, if nothing that can be seen has changed since."""
    try:
        adapters = Adapters(tuple(_adapter(values) for values in known["found"]), str(known["reason"]))
        current = known["mark"] == mark and (adapters.found or time.time() - known["time"] < REMEMBERED_S)
    except (KeyError, TypeError):
        return None
    return adapters if current else None


def _adapter(values: dict[str, Any]) -> Adapter:
    return Adapter(**{**values, "features": tuple(values["features"])})


def _ask(arguments: tuple[str, ...], timeout_s: float) -> Any:
    """What `APART` prints when it is run with arguments; a sentence where that went wrong."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        asked = subprocess.run(
            [sys.executable, "-m", APART, *arguments], env=environment, capture_output=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the GPU driver did not answer within {timeout_s:g} s."
    except OSError as error:
        return f"the GPU driver could not be asked: {error.strerror}."
    if asked.returncode:
        return _failure(asked.returncode, asked.stderr.decode(errors="replace"))
    try:
        return json.loads(asked.stdout)
    except ValueError:
        return "wgpu does not work here: it printed no list of adapters."


def _failure(code: int, stderr: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    if code < 0:
        return f"the GPU driver crashed (signal {-code}). {last}".rstrip()
    return f"wgpu does not work here: {last or f'exit code {code}'}"
