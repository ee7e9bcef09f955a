"""`gemma3`: Gemma 3 from 4B on, of which Halfbyte runs the text part; the vision tower's tensors are left alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from halfbyte.models import gemma3_text
from halfbyte.models.config import Config
from halfbyte.models.spec import ModelSpec

TIED = gemma3_text.TIED
VISION = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)

_INHERITED = ("eos_token_id", "bos_token_id", "tie_word_embeddings")
_OF_IMAGES = ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of the text model inside a Gemma 3 checkpoint, under either naming of its tensors."""
    config.known(*_OF_IMAGES)
    text = config.section("text_config", {key: config.raw(key) for key in _INHERITED})
    text.known("model_type")
    dtype = config.text("dtype", config.text("torch_dtype"))
    new_style = any(name.startswith("model.language_model.") for name in names)
    prefix, head = (
        ("model.language_model.", "lm_head.weight")
        if new_style
        else ("language_model.model.", "language_model.lm_head.weight")
    )
    spec = gemma3_text.build(text, names, prefix, head, dtype)
    return replace(spec, ignored=spec.ignored + VISION)
