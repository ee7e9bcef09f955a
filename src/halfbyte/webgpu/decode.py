"""Decoding that stays on the GPU: it chooses each token and goes on with it, the host submits several tokens ahead.

Ids come back late, 8 bytes a token, through a ring of mapped buffers. Whoever reads them checks for stops and drops
the surplus: what was computed beyond lies in cache slots that later tokens overwrite.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from halfbyte.plan import Batch
from halfbyte.plan.batch import Int32
from halfbyte.webgpu.executor import GpuExecutor
from halfbyte.webgpu.program import Extent
from halfbyte.webgpu.sampling import Sampler, Sampling, supported
from halfbyte.webgpu.staging import Staging

RESULT_NBYTES = 8
AHEAD = 6
"""Tokens in flight: enough to hide recording and the way back, few enough to waste little at a stop."""

Tables = Callable[[int], Mapping[str, Int32] | None]


class Decoded(NamedTuple):
    """A chosen token and its natural log-probability under the model, before any sampling setting."""

    id: int
    logprob: float


class ResidentDecoder:
    """Decodes one sequence at a time on an executor's device."""

    def __init__(self, executor: GpuExecutor, *, ahead: int = AHEAD) -> None:
        self._executor = executor
        self._sampler: Sampler | None = None
        self._ring = [Staging(executor.device, RESULT_NBYTES) for _ in range(ahead)]

    def supports(self, sampling: Sampling) -> bool:
        """Whether tokens can be chosen on the GPU with these settings."""
        return supported(sampling)

    def decode(
        self, batch: Batch, sampling: Sampling, *, tables: Tables, limit: int, prompt_ids: Sequence[int] = (),
        generated_ids: Sequence[int] = (),
    ) -> Generator[Decoded, None, None]:  # fmt: skip
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
        sampler = self._sampler or Sampler(executor.device, executor.target.pipelines, executor.layout, executor.target.state, logits)
        self._sampler = sampler
        choose = sampler.begin(sampling, prompt_ids, generated_ids)
        executor.load(batch)
        start, submitted, received = int(batch.positions[0]), 0, 0
        try:
            while received < limit:
                while submitted < limit and submitted - received < len(self._ring):
                    position = start + submitted
                    self._update(tables(position))
                    extent = Extent(1, 1, position + 1)
                    staging = self._ring[submitted % len(self._ring)]
                    commands = program.commands(extent) + choose.commands(extent)
                    copies = [(sampler.result.handle, 0, staging.buffer, 0, RESULT_NBYTES)]
                    staging.request(executor.recorder.submit(commands, copies))
                    submitted += 1
                raw = self._ring[received % len(self._ring)].take(RESULT_NBYTES)
                received += 1
                yield Decoded(int(raw[:4].view(np.uint32)[0]), float(raw[4:].view(np.float32)[0]))
        finally:
            for i in range(received, submitted):
                self._ring[i % len(self._ring)].take(RESULT_NBYTES)

    def _update(self, tables: Mapping[str, Int32] | None) -> None:
        if tables is not None:
            self._executor.load_tables(tables)
