"""Real vocabularies give every text back, and every kind of tokenizer agrees with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.checkpoint.gguf.file import GgufFile
from halfbyte.checkpoint.gguf.tokenizer import tokenizer_files
from halfbyte.text import TextStream, Tokenizer
from tests.unit.vocab import (
    bos_post_processor,
    small_byte_level_definition,
    small_spm_definition,
    write_folder,
)

PIECES = [
    "<s>", "</s>", "<unk>", "<|user|>", "<|end|>", "<|endoftext|>", "<0x41>", " ", "  ", "    ", "\n", "\r\n", "\t",
    "\x00", "\x7f", "\u00a0", "\u200b", "\u3000", "\ufeff", "\ufffd", "▁", "▁▁", "Ġ", "hello", " world", "é", "e\u0301",
    "ß", "中文", "កាន់", "عربى", "🦙", "😶‍🌫️", "👩‍👩‍👧", "\U0010ffff", "1234567", "'s", "I'LL", "...", "a" * 40,
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=8).map("".join)

DEFINITIONS = {"byte-level": small_byte_level_definition, "sentencepiece": small_spm_definition}


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3"])
def test_a_real_vocabulary_gives_the_text_back(shared: Path, name: str) -> None:
    path = shared / "tokenizers" / f"ggml-vocab-{name}.gguf"
    text = Path(f"{path}.inp").read_bytes().decode()
    tokenizer = Tokenizer(tokenizer_files(path, GgufFile(path).metadata))
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tokenizer)
    assert tokenizer.decode(ids) == text
    assert "".join(map(stream.push, ids)) + stream.finish() == text


@pytest.fixture(scope="module", params=sorted(DEFINITIONS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Halfbyte's and transformers' tokenizer of the same folder."""
    return both(tmp_path_factory.mktemp("pair"), DEFINITIONS[request.param](), bos_token="<s>", eos_token="</s>")


def both(folder: Path, definition: dict[str, Any], **config: object) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    write_folder(folder, definition, **{"tokenizer_class": "PreTrainedTokenizerFast", **config})
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_encodes_as_transformers_does(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_decodes_any_ids_as_transformers_does(pair: tuple[Tokenizer, Any], data: st.DataObject, skip: bool) -> None:
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=30))
    assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_knows_what_transformers_knows(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)
    assert ours.eos_token_id == theirs.eos_token_id
    assert set(theirs.all_special_ids) <= ours.special_ids
    for token_id in range(ours.vocab_size):
        assert ours.token(token_id) == theirs.convert_ids_to_tokens(token_id)


@pytest.mark.parametrize("kind", sorted(DEFINITIONS))
@pytest.mark.parametrize("add_bos_token", [True, False])
@pytest.mark.parametrize("has_post_processor", [True, False])
def test_the_post_processor_alone_decides_about_bos(
    tmp_path: Path, kind: str, add_bos_token: bool, has_post_processor: bool
) -> None:
    definition = DEFINITIONS[kind]()
    bos_id = next(token["id"] for token in definition["added_tokens"] if token["content"] == "<s>")
    definition["post_processor"] = bos_post_processor("<s>", bos_id) if has_post_processor else None
    ours, theirs = both(tmp_path, definition, bos_token="<s>", add_bos_token=add_bos_token)
    assert (ours.encode("hello")[0] == bos_id) is has_post_processor
    assert ours.encode("hello") == theirs.encode("hello")
    assert bos_id not in ours.encode("hello", add_special_tokens=False)


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_llamas_own_tokenizer_class_agrees(tmp_path: Path, add_bos_token: bool) -> None:
    definition = small_spm_definition()
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": add_bos_token}
    ours, theirs = both(tmp_path, definition, tokenizer_class="LlamaTokenizer", **config)
    assert ours.encode("hello the world") == theirs.encode("hello the world")
