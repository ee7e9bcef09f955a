"""Decoding that stays on the GPU: it chooses each token and goes on with it, the host submits several tokens ahead.

Ids come back late, a few bytes a token, through a ring of mapped buffers. Whoever reads them checks for stops and drops
the surplus: what was computed beyond lies in cache slots that later tokens overwrite.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfbyte.gpu.device.staging import Staging
from halfbyte.gpu.lowering.lower import SINGLE
from halfbyte.gpu.lowering.program import Extent
from halfbyte.gpu.lowering.sampling import RESULT_NBYTES, RING
from halfbyte.gpu.run.bound import BoundProgram, Buffer, Command
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.run.recorder import Recording
from halfbyte.gpu.run.sampling import Sampler, supported
from halfbyte.plan import Batch, Decoded
from halfbyte.plan.batch import Int32
from halfbyte.sampling.params import SamplingParams

AHEAD = 3
"""Submits in flight at most: enough to hide recording and the way back."""
AHEAD_ALONE = 2
"""Submits of one token in flight: the host is ready long before such a token, and fewer are computed for nothing."""
MOST_TOGETHER = 8
"""Tokens a submit at most: as many as the GPU keeps results of."""
SUBMIT_S = 0.006
"""Seconds of work in a submit: the pause between two is a few per cent of a short token, and nobody waits for long."""
COMPLETIONS = 5
"""Completions that tell how long a token takes. Two may be no time apart, if both waited for the host to look."""

Tables = Callable[[int], Mapping[str, Int32] | None]


class _InFlight(NamedTuple):
    """Tokens submitted together: what was recorded, where their results arrive, and in which slots."""

    recording: Recording
    staging: Staging
    slots: list[int]


class Pace:
    """How many tokens are submitted together, as they come back.

    Args:
        together: As many, always; as many as take about `SUBMIT_S` if None.
    """

    def __init__(self, together: int | None = None) -> None:
        self._together = together
        self._token_s = SUBMIT_S
        self._completions: deque[tuple[float, int]] = deque(maxlen=COMPLETIONS)

    def begin(self) -> None:
        """Another sequence: a token takes what it took before, until its own tell."""
        self._completions.clear()

    def completed(self, now: float, received: int) -> None:
        """Note that so many tokens have come back by now."""
        self._completions.append((now, received))
        began, before = self._completions[0]
        if received > before:
            self._token_s = (now - began) / (received - before)

    def count(self, sent: int, limit: int) -> int:
        """Tokens for the next submit after so many of a limit were sent; few at first, lest the GPU wait for them."""
        return min(self._wanted, sent // 2 + 1, limit - sent)

    @property
    def ahead(self) -> int:
        """Submits in flight at most."""
        return AHEAD if self._wanted > 1 else AHEAD_ALONE

    @property
    def _wanted(self) -> int:
        return self._together or max(1, min(MOST_TOGETHER, round(SUBMIT_S / self._token_s)))


class ResidentDecoder:
    """Decodes one sequence at a time on an executor's device.

    Args:
        ahead: Submits in flight at most; if a single one, the next is recorded, and sent when that has completed.
        together: Tokens a submit, at most 8; as many as take about `SUBMIT_S` if None.
    """

    def __init__(self, executor: GpuExecutor, *, ahead: int = AHEAD, together: int | None = None) -> None:
        self._executor = executor
        self._pace = Pace(together)
        self._sampler = Sampler(executor)
        self._ring = deque(Staging(executor.device, RING * RESULT_NBYTES) for _ in range(ahead))

    def supports(self, sampling: SamplingParams) -> bool:
        """Whether tokens can be chosen on the GPU with these settings."""
        return supported(sampling)

    def decode(
        self,
        batch: Batch,
        sampling: SamplingParams,
        *,
        tables: Tables,
        limit: int,
        prompt_ids: Sequence[int] = (),
        generated_ids: Sequence[int] = (),
    ) -> Generator[Decoded, None, None]:
        """Yield the tokens that follow a batch of one token; closing the generator drops what is in flight.

        Args:
            batch: The last token known, not yet run.
            tables: Called with each position before it is submitted: the block tables with a slot for it, or None
                where they are as before. Positions may lie ahead of the tokens yielded by the number in flight.
            limit: Tokens to yield at most; the positions they need exist.
            prompt_ids, generated_ids: What penalties look at.

        Raises:
            DeviceError: The device failed.
        """
        executor = self._executor
        sampler = self._sampler
        choose = sampler.begin(sampling, prompt_ids, generated_ids)
        executor.load(batch)
        queue = _TokenQueue(executor, choose, sampler.result, self._ring, tables, int(batch.positions[0]))
        received, pace = 0, self._pace
        pace.begin()
        in_flight: deque[_InFlight] = deque()
        ready: _InFlight | None = None
        try:
            while received < limit:
                while queue.sent < limit and len(in_flight) < min(pace.ahead, len(self._ring)):
                    flight, ready = ready or queue.record(pace.count(queue.sent, limit)), None
                    queue.send(flight)
                    in_flight.append(flight)
                if queue.sent < limit and len(self._ring) == 1:
                    ready = queue.record(pace.count(queue.sent, limit))
                tokens = _collect(in_flight.popleft())
                pace.completed(time.perf_counter(), received + len(tokens))
                for token in tokens:
                    received += 1
                    yield token
        finally:
            if ready:
                queue.send(ready)
                in_flight.append(ready)
            while in_flight:
                _collect(in_flight.popleft())


class _TokenQueue:
    """The tokens that follow in one sequence, recorded a few at a time before they are sent.

    Args:
        choose: What chooses a token from its logits.
        results: Where it leaves them, slot by slot.
        ring: Staging buffers, taken in turn.
        tables: As `ResidentDecoder.decode` takes them.
        start: The first position.

    Attributes:
        sent: Tokens submitted.
    """

    def __init__(
        self,
        executor: GpuExecutor,
        choose: BoundProgram,
        results: Buffer,
        ring: deque[Staging],
        tables: Tables,
        start: int,
    ) -> None:
        self.sent = 0
        self._executor, self._choose, self._results, self._ring = executor, choose, results, ring
        self._tables, self._start, self._asked = tables, start, start - 1
        self._change: Mapping[str, Int32] | None = None

    def record(self, most: int) -> _InFlight:
        """Record up to so many tokens, fewer where block tables change between them."""
        program, commands, count = self._executor.program(SINGLE), list[Command](), 0
        while count < most:
            position = self._start + self.sent + count
            if position > self._asked:
                self._change, self._asked = self._tables(position), position
            if self._change is not None:
                if commands:
                    break
                self._executor.load_tables(self._change)
                self._change = None
            extent = Extent(1, 1, position + 1)
            commands += program.commands(extent) + self._choose.commands(extent)
            count += 1
        staging = self._ring[0]
        self._ring.rotate(-1)
        copies = [(self._results.handle, 0, staging.buffer, 0, RING * RESULT_NBYTES)]
        recording = self._executor.recorder.record(commands, copies)
        return _InFlight(recording, staging, [(self.sent + i) % RING for i in range(count)])

    def send(self, flight: _InFlight) -> None:
        """Submit what was recorded last."""
        self._executor.device.check_alive("the GPU refused work")
        flight.staging.request(self._executor.recorder.send(flight.recording))
        self.sent += len(flight.slots)


def _collect(flight: _InFlight) -> list[Decoded]:
    """Wait for the tokens of a submit."""
    raw = flight.staging.take(RING * RESULT_NBYTES)
    ids, logprobs = raw.view(np.uint32)[0::2], raw.view(np.float32)[1::2]
    return [Decoded(int(ids[slot]), float(logprobs[slot])) for slot in flight.slots]
