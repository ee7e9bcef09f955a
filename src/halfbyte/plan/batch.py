"""What goes into a plan at each step, and what every executor offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.plan.drawing import Draw, Pending
from halfbyte.plan.plan import (
    STATE_ADAPTERS,
    STATE_IDS,
    STATE_POSITIONS,
    STATE_ROPE_SETS,
    STATE_ROWS,
    STATE_SEQUENCES,
    Plan,
)
from halfbyte.sampling import SamplingParams

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Tokens of one or more sequences to run together; all arrays are int32.

    Tokens of one sequence come one after another in the order of their positions, and every earlier position of the
    sequence is in the cache or in this batch.

    Attributes:
        token_ids: `[n]`, n at most the plan's tokens. Where tokens are drawn on the device, -1 - s stands for the
            token that was drawn last for the sequence in slot s.
        positions: `[n]`, counted from 0.
        sequences: `[n]`, the slot of the sequence that each token belongs to: its row of the block tables.
        rope_sets: `[n]`, which row of `inv_freq` holds (1 for LongRoPE's long factors, else 0).
        block_tables: For each cache group, by its `blocks` name, `[sequences, columns]`; unused entries are -1. Where
            layers keep states, also their table, `[sequences, 2]`.
        logit_rows: `[r]`, the tokens (indices into this batch) whose logits are wanted; may be empty.
        num_decodes: Leading tokens that are each the only one of their sequence; tokens of prompts follow them.
        hidden: Whether the hidden states of all tokens are wanted, too: after the final norm, before the output matrix.
        adapters: `[n]`, the number of the adapter that each token is computed with, 0 for none; None for none at all.
            Where tokens are drawn on the device, the next ones keep it.
    """

    token_ids: Int32
    positions: Int32
    sequences: Int32
    rope_sets: Int32
    block_tables: dict[str, Int32]
    logit_rows: Int32
    num_decodes: int = 0
    hidden: bool = False
    adapters: Int32 | None = None

    def state(self) -> dict[str, Int32]:
        """The batch as the plan's state tensors, by name; a plan without adapters has none for them."""
        return {
            STATE_ADAPTERS: np.zeros(len(self.token_ids), np.int32) if self.adapters is None else self.adapters,
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

    @property
    def ahead(self) -> int:
        """Batches that may be under way before the tokens of the first are read; 1 if `submit` computes them itself."""
        ...

    @property
    def most_steps(self) -> int:
        """The most steps of one `submit`."""
        ...

    def draws(self, sampling: SamplingParams) -> bool:
        """Whether tokens are chosen with these settings where the batch runs, so that the next batch can name them."""
        ...

    def submit(self, batch: Batch, draws: Sequence[Draw], *, steps: int = 1) -> Pending:
        """Run one batch and choose a token after each of its rows of logits.

        Args:
            draws: One for each of the batch's `logit_rows`, in their order.
            steps: How often to run it, each time with the tokens just chosen, at the next positions. More than 1 only
                for a batch of decodes that all have a draw, with blocks for all the positions in its tables. Nothing
                else may be submitted before hidden states that it asked for have been read.

        Raises:
            DeviceError: The device failed.
        """
        ...

    def run(self, batch: Batch) -> Float32:
        """Run one batch: caches are written, and the logits `[r, vocab_size]` in float32 come back.

        The array may be reused by the next call.
        """
        ...


class CacheMemory(Protocol):
    """The blocks of an executor's caches, as bytes in whatever layout it keeps them."""

    def read_blocks(self, name: str, blocks: Sequence[int]) -> UInt8:
        """Blocks of a cache tensor, `[blocks, bytes of a block]`, as they are after all that was submitted."""
        ...

    def write_blocks(self, name: str, blocks: Sequence[int], values: UInt8) -> None:
        """Write what `read_blocks` gave into blocks, before anything that is submitted later.

        Raises:
            ValueError: A block has another size here.
        """
        ...


def block_bytes(cache: NDArray[Any]) -> UInt8:
    """A cache `[blocks, …]` in host memory as `[blocks, bytes of a block]`, in place."""
    return cache.reshape(len(cache), -1).view(np.uint8)


Timing = Literal["steps", "dispatches"]
"""How an executor can be watched: by `step_ns` after each run, or by the dispatches noted inside `traced`."""


class Executor(Runner, CacheMemory, Protocol):
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
