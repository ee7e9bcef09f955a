"""Tensors as they lie on the device while a program runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halfbyte.gpu.lowering.program import Ref, padded


@dataclass
class PendingResidual:
    """A residual sum that is not made yet: its readers add the norm of `x` times `weight` to `residual`.

    Attributes:
        sum: Where the first reader leaves the result.
    """

    weight: Ref
    residual: DeviceTensor
    sum: DeviceTensor


@dataclass(frozen=True)
class PartialAttention:
    """What attention over few keys leaves instead of its result: sums of values, and (maximum, total) of each split.

    Attributes:
        constants: How many splits there are at most, and how keys are split.
        most_keys: With more keys there is a result; None where there are never more.
    """

    partial: Ref
    weight: Ref
    constants: dict[str, Any]
    most_keys: int | None


@dataclass
class DeviceTensor:
    """A tensor on the device, `[capacity, stride]`: float32, int8 blocks, or both.

    Attributes:
        x8, xm: The int8 blocks, and of each its scale, its sum and its sum of squares.
        eps: Set where it still lacks a norm: its epsilon.
        norm: The norm's weights, where float32 lacks it.
        added: What the norm is of, where it is not `f32` itself.
        splits: What attention left where there were few keys; `f32` then holds nothing.
    """

    width: int
    f32: Ref | None = None
    x8: Ref | None = None
    xm: Ref | None = None
    eps: float | None = None
    norm: Ref | None = None
    added: PendingResidual | None = None
    splits: PartialAttention | None = None

    @property
    def refs(self) -> list[Ref]:
        """Every buffer that is needed to read it."""
        added = [self.added.residual.f32, self.added.sum.f32] if self.added else []
        splits = [self.splits.partial, self.splits.weight] if self.splits else []
        return [ref for ref in (self.f32, self.x8, self.xm, *added, *splits) if ref]

    @property
    def stride(self) -> int:
        """Values from row to row."""
        return padded(self.width)
