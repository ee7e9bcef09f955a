"""`llama`: Llama 2 and 3, and what Mistral, Phi-3 and Qwen2 share with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from halfbyte.models.config import USUAL_ROPE, Config, RopeRules, head_sizes, parse_rope, rope_section
from halfbyte.models.decoder import Stacking, common_fields, decoder_layers, shorter
from halfbyte.models.gguf import ATTENTION, MLP, Architecture
from halfbyte.models.spec import AttentionSpec, ModelSpec

Values = dict[str, object]


def _from_gguf(keys: Config, config: Values) -> Values:
    """A file with a window is a Mistral."""
    return {"model_type": "mistral" if config["sliding_window"] else "llama"}


GGUF = Architecture(
    "llama",
    {**ATTENTION, **MLP, "ffn_norm": "post_attention_layernorm"},
    config=_from_gguf,
    permuted=True,
    windows=True,
)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Llama checkpoint; separate or fused projections are told apart by the tensors' `names`."""
    config.refuse("mlp_bias")
    config.known("pretraining_tp", "is_llama_config")
    return like_llama(config, names)


def like_llama(
    config: Config,
    names: Collection[str],
    windows: Sequence[int | None] = (),
    *,
    eps: float = 1e-6,
    rope: RopeRules = USUAL_ROPE,
    kv_heads: int | None = None,
    qkv_bias: bool = False,
) -> ModelSpec:
    """The spec of a checkpoint with Llama's layers.

    Args:
        windows: Keys that a query sees in each layer, itself included; None for all, as everywhere if left out.
        eps: Norms' epsilon where the configuration does not say.
        kv_heads: The family's number of key-value heads, likewise.
        qkv_bias: Whether query, key and value have biases.
    """
    if not qkv_bias:
        config.refuse("attention_bias")
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden, kv_heads=kv_heads)
    context = config.integer("max_position_embeddings", least=2)
    count = config.integer("num_hidden_layers", most=1024)
    attentions = [
        AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, rope="rope", window=shorter(window, context))
        for window in windows or [None] * count
    ]
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        layers=decoder_layers(attentions, "model.", Stacking.of(names), qkv_bias=qkv_bias),
        ropes={"rope": parse_rope(config, rope_section(config), head_dim, context, rope)},
        norm_eps=config.number("rms_norm_eps", eps, most=1.0),
        activation=config.activation("hidden_act", "silu"),
        context=context,
        **common_fields(config, names, "model.", tied=False),
        model_type=config.text("model_type"),
    )
