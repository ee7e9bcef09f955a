"""When each dispatch ran: by the device's timestamps on the host's clock, else by what a step takes less without it.

A pass writes a timestamp after every dispatch where the device allows that inside passes; elsewhere every dispatch
becomes a pass of its own. WebGPU does not say how the device's clock stands to the host's, so both are read together,
before and after: a timestamp was taken after its submission began and before the wait for it ended, and many such
bounds leave little room between them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.gpu.device import ffi, passes
from halfbyte.gpu.device.clock import RESOLVED, tick_seconds
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.run.bound import BoundDispatch, Command
from halfbyte.gpu.run.executor import GpuExecutor

INSIDE_PASSES = "timestamp-query-inside-passes"
QUERIES = 4096
"""Timestamps of a query set: the most that WebGPU allows."""
LOOKS = 20
"""Times that both clocks are read together, before and after."""
ROUNDS = 7
"""Times that a step is run with and without each kind of dispatch, where there are no timestamps."""
_MOST = QUERIES // 2 - 1


@dataclass(frozen=True)
class Submission:
    """What was submitted together, and when the host was at it, in seconds on its clock.

    Attributes:
        places: Query set and first query of each piece of the commands.
    """

    commands: Sequence[Command]
    start_s: float
    end_s: float
    places: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Timed:
    """When a dispatch ran, in seconds on the host's clock."""

    dispatch: BoundDispatch
    start_s: float
    seconds: float


@dataclass(frozen=True)
class Alignment:
    """What is to be added to the device's time to get the host's, and how far off that may be, in seconds."""

    offset_s: float
    error_s: float


@contextmanager
def traced(executor: GpuExecutor) -> Iterator[Tracer]:
    """Note every dispatch of an executor inside, and when the host waits."""
    tracer = Tracer(executor.device)
    with executor.hooked(tracer):
        yield tracer


