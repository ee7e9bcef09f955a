"""`halfbyte doctor`: what this machine has, how fast it could be, and what Halfbyte will use."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.output import print_json, print_pairs
from halfbyte.units import quantity, size

if TYPE_CHECKING:
    from halfbyte.cpu.machine import Machine

PACKAGES = ("numpy", "safetensors", "tokenizers", "jinja2", "huggingface-hub", "typer", "rich", "wgpu")
FEATURES = ("shader-f16", "subgroup", "subgroup-barrier", "timestamp-query", "timestamp-query-inside-passes")
"""Features of a GPU that Halfbyte makes use of."""

Measure = Annotated[bool, typer.Option("--measure", help="Measure the limits again, even if they are known.")]


def doctor(measure: Measure = False, json: opt.Json = False) -> None:
    """Show what this machine has, how fast it is, and what is used."""
    findings = examine(measure=measure)
    if json:
        print_json(findings, indent=2)
    else:
        print_pairs(list(_lines(findings)))


def examine(*, measure: bool = False) -> dict[str, Any]:
    """All findings: sizes in bytes, rates per second, times in seconds.

    Args:
        measure: Whether to measure limits that are known already.
    """
    from halfbyte._version import __version__
    from halfbyte.cpu import machine
    from halfbyte.gpu.device.adapters import find_adapters, self_test
    from halfbyte.options import RunOptions
    from halfbyte.placement import choose_device
    from halfbyte.report.limits import cpu_limits, gpu_limits

    cpu = machine.describe()
    adapters = find_adapters()
    tested = [None if adapter.software else asdict(self_test(i)) for i, adapter in enumerate(adapters.found)]
    gpu = asdict(adapters)
    gpu["found"] = [found | {"self_test": result} for found, result in zip(gpu["found"], tested, strict=True)]
    name, why = choose_device(RunOptions())
    if name == "gpu" and tested[0] and tested[0]["reason"]:
        name, why = "cpu", f"{why}, but {tested[0]['reason']}"
    return {
        "halfbyte": __version__,
        "system": platform.platform(),
        "processor": {
            "name": cpu.brand,
            "instruction_sets": list(cpu.instruction_sets),
            "kernels": list(cpu.kernels),
            "used": cpu.isa,
            "cores": cpu.cores,
            "threads": cpu.threads,
            "limits": thread_limits(cpu.quota),
        },
        "memory": {
            "bytes": cpu.memory_bytes,
            "available_bytes": cpu.memory_available_bytes,
        },
        "limits": {
            "cpu": asdict(cpu_limits(again=measure)),
            "gpus": gpu_limits([asdict(adapter) for adapter in adapters.found], again=measure),
        },
        "gpu": gpu,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "device": {"name": name, "why": f"{why.rstrip('.')}{_cpu(cpu) if name == 'cpu' else ''}."},
    }


def thread_limits(quota: float | None) -> dict[str, float]:
    """The limits on threads that run at once: processors, this process's affinity, its container's quota."""
    limits: dict[str, float] = {"logical_processors": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        limits["affinity"] = len(os.sched_getaffinity(0))
    return limits if quota is None else limits | {"container_quota": quota}


def installed_version(name: str) -> str:
    """The version of an installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu(cpu: Machine) -> str:
    return f"; the CPU's {cpu.isa} code runs with {cpu.threads} thread{'s' * (cpu.threads != 1)}"


def _lines(findings: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, memory, gpu = findings["processor"], findings["memory"], findings["gpu"]
    limits = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in cpu["limits"].items())
    packages = ", ".join(f"{name} {number}" for name, number in findings["packages"].items())
    return [
        ("halfbyte", findings["halfbyte"]),
        ("system", findings["system"]),
        ("processor", cpu["name"]),
        (
            "instructions",
            f"{' '.join(cpu['instruction_sets'])} (kernels: {' '.join(cpu['kernels'])}; used: {cpu['used']})",
        ),
        ("threads", f"{cpu['threads']} used on {cpu['cores']} cores ({limits})"),
        ("memory", f"{size(memory['bytes'])}, {size(memory['available_bytes'])} available"),
        *(("limits", line) for line in _cpu_limits(findings["limits"]["cpu"])),
        *(line for number, adapter in enumerate(gpu["found"]) for line in _adapter_lines(number, adapter)),
        *(("limits", line) for found in findings["limits"]["gpus"] for line in _gpu_limits(found)),
        *([] if gpu["found"] else [("gpu", f"none: {gpu['reason']}")]),
        ("python", f"{findings['python']} ({sys.executable})"),
        ("packages", packages),
        ("device", f"{findings['device']['name']}: {findings['device']['why']}"),
    ]


def _adapter_lines(number: int, adapter: dict[str, Any]) -> list[tuple[str, str]]:
    limits = adapter["limits"]
    buffer, binding = (limits.get(name) for name in ("max-buffer-size", "max-storage-buffer-binding-size"))
    room = f"; buffers up to {size(buffer)}, bindings up to {size(binding)}" if buffer and binding else ""
    label = f"gpu {number}"
    return [
        (label, f"{adapter['name']} ({adapter['type']}, {adapter['backend']}, {adapter['driver']}){room}"),
        (label, f"features: {_features(adapter['features'])}"),
        (label, _tested(number, adapter["self_test"])),
    ]


def _features(found: Sequence[str]) -> str:
    """Those that Halfbyte can use, and how many there are."""
    used = [name for name in FEATURES if name in found]
    return f"{', '.join(used) or 'none that are used'} (--json lists all {len(found)})"


def _tested(number: int, found: dict[str, Any] | None) -> str:
    if found is None:
        return f"a software GPU: only used with --gpu {number}"
    if found["reason"]:
        return f"not used: {found['reason']}"
    off = f"switched off: {', '.join(found['off'])}" if found["off"] else "all kernel variants are correct"
    return f"self-test: {off} (took {found['seconds']:.2f} s, once for this driver)"


def _cpu_limits(found: dict[str, Any]) -> list[str]:
    """The processor's limits, for one thread and for all."""
    kinds = (("reads", "read_bandwidth", "B/s"), ("copies", "copy_bandwidth", "B/s"), ("multiplies", "int8_rate", "/s"))
    rates = [
        f"{verb} {quantity(found[name], unit)} ({quantity(found[f'all_{name}'], unit)})" for verb, name, unit in kinds
    ]
    count = found["threads"]
    return [
        f"CPU, one thread ({count} thread{'s' * (count != 1)}): {', '.join(rates[:2])}, {rates[2]} 8-bit products",
        f"measured {_when(found['measured'])}; --measure repeats it",
    ]


def _gpu_limits(found: dict[str, Any]) -> list[str]:
    """A GPU's limits, or why they are not known."""
    if "error" in found:
        return [f"{found['name']}: not measured: {found['error']}"]
    limits = found["limits"]
    return [
        f"{found['name']}: reads {quantity(limits['read_bandwidth'], 'B/s')}, "
        f"copies {quantity(limits['copy_bandwidth'], 'B/s')}, "
        f"multiplies {quantity(limits['int8_rate'], '/s')} 8-bit products",
        f"a dispatch takes {limits['dispatch_s'] * 1e6:.2f} µs, recording it {limits['encode_s'] * 1e6:.2f} µs, "
        f"a round trip to the GPU {limits['round_trip_s'] * 1e6:.0f} µs; measured {_when(found['measured'])}",
    ]


def _when(iso: str) -> str:
    """The day and the minute."""
    return iso[:16].replace("T", " ") + " UTC"
