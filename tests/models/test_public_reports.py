"""Faults of other engines that people reported in public, each with the value that is right."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from halfbyte.models import build_spec
from halfbyte.models.catalog import CATALOG, catalog_spec
from halfbyte.models.spec import ModelSpec, YarnScaling


def changed(name: str, **values: Any) -> ModelSpec:
    """A model of the catalog with other values in its configuration."""
    return build_spec({**CATALOG[name], **values}, {}, [])


def test_yarn_with_both_mscales_of_one_leaves_cos_and_sin_as_they_are() -> None:
    """vllm-project/vllm#48621, sgl-project/sglang#22711: 1.277 instead of 1, and texts that repeat."""
    rope = catalog_spec("ministral-3-8b").ropes["rope"]
    assert rope.attention_factor == 1.0
    described = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16_384, "rope_theta": 1e6}
    rope = changed("ministral-3-8b", rope_parameters=described).ropes["rope"]
    assert rope.attention_factor == pytest.approx(1.2772588722239782)


def test_queries_of_ministral_grow_by_what_stands_among_the_parameters_of_the_rope() -> None:
    """vllm-project/vllm#48621: read from the top level alone, so queries never grew."""
    growth = catalog_spec("ministral-3-8b").attentions[0].temperature
    assert growth is not None
    assert (growth.beta, growth.length) == (0.1, 16_384)


def test_yarn_scales_frequencies_not_positions() -> None:
    """rasbt/LLMs-from-scratch#939: divided and clamped positions; texts fell apart after a few sentences."""
    rope = replace(catalog_spec("ministral-3-8b").ropes["rope"], theta=10_000.0)
    plain, scaled = replace(rope, scaling=None).inv_freq()[0], rope.inv_freq()[0]
    assert isinstance(rope.scaling, YarnScaling)
    assert scaled[0] == plain[0]
    assert scaled[-1] == pytest.approx(plain[-1] / 16)
    assert np.all(np.diff(scaled / plain) <= 1e-6)


def test_windows_of_olmo_3_turn_without_scaling() -> None:
    """huggingface/transformers#45945: one scaled rotary embedding for every layer."""
    spec = catalog_spec("olmo-3-7b")
    for attention in spec.attentions:
        assert (spec.ropes[attention.rope].scaling is None) == (attention.window is not None)
    assert sum(attention.window is None for attention in spec.attentions) == 8


def test_the_norms_of_olmo_are_over_all_heads_together() -> None:
    """vllm-project/vllm-metal#767 and #691: normed after heads were told apart."""
    spec = catalog_spec("olmo-2-1b")
    assert spec.shapes["model.layers.0.self_attn.q_norm.weight"] == (2048,)
    assert all(attention.whole_norm for attention in spec.attentions)
    assert all(layer.input_norm is None and layer.mlp_norm is None for layer in spec.layers)


def test_every_fourth_layer_of_smollm_3_has_no_positions() -> None:
    """pytorch/executorch#22043, airockchip/rknn-llm#501: rotated in every layer; "what what what" was the answer."""
    spec = catalog_spec("smollm-3-3b")
    still = [i for i, attention in enumerate(spec.attentions) if not spec.ropes[attention.rope].inv_freq().any()]
    assert still == list(range(3, 36, 4))


def test_one_in_no_rope_layers_means_that_a_layer_turns() -> None:
    """huggingface/transformers#43756: the name says the opposite of what the weights were trained with."""
    spec = changed("smollm-3-3b", num_hidden_layers=4, no_rope_layers=[1, 1, 0, 1])
    assert [bool(spec.ropes[attention.rope].inv_freq().any()) for attention in spec.attentions] == [
        True,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(("hidden", "heads"), [(2560, 32), (5120, 64)])
def test_heads_of_qwen_3_have_a_size_of_their_own(hidden: int, heads: int) -> None:
    """NVIDIA/TensorRT-LLM#5912, huggingface/optimum-neuron#879: hidden_size / heads, which is 80 for either."""
    spec = changed("qwen-3-4b", hidden_size=hidden, num_attention_heads=heads)
    assert spec.shapes["model.layers.0.self_attn.q_proj.weight"] == (heads * 128, hidden)
    assert spec.attentions[0].scale == 128**-0.5
    without = {key: value for key, value in CATALOG["qwen-3-4b"].items() if key != "head_dim"}
    assert build_spec(without, {}, []).attentions[0].head_dim == 128


def test_logits_of_granite_are_divided_and_its_scores_have_a_factor_of_their_own() -> None:
    """unslothai/unsloth#1218, OpenNMT/CTranslate2#1882: multiplied as Cohere's are, or left as they were."""
    spec = catalog_spec("granite-3.3-2b")
    assert spec.logit_scale == 1 / 8
    assert (spec.embed_scale, spec.residual_scale, spec.attentions[0].scale) == (12.0, 0.22, 0.015625)


def test_scaling_of_gemma_3_is_for_its_global_layers() -> None:
    """Blaizzy/mlx-vlm#1709: nowhere, which only long prompts showed."""
    ropes = catalog_spec("gemma-3-4b").ropes
    assert ropes["full_attention"].inv_freq()[0][0] == 1 / 8
    assert ropes["sliding_attention"].inv_freq()[0][0] == 1


def test_scores_of_gemma_2_27b_are_scaled_by_hidden_size_over_heads() -> None:
    """Lightning-AI/litgpt#1545, ml-explore/mlx-swift-examples#99: by the size of a head, or without the cap."""
    sizes = {"hidden_size": 4608, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128}
    attention = changed("gemma-2-2b", **sizes, query_pre_attn_scalar=144).attentions[0]
    assert attention.scale == pytest.approx(1 / math.sqrt(4608 / 32))
    assert (attention.window, attention.softcap) == (4096, 50.0)
    assert catalog_spec("gemma-2-2b").attentions[1].window is None