class Tracer:
    """Notes what a recorder submits, and finds afterwards when each dispatch ran. A `PassHook`.

    Attributes:
        submissions: In their order.
        waits: When the host waited, as (start, end) on its clock.
        timestamps: Whether the device has any.
    """

    def __init__(self, device: Device) -> None:
        self.submissions: list[Submission] = []
        self.waits: list[tuple[float, float]] = []
        self.timestamps = device.capabilities.timestamps
        self._device = device
        self._inside = INSIDE_PASSES in device.handle.features
        self._sets: list[tuple[Any, int]] = []
        self._places: list[tuple[int, int]] = []
        self._base = 0
        self._bounds = self._looks() if self.timestamps else []

    @property
    def how(self) -> str:
        """Where times come from."""
        if not self.timestamps:
            return "differences: what a step takes less without its operations of a kind"
        return "timestamps " + ("between dispatches" if self._inside else "around passes of one dispatch each")

    def record(self, encoder: Any, commands: Sequence[Command]) -> None:
        """Record dispatches and their timestamps."""
        self._places = []
        for piece in _pieces(commands):
            at = self._take(len(piece) + 1 if self._inside else 2 * len(piece))
            self._places.append((len(self._sets) - 1, at))
            if self._inside:
                self._record_pass(encoder, piece, at)
            else:
                for i, command in enumerate(piece):
                    self._record_alone(encoder, command, at + 2 * i)

    def submitted(self, commands: Sequence[Command], start_s: float) -> None:
        """Note what has been handed over."""
        self.submissions.append(Submission(commands, start_s, time.perf_counter(), self._places))

    def timed(self) -> tuple[list[list[Timed]], Alignment]:
        """The dispatches of each submission, and how the clocks stood; waits for the device."""
        self._device.wait()
        self._bounds += self._looks()
        low, high = max(low for low, _ in self._bounds), min(high for _, high in self._bounds)
        alignment = Alignment((low + high) / 2, abs(high - low) / 2)
        seconds = [self._seconds(queries, used) + alignment.offset_s for queries, used in self._sets]
        return [list(self._timed(submission, seconds)) for submission in self.submissions], alignment

    def _timed(self, submission: Submission, seconds: list[NDArray[np.float64]]) -> Iterator[Timed]:
        pieces = _pieces(submission.commands)
        for piece, (query_set, at) in zip(pieces, submission.places, strict=True):
            found = seconds[query_set][at:].tolist()
            spans = pairwise(found) if self._inside else zip(found[::2], found[1::2], strict=True)
            for command, (start, end) in zip(piece, spans, strict=False):
                yield Timed(command.dispatch, start, end - start)

    def _take(self, count: int) -> int:
        """The first of so many queries of the last query set, all of which have to be written."""
        if not self._sets or self._sets[-1][1] + count > QUERIES:
            self._sets.append((self._device.handle.create_query_set(type="timestamp", count=QUERIES), 0))
        queries, used = self._sets[-1]
        self._sets[-1] = queries, used + count
        return used

    def _record_pass(self, encoder: Any, commands: Sequence[Command], at: int) -> None:
        """One pass, with a timestamp before the first dispatch and after each."""
        queries = self._sets[-1][0]
        opened = ffi.begin_pass(encoder)
        ffi.write_timestamp(opened, queries, at)
        for i, command in enumerate(commands, at + 1):
            passes.dispatch(opened, [command])
            ffi.write_timestamp(opened, queries, i)
        ffi.end_pass(opened)

    def _record_alone(self, encoder: Any, command: Command | None, at: int) -> None:
        """A pass of one dispatch or none, between two timestamps."""
        opened = ffi.begin_pass(encoder, ffi.TimestampWrites(self._sets[-1][0]).at(at, at + 1))
        passes.dispatch(opened, [command] if command else [])
        ffi.end_pass(opened)

    def _looks(self) -> list[tuple[float, float]]:
        """Bounds of the offset between the clocks."""
        queries = self._device.handle.create_query_set(type="timestamp", count=2)
        found = []
        for _ in range(LOOKS):
            before = time.perf_counter()
            encoder = self._device.handle.create_command_encoder()
            writes = {"query_set": queries, "beginning_of_pass_write_index": 0, "end_of_pass_write_index": 1}
            encoder.begin_compute_pass(timestamp_writes=writes).end()
            self._device.handle.queue.submit([encoder.finish()])
            self._device.wait()
            after = time.perf_counter()
            start, end = self._seconds(queries, 2).tolist()
            found.append((before - start, after - end))
        return found

    def _seconds(self, queries: Any, count: int) -> NDArray[np.float64]:
        """The first timestamps of a query set on the device's clock, counted from the first that was ever read.

        None but those that were written: for others, Vulkan drivers wait for ever.
        """
        resolved = self._device.buffer(count * 8, "timestamps", usage=RESOLVED)
        encoder = self._device.handle.create_command_encoder()
        encoder.resolve_query_set(queries, 0, count, resolved, 0)
        self._device.handle.queue.submit([encoder.finish()])
        ticks = self._device.read(resolved, count * 8).view(np.int64)
        self._device.free(resolved)
        self._base = self._base or int(ticks[0])
        return np.multiply(ticks - self._base, tick_seconds(self._device), dtype=np.float64)


def differences(
    run: Callable[[Sequence[Command]], None], commands: Sequence[Command], kind: Callable[[BoundDispatch], Hashable]
) -> list[float]:
    """Seconds of each dispatch, where it is the whole step that can be timed: calls of a kind share a difference.

    Args:
        run: Runs some of the commands from the same state, and waits for them.
    """
    places = defaultdict(list)
    for i, command in enumerate(commands):
        places[kind(command.dispatch)].append(i)
    run(commands)
    less: dict[Hashable, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        whole = _wall(run, commands)
        for name, mine in places.items():
            without = set(mine)
            less[name].append(whole - _wall(run, [c for i, c in enumerate(commands) if i not in without]))
    found = [0.0] * len(commands)
    for name, mine in places.items():
        for i in mine:
            found[i] = max(0.0, median(less[name])) / len(mine)
    return found


def _pieces(commands: Sequence[Command]) -> Iterator[Sequence[Command]]:
    """As many commands at a time as a query set has room for."""
    return (commands[i : i + _MOST] for i in range(0, len(commands), _MOST))


def _wall(run: Callable[[Sequence[Command]], None], commands: Sequence[Command]) -> float:
    start = time.perf_counter()
    run(commands)
    return time.perf_counter() - start
