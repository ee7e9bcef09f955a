"""Runs a plan step by step in NumPy. Slow and plain on purpose: other executors are judged by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import WeightSource
from halfbyte.plan import Batch, Plan, cache
from halfbyte.plan.batch import Timing, block_bytes
from halfbyte.plan.drawing import ComputesAtOnce, Draw, Pending, drawn_on_host
from halfbyte.plan.plan import HIDDEN, LOGITS
from halfbyte.reference.ops import run_op


class ReferenceExecutor(ComputesAtOnce):
    """The `Executor` protocol in NumPy.

    Weights are decoded to float32 when a step needs them and dropped after it, so that memory holds the
    stored model and one matrix. Activations are kept by name, not in the arena: a plan's memory layout
    cannot make the oracle wrong.
    """

    def __init__(self, plan: Plan, weights: WeightSource) -> None:
        self.plan = plan
        self._weights = weights
        self._caches = {t.name: cache.empty(t.dtype, t.shape) for t in plan.of_kind("cache")}

    @property
    def threads(self) -> int:
        """Threads of its own: NumPy's are not counted."""
        return 1

    @property
    def timing(self) -> Timing | None:
        """Steps are not timed."""
        return None

    @property
    def about(self) -> str:
        """Nothing: it is the same on every machine."""
        return ""

    def counters(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def busy_s(self) -> float | None:
        """Not told."""
        return None

    def close(self) -> None:
        """Free the caches."""
        self._caches.clear()

    def submit(self, batch: Batch, draws: Sequence[Draw], *, steps: int = 1) -> Pending:
        """Run one batch, and choose its tokens."""
        values = self._values(batch)
        return drawn_on_host(values[LOGITS], draws, values.get(HIDDEN))

    def read_blocks(self, name: str, blocks: Sequence[int]) -> NDArray[np.uint8]:
        """A copy of blocks of a cache."""
        return block_bytes(self._caches[name])[list(blocks)]

    def write_blocks(self, name: str, blocks: Sequence[int], values: NDArray[np.uint8]) -> None:
        """Copy into blocks of a cache."""
        block_bytes(self._caches[name])[list(blocks)] = values

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Run one batch; logits `[r, vocab_size]`."""
        return self._values(batch)[LOGITS]

    def _values(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Run one batch; everything that was computed, by name."""
        values: dict[str, NDArray[Any]] = {**self.plan.constants, **self._caches, **batch.state()}

        def get(name: str) -> NDArray[Any]:
            if name in values:
                return values[name]
            return self._weights.weight(name).decode()

        for step in (*self.plan.steps, *(self.plan.hidden_steps if batch.hidden else ())):
            out = run_op(step, get)
            if out is not None:
                values[step.outputs[0]] = out
        return values
