"""The reference as a device: every model and format, in NumPy, for checking."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from halfbyte.errors import UsageError
from halfbyte.executors import Limits, Progress, fitting_tokens
from halfbyte.formats import WeightSource
from halfbyte.options import RunOptions
from halfbyte.plan import Plan

if TYPE_CHECKING:
    from halfbyte.reference.executor import ReferenceExecutor


class ReferenceFactory:
    """The `ExecutorFactory` of the reference."""

    batch_tokens = 256
    rank = 0
    survives_fork = True
    chooses_tokens = False

    def available(self) -> tuple[bool, str]:
        """Always."""
        return True, ""

    def part(self, options: RunOptions, place: int, places: int) -> RunOptions:
        """As the others: NumPy has no threads of ours."""
        return options

    def open(self, options: RunOptions) -> OpenReference:
        """Nothing has to be opened.

        Raises:
            UsageError: 8-bit activations or kernels are asked for.
        """
        if options.activations == "int8":
            raise UsageError("the reference has no 8-bit activations.", "Leave activations out, or use another device.")
        if options.kernels is not None:
            raise UsageError("the reference has no kernels to choose from.", "Leave kernels out.")
        return OpenReference()

    def kernels(self, options: RunOptions) -> tuple[str | None, ...]:
        """Refused.

        Raises:
            UsageError: Always.
        """
        raise UsageError("the reference has no variants.", "Choose device cpu or gpu.")

    def limits(self, executor: ReferenceExecutor) -> Limits:
        """Refused: NumPy's own limits say nothing.

        Raises:
            UsageError: Always.
        """
        raise UsageError("the reference has no limits to be compared with.", "Choose device cpu or gpu.")

    def read_bandwidth(self, executor: ReferenceExecutor) -> float:
        """Bytes per second that one thread reads."""
        from halfbyte.cpu.machine import read_bandwidth

        return read_bandwidth(executor.threads)

    def describe(self, executor: ReferenceExecutor) -> dict[str, str]:
        """Nothing beside the processor."""
        return {}

    def peak_nbytes(self, executor: ReferenceExecutor) -> int | None:
        """All memory is the host's."""
        return None

    def forget_peak(self, executor: ReferenceExecutor) -> None:
        """All memory is the host's."""

    def timed(self, executor: ReferenceExecutor) -> AbstractContextManager[None] | None:
        """No clock of its own."""
        return None


class OpenReference:
    """The `OpenDevice` of the reference."""

    def batch_tokens(self, plan: Plan) -> int:
        """As many as the plan has."""
        return plan.tokens

    def fitting_tokens(self, plan: Plan) -> int:
        """Tokens whose KV cache takes at most half of the free memory."""
        return fitting_tokens(plan)

    def build(self, plan: Plan, source: WeightSource, options: RunOptions, progress: Progress) -> ReferenceExecutor:
        """The executor of a plan."""
        from halfbyte.reference.executor import ReferenceExecutor

        return ReferenceExecutor(plan, source)

    def close(self) -> None:
        """Nothing to free."""


FACTORY = ReferenceFactory()
