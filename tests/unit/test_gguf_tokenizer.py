"""Tokenizers out of GGUF files and into them: real ones give their makers' ids, every kind survives the trip."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.checkpoint.gguf.file import GgufFile
from halfbyte.checkpoint.gguf.tokenizer import (
    CONTROL,
    GPT4O,
    LLAMA3,
    NORMAL,
    PRE_TOKENIZERS,
    TEKKEN,
    USER_DEFINED,
    stop_token_ids,
    tokenizer_files,
)
from halfbyte.checkpoint.gguf.vocabulary import vocabulary
from halfbyte.errors import HalfbyteError, InvalidModelError, UnsupportedModelError
from halfbyte.text import Tokenizer
from halfbyte.text.files import AddedToken, TokenizerFiles, read_tokenizer_files
from tests.unit.families import installed, ours

HERE = Path("model.gguf")
TEXT = "Hello  world, it's 12345\n\n\tfine: naïve 中文 🦙 <|end|> x"


def gpt2_metadata(**more: Any) -> dict[str, Any]:
    """A byte-level vocabulary of 256 bytes, a few merges and two marks."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "he", "ll", "hell", "hello", "12", "123", "<|end|>", "<|mark|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([NORMAL] * (len(tokens) - 2) + [CONTROL, USER_DEFINED]),
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o", "1 2", "12 3"],
        "tokenizer.ggml.bos_token_id": 262,
        "tokenizer.ggml.eos_token_id": 262,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def phi3_metadata(**more: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁ab", "\n"]
    tokens += ["<|user|>", "<|end|>", "<|endoftext|>"]
    types = [2, 3, 3] + [6] * 256 + [1] * 6 + [3] * 3
    return {
        "general.architecture": "phi3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types),
        "tokenizer.ggml.scores": -np.arange(len(tokens), dtype=np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 267,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def made(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer(tokenizer_files(HERE, metadata))


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3"])
def test_a_real_vocabulary_gives_the_expected_ids_of_every_text(shared: Path, name: str) -> None:
    path = shared / "tokenizers" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(word) for word in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    tokenizer = Tokenizer(tokenizer_files(path, GgufFile(path).metadata))
    assert len(texts) == len(expected) > 40
    assert [tokenizer.encode(text, add_special_tokens=False) for text in texts] == expected


@pytest.mark.parametrize(("name", "first"), [("gpt-2", None), ("llama-spm", 1), ("phi-3", 1)])
def test_bos_is_added_where_the_file_says_so(shared: Path, name: str, first: int | None) -> None:
    path = shared / "tokenizers" / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer(tokenizer_files(path, GgufFile(path).metadata))
    plain = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == ([] if first is None else [first]) + plain


def test_bos_follows_from_the_way_of_cutting_unless_it_is_given() -> None:
    assert made(gpt2_metadata()).encode("h")[0] != 262
    assert made(gpt2_metadata(pre="llama-bpe")).encode("h")[0] == 262
    assert made(gpt2_metadata(pre="llama-bpe", add_bos_token=False)).encode("h")[0] != 262
    assert made(gpt2_metadata(add_eos_token=True)).encode("h")[-1] == 262


def test_text_is_cut_as_the_name_says() -> None:
    """GPT-2 takes numbers whole, Llama 3 three digits at a time, Qwen 2 one by one; only some look up whole words."""
    pieces = {name: made(gpt2_metadata(pre=name)).encode("1234", add_special_tokens=False) for name in PRE_TOKENIZERS}
    spelt = made(gpt2_metadata())
    assert [spelt.token(token) for token in pieces["gpt-2"]] == ["123", "4"]
    assert [spelt.token(token) for token in pieces["qwen2"]] == ["1", "2", "3", "4"]
    assert pieces["llama-bpe"] == pieces["dbrx"] == pieces["gpt-4o"] == pieces["gpt-2"]
    merges = gpt2_metadata(pre="llama-bpe")["tokenizer.ggml.merges"][:3]
    given: dict[str, Any] = {"merges": merges, "add_bos_token": False}
    whole, piecewise = (made(gpt2_metadata(pre=pre, **given)) for pre in ("llama-bpe", "dbrx"))
    assert [whole.token(token) for token in whole.encode("hello")] == ["hello"]
    assert [piecewise.token(token) for token in piecewise.encode("hello")] == ["hell", "o"]


@pytest.mark.parametrize(
    ("pattern", "text", "pieces"),
    [
        (LLAMA3, "It'S 12345!\n\nso", ["It", "'S", " ", "123", "45", "!\n\n", "so"]),
        (GPT4O, "helloWorld's 1234 a/\n", ["hello", "World's", " ", "123", "4", " a", "/\n"]),
        (TEKKEN, "helloWorld's 12", ["hello", "World", "'s", " ", "1", "2"]),
    ],
)
def test_patterns_cut_as_their_makers_do(pattern: str, text: str, pieces: list[str]) -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    assert [piece for piece, _ in Split(Regex(pattern), "isolated").pre_tokenize_str(text)] == pieces


def test_phi_3s_marks_swallow_the_white_space_after_them() -> None:
    """As Phi-3's own tokenizer.json has them (rstrip); <|endoftext|> is an exception."""
    tokenizer = made(phi3_metadata())
    with_break, without = (tokenizer.encode(f"<|user|>{gap}ab", add_special_tokens=False) for gap in ("\n", ""))
    assert with_break == without
    assert tokenizer.encode("<|endoftext|>\nab") != tokenizer.encode("<|endoftext|>ab")
    other = made({**phi3_metadata(), "general.architecture": "llama"})
    assert other.encode("<|user|>\nab") != other.encode("<|user|>ab")


def test_sentencepiece_with_its_merges_listed_gives_its_makers_ids() -> None:
    """Gemma 4's kind, with the pieces and merges of Gemma 3, which are cut alike."""
    definition = json.loads((installed() / "gemma3" / "tokenizer.json").read_text())
    pieces = definition["model"]["vocab"] | {token["content"]: token["id"] for token in definition["added_tokens"]}
    tokens = sorted(pieces, key=pieces.__getitem__)
    assert [pieces[token] for token in tokens] == list(range(len(tokens)))
    marks = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in definition["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"]["merges"]]
    metadata = {
        "general.architecture": "gemma4",
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([marks.get(index, NORMAL) for index in range(len(tokens))]),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": pieces["<bos>"],
        "tokenizer.ggml.unknown_token_id": pieces["<unk>"],
        "tokenizer.ggml.add_space_prefix": False,
    }
    found, expected = made(metadata), ours("gemma3")
    for text in (TEXT, " a  b", "naïve\u200b", "<start_of_turn>user\nHi<end_of_turn>\n", "\x01 🦙\n\n\n"):
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))


def test_characters_without_a_piece_become_their_bytes() -> None:
    tokenizer = made(phi3_metadata())
    ids = tokenizer.encode("é", add_special_tokens=False)
    assert [tokenizer.token(token) for token in ids] == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "é"


def test_the_space_before_a_text_can_be_left_out() -> None:
    tokenizer = made(phi3_metadata(add_space_prefix=False))
    assert [tokenizer.token(token) for token in tokenizer.encode("ab ab", add_special_tokens=False)] == ["ab", "▁ab"]
    assert tokenizer.decode(tokenizer.encode(" ab", add_special_tokens=False)) == " ab"


@pytest.mark.parametrize("mark", ["<|end|>", "<|im_end|>", "<end_of_turn>", "</s>", "<|eot_id|>"])
@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED, 5])
def test_tokens_that_end_an_answer_do_so_whatever_their_type(mark: str, kind: int) -> None:
    """As llama.cpp, which overrides the type with a warning."""
    metadata = gpt2_metadata()
    metadata["tokenizer.ggml.tokens"][262] = mark
    metadata["tokenizer.ggml.eos_token_id"] = 263
    metadata["tokenizer.ggml.token_type"][262] = kind
    tokenizer = made(metadata)
    assert stop_token_ids(HERE, metadata) == [263, 262]
    assert tokenizer.encode(mark) == [262]
    assert tokenizer.decode([*tokenizer.encode("h"), 262]) == "h"


