"""Batches for an executor, from the chunks of sequences that were scheduled together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from halfbyte.plan.batch import Batch, Int32
from halfbyte.plan.drawing import Draw
from halfbyte.plan.plan import STATE_ADAPTERS, Plan
from halfbyte.runtime.scheduler import Chunk
from halfbyte.runtime.sequence import Sequence
from halfbyte.sampling.scoring import Scoring


def batch_of(plan: Plan, chunks: list[Chunk], *, every_row: bool = False) -> Batch:
    """The chunks side by side, those of one token first.

    Args:
        every_row: Whether the logits of all tokens are wanted, not only of those that a token is asked for.
    """
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    ends = np.cumsum(lengths)
    wanted = [end - chunk.stop + row for end, chunk in zip(ends, chunks, strict=True) for row in chunk.rows]
    slots = np.array([chunk.sequence.slot for chunk in chunks], np.int32)
    adapters = np.array([chunk.sequence.adapter for chunk in chunks], np.int32)
    return Batch(
        token_ids=np.concatenate([np.array(_ids(chunk), np.int32) for chunk in chunks]),
        positions=np.concatenate([np.arange(c.start, c.stop, dtype=np.int32) for c in chunks]),
        sequences=np.repeat(slots, lengths),
        rope_sets=np.repeat(np.array([c.sequence.rope_set for c in chunks], np.int32), lengths),
        block_tables=_tables(plan, [chunk.sequence for chunk in chunks]),
        logit_rows=np.arange(ends[-1], dtype=np.int32) if every_row else np.array(wanted, np.int32),
        num_decodes=next((i for i, length in enumerate(lengths) if length > 1), len(lengths)),
        hidden=any(chunk.pooled for chunk in chunks),
        adapters=np.repeat(adapters, lengths) if STATE_ADAPTERS in plan.tensors else None,
    )


def draws_of(chunks: list[Chunk]) -> list[Draw]:
    """A draw for each row of logits that the chunks want."""
    return [draw for chunk in chunks for draw in _draws_of(chunk)]


def pooled_of(chunks: list[Chunk]) -> list[tuple[Chunk, int]]:
    """The chunks whose hidden states are wanted, and the place of the first token of each in the batch."""
    ends = np.cumsum([chunk.stop - chunk.start for chunk in chunks]).tolist()
    return [(chunk, begin) for chunk, begin in zip(chunks, [0, *ends], strict=False) if chunk.pooled]


def _draws_of(chunk: Chunk) -> Iterator[Draw]:
    s = chunk.sequence
    if s.scoring is not None:
        for row in chunk.scored:
            yield Draw(s.slot, Scoring(s.scoring, s.prompt_ids[row + 1]), s.prompt_ids, s.generated_ids)
    if chunk.final:
        yield Draw(s.slot, s.sampler, s.prompt_ids, s.generated_ids, s.constraint)


def _ids(chunk: Chunk) -> list[int]:
    """The chunk's token ids; one that has not been read yet is named by its slot."""
    sequence = chunk.sequence
    known = sequence.tokens[chunk.start : chunk.stop]
    return known + [-1 - sequence.slot] * (chunk.stop - chunk.start - len(known))


def _tables(plan: Plan, sequences: list[Sequence]) -> dict[str, Int32]:
    """Block tables with a row for each of the sequences, in its slot."""
    tables = {g.blocks: np.full((plan.sequences, g.columns), -1, np.int32) for g in plan.groups}
    for sequence in sequences:
        for name, row in sequence.table.rows.items():
            tables[name][sequence.slot] = row.blocks
    if plan.states:
        tables[plan.states.table] = np.full((plan.sequences, 2), -1, np.int32)
        for sequence in sequences:
            tables[plan.states.table][sequence.slot] = sequence.table.states
    return tables
