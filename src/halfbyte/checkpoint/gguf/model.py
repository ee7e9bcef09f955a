"""A GGUF file as a checkpoint: configuration, tensors under Hugging Face names, tokenizer.

Everything comes from the file: the metadata become a `config.json` as Hugging Face has it, so that `models.build_spec`
needs to know nothing of GGUF. Weights stay packed: undoing the row permutation of `llama` files is a gather of rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.checks import damaged, shown
from halfbyte.checkpoint.gguf.file import Entry, GgufFile, open_files
from halfbyte.checkpoint.gguf.names import HARMLESS, ROPE_FREQS, ROPE_LONG, ROPE_SHORT, ROPE_TENSORS
from halfbyte.checkpoint.gguf.tokenizer import stop_token_ids, tokenizer_files
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Format, Weight, get_format
from halfbyte.models import gguf_architectures
from halfbyte.models.config import Config, yarn_growth
from halfbyte.models.gguf import EMBED, KV_HEADS, OUTPUT, WIDTHS, Architecture
from halfbyte.models.spec import AttentionSpec, ModelSpec
from halfbyte.text.files import TokenizerFiles

_PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
"""Keys that may hold a value per layer."""
_MAY_VARY = {"attention.head_count_kv": KV_HEADS, "feed_forward_length": WIDTHS}
"""Those whose values may differ in some architectures, and what they are called then."""


_BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
"""What says that layers have biases."""


class GgufCheckpoint(Checkpoint):
    """An open GGUF model; a `WeightSource`.

    Attributes:
        path: The file (the one named, where there are several).
        config, generation_config: As a Hugging Face folder would have them.
        metadata: Those of the (first) file.
    """

    def __init__(self, path: Path, files: list[GgufFile]) -> None:
        self.metadata = files[0].metadata
        stored = {name: file for file in files for name in file.entries}
        self._architecture = _architecture(path, self.metadata)
        config = _config(path, self._architecture, self.metadata, stored)
        super().__init__(path, config, {"eos_token_id": config["eos_token_id"]})
        self._where = {
            self._architecture.hugging_face(name): (file, name)
            for name, file in stored.items()
            if name not in ROPE_TENSORS
        }
        self._rows = self._reordered()

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by its Hugging Face name."""
        return {name: self._shape(name, file.entries[stored].shape) for name, (file, stored) in self._where.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.stop - entry.start for entry in map(self._entry, self._where))

    def format(self, name: str) -> Format:
        """The format a tensor is stored in; f32 for norms from which 1 must be taken. Raises as `Checkpoint` does."""
        entry = self._entry(name)
        kinds = (self._architecture.is_shifted, self._architecture.is_kernel, self._architecture.is_decay)
        changed = any(is_kind(name) for is_kind in kinds)
        return get_format("f32") if changed else entry.format

    def weight(self, name: str) -> Weight:
        """A stored tensor: views of the memory map, except where rows are reordered or 1 is taken from norms."""
        self._entry(name)
        file, stored = self._where[name]
        weight = file.weight(stored)
        if self._architecture.is_kernel(name):
            shape = self._shape(name, weight.shape)
            return Weight(get_format("f32"), shape, {"": weight.decode().reshape(shape)})
        if self._architecture.is_decay(name):
            return Weight(get_format("f32"), weight.shape, {"": self._log_of_decay(name, weight.decode())})
        if self._architecture.is_shifted(name):
            values = weight.decode() - np.float32(self._architecture.norm_offset)
            return Weight(get_format("f32"), weight.shape, {"": values})
        rows = self._rows.get(name)
        if rows is None:
            return weight
        return Weight(weight.format, weight.shape, {suffix: part[rows] for suffix, part in weight.parts.items()})

    def _log_of_decay(self, name: str, stored: NDArray[np.float32]) -> NDArray[np.float32]:
        if not (stored < 0).all():
            damaged(self.path, f"{shown(name)} holds decays that do not decay")
        return np.log(-stored)

    def _shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor, from that in the file."""
        return (stored[0], 1, *stored[1:]) if self._architecture.is_kernel(name) else stored

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
        if files.templates:
            named = ({"default": files.chat_template} if files.chat_template else {}) | files.templates
            tokenizer["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
        elif files.chat_template is not None:
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
            self._reject(self._lacks(name), [name])
        file, stored = self._where[name]
        return file.entries[stored]

    def _reordered(self) -> dict[str, NDArray[np.intp]]:
        """Where each row of a tensor lies in the file, by name, for those whose rows have another order there."""
        sizes = Config(self.config, str(self.path))
        heads, kv_heads = sizes.integer("num_attention_heads"), sizes.integer("num_key_value_heads")
        head_dim = sizes.integer("head_dim")
        attention = AttentionSpec(heads, kv_heads, head_dim, scale=1.0, rope="")
        found: dict[str, NDArray[np.intp]] = {}
        for name in self._where:
            order, shape = self._architecture.rows(name, attention), self._entry(name).shape
            if order is not None:
                if shape[0] != len(order):
                    damaged(self.path, f"{shown(name)} of shape {list(shape)} is not for {heads} heads")
                found[name] = np.argsort(order)
        return found

    def _found_unused(self, spec: ModelSpec, names: Sequence[str]) -> None:
        """Refuse tensors that are not known, as llama.cpp does: a GGUF file holds nothing that does not count."""
        if names:
            name = next(stored for hf, (_, stored) in self._where.items() if hf == names[0])
            raise UnsupportedModelError(
                f"{self.path} holds the tensor {shown(name)}, which Halfbyte does not know in a file of the "
                f"architecture {self._architecture.name}.",
                "Without it the answers would be wrong. Use the model's safetensors checkpoint, if it is supported.",
            )


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open a GGUF model, all its parts if it is split, and check everything but the weights themselves.

    Raises:
        ModelNotFoundError: The file or one of its parts is not there.
        InvalidModelError: A file is damaged, or contradicts itself or another.
        UnsupportedModelError: An architecture, version or tensor type that Halfbyte does not have.
    """
    return GgufCheckpoint(path, open_files(path))


