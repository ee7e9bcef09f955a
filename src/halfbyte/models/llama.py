"""`llama`: Llama 2 and 3.

Families whose layers are like Llama's build on this file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from halfbyte.models.config import USUAL_ROPE, Config, RopeRules, head_sizes, parse_rope, rope_section
from halfbyte.models.decoder import Stacking, common_fields, gated_mlp, self_attention, shorter
from halfbyte.models.gguf import ATTENTION, MLP, Architecture
from halfbyte.models.spec import SCALE_PAIRS, AttentionSpec, Layer, ModelSpec, RopeSpec, ScalePair

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


@dataclass(frozen=True)
class Likeness:
    """Where a family's layers differ from Llama's.

    Attributes:
        eps: Norms' epsilon where the configuration does not say; so for `kv_heads`, `head_dim` and `tied`.
        qkv_bias, o_bias: Whether query, key and value, and the output, have biases.
        mlp_bias: Whether the matrices of the MLP have.
        qk_norms: Whether q and k are normed before they are rotated.
        norms: What a layer calls the norms of its halves' inputs and outputs, by the fields of `Layer`.
        scale_pairs: See `Layer`.
    """

    eps: float = 1e-6
    rope: RopeRules = USUAL_ROPE
    kv_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norms: bool = False
    norms: tuple[tuple[str, str], ...] = (("input_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm"))
    scale_pairs: tuple[ScalePair, ...] = SCALE_PAIRS


LLAMA = Likeness()

Change = Callable[[int, AttentionSpec], AttentionSpec]
"""From a layer's number and the usual attention to the layer's own."""


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Llama checkpoint; separate or fused projections are told apart by the tensors' `names`."""
    config.known("pretraining_tp", "is_llama_config")
    bias = config.flag("attention_bias", False)
    return like_llama(config, names, Likeness(qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False)))


def like_llama(
    config: Config,
    names: Collection[str],
    family: Likeness = LLAMA,
    *,
    windows: Sequence[int | None] = (),
    change: Change = lambda index, usual: usual,
    ropes: dict[str, RopeSpec] | None = None,
    prefix: str = "model.",
    head: str = "lm_head.weight",
) -> ModelSpec:
    """The spec of a checkpoint with layers like Llama's.

    Args:
        windows: Keys that a query sees in each layer, itself included; None for all, as everywhere if left out.
        change: Makes the attention of layers that differ from others.
        ropes: The rotary embeddings that `change` names; the one that the configuration describes is called `rope`.
        prefix: Of the tensors' names; the output matrix is called `head`.
    """
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden, kv_heads=family.kv_heads, head_dim=family.head_dim)
    context = config.integer("max_position_embeddings", least=2)
    stacking = Stacking.of(names)
    width, activation = config.integer("intermediate_size"), config.activation("hidden_act", "silu")
    usual = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, rope="rope")

    def layer(index: int, window: int | None) -> Layer:
        at = f"{prefix}layers.{index}."
        spec = change(index, replace(usual, window=shorter(window, context)))
        norms: dict[str, Any] = {field: f"{at}{name}.weight" for field, name in family.norms}
        return Layer(
            self_attention(spec, at, stacking, qkv_bias=family.qkv_bias, o_bias=family.o_bias, norms=family.qk_norms),
            gated_mlp(width, activation, at, stacking, bias=family.mlp_bias),
            scale_pairs=family.scale_pairs,
            **norms,
        )

    count = config.integer("num_hidden_layers", most=1024)
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        layers=tuple(layer(index, window) for index, window in enumerate(windows or [None] * count)),
        ropes=ropes or {"rope": parse_rope(config, rope_section(config, family.rope), head_dim, context, family.rope)},
        norm_eps=config.number("rms_norm_eps", family.eps, most=1.0),
        context=context,
        **common_fields(config, names, prefix, tied=family.tied, head=head),
        model_type=config.text("model_type"),
    )
