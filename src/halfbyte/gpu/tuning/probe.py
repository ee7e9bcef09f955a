"""Is it right? A cut of a model, real in every shape that kernels are chosen by, beside the NumPy oracle.

Weights are random with outliers; their rows repeat after a prime number, so that the oracle has little to unpack, and
none that a kernel could mistake for another lies a power of two away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Format, Weight, get_format
from halfbyte.gpu.checks.oracle import Oracle
from halfbyte.gpu.checks.selftest import TOLERANCE, faulty_variants
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.shaders.variants import KernelConfig
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import Draw, make_plan
from halfbyte.plan.plan import LOGITS
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from halfbyte.synthetic import SyntheticWeights, batch_of_one, spiked

DISTINCT_ROWS = 509
RUNS = ((0, 80), (80, 64), (144, 32), (176, 16), (192, 8), (200, 4), (204, 2), (206, 1))
"""(first position, tokens) of the batches: every program of an executor, and attention in several splits."""
SHORT_RUNS = ((0, 150), (150, 1))
LEAST_CONTEXT = 224
ROWS = 3
"""Last tokens of a batch whose logits are compared."""
NOISE = 0.005
"""Error, as a share of the largest logit, by which another order of sums may exceed twice the usual kernels'."""

Float32 = NDArray[np.float32]


class Probe:
    """Computes with given kernels what the oracle has computed.

    Args:
        context: Positions, as many as the plan has that is tuned: kernels know the width of its block tables.
        pipelines: Kernels that are compiled already.
        runs: As `RUNS`.

    Attributes:
        usual_error: Largest error of the usual kernels, as a share of the largest logit.
    """

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        formats: Callable[[str], Format],
        config: KernelConfig,
        *,
        tokens: int,
        context: int,
        kv_dtype: str,
        pipelines: Pipelines | None = None,
        runs: Sequence[tuple[int, int]] = RUNS,
    ) -> None:
        context = max(context, LEAST_CONTEXT)
        cut = replace(spec.one_of_each(), context=max(spec.context, context))
        plan = make_plan(cut, formats, tokens=tokens, rows=8, context=context, kv_dtype=kv_dtype)
        weights = _Periodic(cut, formats)
        activations = "int8" if config.int8 else "f32"
        self._gpu = GpuExecutor(
            plan,
            weights,
            device=device,
            off=faulty_variants(device),
            tuning=config.tuning,
            activations=activations,
            pipelines=pipelines,
        )
        self._int8 = config.int8
        self._words = min(DISTINCT_ROWS, plan.tensors[LOGITS].shape[1])
        self._batches = [batch_of_one(plan, start, count, rows=ROWS, words=self._words) for start, count in runs]
        self._begin(self._gpu)
        self._expected = self._ask_oracle(weights)
        self.usual_error = self.error(config)

    def error(self, config: KernelConfig) -> float:
        """Largest difference from the oracle, as a share of the largest logit; infinite where it is no number."""
        gpu, long = (self._gpu.with_config(each) for each in (config, replace(config, long_keys=0)))
        self._begin(gpu)
        long.begin(())
        worst = 0.0
        for batch, expected in zip(self._batches, self._expected, strict=True):
            for got in (gpu.run(batch), *([long.run(batch)] if len(batch.token_ids) == 1 else [])):
                off = np.abs(got - np.resize(expected.T, got.T.shape).T).max() / np.abs(expected).max()
                worst = max(worst, float(off) if np.isfinite(off) else float("inf"))
        return max(worst, self._sampling_error(gpu))

    def _begin(self, gpu: GpuExecutor) -> None:
        """Have all kernels compiled side by side."""
        sizes = ((len(batch.token_ids), len(batch.logit_rows)) for batch in self._batches)
        gpu.begin((tokens, rows) for tokens, rows in sizes if tokens > 1)

    def _sampling_error(self, gpu: GpuExecutor) -> float:
        """How much less likely than the oracle's the token chosen last is, or how wrong its likelihood."""
        draw = Draw(0, Sampler(SamplingParams()), (), ())
        [[chosen]] = gpu.submit(self._batches[-1], [draw]).tokens()
        if not isinstance(chosen, Sampled):
            return float("inf")
        expected = np.resize(self._expected[-1][0], gpu.words).astype(np.float64)
        top = expected.max()
        log_sum = top + np.log(np.exp(expected - top).sum())
        off = max(top - expected[chosen.id], abs(chosen.logprob - (expected[chosen.id] - log_sum)))
        return float(off / np.abs(expected).max()) if np.isfinite(off) else float("inf")

    def right(self, config: KernelConfig) -> bool:
        """Whether kernels are as near to the oracle as the usual ones."""
        return self.error(config) <= min(TOLERANCE[self._int8], 2 * self.usual_error + NOISE)

    def _ask_oracle(self, weights: _Periodic) -> list[Float32]:
        """Logits `[rows, distinct]` of each batch. All tokens at once give the same: none sees those after it."""
        plan = self._gpu.plan
        count = sum(len(batch.token_ids) for batch in self._batches)
        everything = batch_of_one(plan, 0, count, rows=count, words=self._words)
        logits = Oracle(plan, _Distinct(weights), int8=self._int8).run(everything)
        rows = [batch.positions[batch.logit_rows] for batch in self._batches]
        return [logits[at] for at in rows]


class _Periodic:
    """Weights whose rows repeat; norms differ from value to value."""

    def __init__(self, spec: ModelSpec, formats: Callable[[str], Format]) -> None:
        self.shapes = spec.shapes
        self.tables = {spec.embed, spec.lm_head}
        shapes = {name: (min(shape[0], DISTINCT_ROWS), *shape[1:]) for name, shape in spec.shapes.items() if shape[1:]}
        self._source = SyntheticWeights(replace(spec, shapes=spec.shapes | shapes), formats)

    def distinct(self, name: str) -> Weight:
        """The rows that are different."""
        return spiked(self._source.weight(name))

    def weight(self, name: str) -> Weight:
        """All rows."""
        weight, shape = self.distinct(name), self.shapes[name]
        parts = {suffix: np.resize(part, (shape[0], *part.shape[1:])) for suffix, part in weight.parts.items()}
        return Weight(weight.format, shape, parts)

    def release(self, name: str) -> None:
        """Nothing is kept."""


class _Distinct:
    """The same weights in float32 for the oracle; of the vocabulary only the rows that are different."""

    def __init__(self, source: _Periodic) -> None:
        self._source = source

    def weight(self, name: str) -> Weight:
        """The weight called `name`."""
        values = self._source.distinct(name).decode()
        if name not in self._source.tables:
            values = np.resize(values, self._source.shapes[name])
        return Weight(get_format("f32"), values.shape, {"": values})

    def release(self, name: str) -> None:
        """Nothing is kept."""
