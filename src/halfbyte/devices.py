"""Where a model runs: choosing a device, a plan for what it has room for, and the executor that runs the plan there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from halfbyte.errors import UsageError
from halfbyte.formats import Format, WeightSource
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import Decoder, Executor, Plan, make_plan

if TYPE_CHECKING:
    from halfbyte.gpu.device.device import Device

DEVICES = ("auto", "cpu", "gpu", "reference")

BATCH_TOKENS = {"cpu": 256, "gpu": 1024, "reference": 256}
"""Most prompt tokens that are computed together."""

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, all): bytes of weights, then kernels."""


def choose_device(device: str, *, gpu: int | None = None, threads: int | None = None) -> tuple[str, str]:
    """The device that `device` means here, and why; `auto` takes the GPU where there is a real one.

    Args:
        gpu, threads: Options that only one device has, and which decide for it.

    Raises:
        UsageError: There is no device of this name, or an option does not go with it.
    """
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is unknown.", f"It is one of {', '.join(DEVICES)}.")
    if threads is not None and device not in ("auto", "cpu"):
        raise UsageError(f"threads do not go with device {device}.", "Leave them out, or choose device cpu.")
    if gpu is not None and device not in ("auto", "gpu"):
        raise UsageError(f"a GPU's number does not go with device {device}.", "Choose device gpu.")
    if gpu is not None and threads is not None:
        raise UsageError("a GPU's number does not go with threads.", "Give one of the two.")
    if device != "auto":
        return device, "it was asked for"
    if gpu is not None:
        return "gpu", f"GPU {gpu} was asked for"
    if threads is not None:
        return "cpu", "its threads were asked for"
    from halfbyte.gpu.device.adapters import best_gpu

    found, reason = best_gpu()
    return ("gpu", f"{found.name} was found") if found else ("cpu", reason)


def prepare(
    device: str,
    spec: ModelSpec,
    source: Any,
    *,
    context: int | None,
    sequences: int,
    rows: int,
    kv_dtype: str,
    threads: int | None,
    activations: str | None,
    gpu: int | None,
    kernels: str | None = None,
    tuned: bool = False,
    progress: Progress | None = None,
) -> tuple[Plan, Executor]:
    """A plan that fits the device, and its executor with the weights of `source`; options as for `load`.

    Args:
        kernels: An instruction set of the CPU's, or `no NAME`: all kernels of the GPU's but those of a kind.
        tuned: Whether the GPU is not to be tuned, the first time that it meets this model.

    Raises:
        UsageError: A number is out of range, or an option does not go with the device.
        DeviceError: There is no such device, or it is too small.
    """
    choose_device(device, gpu=gpu, threads=threads)
    if not 1 <= sequences <= 1024:
        raise UsageError(f"sequences is {sequences}.", "It is a number from 1 to 1024.")
    opened = None
    if device == "gpu":
        from halfbyte.gpu.device.device import open_device

        opened = open_device(gpu)
    try:

        def planned(tokens: int, context: int | None) -> Plan:
            return make_plan(
                spec, source.format, tokens=tokens, context=context, sequences=sequences, rows=rows, kv_dtype=kv_dtype
            )

        plan = _fitting(planned, BATCH_TOKENS[device], context, opened)
        if opened is None:
            return plan, _host_executor(device, plan, source, threads, activations, kernels)
        if not tuned:
            _tune_first(opened, spec, source.format, kv_dtype, activations or "int8", gpu)
        return plan, _gpu_executor(opened, plan, source, activations, kernels, progress)
    except BaseException:
        if opened is not None:
            opened.close()
        raise


def tune(
    spec: ModelSpec, formats: Callable[[str], Format], *, gpu: int | None, kv_dtype: str, activations: str | None
) -> None:
    """Tune a GPU for a model that it never met before, as `prepare` does, without loading the model."""
    from halfbyte.gpu.device.device import open_device

    opened = open_device(gpu)
    try:
        _tune_first(opened, spec, formats, kv_dtype, activations or "int8", gpu)
    finally:
        opened.close()


