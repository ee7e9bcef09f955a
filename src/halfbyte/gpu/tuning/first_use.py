"""The short version of tuning, the first time that a model meets a GPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from halfbyte.errors import HalfbyteError
from halfbyte.formats import Format
from halfbyte.gpu.device.device import Device, open_device
from halfbyte.gpu.tuning.store import Verdict, load_choices, model_key
from halfbyte.gpu.tuning.tune import SHORT_BUDGET_S, tune
from halfbyte.models.spec import ModelSpec

LEAST_NBYTES = 64_000_000
"""Weights of a model that is worth the wait: a smaller one answers before tuning would be done."""


def tune_first(
    device: Device,
    spec: ModelSpec,
    formats: Callable[[str], Format],
    *,
    tokens: int,
    kv_dtype: str,
    activations: str,
    gpu: int | None = None,
) -> str:
    """Tune a model's largest products and attention unless that was done before, in less than five seconds.

    A GPU in software is not tuned unless the user asks for it, nor is any GPU for a model of less than 64 MB.

    Args:
        device: The GPU that the model will run on.
        gpu: Its number, if not the first real one: what is timed gets a device of its own, whose memory goes with it.

    Returns:
        What was done, in a sentence; empty if there was nothing to do.
    """
    nbytes = sum(formats(name).nbytes(shape) for name, shape in spec.shapes.items())
    if device.adapter.software or nbytes < LEAST_NBYTES:
        return ""
    known = load_choices(device).verdicts
    if model_key(spec, formats, kv_dtype, activations) in known:
        return ""
    began = time.perf_counter()
    try:
        own = open_device(gpu)
        try:
            options: dict[str, Any] = {"tokens": tokens, "kv_dtype": kv_dtype, "activations": activations}
            found = list(tune(own, spec, formats, **options, budget_s=SHORT_BUDGET_S, short=True))
        finally:
            own.close()
    except HalfbyteError as problem:
        _log.warning("The kernels keep their usual sizes: %s", problem)
        return ""
    gains = [1 - v.after_s / v.before_s for v in found if isinstance(v, Verdict) and v.kept]
    faster = f"{max(gains):.0%} faster" if gains else "the usual sizes are the fastest"
    return f"Tuned for {device.name} in {time.perf_counter() - began:.1f} s, once: {faster}. More: halfbyte tune."


_log = logging.getLogger(__name__)
