"""What lowering works with: the parts that an executor's programs share, and tensors as they lie on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.run.recorder import Buffer
from halfbyte.gpu.run.weights import WeightStore
from halfbyte.gpu.shaders.variants import KernelConfig
from halfbyte.plan import Plan


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
    config: KernelConfig


@dataclass
class Added:
    """What a reader makes its input from, where it is not there yet: the norm of `x` times `weight`, plus `residual`.

    Attributes:
        sum: Where the first reader leaves it.
    """

    weight: Buffer
    residual: Value
    sum: Value


@dataclass(frozen=True)
class Splits:
    """What attention of few keys leaves instead of its result: sums of values, and (maximum, total) of each split.

    Attributes:
        constants: How many there are at most, and how keys are split.
        most_keys: With more keys there is a result; None where there never are so many.
    """

    partial: Buffer
    weight: Buffer
    constants: dict[str, Any]
    most_keys: int | None


@dataclass
class Value:
    """A tensor on the device, `[capacity, stride]`: float32, int8 blocks, or both.

    Attributes:
        eps: Set where it still lacks a norm: its epsilon.
        norm: The norm's weights, where float32 lacks it.
        added: What the norm is of, where it is not `f32` itself.
        splits: What attention left where there were few keys; `f32` then holds nothing.
    """

    width: int
    f32: Buffer | None = None
    x8: Buffer | None = None
    xm: Buffer | None = None
    eps: float | None = None
    norm: Buffer | None = None
    added: Added | None = None
    splits: Splits | None = None

    @property
    def buffers(self) -> list[Buffer]:
        """All that it needs to be read."""
        added = [self.added.residual.f32, self.added.sum.f32] if self.added else []
        splits = [self.splits.partial, self.splits.weight] if self.splits else []
        return [buffer for buffer in (self.f32, self.x8, self.xm, *added, *splits) if buffer]

    @property
    def stride(self) -> int:
        """Values from row to row."""
        return padded(self.width)


def padded(width: int) -> int:
    """A width in whole blocks of 32."""
    return -(-width // 32) * 32


def ceil_div(value: int, step: int) -> int:
    """How many steps reach a value."""
    return -(-value // step)
