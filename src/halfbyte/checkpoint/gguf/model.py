"""A GGUF file as a checkpoint: configuration, tensors under Hugging Face names, tokenizer.

Everything comes from the file: the metadata become a `config.json` as Hugging Face has it, so that `models.build_spec`
needs to know nothing of GGUF. Weights stay packed: undoing the row permutation of `llama` files is a gather of rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.checkpoint.checks import damaged, shown
from halfbyte.checkpoint.folder import Checkpoint
from halfbyte.checkpoint.gguf.file import Entry, GgufFile, open_files
from halfbyte.checkpoint.gguf.names import (
    ARCHITECTURES,
    EMBED,
    GEMMA_27B_LAYERS,
    OUTPUT,
    ROPE_FREQS,
    ROPE_LONG,
    ROPE_SHORT,
    ROPE_TENSORS,
    Architecture,
    heads_of,
    hugging_face_rows,
)
from halfbyte.checkpoint.gguf.tokenizer import stop_token_ids, tokenizer_files
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Format, Weight, get_format
from halfbyte.models.config import Config
from halfbyte.text.files import TokenizerFiles

_FULL, _SLIDING = "full_attention", "sliding_attention"


class GgufCheckpoint(Checkpoint):
    """An open GGUF model; a `WeightSource`.

    Attributes:
        path: The file (the one named, where there are several).
        config, generation_config: As a Hugging Face folder would have them.
        metadata: Those of the (first) file.
    """

    def __init__(self, path: Path, files: list[GgufFile]) -> None:
        self.path, self.manifest, self.metadata = path, None, files[0].metadata
        stored = {name: file for file in files for name in file.entries}
        self._architecture = _architecture(path, self.metadata)
        self.config = _config(path, self._architecture, self.metadata, stored)
        self.generation_config = {"eos_token_id": self.config["eos_token_id"]}
        self._where = {
            self._architecture.hugging_face(name): (file, name)
            for name, file in stored.items()
            if name not in ROPE_TENSORS
        }
        self._permuted = self._permutations()

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by its Hugging Face name."""
        return {name: file.entries[stored].shape for name, (file, stored) in self._where.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.stop - entry.start for entry in map(self._entry, self._where))

    def format(self, name: str) -> Format:
        """The format a tensor is stored in; f32 for norms from which 1 must be taken. Raises as `Checkpoint` does."""
        entry = self._entry(name)
        return get_format("f32") if self._architecture.is_shifted(name) else entry.format

    def weight(self, name: str) -> Weight:
        """A stored tensor: views of the memory map, except where rows are reordered or 1 is taken from norms."""
        self._entry(name)
        file, stored = self._where[name]
        weight = file.weight(stored)
        if self._architecture.is_shifted(name):
            values = weight.decode() - np.float32(self._architecture.norm_offset)
            return Weight(get_format("f32"), weight.shape, {"": values})
        heads = self._permuted.get(name)
        if heads is None:
            return weight
        rows = hugging_face_rows(weight.shape[0], heads)
        return Weight(weight.format, weight.shape, {suffix: part[rows] for suffix, part in weight.parts.items()})

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; they are read again when touched."""
        self._entry(name)
        file, stored = self._where[name]
        file.release(stored)

    def tokenizer_files(self) -> TokenizerFiles:
        """What a Hugging Face folder would say about the tokenizer, for `text.Tokenizer`.

        Raises:
            InvalidModelError: The file has no vocabulary, or one that contradicts itself.
            UnsupportedModelError: A kind of tokenizer that Halfbyte does not have.
        """
        return tokenizer_files(self.path, self.metadata)

    def settings(self) -> dict[str, bytes]:
        """Contents of the files that a Hugging Face folder would have beside the weights, by name."""
        files = self.tokenizer_files()
        tokenizer: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **files.special_tokens}
        if files.chat_template is not None:
            tokenizer["chat_template"] = files.chat_template
        documents = {
            "config.json": self.config,
            "generation_config.json": self.generation_config,
            "tokenizer_config.json": tokenizer,
        }
        settings = {name: json.dumps(document, indent=2).encode() for name, document in documents.items()}
        return settings | {"tokenizer.json": files.definition}

    def _entry(self, name: str) -> Entry:
        if name not in self._where:
            self._reject(f"it lacks the tensor {shown(name)}", [name])
        file, stored = self._where[name]
        return file.entries[stored]

    def _permutations(self) -> dict[str, int]:
        """Heads of each matrix whose rows are permuted, by name."""
        if not self._architecture.permuted:
            return {}
        config = Config(self.config, str(self.path))
        heads, kv_heads = config.integer("num_attention_heads"), config.integer("num_key_value_heads")
        found: dict[str, int] = {}
        for name in self._where:
            count, shape = heads_of(name, heads, kv_heads), self._entry(name).shape
            if count is not None:
                if shape[0] % (2 * count):
                    damaged(self.path, f"{shown(name)} of shape {list(shape)} is not for {count} heads")
                found[name] = count
        return found


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open a GGUF model, all its parts if it is split, and check everything but the weights themselves.

    Raises:
        ModelNotFoundError: The file or one of its parts is not there.
        InvalidModelError: A file is damaged, or contradicts itself or another.
        UnsupportedModelError: An architecture, version or tensor type that Halfbyte does not have.
    """
    return GgufCheckpoint(path, open_files(path))


