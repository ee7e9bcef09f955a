"""A Hugging Face tokenizer as the metadata of a GGUF file: the inverse of `tokenizer_files`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from halfbyte.checkpoint.checks import shown
from halfbyte.checkpoint.gguf.file import Value
from halfbyte.checkpoint.gguf.tokenizer import (
    BYTE,
    CONTROL,
    GPT2,
    NORMAL,
    PRE_TOKENIZERS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from halfbyte.errors import InvalidModelError, UnsupportedModelError
from halfbyte.text import Tokenizer
from halfbyte.text.files import TokenizerFiles

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_CONTRACTIONS = ("'(?i:s|t|re|ve|m|ll|d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
_CANONICAL = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UNREACHED = -1e6
"""The score of a piece that no merge makes."""


def vocabulary(files: TokenizerFiles, rows: int, stop_token_ids: Sequence[int]) -> dict[str, Value]:
    """Everything under `tokenizer.`.

    Args:
        files: A model's tokenizer.
        rows: Rows of the embedding table: as many tokens are written, the last ones unused.
        stop_token_ids: What ends an answer besides the tokenizer's own EOS token.

    Raises:
        InvalidModelError: tokenizer.json is damaged.
        UnsupportedModelError: The tokenizer is of a kind that GGUF has no name for.
    """
    try:
        definition = json.loads(_definition(files))
        metadata = _vocabulary(files, definition, rows) | _special_ids(files, definition, stop_token_ids)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidModelError(f"{files.path} is damaged: {error!r:.200}.", "Download the model again.") from error
    if files.chat_template is not None:
        metadata["tokenizer.chat_template"] = files.chat_template
    if files.templates:
        metadata["tokenizer.chat_templates"] = list(files.templates)
    return metadata | {f"tokenizer.chat_template.{name}": text for name, text in files.templates.items()}


def _definition(files: TokenizerFiles) -> bytes:
    """A tokenizer.json with the tokens of all files."""
    return Tokenizer(files).definition() if files.added_tokens or files.extra_tokens else files.definition


def _vocabulary(files: TokenizerFiles, definition: Mapping[str, Any], rows: int) -> dict[str, Value]:
    model = definition["model"]
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedModelError(
            f"{files.path} is a tokenizer of type {shown(model.get('type'))}.", "GGUF files are written with BPE."
        )
    tokens, types = _tokens(definition, rows)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    common: dict[str, Value] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }
    if model.get("byte_fallback"):
        return common | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": _scores(tokens, merges),
            "tokenizer.ggml.add_space_prefix": _has_prefix(definition),
        }
    return common | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_name(files, definition),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
    }


def _tokens(definition: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Text and type of each of `rows` tokens."""
    model = definition["model"]
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [UNUSED] * rows
    ids = [*model["vocab"].values(), *(added["id"] for added in definition["added_tokens"])]
    if not all(type(index) is int and 0 <= index < rows for index in ids):
        raise ValueError(f"a token's id is not a number below {rows:,}")
    for token, index in model["vocab"].items():
        is_byte = bool(model.get("byte_fallback")) and _BYTE_TOKEN.fullmatch(token)
        tokens[index], types[index] = token, BYTE if is_byte else NORMAL
    for added in definition["added_tokens"]:
        index = added["id"]
        tokens[index], types[index] = added["content"], CONTROL if added["special"] else USER_DEFINED
        if added["content"] == model.get("unk_token"):
            types[index] = UNKNOWN
    return tokens, types


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> np.ndarray:
    """A piece's score is minus the rank of the first merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return np.array([-float(ranks[token]) if token in ranks else _UNREACHED for token in tokens], np.float32)


def _has_prefix(definition: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    normalizer, cut = definition.get("normalizer") or {}, definition.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    prepends = any(step.get("type") == "Prepend" for step in steps)
    return prepends or (cut.get("type") == "Metaspace" and cut.get("prepend_scheme", "always") != "never")


def _pre_name(files: TokenizerFiles, definition: Mapping[str, Any]) -> str:
    """The name of the way that text is cut."""
    patterns = tuple(_patterns(definition.get("pre_tokenizer") or {}))
    ignores = bool(definition["model"].get("ignore_merges"))
    fitting = [name for name, pre in PRE_TOKENIZERS.items() if pre.patterns == patterns]
    exact = [name for name in fitting if PRE_TOKENIZERS[name].ignore_merges == ignores]
    if not exact:
        raise UnsupportedModelError(
            f"{files.path} cuts text in a way that GGUF has no name for ({shown(' then '.join(patterns))}).",
            "Write another format, such as Halfbyte's own folder.",
        )
    return exact[0]


def _patterns(cut: Mapping[str, Any]) -> list[str]:
    """The regular expressions of a pre-tokenizer, in their canonical spelling."""
    match cut.get("type"):
        case "Sequence":
            return [pattern for part in cut["pretokenizers"] for pattern in _patterns(part)]
        case "Split":
            pattern = str(cut["pattern"].get("Regex"))
            for spelling in _CONTRACTIONS:
                pattern = pattern.replace(spelling, _CANONICAL)
            return [pattern]
        case "ByteLevel":
            return [GPT2] if cut.get("use_regex", True) else []
        case "Digits" if cut.get("individual_digits"):
            return [r"\p{N}"]
        case other:
            return [str(other)]


def _special_ids(
    files: TokenizerFiles, definition: Mapping[str, Any], stop_token_ids: Sequence[int]
) -> dict[str, Value]:
    """Ids of the named tokens, and which of them are put around a text."""
    ids = {**definition["model"]["vocab"], **{added["content"]: added["id"] for added in definition["added_tokens"]}}
    named = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = {key: ids[text] for key, name in named.items() if (text := files.special_tokens.get(name)) in ids}
    before, after = _around(definition.get("post_processor") or {})
    if before in ids:
        found["bos"] = ids[before]
    if "eos" not in found and stop_token_ids:
        found["eos"] = stop_token_ids[0]
    others = [token for token in stop_token_ids if token != found.get("eos")]
    if others:
        found["eot"] = others[0]
    metadata: dict[str, Value] = {f"tokenizer.ggml.{key}_token_id": token for key, token in found.items()}
    return metadata | {"tokenizer.ggml.add_bos_token": before in ids, "tokenizer.ggml.add_eos_token": after in ids}


def _around(processor: Mapping[str, Any]) -> tuple[str, str]:
    """The tokens that a post-processor puts before and after a text; empty where there is none."""
    for part in processor.get("processors", []):
        found = _around(part)
        if any(found):
            return found
    single = processor.get("single", [])
    at = next((i for i, piece in enumerate(single) if "Sequence" in piece), 0)
    before, after = single[:at], single[at + 1 :]
    return (before[0]["SpecialToken"]["id"] if before else "", after[0]["SpecialToken"]["id"] if after else "")
