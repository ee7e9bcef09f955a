"""`qwen3_5`: Qwen3.5 as it is published, of which Halfbyte runs the text part; its vision tower is left alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from halfbyte.models import qwen3_5_text
from halfbyte.models.config import Config
from halfbyte.models.spec import ModelSpec

VISION = (r"model\.visual\..*",)

_INHERITED = ("eos_token_id", "bos_token_id", "tie_word_embeddings")
_OF_IMAGES = ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of the text model inside a Qwen3.5 checkpoint."""
    config.known(*_OF_IMAGES)
    text = config.section("text_config", {key: config.raw(key) for key in _INHERITED})
    text.known("model_type")
    spec = qwen3_5_text.build(text, names, "model.language_model.")
    return replace(spec, ignored=spec.ignored + VISION)
