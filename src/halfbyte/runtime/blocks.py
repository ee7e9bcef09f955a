"""Paged caches: which blocks of each cache group belong to which sequence, and which hold what others may use.

The caches of a group share block numbers. Positions n · block_size and on of a sequence lie in its block n, which is in
column `n % columns` of its row. A row with fewer columns than the context is a ring: a new block takes the column of
one that lies before the window of every position still to come. Blocks are never written again once they are full, so
sequences that begin with the same tokens share them.

Layers that keep states have one pool of them. A running sequence has a state that its batches write. One that others
may go on from is written no more: the next batch reads it and writes another, so that nothing is copied. There are few,
and each is of use only where a sequence begins with all its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from halfbyte.plan.batch import Int32
from halfbyte.plan.plan import CacheGroup, Plan
from halfbyte.runtime.pool import Content, Pool


@dataclass
class Row:
    """The blocks of a sequence in one group: from its block `first` up to the one before `stop`.

    Attributes:
        blocks: int32 `[columns]`; unused entries are -1.
    """

    blocks: Int32
    first: int = 0
    stop: int = 0

    @property
    def held(self) -> list[int]:
        """The numbers of its blocks, in the order of positions."""
        return [self.at(index) for index in range(self.first, self.stop)]

    def at(self, index: int) -> int:
        """The number of the sequence's block `index`, which is in the row."""
        return int(self.blocks[index % len(self.blocks)])


