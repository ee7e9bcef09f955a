"""GGUF files of models whose layers keep states: as llama.cpp's converter writes them, read by it and by Halfbyte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from halfbyte.checkpoint.gguf.model import open_gguf
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.errors import InvalidModelError, UnsupportedModelError
from halfbyte.models.spec import SelfAttention
from tests.models import llama_cpp
from tests.models.test_interchange import IDS, divergence, logits, small_tokenizer, spec_of
from tests.models.tiny import VOCABULARY, Tiny, tiny

EXACT = 1e-5
"""Divergence of two programs that compute in float32."""

NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
"""What gguf's tensor_mapping.py gives for them."""


def tiled(values: np.ndarray, axis: int, k_heads: int, v_heads: int) -> np.ndarray:
    """Value heads that read one key head `k_heads` apart instead of side by side."""
    shape, size = values.shape, values.shape[axis] // v_heads
    apart = values.reshape(*shape[:axis], k_heads, v_heads // k_heads, size, *shape[axis + 1 :])
    return np.ascontiguousarray(np.swapaxes(apart, axis, axis + 1)).reshape(shape)


def converted(name: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """A tensor as the converter leaves it."""
    heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    keys = 2 * heads[0] * config["linear_key_head_dim"]
    if name.endswith("conv1d.weight"):
        values = values[:, 0]
    if name.endswith(("conv1d.weight", "in_proj_qkv.weight")):
        return np.concatenate([values[:keys], tiled(values[keys:], 0, *heads)])
    if name.endswith(("in_proj_z.weight", "in_proj_a.weight", "in_proj_b.weight", "dt_bias")):
        return tiled(values, 0, *heads)
    if name.endswith("A_log"):
        return -np.exp(tiled(values, 0, *heads))
    if name.endswith("linear_attn.out_proj.weight"):
        return tiled(values, 1, *heads)
    shifted = name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")
    return values + np.float32(1) if shifted else values


def write_qwen35(target: Path, model: Tiny, *, decay: float | None = None) -> None:
    """A file of the architecture `qwen35`, by the gguf package."""
    config, writer = model.config, gguf.GGUFWriter(target, "qwen35")
    dim = config["head_dim"]
    rotated = int(dim * config["rope_parameters"]["partial_rotary_factor"])
    sizes = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.dimension_count": rotated,
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": config["linear_num_value_heads"],
        "ssm.inner_size": config["linear_num_value_heads"] * config["linear_value_head_dim"],
        "full_attention_interval": 4,
    }
    for key, value in sizes.items():
        writer.add_uint32(f"qwen35.{key}", value)
    writer.add_array("qwen35.rope.dimension_sections", [rotated // 2 - 2, 1, 1, 0])
    writer.add_float32("qwen35.rope.freq_base", config["rope_parameters"]["rope_theta"])
    writer.add_float32("qwen35.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{index}" for index in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["t0 t1"])
    writer.add_eos_token_id(2)
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name, values in model.tensors.items():
        _, _, layer, rest = name.split(".", 3) if name.startswith("model.layers.") else ("", "", "", "")
        known = f"blk.{layer}.{NAMES[rest]}" if rest else whole.get(name, "output.weight")
        made = converted(name, values, config).astype(np.float32)
        if decay is not None and name.endswith("A_log"):
            made[:] = decay
        writer.add_tensor(known, np.ascontiguousarray(made))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_qwen35_is_read_with_its_value_heads_where_they_are(tmp_path: Path) -> None:
    """Two value heads read each key head, so that their order counts."""
    model = tiny("qwen-3.5-text")
    write_qwen35(target := tmp_path / "tiny.gguf", model)
    checkpoint = open_gguf(target)
    assert np.abs(logits(checkpoint, spec_of(checkpoint), IDS) - model.logits(IDS)).max() < 1e-4


def test_qwen35_agrees_with_llama_cpp(tmp_path: Path) -> None:
    """Whose kernels want keys and values of one size, a multiple of four."""
    model = tiny("qwen-3.5-equal-heads")
    write_qwen35(target := tmp_path / "tiny.gguf", model)
    checkpoint = open_gguf(target)
    found = logits(checkpoint, spec_of(checkpoint), IDS)
    assert divergence(llama_cpp.logits(target, IDS), found) < EXACT


def test_decays_that_do_not_decay_are_refused(tmp_path: Path) -> None:
    write_qwen35(target := tmp_path / "tiny.gguf", tiny("qwen-3.5-text"), decay=0.5)
    checkpoint = open_gguf(target)
    with pytest.raises(InvalidModelError, match="decays that do not decay"):
        checkpoint.weight("model.layers.0.linear_attn.A_log")


def test_qwen35_is_not_written(tmp_path: Path) -> None:
    model = tiny("qwen-3.5-text")
    with pytest.raises(UnsupportedModelError, match="can be read, but not written"):
        write_gguf(tmp_path / "tiny.gguf", model, model.spec, small_tokenizer(), kind="stored")


def test_layers_of_lfm2_are_told_by_their_key_heads(tmp_path: Path) -> None:
    model = tiny("lfm-2")
    write_gguf(target := tmp_path / "tiny.gguf", model, model.spec, small_tokenizer(), kind="stored")
    reader = gguf.GGUFReader(target)
    assert reader.fields["lfm2.attention.head_count_kv"].contents() == [0, 0, 2, 0, 2]
    assert reader.fields["lfm2.shortconv.l_cache"].contents() == 3
    kinds = [isinstance(layer.mixer, SelfAttention) for layer in spec_of(open_gguf(target)).layers]
    assert kinds == [False, False, True, False, True]
