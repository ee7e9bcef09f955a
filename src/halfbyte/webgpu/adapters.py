"""Which GPU adapters this machine has, with their features and limits as wgpu sees them.

A faulty driver can crash or hang the process that asks it. So a process of its own asks, `python -m
halfbyte.webgpu.adapters`, which prints JSON; whatever becomes of it, the caller gets a list or a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

NO_ADAPTER = "wgpu finds no adapter: there is no GPU, or no Vulkan, Metal or D3D12 driver for it."


@dataclass(frozen=True)
class Adapter:
    """One way to reach one GPU.

    Attributes:
        name: The device, as the driver calls it.
        type: `DiscreteGPU`, `IntegratedGPU`, `CPU` (a GPU in software) or `Unknown`.
        backend: `Vulkan`, `Metal`, `D3D12` or `OpenGL`.
        driver: The driver's own description.
        features: What a device may be asked for, by WebGPU's names.
        limits: WebGPU's limits by name.
    """

    name: str
    type: str
    backend: str
    driver: str
    features: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapters:
    """What was found; when nothing was, `reason` is a sentence that says why."""

    found: tuple[Adapter, ...]
    reason: str = ""


def find_adapters(*, timeout_s: float = 30.0) -> Adapters:
    """All adapters of this machine; never raises because of wgpu or a driver."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        asked = subprocess.run(
            [sys.executable, "-m", __name__], env=environment, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Adapters((), f"the GPU driver did not answer within {timeout_s:g} s.")
    except OSError as error:
        return Adapters((), f"the GPU driver could not be asked: {error.strerror}.")
    if asked.returncode:
        return Adapters((), _failure(asked.returncode, asked.stderr.decode(errors="replace")))
    try:
        described = json.loads(asked.stdout)
    except ValueError:
        return Adapters((), "wgpu does not work here: it printed no list of adapters.")
    found = tuple(Adapter(**{**a, "features": tuple(a["features"])}) for a in described)
    return Adapters(found, "" if found else NO_ADAPTER)


def _failure(code: int, stderr: str) -> str:
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    if code < 0:
        return f"the GPU driver crashed (signal {-code}). {last}".rstrip()
    return f"wgpu does not work here: {last or f'exit code {code}'}"


def _ask_wgpu() -> list[Adapter]:
    import wgpu

    return [_described(adapter) for adapter in wgpu.gpu.enumerate_adapters_sync()]


def _described(adapter: Any) -> Adapter:
    info = adapter.info
    return Adapter(
        name=info["device"],
        type=info["adapter_type"],
        backend=info["backend_type"],
        driver=info["description"],
        features=tuple(sorted(adapter.features)),
        limits={name: int(value) for name, value in sorted(adapter.limits.items())},
    )


if __name__ == "__main__":
    print(json.dumps([asdict(adapter) for adapter in _ask_wgpu()]))
