"""Which tokens of which sequences run next. It knows sequences and blocks, never tensors.

A batch holds one token of every sequence that decodes, then pieces of prompts: up to the plan's tokens, or a smaller
budget while others decode. Those whose prompts are being read take turns. Sequences wait by priority, then in the order
they came. When blocks run out, the last in that order gives up its own and is computed again later.

Full blocks stay in the caches until their memory is needed. A sequence is given those that it begins with; while
another one is still computing them, it waits.

Where layers keep states, a sequence goes on only from where one was kept. A batch ends there: at the last full block
of a prompt, where others that wait part from it, and where it parts itself from what the caches hold. The last state of
a sequence is kept as well, if all tokens that it has seen are known.

A batch may be scheduled before the tokens of the one before it have been read. What needs to know them, such as
computing a sequence again, waits until they are.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Generator
from dataclasses import dataclass
from time import perf_counter

from halfbyte.plan.plan import Plan
from halfbyte.runtime import prefixes
from halfbyte.runtime.blocks import BlockPools, Prefix, ring_room
from halfbyte.runtime.sequence import FinishReason, Sequence

IN_VIEW = 2
"""Waiting sequences that are looked at, for each that can run: those that wait for another's blocks let others by."""


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

    @property
    def scored(self) -> range:
        """Positions after which a token of the prompt comes whose log-probability is wanted."""
        sequence = self.sequence
        if sequence.scoring is None:
            return range(0)
        first = len(sequence.prompt_ids) - 1 - sequence.num_unscored
        return range(max(self.start, first), min(self.stop, first + sequence.num_unscored))

    @property
    def rows(self) -> list[int]:
        """Positions whose logits are wanted."""
        return [*self.scored, *([self.stop - 1] if self.final else [])]

    @property
    def pooled(self) -> bool:
        """Whether hidden states of its tokens are wanted."""
        return self.sequence.pooler is not None and self.sequence.pooler.wants(self.stop)


class _UnreadError(Exception):
    """Tokens under way have to be read first."""


