"""Streamed text is the decoded text, whatever the decoder is made of; the judge is the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from halfbyte.text import TextStream, Tokenizer
from halfbyte.text.files import TokenizerFiles

TOKENS = [
    "a", "b", "ab", "▁", "▁a", "a▁", "▁▁b", " ", "  ", " a", "##", "##a", "a##", "</w>", "a</w>", "</", "w>b", "<pad>",
    "|", ".", " .", "n't", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "<0x+A>", "<0x41>", "<0x4", "Ã", "©", "Ã©", "Ġ",
    "Ġa",
    "ð", "Ł", "Ļ", "Ĥ", "é", "中", "",
]  # fmt: skip
BYTE_TOKENS = [token for token in TOKENS if token.isascii() and token.isalnum()] + ["Ã", "©", "Ġ", "ð", "Ł", "Ļ", "Ĥ"]

STEPS: list[dict[str, Any]] = [
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": False},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    {"type": "Strip", "content": "a", "start": 2, "stop": 0},
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "Replace", "pattern": {"String": "ab"}, "content": "x"},
    {"type": "Replace", "pattern": {"String": "aa"}, "content": "a"},
    {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "y"},
]


def tokenizer_of(tokens: list[str], decoder: dict[str, Any] | None) -> tuple[Tokenizer, Backend]:
    vocab = {token: index for index, token in enumerate(tokens)}
    definition = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": decoder,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": tokens[0]},
    }  # fmt: skip
    data = json.dumps(definition).encode()
    return Tokenizer(TokenizerFiles(Path("tokenizer.json"), data, {}, None)), Backend.from_buffer(data)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


@settings(max_examples=500, deadline=None)
@given(
    decoder=st.none()
    | st.sampled_from(STEPS)
    | st.lists(st.sampled_from(STEPS), min_size=1, max_size=5).map(
        lambda steps: {"type": "Sequence", "decoders": steps}
    ),
    tokens=st.sampled_from([TOKENS, BYTE_TOKENS]),
    data=st.data(),
)
def test_the_pieces_add_up_for_any_chain_of_steps(decoder: Any, tokens: list[str], data: st.DataObject) -> None:
    ours, theirs = tokenizer_of(tokens, decoder)
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=12))
    assert "".join(streamed(ours, ids)) == theirs.decode(ids)


def sequence(*places: int) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": [STEPS[place] for place in places]}


@pytest.mark.parametrize(
    ("tokens", "decoder", "ids", "pieces"),
    [
        (BYTE_TOKENS, sequence(0), ["Ã", "©", "a"], ["", "é", "a", ""]),
        (BYTE_TOKENS, sequence(2, 0), ["Ã", "©", "a"], ["", "é", "a", ""]),
        (BYTE_TOKENS, {"type": "Sequence", "decoders": [sequence(2), sequence(0)]}, ["Ã", "©"], ["", "é", ""]),
        (TOKENS, sequence(11, 1, 2, 9), ["▁a", "<0xE2>", "<0x82>", "<0xAC>", "b"], ["a", "", "", "", "€b", ""]),
        (TOKENS, sequence(2, 12), ["a", "a", "b", "b"], ["", "a", "x", "b", ""]),
        (TOKENS, sequence(7), ["a</w>", "b", "a</w>"], ["", "a ", "b", "a"]),
        (TOKENS, sequence(2, 14), ["a", "b"], ["", "", "yb"]),
        (TOKENS, None, ["a", "b"], ["a", " b", ""]),
    ],
)
def test_text_comes_as_soon_as_it_is_certain(
    tokens: list[str], decoder: Any, ids: list[str], pieces: list[str]
) -> None:
    ours, _ = tokenizer_of(tokens, decoder)
    assert streamed(ours, [tokens.index(token) for token in ids]) == pieces


def test_one_token_outside_the_alphabet_changes_a_fused_text_and_is_waited_for() -> None:
    """Library: a piece with a character outside GPT-2's alphabet is plain text, and Fuse makes one piece of all."""
    ours, theirs = tokenizer_of(["Ã", "©", "中"], sequence(2, 0))
    assert streamed(ours, [0, 1, 2]) == ["", "", "", "Ã©中"] == ["", "", "", theirs.decode([0, 1, 2])]
