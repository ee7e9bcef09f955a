"""Streamed text is whole characters, adds up to the decoded text, and ends before a stop string."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import UsageError
from halfbyte.text import TextStream, Tokenizer
from tests.unit.vocab import (
    gemma_definition,
    metaspace_definition,
    no_decoder_definition,
    small_byte_level_definition,
    small_spm_definition,
    write_folder,
)

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["hello", " world", " ", "▁", "\n", "é", "🦙", "👩‍👩‍👧", "中", "<|end|>"]), st.text(max_size=5)
    ),
    max_size=10,
).map("".join)


DEFINITIONS = {
    "byte-level": small_byte_level_definition,
    "sentencepiece": small_spm_definition,
    "gemma": gemma_definition,
    "metaspace": metaspace_definition,
    "no decoder": no_decoder_definition,
}


@pytest.fixture(scope="module", params=["shell-29m", *DEFINITIONS])
def tokenizer(request: pytest.FixtureRequest, shell_29m: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "shell-29m":
        return Tokenizer.from_folder(shell_29m)
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("stream"), DEFINITIONS[request.param]()))


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("spm"), small_spm_definition()))


@pytest.fixture(scope="module")
def shell(shell_29m: Path) -> Tokenizer:
    return Tokenizer.from_folder(shell_29m)


def streamed(stream: TextStream, ids: Iterable[int]) -> list[str]:
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


def cut(text: str, stops: Iterable[str]) -> str:
    """A text up to the stop string that is complete first, reading character by character."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_the_pieces_of_a_text_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = streamed(TextStream(tokenizer), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in tokenizer.decode(ids):
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_pieces_of_any_ids_add_up(tokenizer: Tokenizer, data: st.DataObject) -> None:
    low_ids_hold_the_bytes = st.integers(0, min(300, tokenizer.vocab_size - 1))
    any_id = st.one_of(low_ids_hold_the_bytes, st.integers(0, tokenizer.vocab_size - 1))
    ids = data.draw(st.lists(any_id, max_size=40))
    assert "".join(streamed(TextStream(tokenizer), ids)) == tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, data=st.data())
