"""Does this GPU, with this driver, compute what the kernels say? Asked at first use, and remembered.

Two tiny models, in every packed weight format, run through every kind of program with all kernel variants, and are
compared with the oracle. Where they disagree, the variants are switched off in turn until they agree; those at fault
are named in a warning and stay off.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte import user_cache
from halfbyte.errors import DeviceError
from halfbyte.formats import Format, Weight
from halfbyte.gpu.checks.oracle import Oracle
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.code import code_hash
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.gpu.shaders.variants import VARIANTS
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import Batch, Plan, make_plan
from halfbyte.plan.batch import Float32
from halfbyte.plan.plan import LOGITS
from halfbyte.synthetic import SyntheticWeights, batch_of_one, spiked

SCHEMA = 1
TOLERANCE = {True: 0.08, False: 0.002}
"""Largest error allowed, as a share of the largest logit, with int8 and without: where sums differ in their last bit,
an int8 value may round to its neighbour, and the layers after it make more of that."""

_COMMON = {
    "num_hidden_layers": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
MODELS: tuple[dict[str, Any], ...] = (
    {
        **_COMMON,
        "model_type": "phi3",
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    {
        **_COMMON,
        "model_type": "gemma3_text",
        "hidden_size": 72,
        "intermediate_size": 80,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 20,
        "sliding_window": 24,
        "query_pre_attn_scalar": 20,
        "final_logit_softcapping": 30.0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)
FORMATS = (("q4g32", "q3g32z", "q8g32"), ("q4_k", "q4g64z", "q6_k"))
"""Of each model: attention's matrices, the feed-forward network's, and the embedding table."""
RUNS = ((0, 80), (80, 40), (120, 20), (140, 1), (141, 3), (144, 1))
"""(first position, tokens) of the batches: many, several, one, few, one; so many that attention splits them."""
MIXED = 9
"""Then the next token beside so many of another sequence: a decode and a prompt."""
LARGE = ("fused-rounding",)
"""Variants that only short rows have: the first model runs once more without them, as if its weights were many and
attention ran over many keys, whose reading three heads share."""
ROWS = 3
"""Last tokens of a batch whose logits are compared."""


@dataclass(frozen=True)
class Verdict:
    """What the self-test found on a device.

    Attributes:
        off: Kernel variants that must stay off; None if even the plain kernels are wrong.
        seconds: What it took.
    """

    off: tuple[str, ...] | None
    seconds: float


def faulty_variants(device: Device, *, cache: Path | None = None) -> frozenset[str]:
    """Names of the kernel variants that must stay off on a device; the test runs once for a device, driver and kernels.

    Args:
        cache: Where results are remembered; the user's cache folder if None.

    Raises:
        DeviceError: Even the plain kernels are wrong there.
    """
    verdict = examined(device, cache=cache)
    if verdict.off is None:
        raise DeviceError(
            f"{device.name} computes wrong results (driver {device.adapter.driver}).",
            "Update its driver, or use device='cpu'.",
        )
    return frozenset(verdict.off)


def examined(device: Device, *, cache: Path | None = None) -> Verdict:
    """What the self-test finds or found on a device. The test runs once for a device, driver and kernels."""
    path = cache or user_cache.folder() / "gpu-selftest.json"
    key = device_key(device)
    if found := _verdict(user_cache.load(path, SCHEMA).get(key)):
        return found
    began = time.perf_counter()
    off = find_faulty(device)
    verdict = Verdict(None if off is None else tuple(sorted(off)), time.perf_counter() - began)
    user_cache.store_if_possible(path, SCHEMA, user_cache.load(path, SCHEMA) | {key: asdict(verdict)})
    return verdict


def device_key(device: Device) -> str:
    """What results are remembered by: adapter, driver, what both offer, and the code that makes the kernels."""
    about = (device.name, device.adapter.backend, device.adapter.driver, device.capabilities, code_hash())
    return " | ".join(map(str, about))


def _verdict(known: Any) -> Verdict | None:
    """A verdict that was remembered; None for anything else."""
    match known:
        case {"off": None, "seconds": float(seconds)}:
            return Verdict(None, seconds)
        case {"off": [*off], "seconds": float(seconds)} if all(name in VARIANTS for name in off):
            return Verdict(tuple(off), seconds)
    return None


def find_faulty(device: Device) -> frozenset[str] | None:
    """The fewest variants without which everything agrees, found now; None if nothing helps."""
    offered = [name for name, variant in VARIANTS.items() if variant.offered(device.capabilities)]
    for count in range(len(offered) + 1):
        if 2 < count < len(offered):
            continue
        for off in combinations(offered, count):
            if error(device, off) <= TOLERANCE["int8" not in off]:
                for name in off:
                    _log.warning("%s computes wrong results with %s kernels; they stay off.", device.name, name)
                return frozenset(off)
    return None


def error(device: Device, off: tuple[str, ...]) -> float:
    """Largest difference from the oracle over both models, as a share of the largest logit; infinite for a failure."""
    try:
        pipelines = Pipelines(device)
        models = list(zip(MODELS, FORMATS, strict=True))
        cases = [_Case(device, *about, off, pipelines) for about in models]
        cases.append(_Case(device, *models[0], (*off, *LARGE), pipelines, large=True))
        return max(case.error() for case in cases)
    except DeviceError as failure:
        _log.info("self-test without %s: %s", off or "nothing", failure)
        return float("inf")


class _Case:
    """One model, whose kernels other threads compile from now on; `large`: as if it were, and its context long."""

    def __init__(
        self,
        device: Device,
        config: dict[str, Any],
        formats: tuple[str, ...],
        off: tuple[str, ...],
        pipelines: Pipelines,
        *,
        large: bool = False,
    ) -> None:
        names = ["model.layers.0.self_attn.qkv_proj.weight"] if config["model_type"] == "phi3" else []
        spec = build_spec(config, {}, names)
        weights = _Spiked(spec, formats)
        plan = make_plan(spec, weights.format, tokens=144, context=160, block_size=16, sequences=2)
        gpu = GpuExecutor(plan, weights, device=device, off=off, tuning=Tuning(), pipelines=pipelines)
        self._gpu = gpu.with_config(replace(gpu.config, long_keys=0, far_nbytes=0)) if large else gpu
        self._gpu.begin((count, min(count, ROWS)) for _, count in (*RUNS, (0, 1 + MIXED)) if count > 1)
        self._oracle = Oracle(plan, weights, int8="int8" not in off)

    def error(self) -> float:
        """Largest difference from the oracle, as a share of the largest logit. The oracle runs all tokens at once."""
        plan, count = self._gpu.plan, sum(count for _, count in RUNS)
        words: int = plan.tensors[LOGITS].shape[1]
        expected = self._oracle.run(batch_of_one(plan, 0, count, rows=count, words=words))
        errors = []
        for start, tokens in RUNS:
            batch = batch_of_one(plan, start, tokens, rows=ROWS, words=words)
            errors.append(_difference(self._gpu.run(batch), expected[batch.positions[batch.logit_rows]]))
        mixed = _decode_and_prompt(plan, count, words)
        return max(*errors, _difference(self._gpu.run(mixed), self._oracle.run(mixed)))


def _difference(got: Float32, expected: Float32) -> float:
    difference = np.abs(got - expected).max() / np.abs(expected).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def _decode_and_prompt(plan: Plan, start: int, words: int) -> Batch:
    """The next token of the first sequence, and `MIXED` of the second."""
    decode, prompt = batch_of_one(plan, start, 1, words=words), batch_of_one(plan, 0, MIXED, rows=ROWS - 1, words=words)
    return Batch(
        np.append(decode.token_ids, prompt.token_ids),
        np.append(decode.positions, prompt.positions),
        np.append(decode.sequences, prompt.sequences + 1),
        np.append(decode.rope_sets, prompt.rope_sets),
        plan.own_tables(),
        np.append(decode.logit_rows, prompt.logit_rows + 1),
        num_decodes=1,
    )


class _Spiked:
    """Weights in several formats, each made once."""

    def __init__(self, spec: ModelSpec, formats: tuple[str, ...]) -> None:
        self._sources = [SyntheticWeights(spec, name) for name in formats]
        self._made: dict[str, Weight] = {}

    def format(self, name: str) -> Format:
        """The format of a tensor."""
        return self._source(name).format(name)

    def weight(self, name: str) -> Weight:
        """The weight called `name`."""
        if name not in self._made:
            self._made[name] = spiked(self._source(name).weight(name))
        return self._made[name]

    def release(self, name: str) -> None:
        """Nothing is released: the oracle reads what the GPU has read."""

    def _source(self, name: str) -> SyntheticWeights:
        places = (".self_attn.", ".mlp.", "")
        return self._sources[next(i for i, place in enumerate(places) if place in name)]


_log = logging.getLogger(__name__)
