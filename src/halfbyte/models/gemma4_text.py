"""`gemma4_text`: the text part of Gemma 4 without mixtures of experts (E2B, E4B, 12B, 31B).

Its own ways (transformers 5.24, `modeling_gemma4`): scores are not scaled, since q, k and v are normed per head, v
without a weight; layers that see everything have heads of another size and number, rotate a quarter of each, and may
take values from the keys' matrix; the last layers may read the keys and values of the last one before them of their
kind, and have an MLP twice as wide then; E2B and E4B have inputs of their own for each layer; each layer ends with a
factor for the whole residual stream, a tensor that is no parameter there. Norms multiply by w, not by (1 + w) as those
of Gemma 3 do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from halfbyte.errors import UnsupportedModelError
from halfbyte.models.config import Config, RopeRules, head_sizes, parse_rope
from halfbyte.models.decoder import (
    FULL,
    SLIDING,
    Stacking,
    common_fields,
    gated_mlp,
    layer_windows,
    projection,
    shorter,
)
from halfbyte.models.gemma3_text import GGUF_NORMS, embed_scale, four_norms
from halfbyte.models.gguf import ATTENTION, HEAD_NORMS, KV_HEADS, MLP, WIDTHS, Architecture, sliding_layers
from halfbyte.models.spec import (
    Activation,
    AttentionSpec,
    Layer,
    LayerInput,
    LayerInputs,
    ModelSpec,
    RopeSpec,
    ScalePair,
    SelfAttention,
)

TIED = True
"""Embedding table and output matrix are one unless the configuration says otherwise."""

SCALE_PAIRS: tuple[ScalePair, ...] = ("norm_gate_up", "up_down")
"""As for Gemma 3; values are normed, so that their channels cannot be scaled."""


def _from_gguf(keys: Config, config: dict[str, Any]) -> dict[str, Any]:
    """Its lengths are those of the layers that see everything, its rotary factors tell how many pairs these turn.

    That values are keys before their norm it does not say: then there is no matrix for them.
    """
    layers, full = config["num_hidden_layers"], config["head_dim"]
    kinds = sliding_layers(keys).get("layer_types")
    if kinds is None or len(kinds) != layers:
        raise keys.error("attention.sliding_window_pattern", f"a list of {layers}")
    sliding = keys.integer("attention.key_length_swa", full, least=2, most=4096)
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        keys.expect(key, sliding, "unlike attention.key_length_swa, which Halfbyte does not support")
    width, shared = config["intermediate_size"], keys.integer("attention.shared_kv_layers", 0, least=0, most=layers)
    kv_heads = _each(keys, KV_HEADS, config["num_key_value_heads"], layers)
    widths = _each(keys, WIDTHS, width, layers)
    double = widths[-1] != width
    if widths != [width] * (layers - shared) + [width * (1 + double)] * shared:
        raise keys.error(WIDTHS, "one value, twice as large where layers share keys")
    factors = (config["rope_scaling"] or {}).get("short_factor", [])
    pairs = sum(factor == 1 for factor in factors)
    turned = min(1.0, (2 * pairs + 0.5) / full) if factors else 1.0  # rounded down to pairs later
    local = keys.number("rope.freq_base_swa", 10_000.0, most=1e12)
    return {
        "model_type": "gemma4_text", "layer_types": kinds, "head_dim": sliding, "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": keys.integer("embedding_length_per_layer_input", 0, least=0),
        "vocab_size_per_layer_input": config["vocab_size"], "use_double_wide_mlp": double, "attention_k_eq_v": None,
        "sliding_window": config["sliding_window"] or 512,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        "per_layer_config": {
            str(index): {"head_dim": full if kind == FULL else sliding, "num_key_value_heads": kv_heads[index]}
            for index, kind in enumerate(kinds)
        },
        "rope_theta": None, "partial_rotary_factor": None, "rope_scaling": None,
        "original_max_position_embeddings": None,
        "rope_parameters": {
            FULL: {"rope_type": "proportional", "partial_rotary_factor": turned, "rope_theta": config["rope_theta"]},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }  # fmt: skip


def _each(keys: Config, key: str, usual: int, layers: int) -> list[Any]:
    """A value for each layer: as a file lists them, or the same for all."""
    values = keys.raw(key)
    values = [usual] * layers if values is None else values
    if not isinstance(values, list) or len(values) != layers:
        raise keys.error(key, f"a list of {layers}")
    return values


GGUF = Architecture(
    "gemma4",
    {
        **ATTENTION,
        **MLP,
        **HEAD_NORMS,
        **GGUF_NORMS,
        "inp_gate": "per_layer_input_gate",
        "proj": "per_layer_projection",
        "post_norm": "post_per_layer_input_norm",
    },
    config=_from_gguf,
    rope_theta=1_000_000.0,
    windows=True,
    varied=True,
    whole={
        "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
        "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
        "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
    },
    bare={"layer_output_scale.weight": "layer_scalar"},
    written=False,
)

_PATTERN = 6
"""Every so many layers one sees everything, where the configuration does not list them."""


def build(
    config: Config, names: Collection[str], prefix: str = "model.", head: str = "lm_head.weight", dtype: str = ""
) -> ModelSpec:
    """The spec of a Gemma 4 text model whose tensors start with `prefix`; arguments as for Gemma 3."""
    for flag in ("attention_bias", "enable_moe_block"):
        config.refuse(flag)
    config.known("num_global_key_value_heads", "num_experts", "top_k_experts", "moe_intermediate_size")
    config.expect("use_bidirectional_attention", "vision", "and Halfbyte reads text in one direction")
    hidden, context = config.integer("hidden_size", 2304), config.integer("max_position_embeddings", 131_072, least=2)
    windows = _windows(config)
    shared = _shared(config, windows)
    width = config.integer("intermediate_size", 9216)
    activation = config.activation("hidden_activation", "gelu_pytorch_tanh")
    double, same = config.flag("use_double_wide_mlp", False), _keys_are_values(config, windows, names, prefix)
    sizes = _head_sizes(config, hidden, windows, same=same)
    inputs = _layer_inputs(config, len(windows), prefix)
    stacking = Stacking.of(names)

    def layer(index: int) -> Layer:
        at, window, owner = f"{prefix}layers.{index}.", windows[index], shared[index]
        spec = AttentionSpec(
            *sizes[index], 1.0, SLIDING if window else FULL, window=shorter(window, context), v_norm=True
        )
        own_parts = ("q_proj", "k_proj", "k_proj" if same and not window else "v_proj")
        parts = own_parts if owner is None else ("q_proj",)
        mixer = SelfAttention(
            spec,
            projection(f"{at}self_attn.", *parts),
            projection(f"{at}self_attn.", "o_proj"),
            f"{at}self_attn.q_norm.weight",
            None if owner is not None else f"{at}self_attn.k_norm.weight",
            shares=owner,
        )
        mlp = gated_mlp(width * 2 if double and owner is not None else width, activation, at, stacking)
        own = _layer_input(inputs, index, activation, at) if inputs else None
        return Layer(mixer, mlp, **four_norms(at), scale_pairs=SCALE_PAIRS, input=own, scalar=f"{at}layer_scalar")

    common = common_fields(config, names, prefix, tied=TIED, head=head)
    unused = "|".join(str(index) for index, owner in enumerate(shared) if owner is not None)
    if unused:
        common["ignored"] += (rf"{prefix}layers\.({unused})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight",)
    return ModelSpec(
        model_type="gemma4_text",
        vocab_size=config.integer("vocab_size", 262_144),
        hidden_size=hidden,
        layers=tuple(map(layer, range(len(windows)))),
        ropes=_ropes(config, {bool(window): size[2] for window, size in zip(windows, sizes, strict=True)}, context),
        norm_eps=config.number("rms_norm_eps", 1e-6, most=1.0),
        embed_scale=embed_scale(hidden, dtype or config.text("dtype", config.text("torch_dtype", "float32"))),
        logit_softcap=config.number("final_logit_softcapping") if "final_logit_softcapping" in config else None,
        context=context,
        layer_inputs=inputs,
        **common,
    )


def _keys_are_values(config: Config, windows: list[int | None], names: Collection[str], prefix: str) -> bool:
    """Whether layers that see everything take values from the keys' matrix; where nothing is said, the tensors tell."""
    if "attention_k_eq_v" in config or not config.mentions("attention_k_eq_v"):
        return config.flag("attention_k_eq_v", False)
    first = windows.index(None)
    return bool(names) and f"{prefix}layers.{first}.self_attn.v_proj.weight" not in names


