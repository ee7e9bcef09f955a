"""The tokenizer inside a GGUF file, as the `tokenizer.json` that says the same.

Three kinds: `gpt2` is byte-level BPE with its merges listed, and how text is cut beforehand goes by name
(`tokenizer.ggml.pre`); `llama` is SentencePiece BPE with byte fallback, whose merges follow from the scores of
its pieces; `gemma4` is the same with its merges listed. What a name stands for is defined by llama.cpp
(src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.checkpoint.checks import damaged, shown
from halfbyte.errors import UnsupportedModelError
from halfbyte.text.files import MAX_TEMPLATE_BYTES, MAX_TEMPLATES, TokenizerFiles

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Token types of `tokenizer.ggml.token_type`."""

STOPS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend▁of▁sentence\uff5c>", "[e~[",
))  # fmt: skip
"""Tokens that end an answer whatever the metadata say; they are control tokens whatever their type is."""

_NOT_STOPS = (
    ("<|end|>", ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})),
    ("</s>", ({"<|tool_response>"},)),
)
"""Exceptions: a token, and the companies in which it does not end an answer."""

_SPM_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}
"""Ids of a SentencePiece vocabulary that names no others."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{0}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{0}}"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
GPT4O = f"{_CASED.replace('{0}', _CONTRACTIONS + '?')}|\\p{{N}}{{1,3}}|{_SLASHED}"
TEKKEN = f"{_CASED.replace('{0}', '')}|\\p{{N}}|{_SLASHED}"

_LONGEST_PIECE = 128
_MODELS = ("gpt2", "llama", "gemma4")


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before merging.

    Attributes:
        patterns: Regular expressions, applied one after the other; what matches stands alone.
        ignore_merges: Whether a piece that is a token is taken as it is.
        adds_bos: Whether a BOS token goes before a text unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
PRE_TOKENIZERS = {
    "default": _DEFAULT,
    "gpt-2": PreTokenizer((GPT2,)),
    "phi-2": PreTokenizer((GPT2,)),
    "llama-bpe": PreTokenizer((LLAMA3,), ignore_merges=True, adds_bos=True),
    "llama-v3": PreTokenizer((LLAMA3,), ignore_merges=True, adds_bos=True),
    "llama3": PreTokenizer((LLAMA3,), ignore_merges=True, adds_bos=True),
    "dbrx": PreTokenizer((LLAMA3,)),
    "smaug-bpe": PreTokenizer((LLAMA3,)),
    "gpt-4o": PreTokenizer((GPT4O,)),
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True, adds_bos=True),
    "qwen2": PreTokenizer((QWEN2,)),
    "smollm": PreTokenizer((r"\p{N}", GPT2)),
    "starcoder": PreTokenizer((r"\p{N}", GPT2)),
}
"""By the name in `tokenizer.ggml.pre`."""


@dataclass(frozen=True)
class Vocabulary:
    """What a file says about its tokens, checked: equally many tokens, types and (for `llama`) scores."""

    path: Path
    metadata: Mapping[str, Any]
    tokens: Sequence[str]
    types: Sequence[int]

    def special(self, name: str) -> int | None:
        """The id of a named token such as `bos`, or its usual one; None where no token has it."""
        return _special_id(self.metadata, name, len(self.tokens))

    def flag(self, name: str, default: bool) -> bool:
        """A truth value of the metadata."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            damaged(self.path, f"its tokenizer.ggml.{name} is {shown(value)}")
        return value


def tokenizer_files(path: Path, metadata: Mapping[str, Any]) -> TokenizerFiles:
    """The tokenizer of a GGUF file with these metadata, as files of a Hugging Face folder.

    Raises:
        InvalidModelError: There is no vocabulary, or it contradicts itself.
        UnsupportedModelError: A kind of tokenizer that Halfbyte does not have.
    """
    vocabulary = _vocabulary(path, metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in _MODELS:
        raise UnsupportedModelError(
            f"{path}: the tokenizer model {shown(kind)} is not supported.", f"Supported are {', '.join(_MODELS)}."
        )
    match kind:
        case "gpt2":
            definition = _byte_level(vocabulary)
        case "llama":
            definition = _sentencepiece(vocabulary, _merges_by_score(vocabulary))
        case _:
            definition = _sentencepiece(vocabulary, _merges(vocabulary))
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: vocabulary.special(key) for name, key in names.items()}
    special = {name: vocabulary.tokens[token] for name, token in ids.items() if token is not None}
    templates = _templates(path, metadata)
    return TokenizerFiles(path, json.dumps(definition).encode(), special, templates.pop("default", None), templates)


