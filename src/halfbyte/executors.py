"""The executors: packages of Halfbyte with a module `factory`, found by their folder; the package's name is the device.

A `factory` module offers `FACTORY`, an `ExecutorFactory`: all that the rest of Halfbyte needs to know about a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from halfbyte.system import available_memory

if TYPE_CHECKING:
    from halfbyte.formats import WeightSource
    from halfbyte.options import RunOptions
    from halfbyte.plan import Executor, Plan

    E = TypeVar("E", bound=Executor, contravariant=True)
else:
    E = TypeVar("E", contravariant=True)

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, all): bytes of weights, then kernels."""


@dataclass(frozen=True)
class Limits:
    """What a device can do at most, measured.

    Attributes:
        read: Bytes per second from memory.
        arithmetic: Operations per second, two for each product of 8-bit integers that is added up.
    """

    read: float
    arithmetic: float


class OpenDevice(Protocol):
    """A device that is ready for one model."""

    def batch_tokens(self, plan: Plan) -> int:
        """Tokens of a batch that the device can compute together, at most the plan's."""
        ...

    def fitting_tokens(self, plan: Plan) -> int:
        """Tokens of all sequences together whose KV cache takes at most half of the memory that the rest leaves free.

        At most the plan's `cache_tokens`.
        """
        ...

    def build(self, plan: Plan, source: WeightSource, options: RunOptions, progress: Progress) -> Executor:
        """The executor of a plan, with its weights loaded; closing it closes the device.

        Raises:
            DeviceError: The plan does not fit.
            UsageError: An option that the device does not have.
        """
        ...

    def close(self) -> None:
        """Free the device, if nothing was built on it."""
        ...


class ExecutorFactory(Protocol[E]):
    """What an executor's package offers.

    Attributes:
        batch_tokens: Most prompt tokens that are computed together, unless told otherwise.
        rank: `auto` takes the available device of the highest rank; never one of rank 0.
        survives_fork: Whether its executors can run in a process that was forked from the one they were made in.
        chooses_tokens: Whether the device chooses tokens itself, several ahead of what the host has read.
    """

    @property
    def batch_tokens(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def survives_fork(self) -> bool: ...

    @property
    def chooses_tokens(self) -> bool: ...

    def available(self) -> tuple[bool, str]:
        """Whether the device can be used here, and what was found, or why not; takes milliseconds."""
        ...

    def part(self, options: RunOptions, place: int, places: int) -> RunOptions:
        """How the replica `place` of so many equal ones on this machine runs, where each has a part of it for itself.

        Raises:
            UsageError: There are not so many parts.
        """
        ...

    def open(self, options: RunOptions) -> OpenDevice:
        """Get the device ready.

        Raises:
            DeviceError: There is no such device, or it computes wrong results.
            UsageError: An option that the device does not have.
        """
        ...

    def kernels(self, options: RunOptions) -> tuple[str | None, ...]:
        """Values of the option `kernels` that can be compared here."""
        ...

    def limits(self, executor: E) -> Limits:
        """What the device that it runs on can do at most, measured now."""
        ...

    def read_bandwidth(self, executor: E) -> float:
        """Bytes per second that it can read from the memory with the weights, measured now."""
        ...

    def describe(self, executor: E) -> Mapping[str, str]:
        """The device's name, driver and the like, for the record of a measurement; empty for the host's processor."""
        ...

    def peak_nbytes(self, executor: E) -> int | None:
        """The most device memory taken since `forget_peak`; None if it is the host's."""
        ...

    def forget_peak(self, executor: E) -> None:
        """Begin a new peak."""
        ...

    def timed(self, executor: E) -> AbstractContextManager[None] | None:
        """Count the device's seconds inside, as the counter `gpu_s`; None if it has no clock of its own."""
        ...


def fitting_tokens(plan: Plan) -> int:
    """Tokens whose KV cache takes at most half of the host's free memory, less all states; at most `cache_tokens`."""
    room = max(0, available_memory() // 2 - plan.states_nbytes)
    return plan.cache_tokens if plan.kv_nbytes <= room else int(plan.cache_tokens * room / plan.kv_nbytes)


def factory(name: str) -> ExecutorFactory[Any]:
    """The factory of a device, one of `options.devices()`."""
    found: ExecutorFactory[Any] = importlib.import_module(f"halfbyte.{name}.factory").FACTORY
    return found
