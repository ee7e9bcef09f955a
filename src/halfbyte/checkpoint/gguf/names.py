"""What GGUF calls the architectures and tensors that Halfbyte runs, and what Hugging Face calls them.

Three architectures: `llama` (Llama, Mistral), whose q and k rows are permuted; `phi3`; `gemma3`, whose norms are
stored with 1 added. Names of a layer's tensors are given without `blk.N.` or `model.layers.N.` and `.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"
ROPE_TENSORS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)

EMBED = "token_embd.weight"
OUTPUT = "output.weight"
GEMMA_27B_LAYERS = 62
"""Layers of the one Gemma 3 whose attention scale is not that of its head size."""

_WHOLE = {EMBED: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", OUTPUT: "lm_head.weight"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_GGUF_LAYER = re.compile(r"blk\.(\d{1,6})\.(\w+)\.weight")
_HF_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.([\w.]+)\.weight")


@dataclass(frozen=True)
class Architecture:
    """How one of GGUF's architectures stores a model.

    Attributes:
        layer: A layer's tensors, GGUF's name to Hugging Face's.
        permuted: Whether rows of q and k are reordered for the interleaved form of RoPE.
        norm_offset: What is added to the weights of norms.
    """

    name: str
    layer: Mapping[str, str]
    permuted: bool = False
    norm_offset: float = 0.0

    def hugging_face(self, name: str) -> str:
        """Hugging Face's name of a tensor; the name as it is where there is none."""
        match = _GGUF_LAYER.fullmatch(name)
        if match and match[2] in self.layer:
            return f"model.layers.{match[1]}.{self.layer[match[2]]}.weight"
        return _WHOLE.get(name, name)

    def gguf(self, name: str) -> str | None:
        """GGUF's name of a tensor with a Hugging Face name, if it has one."""
        match = _HF_LAYER.fullmatch(name)
        if match:
            found = next((key for key, value in self.layer.items() if value == match[2]), None)
            return f"blk.{match[1]}.{found}.weight" if found else None
        return next((key for key, value in _WHOLE.items() if value == name), None)

    def is_shifted(self, name: str) -> bool:
        """Whether a tensor, by its Hugging Face name, is a norm stored with something added."""
        return self.norm_offset != 0 and name.endswith("norm.weight")


ARCHITECTURES = {
    form.name: form
    for form in (
        Architecture("llama", {**_ATTENTION, **_MLP, "ffn_norm": "post_attention_layernorm"}, permuted=True),
        Architecture(
            "phi3",
            {
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
        ),
        Architecture(
            "gemma3",
            {
                **_ATTENTION,
                **_MLP,
                "attn_q_norm": "self_attn.q_norm",
                "attn_k_norm": "self_attn.k_norm",
                "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
            norm_offset=1.0,
        ),
    )
}


def heads_of(name: str, heads: int, kv_heads: int) -> int | None:
    """How many heads the rows of a q or k projection are, by its Hugging Face name; None for other tensors."""
    if name.endswith("self_attn.q_proj.weight"):
        return heads
    return kv_heads if name.endswith("self_attn.k_proj.weight") else None


def hugging_face_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """Where each row of a Hugging Face q or k projection lies in a `llama` file.

    Hugging Face pairs value i of a head with value i + d/2, GGUF's `llama` value 2i with 2i + 1.
    """
    return np.arange(rows, dtype=np.intp).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def gguf_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """Where each row of a `llama` file's q or k projection lies in Hugging Face's: the inverse permutation."""
    return np.arange(rows, dtype=np.intp).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
