"""`olmo2`: OLMo 2; norms stand behind each half instead of before it, and those of q and k are over all heads together.

Traps: `post_attention_layernorm` is the norm of attention's output, not that of the MLP's input as in Llama; the
weights of `q_norm` and `k_norm` are as long as all heads (transformers 5.24, `Olmo2DecoderLayer`, `Olmo2Attention`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from halfbyte.models import llama
from halfbyte.models.config import Config
from halfbyte.models.gguf import ATTENTION, HEAD_NORMS, MLP, Architecture, not_in_gguf, sliding_layers, sliding_pattern
from halfbyte.models.spec import AttentionSpec, ModelSpec


def _from_gguf(keys: Config, config: dict[str, Any]) -> dict[str, Any]:
    """A file with a window is an OLMo 3."""
    if not config["sliding_window"]:
        return {"model_type": "olmo2"}
    return {"model_type": "olmo3", **sliding_layers(keys)}


def _to_gguf(spec: ModelSpec) -> dict[str, Any]:
    if len({rope.theta for rope in spec.ropes.values()}) > 1:
        raise not_in_gguf("Layers of this olmo3 model turn with different bases")
    return sliding_pattern(spec) if spec.model_type == "olmo3" else {}


GGUF = Architecture(
    "olmo2",
    {
        **ATTENTION,
        **MLP,
        **HEAD_NORMS,
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    config=_from_gguf,
    metadata=_to_gguf,
    windows=True,
)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of an OLMo 2 checkpoint."""
    return llama.like_llama(config, names, likeness(config), change=whole)


def likeness(config: Config) -> llama.Likeness:
    """How its layers differ from Llama's."""
    bias = config.flag("attention_bias", False)
    return llama.Likeness(
        eps=1e-5,
        qkv_bias=bias,
        o_bias=bias,
        qk_norms=True,
        norms=(("post_mixer_norm", "post_attention_layernorm"), ("post_mlp_norm", "post_feedforward_layernorm")),
        scale_pairs=("v_o", "up_down"),
    )


def whole(index: int, usual: AttentionSpec) -> AttentionSpec:
    """The attention of a layer: its heads are normed together."""
    return replace(usual, whole_norm=True)