class Scheduler:
    """Sequences waiting and running, and the blocks they hold.

    Args:
        rope_switch: Tokens in total beyond which the second RoPE set holds, for all positions of a sequence.
        prefill_chunk: The most tokens of prompts in a batch in which other sequences decode.
    """

    def __init__(self, plan: Plan, rope_switch: int | None = None, prefill_chunk: int | None = None) -> None:
        self.pools = BlockPools(plan)
        self._plan = plan
        self._prefill_chunk = min(prefill_chunk or plan.tokens, plan.tokens)
        self._ring_room = ring_room(plan)
        self._most_running = min(plan.sequences, plan.rows, plan.tokens)
        self._rope_switch = rope_switch
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._slots = list(range(plan.sequences))
        self._arrivals = self._turns = 0

    @property
    def idle(self) -> bool:
        """Whether every sequence has finished."""
        return not self._waiting and not self._running

    @property
    def resting(self) -> bool:
        """Whether nothing waits, nobody takes the tokens of what runs, and all have time."""
        return not self._waiting and all(s.paused for s in self._running) and not self._expired()

    def rope_set(self, length: int) -> int:
        """The set of RoPE frequencies for a sequence of so many tokens."""
        return int(self._rope_switch is not None and length > self._rope_switch)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those of its priority."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        insort(self._waiting, sequence, key=_order)

    def schedule(self) -> list[Chunk]:
        """The next batch: sequences that decode, then prompts.

        Empty where nothing can run, or not before the tokens that are under way have been read.
        """
        try:
            return self._scheduled()
        except _UnreadError:
            return []

    def _scheduled(self) -> list[Chunk]:
        self._switch_rope_sets()
        decoding = [s for s in self._running if s.num_pending == 1 and self._goes_on(s)]
        chunks = [self._chunk(s, 1) for s in decoding if s.status == "running" and self._make_room(s)]
        spare = self._plan.tokens - len(chunks)
        if chunks:
            spare = min(spare, self._prefill_chunk)
        admitted = self._admit()
        reading = [s for s in self._running if self._reads(s) or s in admitted]
        rows = self._plan.rows - len(self._running)  # beyond the one that each may need for its next token
        for sequence in sorted(reading, key=lambda s: (-s.priority, s.turn, s.arrival)):
            if spare and sequence.status == "running" and self._make_room(sequence):
                chunks.append(self._chunk(sequence, min(spare, 1 + rows) if sequence.num_unscored else spare))
                spare -= chunks[-1].stop - chunks[-1].start
                rows -= max(0, len(chunks[-1].rows) - 1)
        return [chunk for chunk in chunks if chunk.sequence.status == "running"]

    def _reads(self, sequence: Sequence) -> bool:
        """Whether its prompt is being read. An answer goes on from the last token, which is else read as well."""
        return sequence.num_pending > 1 or (sequence.num_pending == 1 and sequence.pooler is not None)

    def _goes_on(self, sequence: Sequence) -> bool:
        """Whether another token of its answer is wanted."""
        return not sequence.paused and sequence.num_missing > 0 and sequence.length < self._plan.context

    def stretch(self, chunks: list[Chunk], steps: int) -> int:
        """How many steps the batch of these chunks can make, up to so many; its sequences get blocks for them.

        More than one only if all that run decode.
        """
        sequences = [chunk.sequence for chunk in chunks]
        if any(s.num_pending != 1 for s in self._running) or not all(c.final for c in chunks):
            return 1
        if any(s.table.before >= 0 for s in sequences):
            return 1  # the second step would go on from the same state as the first
        ends = (self._until_the_end(s) for s in sequences)
        steps = min(steps, self._ring_room, max(s.num_missing for s in sequences), *ends)
        for sequence in sequences:
            length = sequence.length + steps - 1
            if steps > 1 and not self.pools.can_hold(sequence.table, sequence.num_computed, length):
                return 1
            self.pools.hold(sequence.table, sequence.num_computed, length)
        return steps

    def _until_the_end(self, sequence: Sequence) -> int:
        """Steps before the context, or its set of RoPE frequencies, ends."""
        switch, ends = self._rope_switch, [self._plan.context]
        if switch is not None and sequence.length <= switch:
            ends.append(switch + 1)
        return min(ends) - sequence.length

    def advance(self, chunks: list[Chunk], steps: int = 1) -> None:
        """Note that `chunks` are in the cache, or will be before anything that is scheduled later, after all steps."""
        self._turns += 1
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.turn = self._turns
            sequence.num_computed = chunk.stop + steps - 1
            sequence.num_ahead += steps * chunk.final
            self._record(sequence)
            self.pools.move_on(sequence.table)
            if chunk.stop in sequence.stops and sequence.scope is not None:
                self.pools.keep_state(sequence.table, sequence.chain[chunk.stop // self.pools.block_size])

    def append(self, sequence: Sequence, token_id: int) -> None:
        """Give a sequence its next token, and finish it if that was its last."""
        sequence.append(token_id)
        self._record(sequence)
        reason = sequence.reason_to_finish(self._plan.context)
        if reason is not None:
            self.finish(sequence, reason)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence that waits or runs. Its blocks are free at once; they keep what they hold while they can.

        Batches under way still write behind its end, before anything that is scheduled later: its full blocks and the
        part of the last one that belongs to it stay as they are.
        """
        if sequence.status == "running":
            self._stop(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.status, sequence.finish_reason = "finished", reason

    def fail(self, sequence: Sequence) -> None:
        """End a sequence whose cache is of no use."""
        self.pools.forget(sequence.chain)
        sequence.num_computed = 0
        self.finish(sequence, "cancelled")

    def end_expired(self) -> list[Sequence]:
        """End every sequence whose time is up, and return them."""
        expired = self._expired()
        for sequence in expired:
            self.finish(sequence, "deadline")
        return expired

    def cancel_all(self) -> list[Sequence]:
        """End every sequence, and return them."""
        ended = [*self._running, *self._waiting]
        for sequence in ended:
            self.finish(sequence, "cancelled")
        return ended

    def fail_all(self) -> list[Sequence]:
        """End every sequence, and return them; all caches are of no use."""
        ended = self.cancel_all()
        self.pools = BlockPools(self._plan)
        return ended

    def whole(self, sequence: Sequence) -> Generator[Chunk, None, None]:
        """Chunks of a sequence outside the queue, each at most the plan's rows, while the scheduler is idle.

        Its blocks are freed at the end, or when the iterator is closed.
        """
        try:
            sequence.rope_set, sequence.slot = self.rope_set(sequence.length), self._slots[0]
            while sequence.num_pending:
                self.pools.hold(sequence.table, sequence.num_computed, sequence.length)
                chunk = self._chunk(sequence, self._plan.rows)
                yield chunk
                sequence.num_computed = chunk.stop
        finally:
            self.pools.release(sequence.table)

    def _chunk(self, sequence: Sequence, limit: int) -> Chunk:
        start = sequence.num_computed
        stop = start + min(sequence.num_pending, limit, self._ring_room, self._plan.tokens)
        stop = min([stop, *(end for end in sequence.stops if end > start)])
        return Chunk(sequence, start, stop, final=stop == sequence.length and sequence.pooler is None)

    def _expired(self) -> list[Sequence]:
        now = perf_counter()
        return [sequence for sequence in (*self._running, *self._waiting) if sequence.expired(now)]

    def _admit(self) -> list[Sequence]:
        """Let those run, in their order, for which there are places and blocks; the first that lacks them ends it."""
        admitted: list[Sequence] = []
        for sequence in self._waiting[: IN_VIEW * self._most_running]:
            if len(self._running) == self._most_running:
                break
            prefix = self._cached(sequence)
            if self._is_being_computed(sequence, prefix):
                continue
            if not self._enter(sequence, prefix):
                break
            admitted.append(sequence)
        return admitted

    def _cached(self, sequence: Sequence) -> Prefix:
        """What the caches hold of a sequence."""
        rope_set = self.rope_set(sequence.length)
        if not sequence.chain or sequence.rope_set != rope_set:
            sequence.rope_set, sequence.chain = (
                rope_set,
                [prefixes.root(sequence.scope or b"", rope_set, sequence.adapter)],
            )
        if sequence.scope is None:
            return Prefix(0, 0)
        prefixes.extend(sequence.chain, sequence.tokens, self.pools.block_size)
        prefix = self.pools.find(sequence.chain, sequence.tokens)
        if self.pools.keeps_states:
            last = (len(sequence.prompt_ids) - 1) // self.pools.block_size
            parting = self.pools.num_full(sequence.chain, sequence.tokens)
            sequence.stops |= {blocks * self.pools.block_size for blocks in (last, parting) if blocks > prefix.blocks}
        return prefix

    def _is_being_computed(self, sequence: Sequence, prefix: Prefix) -> bool:
        """Whether more of what it begins with is about to be computed for another one."""
        size = self.pools.block_size
        for other in self._running:
            if other.scope is not None and other.num_pending > 1:
                common = min(prefixes.num_common(sequence.chain, other.chain), (len(sequence.tokens) - 1) // size)
                if common > prefix.blocks and other.num_computed < common * size:
                    if self.pools.keeps_states:
                        other.stops.add(common * size)
                    return True
        return False

    def _enter(self, sequence: Sequence, prefix: Prefix) -> bool:
        """Let a sequence run, if there are blocks for all its tokens and one more for each that runs already."""
        table = sequence.table
        cached = self.pools.adopt(table, sequence.chain, prefix)
        if not self.pools.can_hold(table, cached, sequence.length, spare=len(self._running)):
            sequence.num_computed = cached
            self._let_go(sequence)
            return False
        self.pools.hold(table, cached, sequence.length)
        if not (sequence.num_preemptions or sequence.generated_ids):
            sequence.num_cached_tokens = min(cached, len(sequence.prompt_ids))
        sequence.num_computed, sequence.turn = cached, self._turns - 1
        sequence.status, sequence.slot = "running", heapq.heappop(self._slots)
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=_order)
        return True

    def _make_room(self, sequence: Sequence) -> bool:
        """Get blocks for all tokens of `sequence`, at the cost of the last; False if it had to go itself."""
        while not self.pools.can_hold(sequence.table, sequence.num_computed, sequence.length):
            if any(s.num_ahead for s in self._running):
                raise _UnreadError
            last = self._running[-1]
            last.num_preemptions += 1
            self._preempt(last)
            if last is sequence:
                return False
        self.pools.hold(sequence.table, sequence.num_computed, sequence.length)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Have a sequence wait, without blocks."""
        self._stop(sequence)
        sequence.status = "waiting"
        insort(self._waiting, sequence, key=_order)

    def _stop(self, sequence: Sequence) -> None:
        """Take a sequence out of those that run. What is under way for it runs before anything scheduled later."""
        self._running.remove(sequence)
        heapq.heappush(self._slots, sequence.slot)
        self._let_go(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        """Free the blocks of a sequence, and offer what they hold to others."""
        if sequence.scope is not None:
            known, full = sequence.num_known, sequence.table.recorded * self.pools.block_size
            if known > full:
                tail = tuple(sequence.tokens[full:known])
                self.pools.record_tail(sequence.table, sequence.chain[sequence.table.recorded], tail)
            if 0 < sequence.num_computed == known:
                tail = tuple(sequence.tokens[full:known])
                self.pools.record_state(sequence.table, sequence.chain[sequence.table.recorded], tail)
        self.pools.release(sequence.table)
        sequence.num_computed = sequence.num_ahead = 0

    def _record(self, sequence: Sequence) -> None:
        """Offer to others what has become full."""
        size = self.pools.block_size
        if sequence.scope is not None and sequence.num_known >= (sequence.table.recorded + 1) * size:
            prefixes.extend(sequence.chain, sequence.tokens, size)
            self.pools.record(sequence.table, sequence.chain, sequence.num_known)

    def _switch_rope_sets(self) -> None:
        """Keys made with the other set of frequencies are wrong at every position: compute them again."""
        for sequence in list(self._running):
            if sequence.rope_set != self.rope_set(sequence.length):
                if sequence.num_ahead:
                    raise _UnreadError
                self._preempt(sequence)


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
