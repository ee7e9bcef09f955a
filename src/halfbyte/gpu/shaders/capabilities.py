"""What a device offers to kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """What kernels may count on.

    Attributes:
        subgroup: Lanes of a subgroup, the same in every kernel; 0 where that is not certain or there are none.
        workgroup_storage: Bytes of workgroup memory.
        invocations: Invocations of a workgroup.
        storage_buffers: Storage buffers that one kernel can have.
        max_binding: Bytes of a storage binding.
        max_buffer: Bytes of a buffer.
        timestamps: Whether passes can be timed.
        coherent: Whether workgroups of a dispatch can read what others of it wrote: buffers may be `coherent`, and a
            storage barrier orders memory for all workgroups, as wgpu's do through Vulkan.
    """

    subgroup: int
    workgroup_storage: int
    invocations: int
    storage_buffers: int
    max_binding: int
    max_buffer: int
    timestamps: bool
    coherent: bool

    @property
    def largest(self) -> int:
        """Bytes of the largest buffer that a kernel can be given whole."""
        return min(self.max_binding, self.max_buffer)


BASELINE = Capabilities(
    subgroup=0,
    workgroup_storage=16384,
    invocations=256,
    storage_buffers=8,
    max_binding=128 << 20,
    max_buffer=256 << 20,
    timestamps=False,
    coherent=False,
)
"""WebGPU's default limits and no optional feature: what any browser has. Every model's programs stay within them."""