def stop_token_ids(path: Path, metadata: Mapping[str, Any]) -> list[int]:
    """Ids of the tokens that end an answer: those named eos, eot and eom, and tokens known to mean that."""
    if "tokenizer.ggml.tokens" not in metadata:
        return []
    tokens = _vocabulary(path, metadata).tokens
    known = _known_stops(tokens)
    stops = [*_named_stops(metadata, len(tokens)), *(index for index, token in enumerate(tokens) if token in known)]
    return list(dict.fromkeys(stops))[:1000]


def _vocabulary(path: Path, metadata: Mapping[str, Any]) -> Vocabulary:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        damaged(path, "it has no tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        types = np.full(len(tokens), NORMAL)
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or types.shape != (len(tokens),):
        damaged(path, f"it has {len(tokens):,} tokens but no type for each")
    distinct = _distinct(tokens)
    return Vocabulary(path, metadata, distinct, _types(metadata, distinct, types.tolist()))


def _types(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """The types, with control tokens where a token ends an answer: some converters call such a token something else."""
    known, named = _known_stops(tokens), set(_named_stops(metadata, len(tokens)))
    marks = enumerate(zip(tokens, types, strict=True))
    return [CONTROL if token in known or index in named else kind for index, (token, kind) in marks]


def _known_stops(tokens: Sequence[str]) -> frozenset[str]:
    """Those of the tokens that end an answer, as llama.cpp finds them."""
    known = STOPS.intersection(tokens)
    excepted = [token for token, companies in _NOT_STOPS if any(company <= known for company in companies)]
    return known.difference(excepted)


def _named_stops(metadata: Mapping[str, Any], count: int) -> list[int]:
    ids = [_special_id(metadata, name, count) for name in ("eos", "eot", "eom")]
    return [index for index in ids if index is not None]


def _special_id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    given = metadata.get(f"tokenizer.ggml.{name}_token_id")
    kind = metadata.get("tokenizer.ggml.model")
    usual = _SPM_DEFAULTS.get(name) if isinstance(kind, str) and kind == "llama" else None
    return next((index for index in (given, usual) if type(index) is int and 0 <= index < count), None)


def _distinct(tokens: Sequence[str]) -> list[str]:
    """The tokens, with names for those that have none of their own; some converters leave such rows."""
    first: dict[str, int] = {}
    return [
        token if token and first.setdefault(token, index) == index else f"[UNNAMED_{index}]"
        for index, token in enumerate(tokens)
    ]


def _templates(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; the usual one is "default"."""
    key = "tokenizer.chat_template"
    given = {name.removeprefix(f"{key}.") or "default": name for name in metadata if name.startswith(f"{key}.")}
    given |= {"default": key} if metadata.get(key) is not None else {}
    templates = {name: metadata[place] for name, place in list(given.items())[:MAX_TEMPLATES]}
    if any(not isinstance(text, str) or len(text) > MAX_TEMPLATE_BYTES for text in templates.values()):
        damaged(path, f"its chat template is not text of at most {MAX_TEMPLATE_BYTES:,} characters")
    return templates


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    """GPT-2's kind of tokenizer."""
    name = vocabulary.metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{vocabulary.path}: the pre-tokenizer {shown(name)} is not supported.",
            f"Supported are {', '.join(PRE_TOKENIZERS)}.",
        )
    pre = PRE_TOKENIZERS[name]
    cuts = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in pre.patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        **_definition(vocabulary),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "post_processor": _post_processor(vocabulary, pre.adds_bos),
        "decoder": byte_level,
        "model": {
            **_model(vocabulary, _merges(vocabulary)),
            "ignore_merges": pre.ignore_merges,
        },
    }


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """The merges that the file lists."""
    merges = vocabulary.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        damaged(vocabulary.path, "it has no tokenizer.ggml.merges")
    return [_merge(vocabulary, merge) for merge in merges]


def _merge(vocabulary: Vocabulary, merge: str) -> list[str]:
    """Two tokens with a space between them."""
    cut = merge.find(" ", 1)
    if cut < 0 or cut + 1 == len(merge):
        damaged(vocabulary.path, f"{shown(merge)} is not a merge of two tokens")
    return [merge[:cut], merge[cut + 1 :]]


def _sentencepiece(vocabulary: Vocabulary, merges: list[list[str]]) -> dict[str, Any]:
    """Llama 2's, Phi-3's and Gemma's kind: spaces are ▁, characters without a piece become their bytes."""
    prefix = vocabulary.flag("add_space_prefix", True)
    replace: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    before = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = vocabulary.special("unknown")
    unknown_text = vocabulary.tokens[unknown] if unknown is not None else None
    return {
        **_definition(vocabulary),
        "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "post_processor": _post_processor(vocabulary, True),
        "decoder": {"type": "Sequence", "decoders": [*back, *after]},
        "model": {
            **_model(vocabulary, merges),
            "unk_token": unknown_text, "fuse_unk": True, "byte_fallback": True,
        },
    }  # fmt: skip


def _merges_by_score(vocabulary: Vocabulary) -> list[list[str]]:
    """Every way to make a piece of two others, best score first: as transformers converts SentencePiece BPE models."""
    scores = vocabulary.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or scores.shape != (len(vocabulary.tokens),):
        damaged(vocabulary.path, f"it has {len(vocabulary.tokens):,} tokens but no score for each")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    found: list[tuple[float, int, int, int, int]] = []
    for index, (piece, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind != NORMAL:
            continue
        if len(piece) > _LONGEST_PIECE:
            damaged(vocabulary.path, f"token {index} has {len(piece):,} characters")
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-float(scores[index]), -cut, cut - len(piece), left, right))
    found.sort()
    tokens = vocabulary.tokens
    return [[tokens[left], tokens[right]] for *_, left, right in found]


