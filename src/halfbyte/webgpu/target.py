"""What lowering works with: the parts that an executor's programs share, and tensors as they lie on the device."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.plan import Plan
from halfbyte.webgpu.device import Device
from halfbyte.webgpu.kernels import table
from halfbyte.webgpu.program import Buffer
from halfbyte.webgpu.shader import Pipelines
from halfbyte.webgpu.state import StateLayout
from halfbyte.webgpu.weights import WeightStore


@dataclass(frozen=True)
class Target:
    """What everything lowered for one executor shares."""

    device: Device
    plan: Plan
    pipelines: Pipelines
    weights: WeightStore
    layout: StateLayout
    state: Buffer
    caches: dict[str, Buffer]
    constants: dict[str, Buffer]
    choice: table.Choice


@dataclass
class Value:
    """A tensor on the device, `[capacity, stride]`: float32, int8 blocks, or both.

    Attributes:
        eps: Set where the blocks still lack a norm: its epsilon.
    """

    width: int
    f32: Buffer | None = None
    x8: Buffer | None = None
    xm: Buffer | None = None
    eps: float | None = None

    @property
    def stride(self) -> int:
        """Values from row to row."""
        return padded(self.width)


def padded(width: int) -> int:
    """A width in whole blocks of 32."""
    return -(-width // 32) * 32
