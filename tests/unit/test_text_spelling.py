"""Texts that break a repetition are found in tokens wherever tokens begin and end."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.errors import UsageError
from halfbyte.text import Tokenizer
from halfbyte.text.spelling import spellings
from tests.unit.vocab import small_byte_level_definition, small_spm_definition, write_folder

TEXTS = ["\n", "o", "hello", " wor", "lo, w", "d!", "é", "</s>"]


def test_a_token_may_hold_the_text_or_only_its_beginning() -> None:
    words = [(0, "a"), (1, "b"), (2, "c"), (3, "ab"), (4, "xa"), (5, "aa"), (6, "zabz"), (7, "aab")]
    letters = {"a": 0, "b": 1, "c": 2}

    def found(text: str) -> set[tuple[int, ...]]:
        return set(spellings(text, words, lambda rest: tuple(letters[letter] for letter in rest)))

    assert found("ab") == {(0, 1), (3,), (4, 1), (5, 1), (6,), (7,)}
    assert found("aab") == {(0, 0, 1), (4, 0, 1), (5, 1), (5, 0, 1), (7,)}
    assert found("c") == {(2,)}
    assert found("bc") == {(1, 2), (3, 2), (7, 2)}


@pytest.mark.parametrize("definition", [small_spm_definition(), small_byte_level_definition()], ids=["spm", "bytes"])
@pytest.mark.parametrize("text", TEXTS)
def test_each_sequence_spells_the_text_and_no_shorter_part_does(
    tmp_path: Path, definition: dict[str, object], text: str
) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, definition))
    lead = tokenizer.encode("a\n", add_special_tokens=False)

    def shown(ids: tuple[int, ...]) -> str:
        return tokenizer.decode([*lead, *ids], skip_special_tokens=False).removeprefix("a\n")

    found = tokenizer.spellings(text)
    assert found
    for ids in found:
        assert text in shown(ids)
        assert text not in shown(ids[:-1])
    single = {(token,) for token in range(tokenizer.vocab_size) if text in shown((token,))}
    assert single == {ids for ids in found if len(ids) == 1}


@pytest.mark.parametrize("definition", [small_spm_definition(), small_byte_level_definition()], ids=["spm", "bytes"])
def test_a_text_is_found_in_the_tokens_of_longer_ones(tmp_path: Path, definition: dict[str, object]) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, definition))
    for text in ("o", "hello", "lo, w", " world", "é", ", the"):
        found = tokenizer.spellings(text)
        for around in ("{}", "the {} a", "wor{}ld", "\n{}\n", "he{}"):
            ids = tokenizer.encode(around.format(text), add_special_tokens=False)
            parts = {tuple(ids[i:j]) for i in range(len(ids)) for j in range(i + 1, len(ids) + 1)}
            assert found & parts, (around.format(text), ids)


def test_a_text_that_utf8_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lone surrogate"):
        Tokenizer.from_folder(write_folder(tmp_path, small_spm_definition())).spellings("\udcff")