@pytest.mark.parametrize("name", ["eos", "eot", "eom"])
def test_a_named_end_of_any_spelling_is_hidden(name: str) -> None:
    metadata = {**gpt2_metadata(), f"tokenizer.ggml.{name}_token_id": 263}
    assert 263 in stop_token_ids(HERE, metadata)
    assert made(metadata).decode([263]) == ""


@pytest.mark.parametrize(
    ("tokens", "stops"),
    [
        (["<|end|>", "<|return|>"], [0, 1]),
        (["<|end|>", "<|return|>", "<|call|>"], [1, 2]),
        (["<|end|>", "<|flush|>", "<|calls|>"], [1, 2]),
        (["</s>", "<|tool_response>"], [1]),
    ],
)
def test_tokens_that_end_a_part_only_are_no_stops(tokens: list[str], stops: list[int]) -> None:
    """As llama.cpp: gpt-oss writes <|end|> after each channel, Gemma 4 does not mean </s>."""
    assert stop_token_ids(HERE, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}) == stops


@pytest.mark.parametrize("given", [{}, {"bos_token_id": 99999}])
def test_a_sentencepiece_vocabulary_that_names_no_bos_has_the_usual_one(given: dict[str, int]) -> None:
    """As llama.cpp: 1, 2 and 0 are BOS, EOS and the unknown token unless the file says otherwise."""
    names = ("bos_token_id", "eos_token_id", "unknown_token_id")
    metadata = {k: v for k, v in phi3_metadata().items() if not k.endswith(names)}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in given.items()}
    tokenizer = made(metadata)
    assert tokenizer.encode("a")[0] == 1
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert 2 in stop_token_ids(HERE, metadata)
    assert made({**metadata, "tokenizer.ggml.add_bos_token": False}).encode("a")[0] != 1


