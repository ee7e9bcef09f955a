"""`mistral3`: Mistral Small 3.1 and Ministral 3 with vision, of which Halfbyte runs the text part.

Its text part is a `mistral` or a `ministral3`; the tensors of the vision tower are left alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from halfbyte.errors import UnsupportedModelError
from halfbyte.models import ministral3, mistral
from halfbyte.models.config import Config
from halfbyte.models.spec import ModelSpec

GGUF = ministral3.GGUF

TIED = True
"""Embedding table and output matrix are one unless the configuration says otherwise."""

VISION = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)
_PARTS = {"mistral": mistral.build, "ministral3": ministral3.build}
_INHERITED = ("eos_token_id", "bos_token_id", "tie_word_embeddings")
_OF_IMAGES = (
    "vision_config", "image_token_index", "image_token_id", "projector_hidden_act", "vision_feature_layer",
    "multimodal_projector_bias", "spatial_merge_size",
)  # fmt: skip


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of the text model inside a Mistral 3 checkpoint, under either naming of its tensors."""
    config.known(*_OF_IMAGES)
    inherited = {key: config.raw(key) for key in _INHERITED}
    text = config.section("text_config", {**inherited, "model_type": "mistral"})
    kind = text.text("model_type")
    if kind not in _PARTS:
        raise UnsupportedModelError(
            f"config.json: text_config: model_type {kind!r} is not supported.", f"It is one of {', '.join(_PARTS)}."
        )
    new_style = any(name.startswith("model.language_model.") for name in names)
    prefix, head = (
        ("model.language_model.", "lm_head.weight")
        if new_style
        else ("language_model.model.", "language_model.lm_head.weight")
    )
    spec = _PARTS[kind](text, names, prefix, head)
    return replace(spec, ignored=spec.ignored + VISION)