def _architecture(path: Path, metadata: Mapping[str, Any]) -> Architecture:
    name, known = Config(metadata, str(path)).text("general.architecture"), gguf_architectures()
    if name not in known:
        raise UnsupportedModelError(
            f"{path}: the architecture {shown(name)} is not supported.", f"Supported are {', '.join(sorted(known))}."
        )
    return known[name]


def _config(
    path: Path, architecture: Architecture, metadata: Mapping[str, Any], stored: Mapping[str, GgufFile]
) -> dict[str, Any]:
    """The metadata as the contents of a `config.json`."""
    keys = _keys(path, architecture, metadata)
    if EMBED not in stored:
        damaged(path, f"it has no tensor {EMBED}")
    keys.expect("expert_count", 0, "a mixture of experts, and Halfbyte runs dense models")
    keys.expect("attention.causal", True, "and Halfbyte runs models that see only what came before")
    config = _sizes(keys) | _rope(keys, architecture, stored)
    embed = stored[EMBED].entries[EMBED]
    config |= {
        "vocab_size": embed.shape[0],
        "tie_word_embeddings": OUTPUT not in stored,
        "dtype": "float32" if embed.format.name == "f32" else "bfloat16",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stop_token_ids(path, metadata),
        "sliding_window": _window(keys, architecture),
    }
    config |= {key: True for key, tensor in _BIASES.items() if tensor in stored}
    config |= architecture.config(keys, config)
    keys.refuse_unknown(HARMLESS)
    return config


def _keys(path: Path, architecture: Architecture, metadata: Mapping[str, Any]) -> Config:
    """An architecture's metadata without its name; a list of equal values per layer as that value."""
    name = architecture.name
    values = {
        key.removeprefix(f"{name}."): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in metadata.items()
        if key.startswith(f"{name}.")
    }
    for key in _PER_LAYER:
        value = values.get(key)
        if key == "attention.head_count_kv" and isinstance(value, list) and 0 in value:
            values[KV_HEADS] = value
            values[key] = value = [count for count in value if count]
        if architecture.varied and isinstance(value, list) and value and key in _MAY_VARY:
            values[_MAY_VARY[key]], values[key] = value, value[0]
            continue
        if isinstance(value, list) and value:
            if any(other != value[0] for other in value):
                raise UnsupportedModelError(
                    f"{path}: {name}.{key} differs from layer to layer ({shown(value)}).",
                    "Halfbyte runs models whose layers have the same size.",
                )
            values[key] = value[0]
    return Config(values, f"{path}: {name}")


def _sizes(keys: Config) -> dict[str, Any]:
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count", most=4096)
    if "attention.key_length" not in keys and hidden % heads:
        raise keys.error("attention.head_count", f"a divisor of embedding_length ({hidden})")
    head_dim = keys.integer("attention.key_length", hidden // heads, least=2, most=4096)
    if head_dim % 2:
        raise keys.error("attention.key_length", "an even number")
    keys.expect("attention.value_length", head_dim, f"and attention.key_length is {head_dim}: they must be equal")
    return {
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count", most=1024),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads, most=4096),
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length", least=2),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", most=1.0),
    }


