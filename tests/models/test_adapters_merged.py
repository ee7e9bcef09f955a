"""Adapters merged into the weights, against PEFT in float32; and folders that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from halfbyte.checkpoint.adapter import AdapterFolder
from halfbyte.checkpoint.lora import MergedWeights
from halfbyte.checkpoint.packed import RepackedWeights
from halfbyte.cpu import CpuExecutor
from halfbyte.errors import HalfbyteError, InvalidModelError, ModelNotFoundError, UnsupportedModelError, UsageError
from halfbyte.formats import get_format
from halfbyte.reference.executor import ReferenceExecutor
from tests.models.adapters import ADAPTABLE, Adapted, source, targets
from tests.models.tiny import feed, tiny

EXECUTORS = {"reference": ReferenceExecutor, "cpu": CpuExecutor}
TOLERANCE = 1e-4
IDS = np.random.default_rng(5).integers(3, 80, 20).tolist()


def merged(family: str, folder: Path, weight_format: str = "f32") -> MergedWeights:
    base = source(family, weight_format)
    return MergedWeights(base, AdapterFolder(folder).fitted(base.spec))


def logits(family: str, folder: Path, device: str = "reference") -> np.ndarray:
    return feed(EXECUTORS[device](tiny(family).plan(), merged(family, folder)), IDS)


@pytest.mark.parametrize("family", ADAPTABLE)
@pytest.mark.parametrize("device", EXECUTORS)
def test_every_linear_module_of_every_family(family: str, device: str, tmp_path: Path) -> None:
    model = Adapted(family)
    folder = model.add("default", tmp_path)
    expected = model.logits(IDS, "default")
    assert np.abs(expected - model.logits(IDS)).max() > 0.05, "the adapter shows"
    assert np.abs(logits(family, folder, device) - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", ["llama-3.1-8b", "phi-4"])
@pytest.mark.parametrize("number", range(7))
def test_each_module_alone(family: str, number: int, tmp_path: Path) -> None:
    modules = targets(family)
    if number < len(modules):
        model = Adapted(family)
        folder = model.add("default", tmp_path, target_modules=[modules[number]], strength=1.0)
        expected = model.logits(IDS, "default")
        assert np.abs(expected - model.logits(IDS)).max() > 0.01
        assert np.abs(logits(family, folder) - expected).max() < TOLERANCE


VARIANTS: dict[str, dict[str, Any]] = {
    "rank-stabilised": {"use_rslora": True, "r": 6},
    "ranks and alphas by pattern": {
        "rank_pattern": {"q_proj": 2, r"layers.1.self_attn.v_proj": 7, "^model.layers.0.mlp.(up|down)_proj": 3},
        "alpha_pattern": {"k_proj": 20, "model.layers.0.self_attn.o_proj": 1},
    },
    "both, rank-stabilised": {"use_rslora": True, "rank_pattern": {"down_proj": 9}, "alpha_pattern": {"up_proj": 3}},
    "one layer": {"layers_to_transform": [1]},
    "DoRA": {"use_dora": True},
    "DoRA, rank-stabilised": {"use_dora": True, "use_rslora": True, "r": 3},
    "said to be stored the other way round": {"fan_in_fan_out": True},
    "output matrix": {"target_modules": ["lm_head", "q_proj"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_variants_of_lora(variant: str, tmp_path: Path) -> None:
    model = Adapted("llama-3.1-8b")
    folder = model.add("default", tmp_path, **VARIANTS[variant])
    expected = model.logits(IDS, "default")
    assert np.abs(expected - model.logits(IDS)).max() > 0.05
    assert np.abs(logits("llama-3.1-8b", folder) - expected).max() < TOLERANCE


def test_sums_are_rounded_once_to_the_stored_format(tmp_path: Path) -> None:
    folder = Adapted("llama-3.1-8b").add("default", tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    for form in ("f32", "f16", "bf16"):
        weights = merged("llama-3.1-8b", folder, form)
        assert weights.format(name).name == form
        adapter = weights.adapter.update(name)
        assert adapter is not None
        base = source("llama-3.1-8b", form).weight(name).decode()
        exact = base.astype(np.float64) + adapter.scale * (adapter.b.astype(np.float64) @ adapter.a)
        expected = get_format(form).encode(exact.astype(np.float32))[""]
        got = weights.weight(name)
        assert got.format.name == form
        assert np.mean(got.parts[""] == expected) > (0.9 if form == "f32" else 0.999)
        assert np.abs(got.decode() - exact).max() < {"f32": 1e-6, "f16": 2e-3, "bf16": 2e-2}[form]


def test_what_is_merged_can_be_packed(tmp_path: Path) -> None:
    folder = Adapted("llama-3.1-8b").add("default", tmp_path)
    weights = merged("llama-3.1-8b", folder)
    packed = RepackedWeights(MergedWeights(weights.checkpoint, weights.adapter, rounded=False), "q8g32")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert packed.format(name).name == "q8g32"
    expected = get_format("q8g32").encode(weights.weight(name).decode())
    for suffix, part in packed.weight(name).parts.items():
        assert np.array_equal(part, expected[suffix])


def test_packed_matrices_cannot_be_merged_into(tmp_path: Path) -> None:
    folder = Adapted("llama-3.1-8b").add("default", tmp_path)
    with pytest.raises(UsageError, match=r"cannot be merged into model.layers.0.+, which is packed \(q4g32\)"):
        merged("llama-3.1-8b", folder, "q4g32")


def edit(folder: Path, **changes: Any) -> Path:
    """The adapter with other values in its configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


