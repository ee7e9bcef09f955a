"""Adapters beside the weights, chosen for each token, against PEFT in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halfbyte.cpu import CpuExecutor
from halfbyte.errors import UnsupportedModelError
from halfbyte.plan import Batch, Executor, Plan
from halfbyte.plan.ops import GatedLinear, LowRank, RopeKvWrite
from halfbyte.reference.executor import ReferenceExecutor
from tests.models.adapters import ADAPTABLE, Adapted, beside, targets
from tests.models.tiny import batch_of, tiny

EXECUTORS = {"reference": ReferenceExecutor, "cpu": CpuExecutor}
TOLERANCE = 1e-4
IDS = np.random.default_rng(5).integers(3, 80, 20).tolist()
OTHERS = np.random.default_rng(6).integers(3, 80, 20).tolist()


def joined(*batches: Batch) -> Batch:
    """Tokens of several sequences in one batch; those that are alone of theirs must come first."""
    ones = [len(batch.token_ids) == 1 for batch in batches]
    fields = ("token_ids", "positions", "sequences", "rope_sets", "adapters")
    together = {field: np.concatenate([getattr(batch, field) for batch in batches]) for field in fields}
    rows = np.arange(len(together["token_ids"]), dtype=np.int32)
    decodes = ones.index(False) if False in ones else len(ones)
    return replace(batches[0], **together, logit_rows=rows, num_decodes=decodes)


def test_a_plan_without_adapters_is_as_ever() -> None:
    plan = tiny("llama-3.1-8b").plan()
    assert "adapters" not in plan.tensors
    assert not any(isinstance(step, LowRank) for step in plan.steps)


def test_only_products_that_an_adapter_changes_are_apart(tmp_path: Path) -> None:
    folder = Adapted("llama-3.1-8b").add("default", tmp_path, target_modules=["q_proj", "v_proj"])
    plan, _ = beside("llama-3.1-8b", {"a": folder})
    steps = list(map(type, plan.steps))
    assert steps.count(LowRank) == 2
    assert steps.count(GatedLinear) == 2
    assert steps.count(RopeKvWrite) == 2
    step = next(step for step in plan.steps if isinstance(step, LowRank))
    assert step.columns == (0, 64 + 16)


@pytest.mark.parametrize("family", ADAPTABLE)
@pytest.mark.parametrize("device", EXECUTORS)
def test_two_adapters_and_none_in_one_batch(family: str, device: str, tmp_path: Path) -> None:
    """Prompts in chunks, then token by token, every sequence with another adapter; fused and not."""
    model = Adapted(family)
    folders = {"first": model.add("first", tmp_path / "1", r=3), "second": model.add("second", tmp_path / "2", seed=9)}
    expected = [model.logits(ids, name) for ids, name in ((IDS, "first"), (OTHERS, None), (OTHERS, "second"))]
    assert np.abs(expected[1] - expected[2]).max() > 0.05, "the adapter shows"
    for fused in (True, False):
        plan, weights = beside(family, folders, sequences=3, fused=fused, block_size=4)
        executor = EXECUTORS[device](plan, weights)
        for start, stop in ((0, 11), (11, 12), (12, 15), *((i, i + 1) for i in range(15, 20))):
            chunks = zip((IDS, OTHERS, OTHERS), range(3), (1, 0, 2), strict=True)
            parts = [batch_of(plan, ids[start:stop], start, sequence=s, adapter=k) for ids, s, k in chunks]
            got = executor.run(joined(*parts)).reshape(3, stop - start, -1)
            for found, wanted in zip(got, expected, strict=True):
                assert np.abs(found - wanted[start:stop]).max() < TOLERANCE


@pytest.mark.parametrize("device", EXECUTORS)
@pytest.mark.parametrize("family", ["llama-3.1-8b", "phi-4", "gemma-3-1b", "qwen-2.5"])
@pytest.mark.parametrize("number", range(7))
def test_each_module_alone(family: str, number: int, device: str, tmp_path: Path) -> None:
    modules = targets(family)
    if number < len(modules):
        model = Adapted(family)
        folder = model.add("default", tmp_path, target_modules=[modules[number]], strength=1.0, use_rslora=True)
        plan, weights = beside(family, {"a": folder})
        executor = EXECUTORS[device](plan, weights)
        expected = model.logits(IDS, "default")
        assert np.abs(expected - model.logits(IDS)).max() > 0.01
        assert np.abs(run(executor, plan, IDS, 1) - expected).max() < TOLERANCE
        assert np.abs(run(executor, plan, IDS, 0) - model.logits(IDS)).max() < TOLERANCE


def run(executor: Executor, plan: Plan, ids: list[int], adapter: int | None) -> np.ndarray:
    return executor.run(batch_of(plan, ids, adapter=adapter)).copy()


@pytest.mark.parametrize("device", EXECUTORS)
def test_ranks_of_many_sizes_and_an_adapter_of_other_modules(device: str, tmp_path: Path) -> None:
    """Tokens of a batch that names no adapter have none, whatever the batch before had."""
    family, model = "llama-3.1-8b", Adapted("llama-3.1-8b")
    folders = {
        "wide": model.add("wide", tmp_path / "1", r=33, target_modules=["q_proj", "down_proj"]),
        "by pattern": model.add(
            "by pattern", tmp_path / "2", seed=4, r=1, target_modules=["k_proj", "gate_proj", "o_proj"],
            rank_pattern={"gate_proj": 17}, alpha_pattern={"o_proj": 3},
        ),
    }  # fmt: skip
    plan, weights = beside(family, folders)
    assert weights.adapters.rank == 33
    executor = EXECUTORS[device](plan, weights)
    for number, name in ((1, "wide"), (2, "by pattern"), (0, None), (None, None), (2, "by pattern"), (None, None)):
        assert np.abs(run(executor, plan, IDS, number) - model.logits(IDS, name)).max() < TOLERANCE


def test_small_numbers_lose_nothing_in_f16(tmp_path: Path) -> None:
    """A trained with a tiny B, as most are after few steps: subnormal in f16 as it is."""
    model = Adapted("llama-3.1-8b")
    folder = model.add("default", tmp_path, strength=1e-3, lora_alpha=4e6)
    plan, weights = beside("llama-3.1-8b", {"a": folder})
    expected = model.logits(IDS, "default")
    assert np.abs(expected - model.logits(IDS)).max() > 0.05
    got = run(ReferenceExecutor(plan, weights), plan, IDS, 1)
    assert np.abs(got - expected).max() < TOLERANCE


@pytest.mark.parametrize("device", EXECUTORS)
def test_beside_packed_weights(device: str, tmp_path: Path) -> None:
    """The same as on the packed weights decoded."""
    model = Adapted("llama-3.1-8b")
    folder = model.add("default", tmp_path)
    plan, weights = beside("llama-3.1-8b", {"a": folder}, weight_format="q8g32")
    executors = {"reference": ReferenceExecutor, "cpu": lambda p, w: CpuExecutor(p, w, activations="f32")}
    base = beside("llama-3.1-8b", {"a": folder})
    decoded = replace(base[1].source, tensors={n: weights.weight(n).decode() for n in base[1].shapes})
    exact = type(weights)(decoded, {"a": weights._fitted[0]})
    expected = run(ReferenceExecutor(base[0], exact), base[0], IDS, 1)
    assert np.abs(run(executors[device](plan, weights), plan, IDS, 1) - expected).max() < TOLERANCE
    assert np.abs(expected - run(ReferenceExecutor(base[0], exact), base[0], IDS, 0)).max() > 0.05


def test_what_cannot_lie_beside_the_weights_is_refused(tmp_path: Path) -> None:
    dora = Adapted("llama-3.1-8b").add("default", tmp_path / "dora", use_dora=True)
    with pytest.raises(UnsupportedModelError, match=r"uses DoRA \(use_dora\).+Merge it into the weights instead"):
        beside("llama-3.1-8b", {"a": dora})
    head = Adapted("llama-3.1-8b").add("default", tmp_path / "head", target_modules=["lm_head", "q_proj"])
    with pytest.raises(UnsupportedModelError, match=r"an adapter changes lm_head.weight"):
        beside("llama-3.1-8b", {"a": head})
