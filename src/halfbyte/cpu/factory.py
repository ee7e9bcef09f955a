"""The CPU as a device: what it has room for, and how its executor is made from options."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import replace

from halfbyte.cpu import machine
from halfbyte.cpu.executor import CpuExecutor
from halfbyte.executors import Limits, Progress, fitting_tokens
from halfbyte.formats import Weight, WeightSource
from halfbyte.options import RunOptions
from halfbyte.plan import Plan

_log = logging.getLogger(__name__)


class CpuFactory:
    """The `ExecutorFactory` of the CPU."""

    batch_tokens = 256
    rank = 1
    survives_fork = True
    chooses_tokens = False

    def available(self) -> tuple[bool, str]:
        """Always."""
        return True, ""

    def part(self, options: RunOptions, place: int, places: int) -> RunOptions:
        """With as many threads as the others; those that were asked for are for each."""
        return replace(options, threads=options.threads or max(1, machine.default_threads() // places))

    def open(self, options: RunOptions) -> OpenCpu:
        """Nothing has to be opened."""
        return OpenCpu()

    def kernels(self, options: RunOptions) -> tuple[str | None, ...]:
        """The instruction sets that this processor has kernels for."""
        return machine.describe().kernels

    def limits(self, executor: CpuExecutor) -> Limits:
        """Of as many threads and the instruction set that the executor uses."""
        rate = machine.int8_rate(executor.threads, executor.isa)
        return Limits(machine.read_bandwidth(executor.threads), 2 * rate)

    def read_bandwidth(self, executor: CpuExecutor) -> float:
        """Of as many threads as the executor uses."""
        return machine.read_bandwidth(executor.threads)

    def describe(self, executor: CpuExecutor) -> dict[str, str]:
        """Nothing beside what is said of the machine."""
        return {}

    def peak_nbytes(self, executor: CpuExecutor) -> int | None:
        """All memory is the host's."""
        return None

    def forget_peak(self, executor: CpuExecutor) -> None:
        """All memory is the host's."""

    def timed(self, executor: CpuExecutor) -> AbstractContextManager[None] | None:
        """No clock of its own."""
        return None


class OpenCpu:
    """The `OpenDevice` of the CPU."""

    def batch_tokens(self, plan: Plan) -> int:
        """As many as the plan has."""
        return plan.tokens

    def fitting_tokens(self, plan: Plan) -> int:
        """Tokens whose KV cache takes at most half of the free memory."""
        return fitting_tokens(plan)

    def build(self, plan: Plan, source: WeightSource, options: RunOptions, progress: Progress) -> CpuExecutor:
        """The executor of a plan, with its weights packed for the processor."""
        return CpuExecutor(
            plan, _Told(source, plan, progress), threads=_threads(options.threads), isa=options.kernels,
            activations=options.activations or "int8",
        )  # fmt: skip

    def close(self) -> None:
        """Nothing to free."""


class _Told:
    """A `WeightSource` that tells how many bytes of a plan's weights have been read."""

    def __init__(self, source: WeightSource, plan: Plan, progress: Progress) -> None:
        self._source = source
        self._nbytes = {tensor.name: tensor.nbytes for tensor in plan.of_kind("weight")}
        self._total = sum(self._nbytes.values())
        self._done = 0
        self._progress = progress

    def weight(self, name: str) -> Weight:
        weight = self._source.weight(name)
        self._done += self._nbytes.pop(name, 0)
        self._progress("weights", self._done, self._total)
        return weight

    def release(self, name: str) -> None:
        self._source.release(name)


def _threads(asked: int | None) -> int | None:
    """The threads that were asked for, at most one per processor: more would only wait for each other."""
    most = machine.processors()
    if asked is None or asked <= most:
        return asked
    _log.warning("threads=%d is more than the processors that this process may use; it uses %d.", asked, most)
    return most


FACTORY = CpuFactory()
