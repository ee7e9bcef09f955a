"""Which tokens of which sequences run next. It knows sequences and blocks, never tensors.

A batch holds one token of every sequence that is decoding, then pieces of prompts up to the plan's tokens. Sequences
wait in the order they came; when blocks run out, the youngest running one gives up its own and is computed again later.
The cache of the sequence that finished last is kept until its blocks are needed: one that starts with the same tokens,
as the next turn of a chat does, takes it over.

A batch may be scheduled before the tokens of the one before it have been read. What needs to know them, such as
computing a sequence again, waits until they are.
"""

from __future__ import annotations

import heapq
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


class _UnreadError(Exception):
    """Tokens under way have to be read first."""


class Scheduler:
    """Sequences waiting and running, and the blocks they hold.

    Attributes:
        preemptions: How often a running sequence gave its blocks up, to be computed again.
    """

    def __init__(self, plan: Plan, rope_switch: int | None = None) -> None:
        self.pools = BlockPools(plan)
        self._tokens = plan.tokens
        self._rows = plan.rows
        self._context = plan.context
        self._longest_chunk = longest_chunk(plan)
        self._most_running = min(plan.sequences, plan.rows, plan.tokens)
        self._rope_switch = rope_switch
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._kept: Sequence | None = None
        self._slots = list(range(plan.sequences))
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        """Whether every sequence has finished."""
        return not self._waiting and not self._running

    @property
    def resting(self) -> bool:
        """Whether nothing waits, and nobody takes the tokens of what runs."""
        return not self._waiting and all(sequence.paused for sequence in self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those that wait."""
        self._waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next batch: sequences that decode, then prompts, each oldest first.

        Empty where nothing can run, or not before the tokens that are under way have been read.
        """
        try:
            return self._scheduled()
        except _UnreadError:
            return []

    def _scheduled(self) -> list[Chunk]:
        for sequence in self._running:
            self._match_rope_set(sequence)
        decoding = [s for s in self._running if s.num_pending == 1 and self._goes_on(s)]
        reading = [s for s in self._running if s.num_pending > 1]
        spare = self._tokens - len(decoding)
        chunks = [self._chunk(s, 1) for s in decoding if s.status == "running" and self._make_room(s)]
        for sequence in reading:
            if spare and sequence.status == "running" and self._make_room(sequence):
                chunks.append(self._chunk(sequence, spare))
                spare -= chunks[-1].stop - chunks[-1].start
        while spare and self._admit():
            chunks.append(self._chunk(self._running[-1], spare))
            spare -= chunks[-1].stop - chunks[-1].start
        return [chunk for chunk in chunks if chunk.sequence.status == "running"]

    def _goes_on(self, sequence: Sequence) -> bool:
        """Whether another token of its answer is wanted."""
        return not sequence.paused and sequence.num_missing > 0 and sequence.length < self._context

    def stretch(self, chunks: list[Chunk], steps: int) -> int:
        """How many steps the batch of these chunks can make, up to so many; its sequences get blocks for them.

        More than one only if all of them decode and nothing waits for a place beside them.
        """
        sequences = [chunk.sequence for chunk in chunks]
        if any(s.num_pending != 1 for s in self._running) or self._may_admit or not all(c.final for c in chunks):
            return 1
        steps = min(steps, max(s.num_missing for s in sequences), *(self._until_the_end(s) for s in sequences))
        for sequence in sequences:
            if steps > 1 and not self.pools.can_hold(sequence.table, sequence.length + steps - 1):
                return 1
            self.pools.hold(sequence.table, sequence.length + steps - 1)
        for sequence in sequences:
            sequence.table.written = max(sequence.table.written, sequence.length + steps - 1)
        return steps

    def _until_the_end(self, sequence: Sequence) -> int:
        """Steps before the context, or its set of RoPE frequencies, ends."""
        switch, ends = self._rope_switch, [self._context]
        if switch is not None and sequence.length <= switch:
            ends.append(switch + 1)
        return min(ends) - sequence.length

    @property
    def _may_admit(self) -> bool:
        return bool(self._waiting) and len(self._running) < self._most_running

    def advance(self, chunks: list[Chunk], steps: int = 1) -> None:
        """Note that `chunks` are in the cache, or will be, after so many steps."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.stop + steps - 1
            chunk.sequence.num_ahead += steps * chunk.final

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
            self._leave(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.status, sequence.finish_reason = "finished", reason
        sequence.num_computed = min(sequence.num_computed, len(sequence.tokens))
        if sequence.num_computed:
            self._drop_kept()
            self._kept = sequence
        else:
            self.pools.release(sequence.table)

    def fail(self, sequence: Sequence) -> None:
        """End a sequence whose cache is of no use."""
        sequence.num_computed = 0
        self.finish(sequence, "cancelled")

    def cancel_all(self) -> list[Sequence]:
        """End every sequence, and return them."""
        ended = [*self._running, *self._waiting]
        for sequence in ended:
            self.finish(sequence, "cancelled")
        return ended

    def fail_all(self) -> list[Sequence]:
        """End every sequence, and return them; all caches are of no use."""
        for sequence in (*self._running, *self._waiting):
            sequence.num_computed = 0
        ended = self.cancel_all()
        self._drop_kept()
        return ended

    def whole(self, sequence: Sequence) -> Generator[Chunk, None, None]:
        """Chunks of a sequence outside the queue, each at most the plan's rows, while the scheduler is idle.

        Its blocks are freed at the end, or when the iterator is closed.
        """
        try:
            self._match_rope_set(sequence)
            self._make_room(sequence)
            sequence.slot = self._slots[0]
            while sequence.num_pending:
                chunk = self._chunk(sequence, self._rows)
                yield chunk
                sequence.num_computed = chunk.stop
        finally:
            self.pools.release(sequence.table)

    def _chunk(self, sequence: Sequence, limit: int) -> Chunk:
        start = sequence.num_computed
        stop = start + min(sequence.num_pending, limit, self._longest_chunk)
        sequence.table.written = max(sequence.table.written, stop)
        return Chunk(sequence, start, stop, final=stop == sequence.length)

    def _admit(self) -> bool:
        """Let the first of the queue run, if there is a place and blocks for all its tokens."""
        if not self._may_admit:
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
        sequence.status, sequence.slot = "running", heapq.heappop(self._slots)
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
            if any(s.num_ahead for s in self._running):
                raise _UnreadError
            youngest = self._running.pop()
            self.preemptions += 1
            self.pools.release(youngest.table)
            self._leave(youngest)
            youngest.num_computed, youngest.status = 0, "waiting"
            self._waiting.appendleft(youngest)
            if youngest is sequence:
                return False
        self.pools.hold(sequence.table, sequence.length)
        return True

    def _leave(self, sequence: Sequence) -> None:
        """Give its slot to others. What is under way for it runs before anything that they submit."""
        heapq.heappush(self._slots, sequence.slot)
        sequence.num_ahead = 0

    def _has_room(self, sequence: Sequence) -> bool:
        if not self.pools.can_hold(sequence.table, sequence.length):
            self._drop_kept()
        return self.pools.can_hold(sequence.table, sequence.length)

    def _drop_kept(self) -> None:
        if self._kept is not None:
            self.pools.release(self._kept.table)
            self._kept = None

    def _rope_set(self, sequence: Sequence) -> int:
        return int(self._rope_switch is not None and sequence.length > self._rope_switch)

    def _match_rope_set(self, sequence: Sequence) -> None:
        """A cache made with the other set of frequencies is wrong for every position: compute all of them again."""
        if sequence.rope_set != self._rope_set(sequence):
            if sequence.num_ahead:
                raise _UnreadError
            sequence.rope_set = self._rope_set(sequence)
            sequence.num_computed = sequence.table.written = 0
