"""What GGUF calls the architectures and tensors of a family, and what Hugging Face calls them.

Names of a layer's tensors are given without `blk.N.` or `model.layers.N.`, and without `.weight` or `.bias`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.models.config import Config
from halfbyte.models.decoder import FULL, SLIDING
from halfbyte.models.spec import AttentionSpec, ModelSpec

EMBED = "token_embd.weight"
OUTPUT = "output.weight"

ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
}
"""Tensors of attention in the usual names; llama.cpp stores query, key and value apart or stacked."""

MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}

KV_HEADS = "attention.head_count_kv.layers"
"""Key-value heads of each layer, where a file lists them: 0 for layers without attention."""

WIDTHS = "feed_forward_length.layers"
"""The size of each layer's MLP, where a file lists them."""

HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

_WHOLE = {EMBED: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", OUTPUT: "lm_head.weight"}
_GGUF_LAYER = re.compile(r"blk\.(\d{1,6})\.(\w+(?:\.\w+)?)\.(weight|bias)")
_GGUF_BLOCK = re.compile(r"blk\.(\d{1,6})\.([\w.]+)")
_HF_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.([\w.]+)\.(weight|bias)")

Values = dict[str, Any]


def _nothing(spec: ModelSpec) -> Values:
    return {}


def _unchanged(spec: ModelSpec, name: str) -> float:
    return 1.0


def sliding_layers(keys: Config) -> Values:
    """The kind of each layer, where a file lists which ones have a window."""
    pattern = keys.raw("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        return {}
    return {"layer_types": [SLIDING if sliding else FULL for sliding in pattern[:1024]]}


def sliding_pattern(spec: ModelSpec) -> Values:
    """Which layers have a window, as `sliding_layers` reads it."""
    return {"attention.sliding_window_pattern": np.array([each.window is not None for each in spec.attentions])}


def not_in_gguf(what: str) -> UnsupportedModelError:
    """The error for a model of which files of its architecture cannot say something."""
    return UnsupportedModelError(f"{what}, which GGUF files cannot say.", "Write another layout, such as awq or gptq.")


@dataclass(frozen=True)
class Architecture:
    """How one of GGUF's architectures stores a model.

    Attributes:
        name: As `general.architecture` has it.
        layer: A layer's tensors, GGUF's name to Hugging Face's.
        config: What the family's metadata, without `name.`, add to or change in the `config.json` that holds what all
            families share; `model_type` at least.
        metadata: What the family's metadata hold besides what all families share, without `name.`.
        norm_factor: What a norm's stored weights are multiplied by when they are written, by Hugging Face's name.
        permuted: Whether rows of q and k are reordered for the interleaved form of RoPE.
        norm_offset: What is added to the weights of norms.
        rope_theta: The base of the rotary embedding where the file does not say.
        partial: Whether only a share of each head may be rotated.
        whole: Tensors outside the layers that have other names than usual, GGUF's name to Hugging Face's.
        kernels: Convolution kernels of a layer, by Hugging Face's names: GGUF files lack their middle axis, which is 1.
        plain_norms: Norms of a layer to which nothing is added, by Hugging Face's names.
        bare: Tensors of a layer that have no `.weight` at Hugging Face, by GGUF's whole names.
        decays: Those of them that GGUF files hold as −exp(x).
        written: Whether files of this architecture can be written.
        varied: Whether layers may differ in their numbers of key heads and the sizes of their MLPs, which `config`
            then finds as `KV_HEADS` and `WIDTHS`.
        windows: Whether llama.cpp, or Halfbyte where it has none, takes `attention.sliding_window` for this one.
    """

    name: str
    layer: Mapping[str, str]
    config: Callable[[Config, Values], Values]
    metadata: Callable[[ModelSpec], Values] = _nothing
    norm_factor: Callable[[ModelSpec, str], float] = _unchanged
    permuted: bool = False
    norm_offset: float = 0.0
    rope_theta: float = 10_000.0
    partial: bool = False
    windows: bool = False
    varied: bool = False
    whole: Mapping[str, str] = field(default_factory=dict)
    kernels: frozenset[str] = frozenset()
    plain_norms: frozenset[str] = frozenset()
    bare: Mapping[str, str] = field(default_factory=dict)
    decays: frozenset[str] = frozenset()
    written: bool = True

    def hugging_face(self, name: str) -> str:
        """Hugging Face's name of a tensor; the name as it is where there is none."""
        match = _GGUF_LAYER.fullmatch(name)
        if match and match[2] in self.layer:
            return f"model.layers.{match[1]}.{self.layer[match[2]]}.{match[3]}"
        block = _GGUF_BLOCK.fullmatch(name)
        if block and block[2] in self.bare:
            return f"model.layers.{block[1]}.{self.bare[block[2]]}"
        return {**_WHOLE, **self.whole}.get(name, name)

    def gguf(self, name: str) -> str | None:
        """GGUF's name of a tensor with a Hugging Face name, if it has one."""
        match = _HF_LAYER.fullmatch(name)
        if match:
            found = next((key for key, value in self.layer.items() if value == match[2]), None)
            return f"blk.{match[1]}.{found}.{match[3]}" if found else None
        return next((key for key, value in {**_WHOLE, **self.whole}.items() if value == name), None)

    def is_kernel(self, name: str) -> bool:
        """Whether a tensor, by its Hugging Face name, is a convolution kernel."""
        match = _HF_LAYER.fullmatch(name)
        return match is not None and match[2] in self.kernels

    def is_shifted(self, name: str) -> bool:
        """Whether a tensor, by its Hugging Face name, is a norm stored with something added."""
        match = _HF_LAYER.fullmatch(name)
        plain = match is not None and match[2] in self.plain_norms
        return self.norm_offset != 0 and name.endswith("norm.weight") and not plain

    def is_decay(self, name: str) -> bool:
        """Whether a tensor, by its Hugging Face name, is the logarithm of a decay."""
        return any(name.endswith(f".{decay}") for decay in self.decays)

    def rows(self, name: str, attention: AttentionSpec) -> NDArray[np.intp] | None:
        """For each row of a tensor in a GGUF file, Hugging Face's row; None where the order is the same.

        Hugging Face pairs value i of a head with value i + d/2, GGUF's `llama` value 2i with 2i + 1. Biases are
        ordered as the rows of their matrices.
        """
        match = _HF_LAYER.fullmatch(name)
        turned = _TURNED.get(match[2]) if match and self.permuted else None
        if turned is None:
            return None
        counts = {"q": attention.heads, "k": attention.kv_heads, "v": attention.kv_heads}
        within = np.arange(attention.head_dim, dtype=np.intp)
        interleaved = within.reshape(2, -1).T.reshape(-1)
        orders = {"q": interleaved, "k": interleaved, "v": within}
        order = [orders[part] for part in turned for _ in range(counts[part])]
        starts = np.arange(len(order), dtype=np.intp)[:, None] * attention.head_dim
        return (starts + np.stack(order)).reshape(-1)


_TURNED = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.qkv_proj": "qkv"}
"""Projections whose rows are reordered, by the parts that they stack."""
