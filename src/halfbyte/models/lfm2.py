"""`lfm2`: LFM2 and LFM2.5, whose layers are short gated convolutions, but for a few with attention.

Its own ways (transformers 5.24, `modeling_lfm2.py`): the projection of a convolution stacks b, c and v in that order;
the final norm is called `embedding_norm`; of the configuration's width of the MLP two thirds are taken, scaled and
rounded up, unless `block_auto_adjust_ff_dim` is false; older configurations list the layers with attention as
`full_attn_idxs`, and have `block_ff_dim` and `tie_embedding`.

In GGUF files (llama.cpp, `convert_hf_to_gguf.py`) a layer without attention has 0 key-value heads, kernels have lost
their middle axis, the final norm is `token_embd_norm`, and the width of the MLP is the real one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from halfbyte.models.config import Config, RopeRules, head_sizes, parse_rope, rope_section
from halfbyte.models.decoder import FULL, common_fields, projection
from halfbyte.models.gguf import ATTENTION, KV_HEADS, Architecture
from halfbyte.models.spec import AttentionSpec, Layer, Mlp, ModelSpec, SelfAttention, ShortConv

TIED = True
CONV = "conv"

_ROPE = RopeRules(1_000_000.0)
_UNUSED = (
    "block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu",
    "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "full_attn_idxs", "num_heads", "theta",
    "use_pos_enc",
)  # fmt: skip
"""Keys that say again what others do, or that transformers does not read."""


def _from_gguf(keys: Config, config: dict[str, Any]) -> dict[str, Any]:
    kv_heads = keys.raw(KV_HEADS)
    attends = kv_heads if isinstance(kv_heads, list) else [1] * config["num_hidden_layers"]
    return {
        "model_type": "lfm2",
        "layer_types": [FULL if count else CONV for count in attends],
        "conv_L_cache": keys.integer("shortconv.l_cache", most=64),
        "block_auto_adjust_ff_dim": False,
        "norm_eps": config.pop("rms_norm_eps"),
    }


def _to_gguf(spec: ModelSpec) -> dict[str, Any]:
    mixers = [layer.mixer for layer in spec.layers]
    kv_heads = [mixer.spec.kv_heads if isinstance(mixer, SelfAttention) else 0 for mixer in mixers]
    taps = next((mixer.taps for mixer in mixers if isinstance(mixer, ShortConv)), 3)
    return {"attention.head_count_kv": np.array(kv_heads, np.int32), "shortconv.l_cache": taps}


GGUF = Architecture(
    "lfm2",
    {
        **ATTENTION,
        "attn_norm": "operator_norm",
        "attn_output": "self_attn.out_proj",
        "attn_q_norm": "self_attn.q_layernorm",
        "attn_k_norm": "self_attn.k_layernorm",
        "shortconv.conv": "conv.conv",
        "shortconv.in_proj": "conv.in_proj",
        "shortconv.out_proj": "conv.out_proj",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "feed_forward.w1",
        "ffn_up": "feed_forward.w3",
        "ffn_down": "feed_forward.w2",
    },
    config=_from_gguf,
    metadata=_to_gguf,
    rope_theta=1_000_000.0,
    whole={"token_embd_norm.weight": "model.embedding_norm.weight"},
    kernels=frozenset({"conv.conv"}),
)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of an LFM2 checkpoint."""
    config.refuse("conv_bias")
    config.known(*_UNUSED)
    hidden = config.integer("hidden_size", 2560)
    heads, kv_heads, head_dim = head_sizes(config, hidden, heads=32, kv_heads=8)
    context = config.integer("max_position_embeddings", 128_000, least=2)
    attention = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, rope="rope")
    taps, width = config.integer("conv_L_cache", 3, least=2, most=64), _width(config)

    def layer(index: int, kind: str) -> Layer:
        at = f"model.layers.{index}."
        attends, ff = f"{at}self_attn.", f"{at}feed_forward."
        mixer = (
            SelfAttention(
                attention,
                projection(attends, "q_proj", "k_proj", "v_proj"),
                projection(attends, "out_proj"),
                f"{attends}q_layernorm.weight",
                f"{attends}k_layernorm.weight",
            )
            if kind == FULL
            else ShortConv(
                taps, projection(f"{at}conv.", "in_proj"), f"{at}conv.conv.weight", projection(f"{at}conv.", "out_proj")
            )
        )
        return Layer(
            mixer,
            Mlp(width, "silu", projection(ff, "w1", "w3"), projection(ff, "w2")),
            input_norm=f"{at}operator_norm.weight",
            mlp_norm=f"{at}ffn_norm.weight",
            scale_pairs=("norm_qkv", "norm_gate_up", "up_down"),
        )

    common = common_fields(config, names, "model.", tied=config.flag("tie_embedding", TIED))
    common["final_norm"] = "model.embedding_norm.weight"
    return ModelSpec(
        model_type="lfm2",
        vocab_size=config.integer("vocab_size", 65_536),
        hidden_size=hidden,
        layers=tuple(layer(index, kind) for index, kind in enumerate(_kinds(config))),
        ropes={"rope": parse_rope(config, rope_section(config, _ROPE), head_dim, context, _ROPE)},
        norm_eps=config.number("norm_eps", 1e-5, most=1.0),
        context=context,
        **common,
    )


def _kinds(config: Config) -> list[str]:
    """What each layer is; without any attention there is no position in the model, and no cache to page."""
    count = config.integer("num_hidden_layers", 32, most=1024)
    kinds, attending = config.raw("layer_types"), config.raw("full_attn_idxs")
    if kinds is None:
        if attending is not None and not isinstance(attending, list):
            raise config.error("full_attn_idxs", "a list of layers")
        kinds = [FULL if attending is None or i in attending else CONV for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (FULL, CONV) for kind in kinds):
        raise config.error("layer_types", f"a list of {count} of {FULL!r} and {CONV!r}")
    if FULL not in kinds:
        raise config.error("layer_types", f"at least one {FULL!r}")
    return kinds


def _width(config: Config) -> int:
    """The width of the MLP, as `Lfm2MLP` of transformers computes it."""
    width = config.integer("block_ff_dim", config.integer("intermediate_size", 12_288))
    adjusts, factor = config.flag("block_auto_adjust_ff_dim", True), config.number("block_ffn_dim_multiplier", 1.0)
    multiple = config.integer("block_multiple_of", 256)
    if not adjusts:
        return width
    return -(-int(factor * int(2 * width / 3)) // multiple) * multiple