@dataclass
class BlockTable:
    """The blocks of one sequence.

    Attributes:
        rows: By each group's `blocks` name.
        recorded: Leading full blocks that have been offered to others.
        state: The state that its next batch leaves; -1 if it has none.
        before: The state that its next batch goes on from, if that is another one; else -1.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    recorded: int = 0
    state: int = -1
    before: int = -1

    @property
    def states(self) -> tuple[int, int]:
        """The states that its next batch goes on from, and leaves."""
        return (self.state if self.before < 0 else self.before), self.state


class Prefix(NamedTuple):
    """What the caches hold of a sequence: full blocks, and tokens of the block after them."""

    blocks: int
    tail: int


class BlockPools:
    """The pools of all cache groups."""

    def __init__(self, plan: Plan) -> None:
        self.block_size = plan.block_size
        self._pools = [(group, Pool(block_count(plan, group))) for group in plan.groups]
        self._states = Pool(plan.num_states) if plan.states else None

    @property
    def free(self) -> dict[str, int]:
        """Blocks that no sequence uses, by each group's `blocks` name."""
        return {group.blocks: pool.free for group, pool in self._pools}

    @property
    def keeps_states(self) -> bool:
        """Whether a sequence goes on only from where a state was kept."""
        return self._states is not None

    def can_hold(self, table: BlockTable, start: int, length: int, *, spare: int = 0) -> bool:
        """Whether `hold` has enough blocks, and leaves some to spare."""
        for group, pool in self._pools:
            row = _row(table, group)
            taken = range(row.stop, self._stop(group, row, start, length))
            columns = (int(row.blocks[index % group.columns]) for index in taken)
            if sum(block < 0 or pool.shared(block) for block in columns) + spare > pool.free:
                return False
        return self._states is None or table.state >= 0 or self._states.free > 0

    def hold(self, table: BlockTable, start: int, length: int) -> None:
        """Give `table` blocks for positions below `length`, as far as rings have room; ask `can_hold` first.

        Args:
            start: The first position that is still to be computed: what lies a window before it may go.
        """
        for group, pool in self._pools:
            row = _row(table, group)
            for index in range(row.stop, self._stop(group, row, start, length)):
                column = index % group.columns
                if row.blocks[column] >= 0:
                    pool.drop(int(row.blocks[column]))
                row.blocks[column] = pool.take()
                row.stop = index + 1
                row.first = max(row.first, row.stop - group.columns)
        if self._states is not None and table.state < 0:
            table.state = self._states.take()

    def begin(self, table: BlockTable, position: int) -> None:
        """Have an empty table begin with the blocks that `position` looks back to."""
        for group, _ in self._pools:
            row = _row(table, group)
            row.first = row.stop = group.first_seen(position, self.block_size)

    def record(self, table: BlockTable, chain: Many[bytes], length: int) -> None:
        """Offer the full blocks among the first `length` positions, whose tokens `chain` names, to others."""
        for index in range(table.recorded, length // self.block_size):
            for group, pool in self._pools:
                row = _row(table, group)
                if row.first <= index < row.stop:
                    pool.record(row.at(index), Content(chain[index + 1]))
            table.recorded = index + 1

    def record_tail(self, table: BlockTable, key: bytes, tail: tuple[int, ...]) -> None:
        """Offer the block after the full ones, which holds the tokens `tail`, to one who goes on from there."""
        for group, pool in self._pools:
            row = _row(table, group)
            if tail and row.first <= table.recorded < row.stop:
                pool.record(row.at(table.recorded), Content(key, tail))

    def move_on(self, table: BlockTable) -> None:
        """Note that the next batch has been submitted: the state that `table` writes holds what came before."""
        if self._states is not None and table.before >= 0:
            self._states.drop(table.before)
            table.before = -1

    def keep_state(self, table: BlockTable, key: bytes) -> None:
        """Offer the state after the full blocks that `key` names to others; the next batch writes another one.

        Nothing is offered where none is free, or where one like it is there.
        """
        if self._states is not None and self._states.free and not self._states.has(key):
            self._states.record(table.state, Content(key))
            table.before, table.state = table.state, self._states.take()

    def record_state(self, table: BlockTable, key: bytes, tail: tuple[int, ...]) -> None:
        """Offer the state after the blocks that `key` names and the tokens `tail`, before `table` lets go of it."""
        if self._states is not None and table.before < 0 <= table.state:
            self._states.record(table.state, Content(key, tail))

    def release(self, table: BlockTable) -> None:
        """Let go of all blocks of `table`; the last ones are the first to lose their content."""
        for group, pool in self._pools:
            row = _row(table, group)
            for block in reversed(row.held):
                pool.drop(block)
        if self._states is not None:
            for state in (table.before, table.state):
                if state >= 0:
                    self._states.drop(state)
        table.rows.clear()
        table.recorded = 0
        table.state = table.before = -1

    def find(self, chain: Many[bytes], tokens: Many[int], *, tails: bool = True) -> Prefix:
        """What is there of a sequence, at most all its tokens but the last, which is always computed.

        Args:
            tails: Whether tokens of a block that is not full count.
        """
        limit = len(tokens) - 1
        found = self._full(chain[: limit // self.block_size + 1])
        for blocks in reversed(found):
            rest = tokens[blocks * self.block_size : limit] if tails else ()
            tail = min((_num_equal(pool.tail(chain[blocks]), rest) for _, pool in self._pools), default=0)
            if self._states is None:
                return Prefix(blocks, tail)
            seen = self._states.tail(chain[blocks])
            if seen and len(seen) <= tail and _num_equal(seen, rest) == len(seen):
                return Prefix(blocks, len(seen))
            if self._states.has(chain[blocks]):
                return Prefix(blocks, 0)
        return Prefix(0, 0)

    def num_full(self, chain: Many[bytes], tokens: Many[int]) -> int:
        """As many leading blocks of a sequence as are there, whether or not a state is."""
        return self._full(chain[: (len(tokens) - 1) // self.block_size + 1])[-1]

    def adopt(self, table: BlockTable, chain: Many[bytes], prefix: Prefix) -> int:
        """Give an empty table what `find` found; the number of its tokens."""
        blocks, tail = prefix
        self.begin(table, blocks * self.block_size)
        for group, pool in self._pools:
            row = _row(table, group)
            for index in range(row.first, blocks):
                row.blocks[index % group.columns] = pool.share(chain[index + 1])
            row.stop = blocks
            if tail:
                row.blocks[blocks % group.columns] = pool.take_tail(chain[blocks])
                row.stop += 1
        if self._states is not None and tail:
            table.state = self._states.take_tail(chain[blocks])
        elif self._states is not None and blocks:
            table.before = self._states.share(chain[blocks])
        table.recorded = blocks
        return blocks * self.block_size + tail

    def forget(self, chain: Many[bytes]) -> None:
        """Offer nothing of a sequence to others any more."""
        for pool in (*(pool for _, pool in self._pools), *([self._states] if self._states else [])):
            for key in chain:
                pool.forget(key)

    def _full(self, chain: Many[bytes]) -> list[int]:
        """Numbers of leading blocks, in order, after which every group has what the next position looks back to."""
        found, runs = [0], [0] * len(self._pools)
        for blocks, key in enumerate(chain[1:], 1):
            runs = [run + 1 if pool.has(key) else 0 for run, (_, pool) in zip(runs, self._pools, strict=True)]
            seen = [blocks - group.first_seen(blocks * self.block_size, self.block_size) for group, _ in self._pools]
            if all(run >= needed for run, needed in zip(runs, seen, strict=True)):
                found.append(blocks)
            elif any(run < blocks for run, (group, _) in zip(runs, self._pools, strict=True) if group.window is None):
                break
        return found

    def _stop(self, group: CacheGroup, row: Row, start: int, length: int) -> int:
        """Where the row may end: at `length`, or where it would take the column of a block that is still seen."""
        seen = max(row.first, group.first_seen(start, self.block_size))
        return min(-(-length // self.block_size), seen + group.columns)


def ring_room(plan: Plan) -> int:
    """The most positions of one sequence that may be written together, wherever in a block they begin.

    All are written before the first looks `window - 1` back, so all these blocks have columns of their own.
    """
    rings = [group for group in plan.groups if group.columns * plan.block_size < plan.context]
    room = [(group.columns - 1) * plan.block_size + 2 - (group.window or plan.context) for group in rings]
    return min([plan.context, *room])


def block_count(plan: Plan, group: CacheGroup) -> int:
    """Blocks in the pool of a group."""
    return plan.tensors[group.caches[0][0]].shape[0]


def _row(table: BlockTable, group: CacheGroup) -> Row:
    if group.blocks not in table.rows:
        table.rows[group.blocks] = Row(np.full(group.columns, -1, np.int32))
    return table.rows[group.blocks]


def _num_equal(first: Many[int], second: Many[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
