"""Batches for an executor, from the chunks of sequences that were scheduled together."""

from __future__ import annotations

import numpy as np

from halfbyte.plan.batch import Batch, Int32
from halfbyte.plan.plan import Plan
from halfbyte.runtime.scheduler import Chunk
from halfbyte.runtime.sequence import Sequence


def batch_of(plan: Plan, chunks: list[Chunk], *, every_row: bool = False) -> Batch:
    """The chunks side by side; chunk i uses row i of the block tables.

    Args:
        every_row: Whether the logits of all tokens are wanted, not only of those that a next token follows.
    """
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    ends = np.cumsum(lengths)
    last = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.final]
    return Batch(
        token_ids=np.concatenate([np.array(c.sequence.tokens[c.start : c.stop], np.int32) for c in chunks]),
        positions=np.concatenate([np.arange(c.start, c.stop, dtype=np.int32) for c in chunks]),
        sequences=np.repeat(np.arange(len(chunks), dtype=np.int32), lengths),
        rope_sets=np.repeat(np.array([c.sequence.rope_set for c in chunks], np.int32), lengths),
        block_tables=tables_of(plan, [chunk.sequence for chunk in chunks]),
        logit_rows=np.arange(ends[-1], dtype=np.int32) if every_row else np.array(last, np.int32),
    )


def tables_of(plan: Plan, sequences: list[Sequence]) -> dict[str, Int32]:
    """Block tables with a row for each of the sequences."""
    tables = {g.blocks: np.full((plan.sequences, g.columns), -1, np.int32) for g in plan.groups}
    for i, sequence in enumerate(sequences):
        for name, row in sequence.table.rows.items():
            tables[name][i] = row
    return tables
