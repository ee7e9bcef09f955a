"""A tokenizer.json that asks for too much memory or time is refused before the library sees it."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.checkpoint.gguf.tokenizer import PRE_TOKENIZERS
from halfbyte.errors import HalfbyteError, InvalidModelError, UsageError
from halfbyte.text import TextStream, Tokenizer
from halfbyte.text.definition import check_definition
from halfbyte.text.regexes import check_pattern
from tests.unit.vocab import small_spm_definition, write_folder

HERE = Path("tokenizer.json")
REAL_PATTERNS = [
    *(pattern for pre in PRE_TOKENIZERS.values() for pattern in pre.patterns),
    # DeepSeek V3
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # CLIP
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    # Kimi K2
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    # Digits in threes from the right
    r"(?=(\d{3})+(?!\d))",
    " {2,}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", REAL_PATTERNS)
def test_patterns_of_real_tokenizers_are_taken(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a+)+$", "several ways"), ("(a|a)*$", "several ways"), ("(a|aa)+$", "several ways"), ("(a?)*",
        "several ways"),
        ("a{1,8}+b", "several ways"), ("(?:a{1,9}){1,9}b", "several ways"), ("(?:(?:a*)b?)+", "several ways"),
        ("a?" * 40 + "a" * 40, "too many ways"), ("(a|a)" * 40, "too many ways"), ("a*a*a*a*b", "too many ways"),
        ("a{0,99}a{0,99}a{0,99}a{0,99}b", "too many ways"), ("a{100000}", "100,000 times"), (r"(a*)\1b", "refers"),
        (r"(?<x>a\g<x>?)b", "refers"), ("(*FAIL)", "not known"), ("(?~a)", "not known"), ("(?{x})", "not known"),
        ("(" * 99 + ")" * 99, "nested"), ("(a", "parentheses"), ("a)", "parentheses"), ("[a", "brackets"),
        ("a" * 10000, "10,000 characters"),
    ],
)  # fmt: skip
def test_patterns_that_may_take_too_long_are_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_pattern(pattern)


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def charsmap(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def sequence(section: str, *steps: Any) -> dict[str, Any]:
    inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    return {section: {"type": "Sequence", inner[section]: list(steps)}}


TWICE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2, "pair": []}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (sequence("normalizer", charsmap(b"\xff\xff\xff\x7f")), "claims a trie of 2,147,483,647 bytes"),
        (sequence("normalizer", charsmap(b"")), "claims a trie"),
        (sequence("normalizer", charsmap(b"\0\0\0\0" + b"x" * 1000)), "replaces a character by 1,000 bytes"),
        (sequence("normalizer", {"type": "Precompiled", "precompiled_charsmap": "?"}), "not base64"),
        (sequence("normalizer", *[replace("a", "aa")] * 40), "make a text too long"),
        (sequence("normalizer", *[replace("", "aaaaaaaa")] * 5), "make a text too long"),
        (sequence("normalizer", {"type": "Prepend", "prepend": "a" * 9000}), "make a text too long"),
        (sequence("normalizer", {"type": "Prepend", "prepend": "a" * 99000}), "99,000 characters"),
        (sequence("normalizer", *[{"type": "ByteLevel"}] * 30), "make a text too long"),
        (sequence("normalizer", *[replace("a", "b")] * 999), "too many parts"),
        (sequence("pre_tokenizer", *[BYTES] * 30), "make a text too long"),
        (sequence("pre_tokenizer", SPLIT), "may take too long"),
        (sequence("decoder", {"type": "Fuse"}, *[replace("a", "aa")] * 40), "make a text too long"),
        ({"post_processor": {"type": "Sequence", "processors": [TWICE] * 30}}, "repeats a text"),
        ({"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9, "vocab": {"a": 0}}}, "1,000,000,000"),
        ({"model": {"type": "BPE", "unk_token": "a" * 10**6, "vocab": {"a": 0}, "merges": []}}, "1,000,000 characters"),
        ({"added_tokens": [{"id": 1, "content": "a"}] * 70000}, "adds 70,000 tokens"),
    ],
)  # fmt: skip
def test_what_asks_for_too_much_is_refused(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidModelError, match=what):
        Tokenizer.from_folder(write_folder(tmp_path, {**small_spm_definition(), **change}))


def test_vocabularies_and_merges_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps(small_spm_definition()).encode()
    check_definition(HERE, data)
    monkeypatch.setattr("halfbyte.text.definition.MAX_VOCABULARY", 300)
    with pytest.raises(InvalidModelError, match="vocab is 309, more than 300"):
        check_definition(HERE, data)
    monkeypatch.undo()
    monkeypatch.setattr("halfbyte.text.definition.MAX_MERGES", 10)
    with pytest.raises(InvalidModelError, match="merges is"):
        check_definition(HERE, data)


def test_a_key_that_comes_twice_cannot_hide_another() -> None:
    """The library takes the last one; a check must not see another."""
    with pytest.raises(InvalidModelError, match="'normalizer' comes twice"):
        check_definition(HERE, b'{"normalizer": null, "normalizer": {"type": "NFC"}, "model": {}}')


def test_a_text_that_would_grow_too_long_is_refused(tmp_path: Path) -> None:
    definition = {**small_spm_definition(), **sequence("normalizer", replace("a", "b" * 100))}
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, definition))
    assert tokenizer.encode("a b")
    with pytest.raises(UsageError, match=r"The text of 200,000 characters is too long: .* 100 times longer"):
        tokenizer.encode("a" * 200_000)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


ODD = st.sampled_from(
    [None, True, -1, 0, 3, 2**32, 2**64, 1e300, "", "a", "\ud800", "<s>", [], {}, [[]], [None], ["a"], {"a": 1},
     {"type": None}, {"type": "Sequence"}, {"type": "Fuse"}, {"String": "a"}, {"Regex": "("}, [{"id": 1}]]
)  # fmt: skip


def mutated(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return value


SMALL = {**small_spm_definition(), "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
CONFIG = {
    "bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<x>"],
    "extra_special_tokens": {"image": "<i>"}, "image_token": "<y>", "chat_template": [{"name": "default",
    "template": "x"}],
    "added_tokens_decoder": {"3": {"content": "<z>", "special": True, "lstrip": False}},
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(places(SMALL)[1:]), odd=ODD, delete=st.booleans())
def test_any_change_to_tokenizer_json_works_or_is_told(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[Any, ...], odd: Any, delete: bool
) -> None:
    changed = mutated(SMALL, path, lambda inner, key: inner.pop(key) if delete else inner.__setitem__(key, odd))
    used(write_folder(tmp_path_factory.getbasetemp() / "mutated", changed))


@settings(max_examples=300, deadline=None)
@given(
    path=st.sampled_from(places(CONFIG)[1:]), odd=ODD, name=st.sampled_from(["tokenizer_config", "special_tokens_map"])
)
def test_any_change_to_a_configuration_works_or_is_told(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[Any, ...], odd: Any, name: str
) -> None:
    folder = write_folder(tmp_path_factory.mktemp("config"), small_spm_definition())
    changed = mutated(CONFIG, path, lambda inner, key: inner.__setitem__(key, odd))
    (folder / f"{name}.json").write_text(json.dumps(changed), encoding="utf-8")
    used(folder)


@settings(max_examples=100, deadline=None)
@given(entries=st.dictionaries(st.text(max_size=3) | st.just("\ud800"), ODD, max_size=3) | ODD)
def test_any_added_tokens_work_or_are_told(tmp_path_factory: pytest.TempPathFactory, entries: Any) -> None:
    folder = write_folder(tmp_path_factory.mktemp("added"), small_spm_definition())
    (folder / "added_tokens.json").write_text(json.dumps(entries), encoding="utf-8")
    used(folder)


def used(folder: Path) -> None:
    """Uses a folder for everything; what is wrong with it must be a HalfbyteError of one line."""
    try:
        tokenizer = Tokenizer.from_folder(folder)
        ids = tokenizer.encode("ab <s> é a</s>")
        tokenizer.decode(ids)
        stream = TextStream(tokenizer, ["</s>"])
        assert isinstance("".join([*map(stream.push, ids), stream.finish()]), str)
        if tokenizer.has_chat_template:
            tokenizer.encode_chat([{"role": "user", "content": "<s>"}])
    except HalfbyteError as error:
        lines = str(error).splitlines()
    else:
        return
    assert len(lines) == 1
