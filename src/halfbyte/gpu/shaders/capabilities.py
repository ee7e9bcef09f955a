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
        max_binding: Bytes of a storage binding.
        max_buffer: Bytes of a buffer.
        timestamps: Whether passes can be timed.
        coherent: Whether workgroups of a dispatch can read what others of it wrote: buffers may be `coherent`, and a
            storage barrier orders memory for all workgroups, as wgpu's do through Vulkan.
    """

    subgroup: int
    workgroup_storage: int
    invocations: int
    max_binding: int
    max_buffer: int
    timestamps: bool
    coherent: bool

    @property
    def largest(self) -> int:
        """Bytes of the largest buffer that a kernel can be given whole."""
        return min(self.max_binding, self.max_buffer)


BASELINE = Capabilities(0, 16384, 256, 128 << 20, 256 << 20, False, False)
"""A browser's default limits; every kernel has a variant for them."""
