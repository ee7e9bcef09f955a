"""What Ray lends to a process: a GPU, or a part of the processors and the memory."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import ray

from halfbyte import system
from halfbyte.errors import UsageError
from halfbyte.options import AUTO, RunOptions
from halfbyte.placement import part


def as_lent(run: RunOptions) -> RunOptions:
    """Options of a process that Ray started: on the GPU that Ray gave it, or with as many threads as it has CPUs.

    On the CPU the process counts on its part of the machine's memory, too.

    Raises:
        UsageError: Ray does not number its GPUs, or counts more than there are.
    """
    context: Any = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    if gpus and not gpus[0].isdigit():
        raise UsageError(f"Ray calls the GPU {gpus[0]!r}.", "Start Ray without CUDA_VISIBLE_DEVICES, or with numbers.")
    if gpus:
        number = int(gpus[0])
        return part(replace(run, device="gpu"), number, number + 1)
    run = replace(run, device="cpu") if run.device == AUTO else run
    cpus = math.ceil(context.get_assigned_resources().get("CPU", 0))
    if run.device == "cpu" and cpus:
        system.divide_memory(max(1, (os.cpu_count() or 1) // cpus))
        return replace(run, threads=run.threads or cpus)
    return run
