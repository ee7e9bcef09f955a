"""The tokenizers of the models that people run: ids, texts and streams as in transformers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.text import TextStream
from tests.unit.families import TOKENIZERS, ours, theirs

TEXTS = [
    "", "\n", "   ", "Hello, world!", "  two  spaces\n\n\tTab \r\n", "日本語のテキスト。中文\uff0c标点。안녕하세요",
    "Здравствуй, мир! Ça va?", "مرحبا بالعالم हिन्दी में ภาษาไทย", "👩‍👩‍👧 🦙 😶‍🌫️ \U0010ffff",
    "def f(x: int) -> int:\n    return x**2  # ü\n\n\nclass A:\n\tpass", "1234567 3.14 1,000 0x1F",
    "I'll don't CAN'T 's", "\u00a0\u200b\ufeff\u3000", "e\u0301 é ﬁ", "a" * 300, "\x00\x01\x7f", "\ufffd\ud7ff",
    "▁▁x Ġthe <0x41>", '{"name": "add", "arguments": {"a": [1, 2.5e-3], "b": null}}', "<div class='x'>&amp;</div>",
    "<think>\nHm.\n</think>\n\nYes.", "<tool_call>\n{}\n</tool_call>", "a<|notatoken|>b",
]  # fmt: skip


def spelt(name: str) -> list[str]:
    """Texts that spell the tokenizer's special tokens, also between words and not as a whole."""
    tokens = [token for token_id in sorted(ours(name).special_ids) if (token := ours(name).token(token_id))]
    some = [*tokens[:4], *tokens[-4:]]
    return [*some, "a".join(some), " ".join(some), f"x {some[0]}\n{some[0][:-1]}", f"{some[-1]}{some[-1]} é"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_transformers(name: str) -> None:
    for text in [*TEXTS, *spelt(name)]:
        for around in (True, False):
            assert ours(name).encode(text, add_special_tokens=around) == theirs(name).encode(
                text, add_special_tokens=around
            )
        plain = ours(name).encode(text, add_special_tokens=False, parse_special=False)
        assert plain == theirs(name).encode(text, add_special_tokens=False, split_special_tokens=True)
        assert not ours(name).special_ids.intersection(plain) - {ours(name).token_id("<unk>")}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.one_of(st.sampled_from(TEXTS), st.text(max_size=12)), max_size=6).map("".join))
def test_ids_of_any_text_are_those_of_transformers(name: str, text: str) -> None:
    assert ours(name).encode(text) == theirs(name).encode(text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_transformers_knows_of_tokens_is_known(name: str) -> None:
    assert ours(name).vocab_size == len(theirs(name))
    assert (ours(name).bos_token, ours(name).eos_token) == (theirs(name).bos_token, theirs(name).eos_token)
    # transformers' class for Gemma names a mask token, which no file of the model does.
    assert set(theirs(name).all_special_ids) - {theirs(name).mask_token_id} <= ours(name).special_ids


def streamed(name: str, ids: list[int]) -> str:
    stream = TextStream(ours(name))
    return "".join(map(stream.push, ids)) + stream.finish()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_streamed_text_is_the_decoded_text(name: str) -> None:
    for text in [*TEXTS, *spelt(name)]:
        ids = ours(name).encode(text)
        for start in range(min(len(ids), 4)):
            whole = ours(name).decode(ids[start:])
            assert streamed(name, ids[start:]) == whole
            assert whole == theirs(name).decode(ids[start:], skip_special_tokens=True)
            kept = ours(name).decode(ids[start:], skip_special_tokens=False)
            assert kept == theirs(name).decode(ids[start:], skip_special_tokens=False)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_ids_are_streamed_as_they_are_decoded(name: str, data: st.DataObject) -> None:
    """Also those that are parts of characters which nothing completes."""
    parts = ours(name).encode("🦙é\U0010ffff中", add_special_tokens=False)
    some = st.one_of(st.sampled_from(parts), st.integers(0, ours(name).vocab_size - 1))
    drawn = [token for token in data.draw(st.lists(some, max_size=24)) if ours(name).token(token) is not None]
    ids = [token for token in drawn if token != theirs(name).mask_token_id]  # see above
    assert streamed(name, ids) == ours(name).decode(ids) == theirs(name).decode(ids, skip_special_tokens=True)