def _windows(config: Config) -> list[int | None]:
    """The window of each layer; the last one sees everything, whatever the list says."""
    count, window = config.integer("num_hidden_layers", 30, most=1024), config.integer("sliding_window", 512)
    usual = [window if (i + 1) % _PATTERN else None for i in range(count)]
    return [*(layer_windows(config, count, window) or usual)[:-1], None]


def _shared(config: Config, windows: list[int | None]) -> list[int | None]:
    """For each layer, the one whose keys and values it reads, if it makes none."""
    first = len(windows) - config.integer("num_kv_shared_layers", 0, least=0, most=1024)
    owners = {bool(window): index for index, window in enumerate(windows[: max(first, 0)])}
    if any(bool(window) not in owners for window in windows):
        raise config.error("num_kv_shared_layers", "so few that a layer of each kind has keys and values of its own")
    return [None if index < first else owners[bool(window)] for index, window in enumerate(windows)]


def _head_sizes(config: Config, hidden: int, windows: list[int | None], *, same: bool) -> list[tuple[int, int, int]]:
    """(heads, kv_heads, head_dim) of each layer, from either way of writing them."""
    heads, kv_heads, head_dim = head_sizes(config, hidden, heads=8, kv_heads=4, head_dim=256)
    wide = config.integer("global_head_dim", 512, least=2, most=4096)
    few = config.integer("num_global_key_value_heads", kv_heads, most=4096) if same else kv_heads
    each, found = config.section("per_layer_config"), []
    raw = config.raw("per_layer_config") or ()
    keys = {int(key): key for key in raw if key.isdecimal() and len(key) < 5}  # maybe with zeros before
    for index, window in enumerate(windows):
        usual = (kv_heads, head_dim) if window or "per_layer_config" in config else (few, wide)
        own = each.section(keys.get(index, str(index)))
        sizes = (own.integer("num_key_value_heads", usual[0], most=4096), own.integer("head_dim", usual[1], most=4096))
        if heads % sizes[0]:
            raise config.error("num_attention_heads", f"a multiple of the {sizes[0]} key heads of layer {index}")
        found.append((heads, *sizes))
    return found


