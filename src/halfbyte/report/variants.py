"""Ways to run one model that are worth seeing side by side: weight formats, activations, and kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from halfbyte.errors import UsageError
from halfbyte.report.subject import Settings

FORMATS = ("q4g32", "q4g64", "q4g128", "q8g32", "f16")
ACTIVATIONS = ("int8", "f32")
AXES = ("formats", "activations", "kernels")
WITHOUT = "no "
"""Before the name of a GPU's kernel variant: it is switched off."""


def variants(axes: Sequence[str], settings: Settings) -> list[Settings]:
    """Settings for every combination of the axes, each with its `variant` in words.

    Args:
        axes: Of `formats`, `activations` and `kernels` (a processor's instruction sets; of a GPU, all kernels and then
            all but one kind).

    Raises:
        UsageError: An axis has another name, or the device has none of it.
    """
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no kind of variant.", f"They are {', '.join(AXES)}.")
    if settings.device == "reference":
        raise UsageError("the reference has no variants.", "Choose device cpu or gpu.")
    made = [[_with(axis, value) for value in _values(axis, settings)] for axis in dict.fromkeys(axes)]
    combined = []
    for changes in itertools.product(*made):
        varied = settings
        for change in changes:
            varied = change(varied)
        combined.append(varied)
    return combined


def _values(axis: str, settings: Settings) -> Sequence[str]:
    if axis == "kernels":
        return _instruction_sets() if settings.device == "cpu" else _gpu_kernels(settings.gpu)
    return FORMATS if axis == "formats" else ACTIVATIONS


def _with(axis: str, value: str) -> Callable[[Settings], Settings]:
    field = {"formats": "weights", "activations": "activations", "kernels": "kernels"}[axis]
    changed: dict[str, Any] = {field: value}
    return lambda s: replace(s, variant=f"{s.variant} {value}".strip(), **changed)


def _instruction_sets() -> tuple[str, ...]:
    from halfbyte.cpu.machine import describe

    return describe().kernels


def _gpu_kernels(gpu: int | None) -> list[str]:
    from halfbyte.gpu.device.device import open_device
    from halfbyte.gpu.shaders.variants import VARIANTS

    device = open_device(gpu)
    offered = [name for name, variant in VARIANTS.items() if variant.offered(device.capabilities) and name != "int8"]
    device.close()
    return ["all kernels", *(WITHOUT + name for name in offered)]
