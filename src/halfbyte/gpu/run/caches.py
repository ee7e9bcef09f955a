"""The paged caches: buffers that grow with the blocks in use, not with the longest context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.lower import caches
from halfbyte.gpu.run.bound import Buffer
from halfbyte.gpu.run.recorder import Recorder
from halfbyte.plan import Plan
from halfbyte.plan.batch import Int32, UInt8

FIRST_POSITIONS = 2048
"""Positions that the caches have room for at the start."""
FIRST_STATES = 2
"""States of sequences that there is room for at the start."""


class Caches:
    """Every layer's k and v, or states. A position's values take a whole number of eights.

    Attributes:
        buffers: By tensor name.
    """

    def __init__(self, device: Device, plan: Plan) -> None:
        self._device = device
        self._layouts = caches(plan)
        self._capacity: dict[str, int] = {}
        self.buffers: dict[str, Buffer] = {}
        for name, cache in self._layouts.items():
            is_state = plan.states is not None and name in plan.states.names
            blocks = min(FIRST_STATES if is_state else -(-FIRST_POSITIONS // plan.block_size), cache.blocks)
            self._capacity[cache.table] = blocks
            self.buffers[name] = Buffer(device.buffer(blocks * cache.block_nbytes, name), grows=True)

    @property
    def nbytes(self) -> int:
        """Bytes in use now."""
        return sum(buffer.handle.size for buffer in self.buffers.values())

    def reserve(self, tables: Mapping[str, Int32], recorder: Recorder) -> None:
        """Make room for every block that the tables name."""
        for table in self._capacity:
            self._make_room(table, int(tables[table].max(initial=-1)) + 1, recorder)

    def read(self, name: str, blocks: Sequence[int]) -> UInt8:
        """The bytes of blocks, `[blocks, bytes of a block]`, once all that was submitted is done."""
        nbytes, handle = self._layouts[name].block_nbytes, self.buffers[name].handle
        found = np.empty((len(blocks), nbytes), np.uint8)
        for start, stop in _runs(blocks):
            raw = self._device.read(handle, (stop - start) * nbytes, blocks[start] * nbytes)
            found[start:stop] = raw.reshape(-1, nbytes)
        return found

    def write(self, name: str, blocks: Sequence[int], values: UInt8, recorder: Recorder) -> None:
        """Write what `read` gave into blocks, before whatever is submitted next."""
        layout = self._layouts[name]
        if values.shape != (len(blocks), layout.block_nbytes):
            raise ValueError(f"{name} has blocks of {layout.block_nbytes} bytes, not values of shape {values.shape}")
        self._make_room(layout.table, max(blocks, default=-1) + 1, recorder)
        for start, stop in _runs(blocks):
            offset = blocks[start] * layout.block_nbytes
            self._device.write(self.buffers[name].handle, offset, values[start:stop])

    def _make_room(self, table: str, needed: int, recorder: Recorder) -> None:
        """Make room for blocks 0 to `needed` - 1 in the caches of a block table."""
        capacity = self._capacity[table]
        if needed > capacity:
            members = {name: cache for name, cache in self._layouts.items() if cache.table == table}
            most = next(iter(members.values())).blocks
            self._capacity[table] = min(max(needed, 2 * capacity), most)
            for name, cache in members.items():
                self._grow(name, self._capacity[table] * cache.block_nbytes, recorder)

    def _grow(self, name: str, nbytes: int, recorder: Recorder) -> None:
        buffer = self.buffers[name]
        before, grown = buffer.handle, self._device.buffer(nbytes, name)
        recorder.submit([], [(before, 0, grown, 0, before.size)])
        buffer.replace(grown)
        self._device.free(before)


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of `blocks` in which each number is the one before plus 1."""
    start = 0
    for stop in range(1, len(blocks) + 1):
        if stop == len(blocks) or blocks[stop] != blocks[stop - 1] + 1:
            yield start, stop
            start = stop
