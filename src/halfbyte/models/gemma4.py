"""`gemma4`: Gemma 4 with its towers for images and sound, of which Halfbyte runs the text part."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from halfbyte.models import gemma4_text
from halfbyte.models.config import Config
from halfbyte.models.spec import ModelSpec

TIED = gemma4_text.TIED
TOWERS = (r"model\.(vision_tower|audio_tower|embed_vision|embed_audio)\..*",)

_INHERITED = ("eos_token_id", "bos_token_id", "tie_word_embeddings")
_OF_TOWERS = (
    "vision_config", "audio_config", "vision_soft_tokens_per_image", "boi_token_id", "eoi_token_id", "image_token_id",
    "boa_token_id", "eoa_token_id", "eoa_token_index", "audio_token_id", "video_token_id",
)  # fmt: skip


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of the text model inside a Gemma 4 checkpoint."""
    config.known(*_OF_TOWERS)
    text = config.section("text_config", {key: config.raw(key) for key in _INHERITED})
    text.known("model_type")
    dtype = config.text("dtype", config.text("torch_dtype"))
    spec = gemma4_text.build(text, names, "model.language_model.", dtype=dtype)
    return replace(spec, ignored=spec.ignored + TOWERS)