REFUSED: dict[str, dict[str, Any]] = {
    r"bias is 'all', and Halfbyte does not change biases": {"bias": "all"},
    r"modules_to_save is \['lm_head'\]: whole modules": {"modules_to_save": ["lm_head"]},
    r"peft_type is 'LOHA'; Halfbyte reads LoRA": {"peft_type": "LOHA"},
    r"it has no peft_type": {"peft_type": None},
    r"'lora_bias' is True, which Halfbyte does not know": {"lora_bias": True},
    r"'layer_replication' is \[\[0, 2\]\]": {"layer_replication": [[0, 2]]},
    r"'target_parameters' is \['experts'\]": {"target_parameters": ["experts"]},
    r"'trainable_token_indices' is \[3\]": {"trainable_token_indices": [3]},
    r"'use_qalora' is True": {"use_qalora": True},
    r"'something_new' is 1": {"something_new": 1},
    r"init_lora_weights is 'pissa_niter_4', which changes the base model as well": {
        "init_lora_weights": "pissa_niter_4"
    },
    r"rank_pattern has '\(a\*\)\*b', an expression that Halfbyte does not match": {"rank_pattern": {"(a*)*b": 2}},
    r"alpha_pattern has '\.\*x\.\*y\.\*z\.\*', an expression": {"alpha_pattern": {".*x.*y.*z.*": 2}},
    r"rank_pattern has '\[', an expression": {"rank_pattern": {"[": 2}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_change_the_arithmetic_is_refused_by_name(message: str, tmp_path: Path) -> None:
    folder = edit(Adapted("llama-3.1-8b").add("default", tmp_path), **REFUSED[message])
    with pytest.raises(UnsupportedModelError, match=message):
        AdapterFolder(folder)


def test_numbers_that_contradict_the_tensors_are_refused(tmp_path: Path) -> None:
    folder = edit(Adapted("llama-3.1-8b").add("default", tmp_path), r=5)
    with pytest.raises(InvalidModelError, match=r"has the shape \[4, 56\]; adapter_config.json gives it rank 5"):
        AdapterFolder(folder)
    for key, value in (("r", 0), ("r", "4"), ("lora_alpha", None), ("use_rslora", "yes"), ("rank_pattern", [1])):
        changed = {"r": 4, "lora_alpha": 8, "use_rslora": False, "rank_pattern": {}, key: value}
        if value is not None:
            with pytest.raises(InvalidModelError, match=rf"{key} is .+, expected"):
                AdapterFolder(edit(folder, **changed))
    with pytest.raises(InvalidModelError, match=r"alpha_pattern is .+, expected positive numbers"):
        AdapterFolder(edit(folder, r=4, use_rslora=False, rank_pattern={}, alpha_pattern={"q_proj": -1}))


def rewrite(folder: Path, change: Any) -> Path:
    """The adapter with other tensors."""
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    return folder


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _without(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in tensors.items() if name != FIRST}


def _with_infinity(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors[FIRST][1, 2] = np.inf
    return tensors


DAMAGES: dict[str, tuple[type[HalfbyteError], Any]] = {
    r"lacks lora_A": (InvalidModelError, _without),
    r"'base_model.model.lm_head.weight', which is no low-rank update": (
        UnsupportedModelError, lambda t: {**t, "base_model.model.lm_head.weight": np.ones((97, 64), np.float32)},
    ),
    r"embed_tokens.lora_embedding_A', which is no low-rank update": (
        UnsupportedModelError, lambda t: {**t, "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 9))},
    ),
    r"is stored as I64, which Halfbyte cannot read": (
        UnsupportedModelError, lambda t: {**t, FIRST: np.ones((4, 64), np.int64)},
    ),
    r"holds NaN or infinity": (InvalidModelError, _with_infinity),
    r"it holds no tensors": (InvalidModelError, lambda t: {}),
    r"has lora_magnitude_vector, and use_dora is not set": (
        InvalidModelError,
        lambda t: {**t, FIRST.replace("A.weight", "magnitude_vector"): np.ones(64, np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGES)
def test_tensors_that_are_none_of_loras_are_refused(message: str, tmp_path: Path) -> None:
    kind, change = DAMAGES[message]
    folder = rewrite(Adapted("llama-3.1-8b").add("default", tmp_path), change)
    with pytest.raises(kind, match=message):
        logits("llama-3.1-8b", folder)


def test_an_adapter_for_another_model_names_the_first_tensor_that_does_not_fit(tmp_path: Path) -> None:
    folder = Adapted("llama-3.1-8b").add("default", tmp_path)
    expected = r"does not fit the model: the tensor '.+layers.0.mlp.down_proj.lora_.\.weight' has the shape"
    with pytest.raises(InvalidModelError, match=expected):
        merged("llama-3.2-1b", folder)
    with pytest.raises(InvalidModelError, match=r"It says that it was trained on 'acme/llama'"):
        merged("phi-4", edit(folder, base_model_name_or_path="acme/llama"))
    other = Adapted("llama-3.1-8b").add("default", tmp_path / "other", target_modules=["q_proj"])
    with pytest.raises(InvalidModelError, match=rf"'{FIRST}', but the model has no module 'model.layers.0.self_attn"):
        merged("phi-4", other)


def test_a_tied_output_matrix_is_not_changed(tmp_path: Path) -> None:
    folder = Adapted("llama-3.1-8b").add("default", tmp_path, target_modules=["lm_head"])
    base = source("llama-3.2-1b")
    with pytest.raises(HalfbyteError, match="the model has no module 'lm_head'"):
        AdapterFolder(folder).fitted(base.spec)


def test_folders_that_are_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        AdapterFolder(tmp_path / "nothing")
    with pytest.raises(ModelNotFoundError, match=r"has no adapter_config.json"):
        AdapterFolder(tmp_path)
    folder = Adapted("llama-3.1-8b").add("default", tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"only as a pickle \(adapter_model.bin\)"):
        AdapterFolder(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no adapter_model.safetensors"):
        AdapterFolder(folder)