def test_templates_for_tools_come_along_both_ways(shell_29m: Path) -> None:
    metadata = {**phi3_metadata(), "tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    files = tokenizer_files(HERE, metadata)
    hello = [{"role": "user", "content": "hi"}]
    assert Tokenizer(files).render_chat(hello) == "plain"
    assert Tokenizer(files).render_chat(hello, tools=[]) == "tools"
    both = dataclasses.replace(read_tokenizer_files(shell_29m), templates=files.templates)
    back = vocabulary(both, 8192, [])
    assert back["tokenizer.chat_templates"] == ["tool_use"]
    assert tokenizer_files(HERE, back).templates == files.templates


def test_tokens_named_beside_tokenizer_json_survive_the_trip(shell_29m: Path) -> None:
    files = dataclasses.replace(read_tokenizer_files(shell_29m), added_tokens=(AddedToken("<new>"),))
    before, after = Tokenizer(files), written(files, 8200, [4])
    assert after.encode("a<new>b") == before.encode("a<new>b")
    assert before.token_id("<new>") == 8192


METADATA = [gpt2_metadata(), {**phi3_metadata(), "tokenizer.chat_template": "x", "tokenizer.ggml.add_bos_token": True}]
VALUES = st.sampled_from(
    [None, True, -1, 1, 10**9, 1.5, "", "llama", "gpt2", [], ["a"], ["a", "a"], [1], [["a"]], np.zeros(0), np.zeros(3),
     np.zeros((2, 2), np.int32), np.arange(268), np.full(268, np.nan, np.float32), np.arange(264), ["a b"] * 3,
     [""] * 268]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(metadata=st.sampled_from(METADATA), value=VALUES, data=st.data())
def test_any_value_in_the_metadata_works_or_is_told(metadata: dict[str, Any], value: Any, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(metadata)))
    changed = {**metadata, key: value}
    try:
        stop_token_ids(HERE, changed)
        tokenizer = made(changed)
        tokenizer.decode(tokenizer.encode("ab <|end|> é"))
        vocabulary(tokenizer_files(HERE, changed), 300, [])
    except HalfbyteError as error:
        lines = str(error).splitlines()
    else:
        return
    assert len(lines) == 1


def test_stops_are_the_named_tokens_and_the_marks_known_to_end_an_answer() -> None:
    assert stop_token_ids(HERE, phi3_metadata()) == [267, 2, 266]
    assert stop_token_ids(HERE, phi3_metadata(eot_token_id=265)) == [267, 265, 2, 266]
    assert stop_token_ids(HERE, {}) == []


def test_special_tokens_and_the_template_come_along() -> None:
    files = tokenizer_files(HERE, {**phi3_metadata(), "tokenizer.chat_template": "{{ messages[0].content }}!"})
    tokenizer = Tokenizer(files)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "<|endoftext|>")
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "hi!"


