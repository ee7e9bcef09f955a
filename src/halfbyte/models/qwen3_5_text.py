"""`qwen3_5_text`: the text part of Qwen3.5 (dense), three of four layers of which are gated delta nets.

Its own ways (transformers 5.24, `modeling_qwen3_5.py`): norms multiply by (1 + w), but for the norm inside a delta net,
which has plain weights; q_proj stacks for each head its query, then as many values of its gate; a quarter of each head
is rotated, and the sections of its multimodal positions are all the same for text; decays are −exp(A_log) ·
softplus(a + dt_bias). The `mtp.` tensors, for drafting, are left alone.

In GGUF files (llama.cpp, `convert_hf_to_gguf.py`) `ssm_a` is −exp(A_log); norms hold 1 + w; kernels have lost their
middle axis; and where there are more value heads than key heads, those that read one key head lie `k_heads` apart
instead of side by side, in every tensor that has them, out_proj's columns included. Nothing is moved back: such a model
says that its value heads are tiled.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from halfbyte.models.config import Config, RopeRules, head_sizes, parse_rope, rope_section
from halfbyte.models.decoder import FULL, Stacking, common_fields, gated_mlp, projection, self_attention
from halfbyte.models.gguf import ATTENTION, HEAD_NORMS, MLP, Architecture
from halfbyte.models.spec import AttentionSpec, DeltaNet, DeltaSpec, Layer, ModelSpec

LINEAR = "linear_attention"
DRAFTING = (r"mtp\..*",)

_ROPE = RopeRules(partial=True, share=0.25)
_TILED = "halfbyte_tiled_value_heads"
"""Set where the tensors come from a GGUF file."""
_UNUSED = ("full_attention_interval", "mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")


def _from_gguf(keys: Config, config: dict[str, Any]) -> dict[str, Any]:
    drafting = keys.integer("nextn_predict_layers", 0, least=0, most=64)
    v_heads = keys.integer("ssm.time_step_rank", most=4096)
    keys.known("rope.dimension_sections")
    return {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": config["num_hidden_layers"] - drafting,
        "full_attention_interval": keys.integer("full_attention_interval", 4, most=1024),
        "linear_conv_kernel_dim": keys.integer("ssm.conv_kernel", most=64),
        "linear_key_head_dim": keys.integer("ssm.state_size", most=4096),
        "linear_value_head_dim": keys.integer("ssm.inner_size") // v_heads,
        "linear_num_key_heads": keys.integer("ssm.group_count", most=4096),
        "linear_num_value_heads": v_heads,
        _TILED: True,
    }


GGUF = Architecture(
    "qwen35",
    {
        **ATTENTION,
        **HEAD_NORMS,
        **MLP,
        "post_attention_norm": "post_attention_layernorm",
        "attn_qkv": "linear_attn.in_proj_qkv",
        "attn_gate": "linear_attn.in_proj_z",
        "ssm_beta": "linear_attn.in_proj_b",
        "ssm_alpha": "linear_attn.in_proj_a",
        "ssm_conv1d": "linear_attn.conv1d",
        "ssm_norm": "linear_attn.norm",
        "ssm_out": "linear_attn.out_proj",
    },
    config=_from_gguf,
    norm_offset=1.0,
    plain_norms=frozenset({"linear_attn.norm"}),
    partial=True,
    kernels=frozenset({"linear_attn.conv1d"}),
    bare={"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"},
    decays=frozenset({"linear_attn.A_log"}),
    written=False,
)


def build(config: Config, names: Collection[str], prefix: str = "model.", head: str = "lm_head.weight") -> ModelSpec:
    """The spec of a Qwen3.5 text model whose tensors start with `prefix`; the output matrix is called `head`."""
    config.expect("attn_output_gate", True)
    config.known(*_UNUSED)
    hidden = config.integer("hidden_size", 4096)
    heads, kv_heads, head_dim = head_sizes(config, hidden, heads=16, kv_heads=4, head_dim=256)
    context, bias = config.integer("max_position_embeddings", 32_768, least=2), config.flag("attention_bias", False)
    attention = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, rope="rope", gated=True)
    delta, stacking = _delta(config), Stacking(qkv=False, gate_up=Stacking.of(names).gate_up)
    width = config.integer("intermediate_size", 12_288)
    activation = config.activation("hidden_act", "silu")

    def layer(index: int, kind: str) -> Layer:
        at = f"{prefix}layers.{index}."
        mixer = (
            self_attention(attention, at, stacking, qkv_bias=bias, o_bias=bias, norms=True)
            if kind == FULL
            else _delta_net(delta, f"{at}linear_attn.")
        )
        return Layer(
            mixer,
            gated_mlp(width, activation, at, stacking),
            input_norm=f"{at}input_layernorm.weight",
            mlp_norm=f"{at}post_attention_layernorm.weight",
            scale_pairs=("norm_qkv", "norm_gate_up", "up_down"),
        )

    rope = rope_section(config)
    rope.known("mrope_section", "mrope_interleaved")
    common = common_fields(config, names, prefix, tied=False, head=head)
    common["ignored"] += DRAFTING
    return ModelSpec(
        model_type="qwen3_5_text",
        vocab_size=config.integer("vocab_size", 248_320),
        hidden_size=hidden,
        layers=tuple(layer(index, kind) for index, kind in enumerate(_kinds(config))),
        ropes={"rope": parse_rope(config, rope, head_dim, context, _ROPE)},
        norm_eps=config.number("rms_norm_eps", 1e-6, most=1.0),
        norm_offset=1.0,
        context=context,
        **common,
    )


def _delta(config: Config) -> DeltaSpec:
    k_heads = config.integer("linear_num_key_heads", 16, most=4096)
    v_heads = config.integer("linear_num_value_heads", 32, most=4096)
    if v_heads % k_heads:
        raise config.error("linear_num_value_heads", f"a multiple of linear_num_key_heads ({k_heads})")
    k_dim, v_dim = (config.integer(f"linear_{part}_head_dim", 128, most=4096) for part in ("key", "value"))
    taps = config.integer("linear_conv_kernel_dim", 4, least=2, most=64)
    return DeltaSpec(k_heads, v_heads, k_dim, v_dim, taps, tiled=config.flag(_TILED, False))


def _delta_net(spec: DeltaSpec, at: str) -> DeltaNet:
    into = projection(at, "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
    small = (f"{at}conv1d.weight", f"{at}A_log", f"{at}dt_bias", f"{at}norm.weight")
    return DeltaNet(spec, into, *small, projection(at, "out_proj"))


def _kinds(config: Config) -> list[str]:
    """What each layer is: as `layer_types` lists them, or attention for every `full_attention_interval`-th."""
    count, kinds = config.integer("num_hidden_layers", 32, most=1024), config.raw("layer_types")
    if kinds is None:
        interval = config.integer("full_attention_interval", 4, most=1024)
        kinds = [LINEAR if (i + 1) % interval else FULL for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (FULL, LINEAR) for kind in kinds):
        raise config.error("layer_types", f"a list of {count} of {FULL!r} and {LINEAR!r}")
    if FULL not in kinds:
        raise config.error("layer_types", f"at least one {FULL!r}")
    return kinds
