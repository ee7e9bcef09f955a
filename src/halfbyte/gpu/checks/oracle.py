"""What the GPU is compared with: the reference operations, over inputs rounded as the kernels round them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import WeightSource, get_format
from halfbyte.plan import Batch, Plan, cache, ops
from halfbyte.plan.plan import LOGITS
from halfbyte.reference.ops import run_op


class Oracle:
    """The reference executor, with the inputs of packed matrices rounded to int8 blocks as the GPU's are.

    Args:
        int8: False leaves them as they are.
    """

    def __init__(self, plan: Plan, weights: WeightSource, *, int8: bool) -> None:
        self.plan = plan
        self._weights = weights
        self._int8 = int8
        self._caches = {t.name: cache.empty(t.dtype, t.shape) for t in plan.of_kind("cache")}

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits `[r, vocab_size]`."""
        values: dict[str, NDArray[Any]] = {**self.plan.constants, **self._caches, **batch.state()}

        def get(name: str) -> NDArray[Any]:
            return values[name] if name in values else self._weights.weight(name).decode()

        for step in self.plan.steps:
            rounded = self._int8 and isinstance(step, ops.Linear | ops.GatedLinear) and self._packed(step.weights)
            source = {step.x: round_to_int8(values[step.x])} if rounded else {}  # type: ignore[attr-defined]
            out = run_op(step, lambda name, source=source: source.get(name) if name in source else get(name))  # type: ignore[misc]
            if out is not None:
                values[step.outputs[0]] = out
        return values[LOGITS]

    def _packed(self, names: tuple[str, ...]) -> bool:
        return all(get_format(self.plan.tensors[name].dtype).name.startswith("q") for name in names)


def round_to_int8(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows rounded to int8 in blocks of 32 with a scale each, as kernels take them."""
    rows, width = x.shape
    padded = np.zeros((rows, -(-width // 32) * 32), np.float32)
    padded[:, :width] = x
    blocks = padded.reshape(rows, -1, 32)
    scale = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    rounded: NDArray[np.float32] = (codes * scale).reshape(rows, -1)[:, :width].astype(np.float32)
    return rounded
