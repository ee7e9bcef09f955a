"""What goes into a plan at each step, and what every executor offers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.plan.plan import (
    STATE_IDS,
    STATE_POSITIONS,
    STATE_ROPE_SETS,
    STATE_ROWS,
    STATE_SEQUENCES,
    Plan,
)
from halfbyte.sampling.params import SamplingParams

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Tokens of one or more sequences to run together; all arrays are int32.

    Tokens of one sequence come in the order of their positions, and every earlier position of the
    sequence is in the cache or in this batch.

    Attributes:
        token_ids: `[n]`, n at most the plan's tokens.
        positions: `[n]`, counted from 0.
        sequences: `[n]`, the slot of the sequence that each token belongs to: its row of the block tables.
        rope_sets: `[n]`, which row of `inv_freq` holds (1 for LongRoPE's long factors, else 0).
        block_tables: For each cache group, by its `blocks` name, `[sequences, columns]`; unused entries are -1.
        logit_rows: `[r]`, the tokens (indices into this batch) whose logits are wanted; may be empty.
        num_decodes: Leading tokens that are each the only one of their sequence; tokens of prompts follow them.
    """

    token_ids: Int32
    positions: Int32
    sequences: Int32
    rope_sets: Int32
    block_tables: dict[str, Int32]
    logit_rows: Int32
    num_decodes: int = 0

    def state(self) -> dict[str, Int32]:
        """The batch as the plan's state tensors, by name."""
        return {
            STATE_IDS: self.token_ids,
            STATE_POSITIONS: self.positions,
            STATE_SEQUENCES: self.sequences,
            STATE_ROPE_SETS: self.rope_sets,
            STATE_ROWS: self.logit_rows,
            **self.block_tables,
        }


class Runner(Protocol):
    """Runs batches of one plan: all that answering needs of an executor."""

    @property
    def plan(self) -> Plan:
        """The plan it runs."""
        ...

    def run(self, batch: Batch) -> Float32:
        """Run one batch: caches are written, and the logits `[r, vocab_size]` in float32 come back.

        The array may be reused by the next call.
        """
        ...


Timing = Literal["steps", "dispatches"]
"""How an executor can be watched: by `step_ns` after each run, or by the dispatches noted inside `traced`."""


class Executor(Runner, Protocol):
    """Runs one plan on one device, and owns the weights and caches there.

    Attributes:
        threads: CPU threads that it computes on.
        timing: How its steps are timed; None if they are not.
    """

    @property
    def threads(self) -> int: ...

    @property
    def timing(self) -> Timing | None: ...

    @property
    def about(self) -> str:
        """What a user should know about the device, in a few words; may be empty."""
        ...

    def counters(self) -> dict[str, float]:
        """What it has counted since it was made, such as dispatches; empty if it counts nothing."""
        ...

    def busy_s(self) -> float | None:
        """Seconds of work in the last run; None if it does not tell, or counts `wait_s`."""
        ...

    def close(self) -> None:
        """Free the weights and caches; it cannot run afterwards, and closing it again does nothing."""
        ...


class Decoded(NamedTuple):
    """A chosen token and its natural log-probability under the model, before any sampling setting."""

    id: int
    logprob: float


class Decoder(Protocol):
    """Chooses tokens where the executor runs, several ahead of what the host has seen; one sequence at a time."""

    def supports(self, sampling: SamplingParams) -> bool:
        """Whether it can choose tokens with these settings."""
        ...

    def decode(
        self,
        batch: Batch,
        sampling: SamplingParams,
        *,
        tables: Callable[[int], Mapping[str, Int32] | None],
        limit: int,
        prompt_ids: Sequence[int],
        generated_ids: Sequence[int],
    ) -> Generator[Decoded, None, None]:
        """Yield the tokens that follow a batch of one token, at most `limit`; closing the generator drops the surplus.

        `tables(position)` is asked before each position is submitted: the block tables with a slot for it, or None
        where they are as before. The executor must not run anything else while the generator is open.
        """
        ...