def test_text_ends_before_the_first_stop_string(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    parts = [whole[i : i + n] for i in range(len(whole)) for n in (1, 2, 5)] or ["x"]
    stops = data.draw(st.lists(st.one_of(st.sampled_from(parts), st.text(min_size=1, max_size=4)), max_size=3))
    stream = TextStream(tokenizer, stops)
    pieces = streamed(stream, ids)
    assert "".join(pieces) == cut(whole, stops)
    assert stream.stopped is (cut(whole, stops) != whole)
    assert stream.stop is None if not stream.stopped else whole.startswith(cut(whole, stops) + (stream.stop or "?"))


def test_what_was_shown_is_never_part_of_a_stop_string(shell: Tokenizer) -> None:
    ids = shell.encode("one two three STO two STOP four")
    stream = TextStream(shell, ["STOP"])
    shown = ""
    for token_id in ids:
        shown += stream.push(token_id)
        assert not any(shown.endswith("STOP"[:size]) for size in (1, 2, 3))
    assert shown + stream.finish() == "one two three STO two "
    assert stream.stopped


def test_a_stop_string_that_never_completes_is_shown_at_the_end(shell: Tokenizer) -> None:
    stream = TextStream(shell, "STOP")
    pieces = streamed(stream, shell.encode("a STO"))
    assert "".join(pieces[:-1]) == "a "
    assert pieces[-1] == "STO"
    assert not stream.stopped


def test_nothing_follows_a_stop_string(shell: Tokenizer) -> None:
    stream = TextStream(shell, ["b"])
    assert "".join(streamed(stream, shell.encode("a b c"))) == "a "
    assert stream.push(shell.encode("d")[0]) == ""
    assert stream.finish() == ""


def test_a_character_of_several_tokens_comes_whole(spm: Tokenizer) -> None:
    bytes_of_llama = [spm.token_id(f"<0x{byte:02X}>") for byte in "🦙".encode()]
    stream = TextStream(spm)
    assert [stream.push(token_id) for token_id in [*bytes_of_llama, spm.token_id("a")]] == ["", "", "", "", "🦙a"]


def test_byte_level_characters_come_with_their_last_byte(shell: Tokenizer) -> None:
    ids = shell.encode("a🦙b")
    assert len(ids) > 3
    pieces = streamed(TextStream(shell), ids)
    assert [piece for piece in pieces if piece] == ["a", "🦙", "b"]


def test_an_unfinished_character_ends_as_decode_shows_it(shell: Tokenizer, spm: Tokenizer) -> None:
    ids = shell.encode("a🦙")[:-1]
    assert streamed(TextStream(shell), ids)[-1] == "\ufffd"
    ids = [spm.token_id(f"<0x{byte:02X}>") for byte in "🦙".encode()[:3]]
    assert streamed(TextStream(spm), ids)[-1] == spm.decode(ids) == "\ufffd" * 3


def test_sentencepiece_space_before_the_text_is_dropped_once(spm: Tokenizer) -> None:
    assert streamed(TextStream(spm), spm.encode("hello world hello")) == ["hello", " world", " hello", ""]


def test_special_tokens_and_ids_without_a_token_show_nothing(shell: Tokenizer) -> None:
    hi = shell.encode("hi")
    ids = [2, *hi, shell.vocab_size, shell.vocab_size + 10**6, 4]
    assert "".join(streamed(TextStream(shell), ids)) == "hi"


def test_an_empty_stop_string_is_refused(shell: Tokenizer) -> None:
    with pytest.raises(UsageError, match="empty"):
        TextStream(shell, ["a", ""])


def test_the_trained_models_answers_stream_to_their_texts(shell: Tokenizer, shared: Path) -> None:
    lines = (shared / "data" / "answers-dev.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line) for line in lines]
    assert len(answers) == 150
    for answer in answers:
        assert shell.encode_chat([{"role": "user", "content": answer["question"]}]) == answer["prompt_ids"]
        assert shell.decode(answer["greedy_ids"]) == answer["greedy_text"]
        assert "".join(streamed(TextStream(shell), answer["greedy_ids"])) == answer["greedy_text"]


@pytest.mark.parametrize(("stop", "shown"), [("<|end|>", "hello"), (["no", "<|end|>"], "hello"), ("lo<|end|>", "hel")])
def test_a_stop_string_may_spell_a_special_token(spm: Tokenizer, stop: str | list[str], shown: str) -> None:
    end = spm.token_id("<|end|>")
    stream = TextStream(spm, stop)
    assert end is not None
    pieces = [stream.push(token_id) for token_id in [*spm.encode("hello"), end]]
    assert stream.stopped
    assert stream.stop == ("<|end|>" if isinstance(stop, list) else stop)
    assert "".join(pieces) + stream.finish() == shown
    assert stream.push(spm.encode("x")[0]) == ""


def test_special_tokens_that_no_stop_string_spells_change_nothing(spm: Tokenizer) -> None:
    user, end = spm.token_id("<|user|>"), spm.token_id("<|end|>")
    assert user is not None
    assert end is not None
    stream = TextStream(spm, ["hello<|end|>x", "world"])
    ids = [user, *spm.encode("hello"), end, user, *spm.encode(" world")]
    assert "".join(streamed(stream, ids)) == "hello  "
    assert stream.stopped


def test_bytes_before_a_special_stop_token_are_shown(spm: Tokenizer) -> None:
    ids = [spm.token_id(f"<0x{byte:02X}>") for byte in "🦙".encode()]
    stream = TextStream(spm, "<|end|>")
    shown = [stream.push(token_id) for token_id in [*ids, spm.token_id("<|end|>")] if token_id is not None]
    assert "".join(shown) == "🦙"
    assert stream.stopped


def test_kept_special_tokens_show_their_text(tokenizer: Tokenizer) -> None:
    end, *_ = kept = [tokenizer.token(token_id) or "" for token_id in sorted(tokenizer.special_ids)][-2:]
    ids = [*tokenizer.encode("hello"), *(tokenizer.token_id(text) or 0 for text in kept), *tokenizer.encode("hello")]
    special = tokenizer.special_ids.difference(tokenizer.token_id(text) for text in kept)
    expected = tokenizer.decode([i for i in ids if i not in special], skip_special_tokens=False)
    assert "".join(streamed(TextStream(tokenizer, keep=kept), ids)) == expected
    assert end in expected
    assert end not in "".join(streamed(TextStream(tokenizer), ids))


def test_a_kept_special_token_may_be_part_of_a_stop_string(spm: Tokenizer) -> None:
    end, user = spm.token_id("<|end|>"), spm.token_id("<|user|>")
    stream = TextStream(spm, "lo<|end|>", keep=["<|end|>", "no token"])
    shown = [stream.push(token_id) for token_id in [user, *spm.encode("hello"), end] if token_id is not None]
    assert "".join(shown) + stream.finish() == "hel"
    assert stream.stopped
