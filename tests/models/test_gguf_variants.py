"""GGUF files whose metadata or tensors are out of the ordinary, beside llama.cpp's logits for the same file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from halfbyte.checkpoint.gguf.model import open_gguf
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.errors import UnsupportedModelError
from halfbyte.models import build_spec
from tests.models import llama_cpp
from tests.models.test_interchange import IDS, divergence, logits, small_tokenizer, spec_of
from tests.models.tiny import tiny

AGREE = 1e-5
"""Mean KL divergence from llama.cpp, at most: both compute in float32 here."""


def rewritten(
    source: Path, target: Path, keys: Mapping[str, Any], tensors: Mapping[str, np.ndarray | None] | None = None
) -> Path:
    """A copy of a file with other metadata (None removes a key) and tensors (None removes one), by the gguf package."""
    reader, changed = gguf.GGUFReader(source), dict(tensors or {})
    name = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, name)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture" and field.name not in keys:
            sub_type = field.types[1] if len(field.types) > 1 else None
            # The package writes no empty list, such as the merges of a tokenizer that has none.
            value = field.contents()
            writer.add_key_value(field.name, ["t 1"] if value == [] else value, field.types[0], sub_type)
    for key, value in keys.items():
        if value is not None:
            add(writer, key, value)
    kept = {tensor.name: np.array(tensor.data) for tensor in reader.tensors if tensor.name not in changed}
    for tensor_name, data in (kept | changed).items():
        if data is not None:
            writer.add_tensor(tensor_name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def written(folder: Path, family: str) -> Path:
    model = tiny(family)
    path = folder / f"{family}.gguf"
    write_gguf(path, model, model.spec, small_tokenizer(), kind="stored")
    return path


def agree(path: Path, ids: list[int] = IDS) -> np.ndarray:
    checkpoint = open_gguf(path)
    here = logits(checkpoint, spec_of(checkpoint), ids)
    assert divergence(llama_cpp.logits(path, ids), here) < AGREE
    return here


ROPES: dict[str, dict[str, Any]] = {
    "a factor without a type": {"rope.scaling.factor": 4.0},
    "the factor of 2023": {"rope.scale_linear": 4.0},
    "both factors": {"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0},
    "a factor of the type linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    "a factor of the type none": {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
    "a factor of the type longrope": {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0},
    "a factor of zero": {"rope.scaling.factor": 0.0},
    "a base": {"rope.freq_base": 500.0},
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("mistral-7b-v0.3", name) for name in ROPES),
        *((family, name) for family in ("llama-3.1-8b", "qwen-2.5", "gemma-3-1b") for name in list(ROPES)[:2]),
    ],
)
def test_rotary_embeddings_are_scaled_as_by_llama_cpp(tmp_path: Path, family: str, name: str) -> None:
    """Also beside rope_freqs, which the file of llama-3.1-8b has."""
    source = written(tmp_path, family)
    architecture = {"qwen-2.5": "qwen2", "gemma-3-1b": "gemma3"}.get(family, "llama")
    keys = {f"{architecture}.{key}": value for key, value in ROPES[name].items()}
    agree(rewritten(source, tmp_path / "scaled.gguf", keys))


def test_an_attention_factor_counts_without_longrope_too(tmp_path: Path) -> None:
    source = written(tmp_path, "mistral-7b-v0.3")
    keys = {"llama.rope.scaling.attn_factor": 1.3}
    plain, scaled = agree(source), agree(rewritten(source, tmp_path / "scaled.gguf", keys))
    assert np.abs(plain - scaled).max() > 0.05


@pytest.mark.parametrize("family", ["llama-3.1-8b", "gemma-3-1b", "qwen-2.5"])
def test_query_key_and_value_may_be_stored_as_one_matrix(tmp_path: Path, family: str) -> None:
    """As llama.cpp's converter writes them with --fuse-qkv."""
    source = written(tmp_path, family)
    stored = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(source).tensors}
    layers = len(tiny(family).spec.layers)
    kinds = ("weight", "bias") if "blk.0.attn_q.bias" in stored else ("weight",)
    changed: dict[str, np.ndarray | None] = {}
    for start in (f"blk.{i}.attn_" for i in range(layers)):
        for kind in kinds:
            changed[f"{start}qkv.{kind}"] = np.concatenate([stored[f"{start}{part}.{kind}"] for part in "qkv"])
            changed |= {f"{start}{part}.{kind}": None for part in "qkv"}
    fused = rewritten(source, tmp_path / "fused.gguf", {}, changed)
    np.testing.assert_allclose(agree(fused), agree(source), atol=1e-4)


def test_equal_values_per_layer_are_one_value(tmp_path: Path) -> None:
    source = written(tmp_path, "mistral-7b-v0.3")
    layers = len(tiny("mistral-7b-v0.3").spec.layers)
    values = {"attention.head_count": 4, "attention.head_count_kv": 2, "feed_forward_length": 72}
    listed = {f"llama.{key}": [value] * layers for key, value in values.items()}
    np.testing.assert_array_equal(agree(rewritten(source, tmp_path / "listed.gguf", listed)), agree(source))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.causal", False),
        ("llama.rope.scaling.type", "dynamic"),
        ("llama.rope.dimension_sections", [2, 2, 2, 2]),
        ("llama.rope.dimension_count", 8),
        ("llama.expert_count", 8),
        ("llama.attention.scale", 0.5),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.attention.max_alibi_bias", 8.0),
        ("llama.attention.value_length", 32),
        ("llama.attention.head_count_kv", [2, 4]),
        ("llama.use_parallel_residual", True),
        ("llama.logit_scale", 0.5),
        ("llama.residual_scale", 0.5),
        ("llama.final_logit_softcapping", 30.0),
    ],
)  # fmt: skip
def test_metadata_that_change_the_answer_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    path = rewritten(written(tmp_path, "mistral-7b-v0.3"), tmp_path / "changed.gguf", {key: value})
    with pytest.raises(UnsupportedModelError) as caught:
        open_gguf(path)
    assert key.removeprefix("llama.") in caught.value.message
    assert "config.json" not in str(caught.value)


def test_metadata_that_change_nothing_are_passed_over(tmp_path: Path) -> None:
    source = written(tmp_path, "mistral-7b-v0.3")
    keys = {
        "llama.attention.causal": True, "llama.rope.scaling.finetuned": False, "llama.expert_count": 0,
        "llama.expert_used_count": 0, "llama.tensor_data_layout": "Meta AI original pth", "llama.vocab_size": 97,
        "general.license": "mit", "quantize.imatrix.file": "x", "llama.attention.value_length": 16,
    }  # fmt: skip
    np.testing.assert_array_equal(agree(rewritten(source, tmp_path / "more.gguf", keys)), agree(source))


def test_an_architecture_that_is_not_known_is_not_taken_for_a_llama(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(written(tmp_path, "mistral-7b-v0.3").read_bytes().replace(b"llama", b"other"))
    with pytest.raises(UnsupportedModelError, match="'other' is not supported"):
        open_gguf(path)


def test_a_tensor_that_is_not_known_is_refused_by_its_name_in_the_file(tmp_path: Path) -> None:
    """llama.cpp adds the bias that a llama file has."""
    bias = {"blk.0.attn_q.bias": np.ones(64, np.float32)}
    path = rewritten(written(tmp_path, "mistral-7b-v0.3"), tmp_path / "bias.gguf", {}, bias)
    checkpoint = open_gguf(path)
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_q\.bias"):
        checkpoint.check(build_spec(checkpoint.config, {}, checkpoint.shapes))
