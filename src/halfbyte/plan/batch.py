"""What goes into a plan at each step, and what every executor offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
        sequences: `[n]`, the row of the block tables that each token belongs to.
        rope_sets: `[n]`, which row of `inv_freq` holds (1 for LongRoPE's long factors, else 0).
        block_tables: For each cache group, by its `blocks` name, `[sequences, columns]`; unused entries are -1.
        logit_rows: `[r]`, the tokens (indices into this batch) whose logits are wanted; may be empty.
    """

    token_ids: Int32
    positions: Int32
    sequences: Int32
    rope_sets: Int32
    block_tables: dict[str, Int32]
    logit_rows: Int32

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


class Executor(Protocol):
    """Runs one plan on one device, and owns the weights and caches there."""

    @property
    def plan(self) -> Plan:
        """The plan it runs."""
        ...

    def run(self, batch: Batch) -> Float32:
        """Run one batch: caches are written, and the logits `[r, vocab_size]` in float32 come back.

        The array may be reused by the next call.
        """
        ...
