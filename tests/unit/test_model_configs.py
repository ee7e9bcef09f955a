"""Configurations: real ones of the supported models are read right, bad ones are refused in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfbyte.errors import HalfbyteError, InvalidModelError, UnsupportedModelError
from halfbyte.models import build_spec, supported
from halfbyte.models.catalog import catalog_spec
from halfbyte.models.spec import Llama3Scaling, LongRopeScaling, RopeSpec

PHI_4_MINI = {
    "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200064, "tie_word_embeddings": True,
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "sliding_window": 262144, "hidden_act": "silu",
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    "eos_token_id": 199999, "bos_token_id": 199999,
}  # fmt: skip
GEMMA_3_4B = {
    "model_type": "gemma3", "eos_token_id": [1, 106], "torch_dtype": "bfloat16",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
}  # fmt: skip
FUSED = ["model.layers.0.self_attn.qkv_proj.weight"]


def test_phi_4_mini_as_published_before_transformers_5() -> None:
    spec = build_spec(PHI_4_MINI, {"eos_token_id": [200020, 199999]}, FUSED)
    rope = spec.ropes["rope"]
    assert rope.dim == 96
    assert isinstance(rope.scaling, LongRopeScaling)
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert spec.rope_switch == 4096
    assert spec.stop_token_ids == (200020, 199999)
    assert spec.attentions[0].window is None
    assert spec.layers[31].mixer.qkv.weights == ("model.layers.31.self_attn.qkv_proj.weight",)
    assert spec.shapes[spec.layers[0].mixer.qkv.weights[0]] == (5120, 3072)
    assert spec.parameters == 3_836_021_760


def test_gemma_3_4b_fills_what_its_configuration_leaves_out() -> None:
    spec = build_spec(GEMMA_3_4B, {}, ["language_model.model.embed_tokens.weight"])
    attention = spec.attentions[0]
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.scale) == (8, 4, 256, 1 / 16)
    assert [attention.window for attention in spec.attentions[:6]] == [1024] * 5 + [None]
    assert spec.embed_scale == 50.5, "√2560 rounded to bfloat16"
    assert spec.embed == spec.lm_head == "language_model.model.embed_tokens.weight"
    assert spec.stop_token_ids == (1, 106)
    assert np.allclose(spec.ropes["full_attention"].inv_freq() * 8, RopeSpec(256, 1e6).inv_freq())
    assert spec.ropes["sliding_attention"].theta == 10_000.0


def test_llama_3_frequencies() -> None:
    scaled = RopeSpec(128, 500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)).inv_freq()[0]
    plain = RopeSpec(128, 500_000.0).inv_freq()[0]
    wavelength = 2 * np.pi / plain
    assert np.array_equal(scaled[wavelength < 2048], plain[wavelength < 2048])
    assert np.allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)


def test_mistral_without_a_window_key_has_the_first_versions() -> None:
    config = {**PHI_4_MINI, "model_type": "mistral", "rope_scaling": None, "partial_rotary_factor": None}
    assert build_spec({**config, "sliding_window": None}, {}, []).attentions[0].window is None
    del config["sliding_window"]
    assert build_spec(config, {}, []).attentions[0].window == 4096


def test_an_unsupported_architecture_names_the_supported_ones() -> None:
    with pytest.raises(UnsupportedModelError, match="'mamba'") as caught:
        build_spec({"model_type": "mamba"}, {}, [])
    assert all(kind in caught.value.hint for kind in supported())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", float("nan")), ("hidden_size", -1), ("hidden_size", 1 << 40), ("hidden_size", "3072"),
        ("num_hidden_layers", 10**9), ("num_attention_heads", 7), ("num_key_value_heads", 5),
        ("num_key_value_heads", 0),
        ("rms_norm_eps", float("inf")), ("rms_norm_eps", float("nan")), ("rms_norm_eps", 0), ("rope_theta", -5),
        ("vocab_size", True), ("rope_scaling", [1]), ("rope_scaling", {"type": "longrope", "short_factor": [1]}),
        ("rope_scaling", {"type": "longrope", "short_factor": [float("nan")] * 48, "long_factor": [1.0] * 48}),
        ("partial_rotary_factor", 0.0001), ("partial_rotary_factor", 3), ("tie_word_embeddings", "yes"),
        ("eos_token_id", "end"), ("eos_token_id", [-1]), ("max_position_embeddings", None), ("model_type", 3),
    ],
)  # fmt: skip
def test_bad_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(HalfbyteError, match=key if key != "rope_scaling" else "rope_scaling|factor"):
        build_spec({**PHI_4_MINI, key: value}, {}, FUSED)


@pytest.mark.parametrize(
    "change", [{"hidden_act": "relu"}, {"rope_scaling": {"type": "dynamic"}}, {"attention_bias": True}]
)
def test_unsupported_features_are_told_from_damage(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        build_spec({**PHI_4_MINI, **change}, {}, FUSED)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(PHI_4_MINI)), value=_json)
def test_no_value_in_any_place_ends_in_a_traceback(key: str, value: Any) -> None:
    try:
        build_spec({**PHI_4_MINI, key: value}, {"eos_token_id": value}, FUSED)
    except HalfbyteError as error:
        assert len(str(error)) < 400  # noqa: PT017  (most draws raise; the few that are valid may pass)


def test_the_trained_checkpoint(shell_29m: Path) -> None:
    config = json.loads((shell_29m / "config.json").read_text())
    spec = build_spec(config, {"eos_token_id": [0, 4]}, FUSED)
    assert spec.parameters == 29_368_832
    assert spec.stop_token_ids == (0, 4)
    with pytest.raises(InvalidModelError):
        build_spec({**config, "num_attention_heads": None}, {}, FUSED)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("phi-3.5-mini", 3.82), ("phi-4-mini", 3.84), ("phi-4", 14.66), ("gemma-3-1b", 1.00), ("gemma-3-4b", 3.88),
        ("llama-3.2-1b", 1.24), ("llama-3.2-3b", 3.21), ("llama-3.1-8b", 8.03), ("mistral-7b-v0.3", 7.25),
        ("qwen-2.5-0.5b", 0.49), ("qwen-2.5-1.5b", 1.54), ("qwen-2.5-3b", 3.09),
    ],
)  # fmt: skip
def test_the_catalogs_models_have_their_published_sizes(name: str, billions: float) -> None:
    """Parameter counts as the models' cards state them (Gemma 3 4B without its vision tower)."""
    assert catalog_spec(name).parameters / 1e9 == pytest.approx(billions, abs=0.006)


def test_the_catalog_names_what_it_has() -> None:
    with pytest.raises(HalfbyteError, match="gpt-5") as caught:
        catalog_spec("gpt-5")
    assert "phi-4-mini" in caught.value.hint
