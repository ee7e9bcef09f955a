"""The blocks of one cache group: who uses them, what they hold, and which of them are free.

A block that nobody uses keeps its content until its memory is needed: first go blocks without content, lowest first, so
that untouched memory stays untouched; then the block that was let go of first.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True)
class Content:
    """What a block holds that others may want.

    Attributes:
        key: The hash of all tokens up to the end of a full block; of one that is not full, up to its beginning.
        tail: The tokens of a block that is not full; empty for a full one.
    """

    key: bytes
    tail: tuple[int, ...] = ()

    @property
    def place(self) -> tuple[bytes, bool]:
        """Where it is found: full blocks apart from others."""
        return self.key, bool(self.tail)


class Pool:
    """Blocks 0 to `count` - 1."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._uses = [0] * count
        self._empty = list(range(count))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._contents: dict[int, Content] = {}
        self._places: dict[tuple[bytes, bool], int] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._empty) + len(self._kept)

    def shared(self, block: int) -> bool:
        """Whether more than one sequence uses a block."""
        return self._uses[block] > 1

    def take(self) -> int:
        """A block for one user to write; there must be a free one."""
        if self._empty:
            block = heapq.heappop(self._empty)
        else:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
        self._uses[block] = 1
        return block

    def drop(self, block: int) -> None:
        """One user less."""
        self._uses[block] -= 1
        if not self._uses[block]:
            if block in self._contents:
                self._kept[block] = None
            else:
                heapq.heappush(self._empty, block)

    def record(self, block: int, content: Content) -> None:
        """Note what a block in use holds. Another full block with the same stays; another tail makes room."""
        other = self._places.get(content.place)
        if other is not None and not content.tail:
            return
        if other is not None:
            self._discard(other)
        self._contents[block] = content
        self._places[content.place] = block

    def has(self, key: bytes) -> bool:
        """Whether a full block is there."""
        return (key, False) in self._places

    def share(self, key: bytes) -> int:
        """A full block that is there, with one user more."""
        block = self._places[key, False]
        if not self._uses[block]:
            del self._kept[block]
        self._uses[block] += 1
        return block

    def tail(self, key: bytes) -> tuple[int, ...]:
        """The tokens of the block that is not full and follows the blocks that `key` names; empty if there is none."""
        block = self._places.get((key, True))
        return self._contents[block].tail if block is not None else ()

    def take_tail(self, key: bytes) -> int:
        """The block whose tokens `tail` tells, for one user to go on writing."""
        block = self._places[key, True]
        self._forget(block)
        del self._kept[block]
        self._uses[block] = 1
        return block

    def forget(self, key: bytes) -> None:
        """Offer what `key` names to nobody any more."""
        for place in ((key, False), (key, True)):
            if place in self._places:
                self._discard(self._places[place])

    def _discard(self, block: int) -> None:
        self._forget(block)
        if not self._uses[block]:
            del self._kept[block]
            heapq.heappush(self._empty, block)

    def _forget(self, block: int) -> None:
        del self._places[self._contents.pop(block).place]
