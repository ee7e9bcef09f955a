"""Which tokens of which sequences run next. It knows sequences and blocks, never tensors.

A batch holds one token of every sequence that is decoding, then pieces of prompts up to the plan's tokens. Sequences
wait in the order they came; when blocks run out, the youngest running one gives up its own and is computed again later.
The cache of the sequence that finished last is kept until its blocks are needed: one that starts with the same tokens,
as the next turn of a chat does, takes it over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

from halfbyte.plan.plan import Plan
from halfbyte.runtime.blocks import BlockPools, longest_chunk
from halfbyte.runtime.sequence import FinishReason, Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `stop` of a sequence, to be computed in one batch.

    Attributes:
        final: Whether the sequence's next token follows from the last of them.
    """

    sequence: Sequence
    start: int
    stop: int
    final: bool


class Scheduler:
    """Sequences waiting and running, and the blocks they hold."""

    def __init__(self, plan: Plan, rope_switch: int | None = None) -> None:
        self.pools = BlockPools(plan)
        self._tokens = plan.tokens
        self._rows = plan.rows
        self._context = plan.context
        self._longest_chunk = longest_chunk(plan)
        self._most_running = min(plan.sequences, plan.rows)
        self._rope_switch = rope_switch
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._kept: Sequence | None = None

    @property
    def idle(self) -> bool:
        """Whether every sequence has finished."""
        return not self._waiting and not self._running

    def alone(self, sequence: Sequence) -> bool:
        """Whether a sequence decodes and no other runs or waits; the blocks of a kept cache are then free for it."""
        if self._running != [sequence] or self._waiting:
            return False
        self._match_rope_set(sequence)
        if sequence.num_pending != 1:
            return False
        self._drop_kept()
        return True

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those that wait."""
        self._waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next batch, empty only if the scheduler is idle; running sequences come oldest first."""
        for sequence in self._running:
            self._match_rope_set(sequence)
        spare = self._tokens - sum(s.num_pending == 1 for s in self._running)
        chunks: list[Chunk] = []
        for sequence in tuple(self._running):
            decoding = sequence.num_pending == 1
            if sequence.status == "running" and (decoding or spare) and self._make_room(sequence):
                chunks.append(self._chunk(sequence, 1 if decoding else spare))
                spare -= 0 if decoding else chunks[-1].stop - chunks[-1].start
        while spare and self._admit():
            chunks.append(self._chunk(self._running[-1], spare))
            spare -= chunks[-1].stop - chunks[-1].start
        return chunks

    def advance(self, chunks: list[Chunk]) -> None:
        """Note that `chunks` are now in the cache."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.stop

    def append(self, sequence: Sequence, token_id: int) -> None:
        """Give a sequence its next token, and finish it if that was its last."""
        sequence.append(token_id)
        reason = sequence.reason_to_finish(self._context)
        if reason is not None:
            self.finish(sequence, reason)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence that waits or runs, and keep its cache, if it has one."""
        if sequence.status == "running":
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.status, sequence.finish_reason = "finished", reason
        if sequence.num_computed:
            self._drop_kept()
            self._kept = sequence
        else:
            self.pools.release(sequence.table)

    def fail(self, sequence: Sequence) -> None:
        """End a sequence whose cache is of no use."""
        sequence.num_computed = 0
        self.finish(sequence, "cancelled")

    def cancel_all(self) -> None:
        """End every sequence."""
        for sequence in (*self._waiting, *self._running):
            self.finish(sequence, "cancelled")

    def whole(self, sequence: Sequence) -> Generator[Chunk, None, None]:
        """Chunks of a sequence outside the queue, each at most the plan's rows, while the scheduler is idle.

        Its blocks are freed at the end, or when the iterator is closed.
        """
        try:
            self._match_rope_set(sequence)
            self._make_room(sequence)
            while sequence.num_pending:
                chunk = self._chunk(sequence, self._rows)
                yield chunk
                self.advance([chunk])
        finally:
            self.pools.release(sequence.table)

    def _chunk(self, sequence: Sequence, limit: int) -> Chunk:
        start = sequence.num_computed
        stop = start + min(sequence.num_pending, limit, self._longest_chunk)
        sequence.table.written = max(sequence.table.written, stop)
        return Chunk(sequence, start, stop, final=stop == len(sequence.tokens))

    def _admit(self) -> bool:
        """Let the first of the queue run, if there is a place and blocks for all its tokens."""
        if not self._waiting or len(self._running) == self._most_running:
            return False
        sequence = self._waiting[0]
        kept, shared = self._kept, self._shared_prefix(sequence)
        if kept is not None and shared:
            if not self.pools.can_hold(kept.table, len(sequence.tokens)):
                return False
            self._take_over(sequence, kept, shared)
        if not self._has_room(sequence):
            return False
        self.pools.hold(sequence.table, len(sequence.tokens))
        self._match_rope_set(sequence)
        sequence.reused_tokens = min(sequence.num_computed, len(sequence.prompt_ids))
        sequence.status = "running"
        self._running.append(self._waiting.popleft())
        return True

    def _shared_prefix(self, sequence: Sequence) -> int:
        """Leading tokens that the kept cache has for `sequence`; one token at least is always computed.

        None where a seed promises the same text again: values computed one by one or together differ in the last bits.
        """
        kept, sampling = self._kept, sequence.sampling
        if kept is None or (sampling.seed is not None and sampling.temperature > 0):
            return 0
        limit = min(kept.num_computed, len(sequence.tokens) - 1)
        pairs = zip(kept.tokens[:limit], sequence.tokens, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), limit)
        return shared if self.pools.can_rewind(kept.table, shared) else 0

    def _take_over(self, sequence: Sequence, kept: Sequence, length: int) -> None:
        """Move the kept cache, cut to `length` tokens, to `sequence`."""
        self._kept = None
        sequence.table, kept.table = kept.table, sequence.table
        sequence.rope_set, sequence.num_computed = kept.rope_set, length
        self.pools.rewind(sequence.table, length)

    def _make_room(self, sequence: Sequence) -> bool:
        """Get blocks for all tokens of `sequence`, at the cost of younger ones; False if it had to go itself."""
        while not self._has_room(sequence):
            youngest = self._running.pop()
            self.pools.release(youngest.table)
            youngest.num_computed, youngest.status = 0, "waiting"
            self._waiting.appendleft(youngest)
            if youngest is sequence:
                return False
        self.pools.hold(sequence.table, len(sequence.tokens))
        return True

    def _has_room(self, sequence: Sequence) -> bool:
        if not self.pools.can_hold(sequence.table, len(sequence.tokens)):
            self._drop_kept()
        return self.pools.can_hold(sequence.table, len(sequence.tokens))

    def _drop_kept(self) -> None:
        if self._kept is not None:
            self.pools.release(self._kept.table)
            self._kept = None

    def _rope_set(self, sequence: Sequence) -> int:
        return int(self._rope_switch is not None and len(sequence.tokens) > self._rope_switch)

    def _match_rope_set(self, sequence: Sequence) -> None:
        """A cache made with the other set of frequencies is wrong for every position: compute all of them again."""
        if sequence.rope_set != self._rope_set(sequence):
            sequence.rope_set = self._rope_set(sequence)
            sequence.num_computed = sequence.table.written = 0