def _definition(vocabulary: Vocabulary) -> dict[str, Any]:
    """What both kinds have in common, less their own parts."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added_tokens(vocabulary),
        "normalizer": None, "pre_tokenizer": None,
    }  # fmt: skip


def _model(vocabulary: Vocabulary, merges: list[list[str]]) -> dict[str, Any]:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    return {"type": "BPE", "vocab": ids, "merges": merges}


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Control tokens, which are special, and user-defined ones, which are not; a text is searched for both first."""
    strips = _strips(vocabulary)
    return [
        {
            "id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": token in strips,
            "normalized": False, "special": kind != USER_DEFINED,
        }
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]  # fmt: skip


def _strips(vocabulary: Vocabulary) -> frozenset[str]:
    """Tokens that swallow the white space after them: Phi-3's marks, which GGUF has no field for."""
    metadata = vocabulary.metadata
    kind = [metadata.get(key) for key in ("general.architecture", "tokenizer.ggml.model")]
    if not all(isinstance(name, str) for name in kind) or kind != ["phi3", "llama"]:
        return frozenset()
    marks = zip(vocabulary.tokens, vocabulary.types, strict=True)
    special = {token for token, kind in marks if kind in (CONTROL, USER_DEFINED)} | {"</s>"}
    return frozenset(special - {"<unk>", "<s>", "<|endoftext|>"})


def _post_processor(vocabulary: Vocabulary, adds_bos: bool) -> dict[str, Any] | None:
    """What puts the BOS token before a text and the EOS token after it, where the file asks for them."""
    ids = {
        "bos": vocabulary.special("bos") if vocabulary.flag("add_bos_token", adds_bos) else None,
        "eos": vocabulary.special("eos") if vocabulary.flag("add_eos_token", False) else None,
    }
    used = {name: vocabulary.tokens[token] for name, token in ids.items() if token is not None}
    if not used:
        return None

    def around(*texts: str) -> list[dict[str, Any]]:
        marks = {name: [{"SpecialToken": {"id": token, "type_id": 0}}] for name, token in used.items()}
        inside = [{"Sequence": {"id": text, "type_id": 0}} for text in texts]
        return [*marks.get("bos", []), *inside, *marks.get("eos", [])]

    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": around("A", "B"),
        "special_tokens": {token: {"id": token, "ids": [ids[name]], "tokens": [token]} for name, token in used.items()},
    }
