"""Paged caches: which blocks of each cache group belong to which sequence.

The caches of a group share block numbers. Position p of a sequence lies in column `(p // block_size) % columns` of
its row, so a row with fewer columns than the context is a ring: position p takes the slot of p - columns · block_size.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from halfbyte.plan.batch import Int32
from halfbyte.plan.plan import CacheGroup, Plan


@dataclass
class BlockTable:
    """The blocks of one sequence.

    Attributes:
        rows: By each group's `blocks` name, int32 `[columns]`; columns fill from the left, the rest is -1.
        held: How many columns of each row are filled.
        written: One more than the highest position ever written: a ring has lost what lies a ring or more below.
    """

    rows: dict[str, Int32] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    written: int = 0


class BlockPools:
    """The free blocks of every cache group, handed out lowest first, so that untouched memory stays untouched."""

    def __init__(self, plan: Plan) -> None:
        self._groups = plan.groups
        self._block_size = plan.block_size
        self._free = {group.blocks: list(range(_block_count(plan, group))) for group in plan.groups}

    @property
    def free(self) -> dict[str, int]:
        """Free blocks, by each group's `blocks` name."""
        return {name: len(blocks) for name, blocks in self._free.items()}

    def can_hold(self, table: BlockTable, length: int) -> bool:
        """Whether enough blocks are free for `table` to hold positions below `length`."""
        return all(
            self._columns(group, length) - table.held.get(group.blocks, 0) <= len(self._free[group.blocks])
            for group in self._groups
        )

    def hold(self, table: BlockTable, length: int) -> None:
        """Give `table` the blocks for positions below `length`; ask `can_hold` first."""
        for group in self._groups:
            name = group.blocks
            if name not in table.rows:
                table.rows[name] = np.full(group.columns, -1, np.int32)
            for column in range(table.held.get(name, 0), self._columns(group, length)):
                table.rows[name][column] = heapq.heappop(self._free[name])
                table.held[name] = column + 1

    def can_rewind(self, table: BlockTable, length: int) -> bool:
        """Whether the cache still has all that position `length` and later ones will look back to.

        The first of them sees `window - 1` positions back; a ring has only the last `columns · block_size` written.
        """
        return all(
            max(0, length - (group.window - 1)) >= table.written - group.columns * self._block_size
            for group in self._groups
            if group.window is not None
        )

    def rewind(self, table: BlockTable, length: int) -> None:
        """Free the blocks that only positions from `length` on use."""
        for group in self._groups:
            self._truncate(table, group.blocks, self._columns(group, length))

    def release(self, table: BlockTable) -> None:
        """Free all blocks of `table`."""
        self.rewind(table, 0)
        table.written = 0

    def _columns(self, group: CacheGroup, length: int) -> int:
        return min(-(-length // self._block_size), group.columns)

    def _truncate(self, table: BlockTable, name: str, columns: int) -> None:
        held = table.held.get(name, 0)
        if held <= columns:
            return
        row = table.rows[name]
        for block in row[columns:held].tolist():
            heapq.heappush(self._free[name], block)
        row[columns:held] = -1
        table.held[name] = columns


def longest_chunk(plan: Plan) -> int:
    """The most tokens of one sequence in a batch: all are written before the first looks `window - 1` back."""
    rings = [group for group in plan.groups if group.columns * plan.block_size < plan.context]
    room = [group.columns * plan.block_size - ((group.window or plan.context) - 1) for group in rings]
    return min([plan.tokens, *room])


def _block_count(plan: Plan, group: CacheGroup) -> int:
    return plan.tensors[group.caches[0][0]].shape[0]