def _tune_first(
    gpu: Device, spec: ModelSpec, formats: Callable[[str], Format], kv_dtype: str, activations: str, number: int | None
) -> None:
    """Tune the kernels for a GPU the first time that it meets a model, and say how long that took."""
    from halfbyte.gpu.tuning.first_use import tune_first

    said = tune_first(
        gpu, spec, formats, tokens=BATCH_TOKENS["gpu"], kv_dtype=kv_dtype, activations=activations, gpu=number
    )
    if said:
        _log.warning("%s", said)


_log = logging.getLogger(__name__)


def _fitting(planned: Callable[[int, int | None], Plan], tokens: int, context: int | None, gpu: Device | None) -> Plan:
    """A plan for `context`, or for as much of the model's own as takes at most half of the memory that is left."""
    from halfbyte.cpu.machine import available_memory

    plan = planned(tokens, context)
    if gpu is None:
        room = available_memory() // 2

        def most(plan: Plan) -> int:
            cache = sum(tensor.nbytes for tensor in plan.of_kind("cache"))
            return plan.context if cache <= room else int(plan.context * room / cache)
    else:
        from halfbyte.gpu.run import budget

        free = budget.free_memory(gpu, available_memory())
        if (fitting := budget.batch_tokens(plan, gpu)) < tokens:
            tokens = fitting
            plan = planned(tokens, context)

        def most(plan: Plan) -> int:
            return budget.fitting_context(plan, gpu, free, share=0.5)

    while context is None and plan.block_size < plan.context > (fits := most(plan)):
        plan = planned(tokens, max(plan.block_size, fits // plan.block_size * plan.block_size))
    return plan


def _host_executor(
    device: str, plan: Plan, source: WeightSource, threads: int | None, activations: str | None, isa: str | None
) -> Executor:
    if device == "reference":
        if activations == "int8":
            raise UsageError("the reference has no 8-bit activations.", "Choose another device for these.")
        from halfbyte.reference import ReferenceExecutor

        return ReferenceExecutor(plan, source)
    from halfbyte.cpu import CpuExecutor

    return CpuExecutor(plan, source, threads=threads, isa=isa, activations=activations or "int8")


def _gpu_executor(
    device: Device,
    plan: Plan,
    source: WeightSource,
    activations: str | None,
    kernels: str | None,
    progress: Progress | None,
) -> Executor:
    from halfbyte.cpu.machine import available_memory
    from halfbyte.gpu.checks.selftest import faulty_variants
    from halfbyte.gpu.run import budget
    from halfbyte.gpu.run.executor import GpuExecutor
    from halfbyte.gpu.tuning.store import remembered_tuning

    tell = progress or (lambda what, done, total: None)
    total = budget.needs(plan).weights
    without = kernels.removeprefix("no ") if kernels and kernels.startswith("no ") else None
    executor = GpuExecutor(
        plan, source, device=device, activations=activations or "int8",
        off=faulty_variants(device) | ({without} if without else set()), tuning=remembered_tuning(device),
        free_memory=budget.free_memory(device, available_memory()),
        progress=lambda nbytes: tell("weights", min(nbytes, total), total),
    )  # fmt: skip
    executor.warm_up(lambda done, kernels: tell("kernels", done, kernels))
    return executor


def make_decoder(device: str, executor: Any, *, each_token: bool = False) -> Decoder | None:
    """What chooses tokens where the executor runs, on devices that can.

    Args:
        each_token: Whether each is handed back before the next is begun; else several are on their way.
    """
    if device != "gpu":
        return None
    from halfbyte.gpu.run.decode import ResidentDecoder

    return ResidentDecoder(executor, ahead=1, together=1) if each_token else ResidentDecoder(executor)