def _ropes(config: Config, head_dims: dict[bool, int], context: int) -> dict[str, RopeSpec]:
    """The rotary embedding of each kind of layer."""
    described, beside, rules = config.section("rope_parameters"), Config({}, config.where), RopeRules()
    usual = {
        FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    }
    return {
        kind: parse_rope(beside, described.section(kind, defaults=defaults), head_dims[kind == SLIDING], context, rules)
        for kind, defaults in usual.items()
        if (kind == SLIDING) in head_dims
    }


def _layer_inputs(config: Config, count: int, prefix: str) -> LayerInputs | None:
    none = config.mentions("hidden_size_per_layer_input") and "hidden_size_per_layer_input" not in config
    width = 0 if none else config.integer("hidden_size_per_layer_input", 256, least=0)
    rows = config.integer("vocab_size_per_layer_input", 262_144)
    if not width:
        return None
    if rows != config.integer("vocab_size", 262_144):
        raise UnsupportedModelError(
            f"{config.where}: vocab_size_per_layer_input is {rows}, unlike vocab_size, which is not supported.",
            "Use a model whose layers have inputs for every token.",
        )
    return LayerInputs(
        count,
        width,
        f"{prefix}embed_tokens_per_layer.weight",
        width**0.5,
        projection(prefix, "per_layer_model_projection"),
        f"{prefix}per_layer_projection_norm.weight",
    )


def _layer_input(inputs: LayerInputs, index: int, activation: Activation, at: str) -> LayerInput:
    gate, into = projection(at, "per_layer_input_gate"), projection(at, "per_layer_projection")
    norm = f"{at}post_per_layer_input_norm.weight"
    return LayerInput(index * inputs.width, inputs.width, activation, gate, into, norm)