def _architecture(path: Path, metadata: Mapping[str, Any]) -> Architecture:
    name = Config(metadata, str(path)).text("general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path}: the architecture {shown(name)} is not supported.", f"Supported are {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def _config(
    path: Path, architecture: Architecture, metadata: Mapping[str, Any], stored: Mapping[str, GgufFile]
) -> dict[str, Any]:
    """The metadata as the contents of a `config.json`."""
    name = architecture.name
    prefix = f"{name}."
    keys = Config({k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}, f"{path}: {name}")
    if EMBED not in stored:
        damaged(path, f"it has no tensor {EMBED}")
    if "expert_count" in keys and keys.integer("expert_count", least=0) > 0:
        raise UnsupportedModelError(f"{path} is a mixture of experts.", "Halfbyte runs dense models.")
    config = _sizes(keys) | _rope(keys, architecture, stored)
    embed = stored[EMBED].entries[EMBED]
    config |= {
        "model_type": {"phi3": "phi3", "gemma3": "gemma3_text"}.get(name, "llama"),
        "vocab_size": embed.shape[0],
        "tie_word_embeddings": OUTPUT not in stored,
        "dtype": "float32" if embed.format.name == "f32" else "bfloat16",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stop_token_ids(path, metadata),
    }
    return config | _window(keys, name) | (_gemma(keys, config) if name == "gemma3" else {})


def _sizes(keys: Config) -> dict[str, Any]:
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count", most=4096)
    if "attention.key_length" not in keys and hidden % heads:
        raise keys.error("attention.head_count", f"a divisor of embedding_length ({hidden})")
    return {
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count", most=1024),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads, most=4096),
        "head_dim": keys.integer("attention.key_length", hidden // heads, least=2, most=4096),
        "max_position_embeddings": keys.integer("context_length", least=2),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", most=1.0),
    }


def _rope(keys: Config, architecture: Architecture, stored: Mapping[str, GgufFile]) -> dict[str, Any]:
    """The rotary embedding: its base, the share of a head it turns, and how it is scaled."""
    theta = keys.number("rope.freq_base", 1_000_000.0 if architecture.name == "gemma3" else 10_000.0, most=1e12)
    head = _sizes(keys)["head_dim"]
    dim = keys.integer("rope.dimension_count", head, least=2, most=head)
    rope = {"rope_theta": theta, "partial_rotary_factor": _share(dim, head)}
    return {**rope, "rope_scaling": _scaling(keys, stored)}


def _share(dim: int, head: int) -> float:
    """A factor whose product with `head`, rounded down, is `dim`."""
    share = dim / head
    return share if int(head * share) == dim else math.nextafter(share, 1.0)


def _scaling(keys: Config, stored: Mapping[str, GgufFile]) -> dict[str, Any] | None:
    """A `rope_scaling` section. Llama 3's factors are given frequency by frequency: LongRoPE with one set."""
    context = keys.integer("context_length", least=2)
    if ROPE_FREQS in stored:
        factors = _factors(stored, ROPE_FREQS)
        original, attention = context, 1.0
        short, long = factors, factors
    elif ROPE_LONG in stored and ROPE_SHORT in stored:
        short, long = _factors(stored, ROPE_SHORT), _factors(stored, ROPE_LONG)
        original = keys.integer("rope.scaling.original_context_length", context, least=2)
        ratio = context / original
        derived = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
        attention = keys.number("rope.scaling.attn_factor", derived)
    else:
        kind = keys.text("rope.scaling.type", "none")
        return None if kind == "none" else {"rope_type": kind, "factor": keys.number("rope.scaling.factor", 1.0)}
    return {
        "rope_type": "longrope", "short_factor": short, "long_factor": long,
        "original_max_position_embeddings": original, "attention_factor": attention,
    }  # fmt: skip


def _factors(stored: Mapping[str, GgufFile], name: str) -> list[float]:
    return [float(factor) for factor in stored[name].weight(name).decode().reshape(-1)]


def _window(keys: Config, architecture: str) -> dict[str, Any]:
    """The sliding window; 0 means none. A `llama` file with one is a Mistral."""
    window = keys.integer("attention.sliding_window", 0, least=0) or None
    mistral = {"model_type": "mistral"} if window and architecture == "llama" else {}
    return {"sliding_window": window, **mistral}


def _gemma(keys: Config, config: Mapping[str, Any]) -> dict[str, Any]:
    """What only Gemma 3 has. Its rotary scaling is that of the global layers."""
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    scalar = config["hidden_size"] // heads if layers == GEMMA_27B_LAYERS else config["head_dim"]
    pattern = keys.values.get("attention.sliding_window_pattern")
    local = keys.number("rope.freq_base_swa", 10_000.0, most=1e12)
    gemma: dict[str, Any] = {"query_pre_attn_scalar": scalar, "rope_local_base_freq": local}
    if "attention.sliding_window" not in keys:
        gemma |= {"layer_types": [_FULL] * layers, "sliding_window": config["max_position_embeddings"]}
    elif isinstance(pattern, np.ndarray):
        gemma["layer_types"] = [_SLIDING if sliding else _FULL for sliding in pattern[:1024].tolist()]
    else:
        gemma["sliding_window_pattern"] = keys.integer("attention.sliding_window_pattern", 6)
    if "final_logit_softcapping" in keys:
        gemma["final_logit_softcapping"] = keys.number("final_logit_softcapping")
    return gemma
