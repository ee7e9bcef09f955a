"""Where a model runs: the device, a plan for what it has room for, and the executor that runs the plan there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from halfbyte.errors import DeviceError, UnsupportedModelError
from halfbyte.executors import OpenDevice, Progress, factory
from halfbyte.formats import Format, WeightSource
from halfbyte.models.spec import ModelSpec
from halfbyte.options import AUTO, RunOptions, devices
from halfbyte.plan import Executor, Plan, make_plan
from halfbyte.units import quantity

FALLBACK = "cpu"
"""Where a model runs if the device that `auto` chose fails."""


class FormattedSource(WeightSource, Protocol):
    """A `WeightSource` that knows each tensor's format before it is read."""

    def format(self, name: str) -> Format:
        """The format of a tensor."""
        ...


def choose_device(options: RunOptions) -> tuple[str, str]:
    """The device that the options mean here, and why it was chosen."""
    if options.device != AUTO:
        return options.device, "you asked for it"
    if options.deciding:
        name = options.deciding[0]
        return options.device_of(name), f"{name}={getattr(options, name)} was given"
    why = ""
    for name in sorted(devices(), key=lambda name: -factory(name).rank):
        there, found = factory(name).available()
        why = found or why
        if there:
            break
    return name, why


def part(options: RunOptions, place: int, places: int) -> RunOptions:
    """How the replica `place` of so many equal ones on this machine runs: on a GPU or on threads of its own.

    Raises:
        UsageError: The machine has not so many parts.
    """
    device = choose_device(options)[0]
    return factory(device).part(replace(options, device=device), place, places)


@dataclass(frozen=True)
class Placed:
    """A model ready to run.

    Attributes:
        options: How it is run; the device is the one that was chosen.
        why: Why that device was chosen.
    """

    options: RunOptions
    why: str
    plan: Plan
    executor: Executor


def place_first(
    options: RunOptions, spec: ModelSpec, source: FormattedSource, *, progress: Progress | None = None
) -> Placed:
    """A model on the device that its options mean; if that was chosen here and fails, on the CPU.

    Raises:
        UsageError, DeviceError: As `place` does.
    """
    device, why = choose_device(options)
    chosen = replace(options, device=device)
    try:
        plan, executor = place(chosen, spec, source, progress=progress)
    except (DeviceError, UnsupportedModelError) as error:
        if options.device != AUTO or options.deciding or device == FALLBACK:
            raise
        chosen, why = replace(options, device=FALLBACK), f"{why}, but {error.message}"
        plan, executor = place(chosen, spec, source, progress=progress)
    return Placed(chosen, f"{why}: {executor.about}" if executor.about else why, plan, executor)


def place(
    options: RunOptions, spec: ModelSpec, source: FormattedSource, *, progress: Progress | None = None
) -> tuple[Plan, Executor]:
    """A plan that fits the device of `options` (not `auto`), and its executor with the weights of `source`.

    Raises:
        UsageError: A number is out of range for the model, or the device does not have an option.
        DeviceError: There is no such device, or it is too small.
    """
    found = factory(options.device)
    opened = found.open(options)
    try:
        plan = _fitting_plan(opened, spec, source, options, options.batch_tokens or found.batch_tokens)
        try:
            return plan, opened.build(plan, source, options, progress or (lambda what, done, total: None))
        except MemoryError as error:
            raise _too_little_memory(plan) from error
    except BaseException:
        opened.close()
        raise


def _too_little_memory(plan: Plan) -> DeviceError:
    weights, cache = (sum(tensor.nbytes for tensor in plan.of_kind(kind)) for kind in ("weight", "cache"))
    return DeviceError(
        f"there is not enough memory: the model takes {quantity(weights, 'B')} of weights and "
        f"{quantity(cache, 'B')} of cache for {plan.cache_tokens:,} tokens.",
        "Use a smaller context, fewer bits (weights q4g32), or a smaller model.",
    )


def _fitting_plan(
    opened: OpenDevice, spec: ModelSpec, source: FormattedSource, options: RunOptions, tokens: int
) -> Plan:
    """A plan of the size that was asked for, or else for as much as the device has room for.

    All sequences together get what memory is free, but never less than one of them needs for its whole context.
    """

    def planned(context: int | None, cache_tokens: int | None) -> Plan:
        return make_plan(
            spec, source.format, tokens=tokens, context=context, sequences=options.sequences, rows=options.rows,
            kv_dtype=options.kv_dtype, cache_tokens=cache_tokens,
        )  # fmt: skip

    plan = planned(options.context, options.cache_tokens)
    if (fitting := opened.batch_tokens(plan)) < plan.tokens:
        tokens = fitting
        plan = planned(options.context, options.cache_tokens)
    if options.cache_tokens is not None:
        return plan
    while plan.block_size < plan.cache_tokens > (fits := opened.fitting_tokens(plan)):
        fits = max(plan.block_size, fits // plan.block_size * plan.block_size)
        if options.context is not None and fits <= options.context:
            plan = planned(options.context, options.context)
            break
        plan = planned(options.context or min(plan.context, fits), fits)
    _check_sequences(plan)
    return plan


def _check_sequences(plan: Plan) -> None:
    """Refuse more sequences than there are cache blocks: some could never run beside the others."""
    blocks = plan.cache_tokens // plan.block_size
    if plan.sequences > blocks:
        cache = plan.kv_nbytes
        raise DeviceError(
            f"{plan.sequences:,} conversations at once need at least {quantity(cache // blocks * plan.sequences, 'B')} "
            f"of cache, a block of {plan.block_size} tokens for each; there is room for {blocks:,} blocks "
            f"({quantity(cache, 'B')}).",
            f"Use sequences={blocks} or fewer.",
        )
