"""The paged caches: buffers that grow with the blocks in use, not with the longest context."""

from __future__ import annotations

from collections.abc import Mapping

from halfbyte.gpu.device.device import Device
from halfbyte.gpu.run.recorder import Buffer, Recorder
from halfbyte.plan import CacheGroup, Plan
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
        self._plan = plan
        self._block_nbytes = {t.name: _block_nbytes(t.shape, t.dtype) for t in plan.of_kind("cache")}
        self._capacity: dict[str, int] = {}
        self.buffers: dict[str, Buffer] = {}
        for group in plan.groups:
            blocks = min(-(-FIRST_POSITIONS // plan.block_size), self._most(group))
            self._capacity[group.blocks] = blocks
            for name in (name for pair in group.caches for name in pair):
                self.buffers[name] = Buffer(device.buffer(blocks * self._block_nbytes[name], name))

    @property
    def nbytes(self) -> int:
        """Bytes in use now."""
        return sum(buffer.handle.size for buffer in self.buffers.values())

    def _most(self, group: CacheGroup) -> int:
        return self._plan.tensors[group.caches[0][0]].shape[0]

    def reserve(self, tables: Mapping[str, Int32], recorder: Recorder) -> None:
        """Make room for every block that the tables name."""
        for group in self._plan.groups:
            needed = int(tables[group.blocks].max(initial=-1)) + 1
            capacity = self._capacity[group.blocks]
            if needed > capacity:
                self._capacity[group.blocks] = min(max(needed, 2 * capacity), self._most(group))
                for name in (name for pair in group.caches for name in pair):
                    self._grow(name, self._capacity[group.blocks], recorder)

    def _grow(self, name: str, blocks: int, recorder: Recorder) -> None:
        buffer = self.buffers[name]
        before, grown = buffer.handle, self._device.buffer(blocks * self._block_nbytes[name], name)
        recorder.submit([], [(before, 0, grown, 0, before.size)])
        buffer.replace(grown)
        self._device.free(before)


def _block_nbytes(shape: tuple[int, ...], dtype: str) -> int:
    _, kv_heads, block_size, head_dim = shape
    return kv_heads * block_size * -(-head_dim // 8) * 8 * (2 if dtype == "f16" else 4)
