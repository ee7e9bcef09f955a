"""Ways to run one model that are worth seeing side by side: weight formats, activations, and kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from halfbyte.errors import UsageError
from halfbyte.executors import factory
from halfbyte.report.subject import Settings

FORMATS = ("q4g32", "q4g64", "q4g128", "q8g32", "f16")
ACTIVATIONS = ("int8", "f32")
AXES = ("formats", "activations", "kernels")
ALL_KERNELS = "all kernels"
"""What a variant is called in which no kernels are named."""


def variants(axes: Sequence[str], settings: Settings) -> list[Settings]:
    """Settings for every combination of the axes, each with its `variant` in words.

    Args:
        axes: Of `formats`, `activations` and `kernels` (a processor's instruction sets; of a GPU, all kernels and then
            all but one kind).

    Raises:
        UsageError: An axis has another name, the device has none of it, or the settings fix it.
    """
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not a kind of variant.", f"Choose from {', '.join(AXES)}.")
    for axis, field in (("formats", "weights"), ("activations", "activations")):
        if axis in axes and getattr(settings.run, field) is not None:
            raise UsageError(f"--{field} has no effect with --variants {axis}.", f"Leave out --{field} or that kind.")
    kernels = factory(settings.run.device).kernels(settings.run)
    made = [[_with(axis, value) for value in _values(axis, kernels)] for axis in dict.fromkeys(axes)]
    combined = []
    for changes in itertools.product(*made):
        varied = settings
        for change in changes:
            varied = change(varied)
        combined.append(varied)
    return combined


def _values(axis: str, kernels: Sequence[str | None]) -> Sequence[str | None]:
    return {"formats": FORMATS, "activations": ACTIVATIONS, "kernels": kernels}[axis]


def _with(axis: str, value: str | None) -> Callable[[Settings], Settings]:
    field = {"formats": "weights", "activations": "activations", "kernels": "kernels"}[axis]
    changed: dict[str, Any] = {field: value}
    return lambda s: replace(s, variant=f"{s.variant} {value or ALL_KERNELS}".strip(), run=replace(s.run, **changed))