def _rope(keys: Config, architecture: Architecture, stored: Mapping[str, GgufFile]) -> dict[str, Any]:
    """The rotary embedding: its base, the share of a head it turns, and how it is scaled."""
    theta = keys.number("rope.freq_base", architecture.rope_theta, most=1e12)
    head = _sizes(keys)["head_dim"]
    dim = keys.integer("rope.dimension_count", head, least=2, most=head)
    if dim % 2:
        raise keys.error("rope.dimension_count", "an even number")
    if not architecture.partial:
        keys.expect("rope.dimension_count", head, f"and the heads have {head} values, all of which must be rotated")
    rope = {"rope_theta": theta, "partial_rotary_factor": _share(dim, head)}
    scaling = _scaling(keys, dim, stored)
    if scaling is not None and "original_max_position_embeddings" in scaling:
        rope["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return {**rope, "rope_scaling": scaling}


def _share(dim: int, head: int) -> float:
    """A factor whose product with `head`, rounded down, is `dim`."""
    share = dim / head
    return share if int(head * share) == dim else math.nextafter(share, 1.0)


def _scaling(keys: Config, dim: int, stored: Mapping[str, GgufFile]) -> dict[str, Any] | None:
    """A `rope_scaling` section. Llama 3's factors are given frequency by frequency: LongRoPE with one set.

    As in llama.cpp, all positions are divided by a factor unless the type is `none`, whatever else scales them.
    """
    divisor, attention = _linear_factor(keys), keys.number("rope.scaling.attn_factor", 1.0)
    attention *= keys.number("rope.scaling.yarn_attn_factor", 1.0)
    context = keys.integer("context_length", least=2)
    original = keys.integer("rope.scaling.original_context_length", context, least=2)
    if keys.text("rope.scaling.type", "linear") == "yarn":
        return _yarn(keys, divisor, original, attention)
    if ROPE_FREQS in stored:
        original, short = context, _factors(stored, ROPE_FREQS)
        long = short
    elif ROPE_LONG in stored and ROPE_SHORT in stored:
        short, long = _factors(stored, ROPE_SHORT), _factors(stored, ROPE_LONG)
        if "rope.scaling.attn_factor" not in keys and context > original:
            attention *= math.sqrt(1 + math.log(context / original) / math.log(original))
    elif attention == 1:
        return None if divisor == 1 else {"rope_type": "linear", "factor": divisor}
    else:
        original, short = context, [1.0] * (dim // 2)
        long = short
    return {
        "rope_type": "longrope", "short_factor": [factor * divisor for factor in short],
        "long_factor": [factor * divisor for factor in long],
        "original_max_position_embeddings": original, "attention_factor": attention,
    }  # fmt: skip


def _yarn(keys: Config, factor: float, original: int, attention: float) -> dict[str, Any]:
    """A `rope_scaling` section with YaRN; llama.cpp multiplies `attn_factor` by what it derives from the factor."""
    weight = keys.number("rope.scaling.yarn_log_multiplier", 0.0, least=0.0)
    derived = yarn_growth(factor) / yarn_growth(factor, weight) if weight else yarn_growth(factor)
    keys.expect("rope.scaling.yarn_ext_factor", 1)
    return {
        "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
        "attention_factor": attention * derived, "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }  # fmt: skip


def _linear_factor(keys: Config) -> float:
    """What positions are divided by: `rope.scaling.factor`, or `rope.scale_linear` of 2023's files; 0 means 1."""
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "longrope", "yarn"):
        raise UnsupportedModelError(
            f"{keys.where}.rope.scaling.type is {shown(kind)}, which is not supported.",
            "Supported are none, linear, longrope and yarn.",
        )
    older = keys.number("rope.scale_linear", 1.0, least=0.0)
    factor = keys.number("rope.scaling.factor", older, least=0.0) or 1.0
    return 1.0 if kind == "none" else factor


def _factors(stored: Mapping[str, GgufFile], name: str) -> list[float]:
    return [float(factor) for factor in stored[name].weight(name).decode().reshape(-1)]


def _window(keys: Config, architecture: Architecture) -> int | None:
    """The sliding window; 0 means none."""
    if not architecture.windows:
        keys.known("attention.sliding_window")
        return None
    return keys.integer("attention.sliding_window", 0, least=0) or None
