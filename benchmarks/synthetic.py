"""Models of random weights in the shape of a catalog model, for measuring without downloading anything.

The weights are such that engines can be compared on the very same numbers, however each stores them:

- Scales have five significant bits, so that scale · (code - 8) is exact in bfloat16.
- Every group holds the codes 0 and 15, so that quantizing those numbers anew to 4 bits in groups of 32, rounding to
  nearest, symmetric or not, finds the same scale and the same codes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.checkpoint.writer import Outgoing, write_folder
from halfbyte.formats import Parts, get_format
from halfbyte.model import POCKET
from halfbyte.models import build_spec
from halfbyte.models.catalog import catalog_config
from halfbyte.models.spec import ModelSpec

BOTH_ENDS = 0xF0
"""A byte of two codes, 0 and 15: the first of each group, for values 0 and 16."""

_SCALE_BITS = 0xFFC0
_LOGIT_SIZE = 4.0
_EMBEDDING_SIZE = 1 / 8
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def synthetic_config(name: str, *, layers: int | None = None, vocabulary: int | None = None) -> dict[str, Any]:
    """The configuration of a catalog model, with fewer layers or another vocabulary if asked."""
    config = catalog_config(name, layers=layers)
    return config if vocabulary is None else {**config, "vocab_size": vocabulary}


def synthetic_spec(config: dict[str, Any]) -> ModelSpec:
    """The spec of a configuration, with the fused projections that its family's checkpoints have."""
    fused = ["model.layers.0.self_attn.qkv_proj.weight"] if config["model_type"] == "phi3" else []
    return build_spec(config, {}, fused)


def write_synthetic(target: Path, config: dict[str, Any], *, source: str = "synthetic") -> None:
    """Write a Halfbyte folder of random 4-bit weights in groups of 32, with the pocket model's tokenizer."""
    spec = synthetic_spec(config)
    random = np.random.default_rng(0)
    tensors = [
        Outgoing(name, shape, get_format("q4g32" if len(shape) == 2 else "f32"), "random")
        for name, shape in spec.shapes.items()
    ]
    settings = {name: (POCKET / name).read_bytes() for name in _TOKENIZER}
    settings["config.json"] = json.dumps(config).encode()
    write_folder(
        target, tensors, lambda name: _parts(spec, name, random), settings=settings, origin=POCKET, source=source
    )


def _parts(spec: ModelSpec, name: str, random: np.random.Generator) -> Parts:
    """Matrices keep the size of what they are applied to; the last norm spreads the logits.

    Embeddings are smaller, or a tied output matrix would only find the last token again.
    """
    shape = spec.shapes[name]
    if len(shape) == 1:
        gain = _final_gain(spec) if name == spec.final_norm else 1.0
        return {"": np.full(shape, gain - spec.norm_offset, np.float32)}
    layout = get_format("q4g32").layout(shape)
    codes = random.integers(0, 256, layout[".q"][1], np.uint8)
    codes[:, ::16] = BOTH_ENDS
    size = random.uniform(0.1, 0.3, layout[".scale"][1]) * random.choice([-1.0, 1.0], layout[".scale"][1])
    size *= shape[1] ** -0.5 * (_EMBEDDING_SIZE if name == spec.embed else 1.0)
    scale = size.astype(np.float16).view(np.uint16) & np.uint16(_SCALE_BITS)
    return {".q": codes, ".scale": scale.view(np.float16)}


def _final_gain(spec: ModelSpec) -> float:
    return _LOGIT_SIZE / (_EMBEDDING_SIZE if spec.embed == spec.lm_head else 1.0)
