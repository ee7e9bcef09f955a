"""Model folders with a tokenizer.json made in the tests: a small one of each kind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SPM_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
SPM_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def spm_merges(pieces: Iterable[str], tokens: Sequence[str], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first: as transformers converts SentencePiece BPE models."""
    ids = {token: index for index, token in enumerate(tokens)}
    merges = []
    for piece in pieces:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += [(scores[piece], *pair) for pair in sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in merges]


def byte_level_definition(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], special: Sequence[str]
) -> dict[str, Any]:
    """GPT-2's kind: byte-level BPE."""
    return {
        **_definition(tokens, merges, special),
        "pre_tokenizer": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
    }


def spm_definition(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], special: Sequence[str], plain: Sequence[str] = ()
) -> dict[str, Any]:
    """Llama 2's and Phi-3's kind: SentencePiece BPE with byte fallback; spaces are ▁, one stands before the text."""
    definition = _definition(tokens, merges, special, plain)
    definition["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    return {**definition, "normalizer": SPM_NORMALIZER, "decoder": SPM_DECODER}


def small_spm_definition() -> dict[str, Any]:
    """A SentencePiece vocabulary of a few hundred pieces, with <s>, </s> and the chat marks of Phi-3."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,!?'é"]
    words = [
        "he",
        "ll",
        "hell",
        "hello",
        "▁hello",
        "▁w",
        "or",
        "▁wor",
        "ld",
        "▁world",
        "▁▁",
        "▁▁▁▁",
        "▁a",
        "▁the",
        "th",
    ]
    special = ["<s>", "</s>", "<|user|>", "<|end|>"]
    tokens = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    scores = {word: -float(index) for index, word in enumerate(words)}
    return spm_definition(tokens, spm_merges(words, tokens, scores), special)


def small_byte_level_definition() -> dict[str, Any]:
    """A byte-level vocabulary of a few hundred tokens, trained on a line of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<|user|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["hello world, the whole wide world 😀😀 é é ▁"] * 4, trainer)
    definition: dict[str, Any] = json.loads(backend.to_str())
    return definition


def gemma_definition() -> dict[str, Any]:
    """Gemma's kind: ▁ for spaces, byte fallback, no space before the text."""
    definition = small_spm_definition()
    definition["normalizer"] = definition["normalizer"]["normalizers"][1]
    return {**definition, "decoder": {**SPM_DECODER, "decoders": SPM_DECODER["decoders"][:3]}}


def metaspace_definition() -> dict[str, Any]:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return {**small_spm_definition(), "normalizer": None, "pre_tokenizer": metaspace, "decoder": metaspace}


def no_decoder_definition() -> dict[str, Any]:
    return {**small_spm_definition(), "decoder": None}


def bos_post_processor(token: str, token_id: int) -> dict[str, Any]:
    """What puts a BOS token before every text."""
    bos = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def write_folder(folder: Path, definition: object, **config: object) -> Path:
    """A model folder with these tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _definition(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], special: Sequence[str], plain: Sequence[str] = ()
) -> dict[str, Any]:
    ids = {token: index for index, token in enumerate(tokens)}
    added = [_added_token(ids[token], token, token in special) for token in sorted({*special, *plain}, key=ids.get)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": ids, "merges": [list(merge) for merge in merges]},
    }


def _added_token(token_id: int, text: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": text, **flags, "special": special}