def test_tokens_without_a_name_of_their_own_get_one() -> None:
    metadata = gpt2_metadata()
    metadata["tokenizer.ggml.tokens"][5:7] = ["", "he"]
    tokenizer = made(metadata)
    assert (tokenizer.token(5), tokenizer.token(256)) == ("[UNNAMED_5]", "[UNNAMED_256]")


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({}, "no tokenizer.ggml.tokens"),
        (gpt2_metadata(tokens=[]), "no tokenizer.ggml.tokens"),
        (gpt2_metadata(token_type=np.array([1, 1])), "264 tokens but no type for each"),
        (gpt2_metadata(merges=None), "no tokenizer.ggml.merges"),
        (gpt2_metadata(merges=["whole"]), "'whole' is not a merge"),
        (gpt2_metadata(add_bos_token="yes"), "add_bos_token is 'yes'"),
        (phi3_metadata(scores=np.zeros(3, np.float32)), "no score for each"),
        (phi3_metadata(tokens=["a" * 1000] * 268), "has 1,000 characters"),
        ({**gpt2_metadata(), "tokenizer.chat_template": 3}, "chat template"),
    ],
)
def test_damage_is_named(metadata: dict[str, Any], what: str) -> None:
    if what == "has 1,000 characters":
        metadata["tokenizer.ggml.token_type"] = np.ones(268, np.int32)
    with pytest.raises(InvalidModelError, match=what):
        tokenizer_files(HERE, metadata)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [(gpt2_metadata(model="bert"), "'bert' is not supported"), (gpt2_metadata(pre="odd"), "'odd' is not supported")],
)
def test_other_kinds_are_named(metadata: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        tokenizer_files(HERE, metadata)


def written(files: TokenizerFiles, rows: int, stops: list[int]) -> Tokenizer:
    """The tokenizer after a trip into metadata and back."""
    return made({"general.architecture": "llama", **vocabulary(files, rows, stops)})


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm"])
def test_real_vocabularies_survive_the_trip(shared: Path, name: str) -> None:
    path = shared / "tokenizers" / f"ggml-vocab-{name}.gguf"
    original = GgufFile(path).metadata
    files = tokenizer_files(path, original)
    metadata = vocabulary(files, len(original["tokenizer.ggml.tokens"]), [])  # type: ignore[arg-type]
    assert metadata["tokenizer.ggml.tokens"] == original["tokenizer.ggml.tokens"]
    assert metadata["tokenizer.ggml.model"] == original["tokenizer.ggml.model"]
    assert metadata["tokenizer.ggml.pre"] == original["tokenizer.ggml.pre"]
    before, after = Tokenizer(files), made({"general.architecture": "llama", **metadata})
    assert after.encode(TEXT) == before.encode(TEXT)


def test_the_small_models_tokenizer_survives_the_trip(shell_29m: Path) -> None:
    files = read_tokenizer_files(shell_29m)
    before, after = Tokenizer(files), written(files, 8192, [0, 4])
    assert after.encode(TEXT) == before.encode(TEXT)
    assert after.special_ids == before.special_ids
    message = [{"role": "user", "content": "hi"}]
    assert after.encode_chat(message) == before.encode_chat(message)


def test_rows_beyond_the_vocabulary_are_unused_tokens(shell_29m: Path) -> None:
    metadata = vocabulary(read_tokenizer_files(shell_29m), 8200, [4])
    assert metadata["tokenizer.ggml.tokens"][8192:] == [f"[PAD{index}]" for index in range(8192, 8200)]  # type: ignore[index]
    assert metadata["tokenizer.ggml.token_type"][8192:].tolist() == [5] * 8  # type: ignore[index,union-attr]
    assert (metadata["tokenizer.ggml.eos_token_id"], metadata["tokenizer.ggml.eot_token_id"]) == (0, 4)


def test_unknown_ways_of_cutting_and_damaged_files_are_named(shell_29m: Path) -> None:
    files = read_tokenizer_files(shell_29m)
    definition = json.loads(files.definition)
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "odd"
    odd = TokenizerFiles(files.path, json.dumps(definition).encode(), {}, None)
    with pytest.raises(UnsupportedModelError, match="'odd'"):
        vocabulary(odd, 8192, [])
    with pytest.raises(InvalidModelError, match="damaged"):
        vocabulary(TokenizerFiles(files.path, b'{"model": 3}', {}, None), 8192, [])
    with pytest.raises(InvalidModelError, match="damaged"):
        vocabulary(files, 100, [])
