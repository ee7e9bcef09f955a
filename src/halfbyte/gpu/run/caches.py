"""The paged caches: buffers that grow with the blocks in use, not with the longest context."""

from __future__ import annotations

from collections.abc import Mapping

from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.lower import caches
from halfbyte.gpu.run.bound import Buffer
from halfbyte.gpu.run.recorder import Recorder
from halfbyte.plan import Plan
from halfbyte.plan.batch import Int32

FIRST_POSITIONS = 2048
"""Positions that the caches have room for at the start."""


class Caches:
    """Every layer's k and v. A position's values take a whole number of eights.

    Attributes:
        buffers: By tensor name.
    """

    def __init__(self, device: Device, plan: Plan) -> None:
        self._device = device
        self._layouts = caches(plan)
        self._capacity: dict[str, int] = {}
        self.buffers: dict[str, Buffer] = {}
        for name, cache in self._layouts.items():
            blocks = min(-(-FIRST_POSITIONS // plan.block_size), cache.blocks)
            self._capacity[cache.table] = blocks
            self.buffers[name] = Buffer(device.buffer(blocks * cache.block_nbytes, name), grows=True)

    @property
    def nbytes(self) -> int:
        """Bytes in use now."""
        return sum(buffer.handle.size for buffer in self.buffers.values())

    def reserve(self, tables: Mapping[str, Int32], recorder: Recorder) -> None:
        """Make room for every block that the tables name."""
        for table, capacity in list(self._capacity.items()):
            needed = int(tables[table].max(initial=-1)) + 1
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
