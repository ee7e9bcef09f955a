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

from halfbyte.plan import Batch, Decoded
from halfbyte.plan.batch import Int32
from halfbyte.plan.sampling import SamplingParams
from halfbyte.webgpu.executor import GpuExecutor
from halfbyte.webgpu.program import Command, Extent, Recording
from halfbyte.webgpu.sampling import RESULT_NBYTES, RING, Sampler, supported
from halfbyte.webgpu.staging import Staging

AHEAD = 3
"""Submits in flight: enough to hide recording and the way back."""
MOST_TOGETHER = 8
"""Tokens a submit at most: as many as the GPU keeps results of."""
SUBMIT_S = 0.006
"""Seconds of work in a submit: the pause between two is a few per cent of a short token, and nobody waits for long."""

Tables = Callable[[int], Mapping[str, Int32] | None]


class _Flight(NamedTuple):
    """Tokens submitted together: what was recorded, where their results arrive, and in which slots."""

    recording: Recording
    staging: Staging
    slots: list[int]


class ResidentDecoder:
    """Decodes one sequence at a time on an executor's device.

    Args:
        ahead: Submits in flight.
        together: Tokens a submit, at most 8; as many as take `SUBMIT_S` if None.
    """

    def __init__(self, executor: GpuExecutor, *, ahead: int = AHEAD, together: int | None = None) -> None:
        self._executor = executor
        self._together = together
        self._token_s = SUBMIT_S
        self._sampler: Sampler | None = None
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
        program, _, logits = executor.single
        sampler = self._sampler or Sampler(
            executor.device, executor.target.pipelines, executor.layout, executor.target.state, logits, executor.choice
        )
        self._sampler = sampler
        choose = sampler.begin(sampling, prompt_ids, generated_ids)
        executor.load(batch)
        start, submitted, received = int(batch.positions[0]), 0, 0
        flying: deque[_Flight] = deque()
        landed = time.perf_counter()
        change, asked = None, start - 1

        def prepare() -> _Flight:
            nonlocal change, asked
            most = min(self._count(), limit - submitted)
            commands: list[Command] = []
            count = 0
            while count < most:
                position = start + submitted + count
                if position > asked:
                    change, asked = tables(position), position
                if change is not None and commands:
                    break
                self._update(change)
                change = None
                extent = Extent(1, 1, position + 1)
                commands += program.commands(extent) + choose.commands(extent)
                count += 1
            return self._record(commands, sampler, submitted, count)

        ready: _Flight | None = None
        try:
            while received < limit:
                while submitted < limit and len(flying) < len(self._ring):
                    if ready:
                        executor.device.check_alive("the GPU refused work")
                    flight, ready = ready or prepare(), None
                    flight.staging.request(executor.recorder.send(flight.recording))
                    flying.append(flight)
                    submitted += len(flight.slots)
                if submitted < limit and not executor.recorder.watched:
                    ready = prepare()
                tokens = self._land(flying.popleft())
                before, landed = landed, time.perf_counter()
                self._token_s = (landed - before) / len(tokens)
                for token in tokens:
                    received += 1
                    yield token
        finally:
            if ready:
                executor.recorder.drop(ready.recording)
            while flying:
                self._land(flying.popleft())

    def _count(self) -> int:
        """Tokens for the next submit, going by how long the last ones took."""
        return self._together or max(1, min(MOST_TOGETHER, int(SUBMIT_S / self._token_s)))

    def _record(self, commands: list[Command], sampler: Sampler, first: int, count: int) -> _Flight:
        """Record some tokens; their results go to the next staging buffer, slot by slot."""
        staging = self._ring[0]
        self._ring.rotate(-1)
        copies = [(sampler.result.handle, 0, staging.buffer, 0, RING * RESULT_NBYTES)]
        recording = self._executor.recorder.record(commands, copies)
        return _Flight(recording, staging, [(first + i) % RING for i in range(count)])

    def _land(self, flight: _Flight) -> list[Decoded]:
        raw = flight.staging.take(RING * RESULT_NBYTES)
        ids, logprobs = raw.view(np.uint32)[0::2], raw.view(np.float32)[1::2]
        return [Decoded(int(ids[slot]), float(logprobs[slot])) for slot in flight.slots]

    def _update(self, tables: Mapping[str, Int32] | None) -> None:
        if tables is not None:
            self._executor.load_tables(tables)
