"""Text from tokens as they come, never half a character, never the beginning of a stop string.

Ids pass through a detokenizer, which holds back what a later token could still change, then through a stop filter,
which holds back what could become a stop string. What comes out, joined, is `Tokenizer.decode` of all ids, cut before
the first stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from halfbyte.errors import UsageError
from halfbyte.text.tokenizer import Tokenizer


class TextStream:
    """Turns ids into text that can be shown at once; the work for each id does not grow with the text.

    Args:
        tokenizer: Whose ids will be pushed.
        stop: Strings before which the text ends. UsageError if one is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._special_ids = tokenizer.special_ids
        self._detokenizer: _Detokenizer = _ByteLevel() if tokenizer.is_byte_level else _Window(tokenizer)
        self._filter = _StopFilter([stop] if isinstance(stop, str) else stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string appeared: there will be no more text."""
        return self._filter.stopped

    def push(self, token_id: int) -> str:
        """Text that has become certain with this id; "" for special tokens and for ids that no token has."""
        token = None if token_id in self._special_ids else self._tokenizer.token(token_id)
        return "" if token is None else self._filter.push(self._detokenizer.push(token_id, token))

    def finish(self) -> str:
        """All text still held back; bytes that form no character become U+FFFD."""
        return self._filter.push(self._detokenizer.finish()) + self._filter.finish()


class _Detokenizer(Protocol):
    def push(self, token_id: int, token: str) -> str: ...

    def finish(self) -> str: ...


class _ByteLevel:
    """Tokens spelt in GPT-2's alphabet: each is a few bytes of UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int, token: str) -> str:
        return self._decoder.decode(_token_bytes(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Window:
    """Any other decoder: the text that new tokens add after one earlier token, which keeps its place at a text's start.

    Byte tokens (`<0xE2>`) are held until a run of them ends: a decoder with byte fallback writes a run as characters
    only if all of it is valid UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._held: list[int] = []

    def push(self, token_id: int, token: str) -> str:
        self._held.append(token_id)
        return "" if _is_byte_token(token) else self.finish()

    def finish(self) -> str:
        if not self._held:
            return ""
        text = self._tokenizer.decode(self._context + self._held)[len(self._context_text) :]
        self._context = self._held[-1:]
        self._context_text = self._tokenizer.decode(self._context)
        self._held = []
        return text


class _StopFilter:
    """Passes text on up to the first stop string: the one complete first if characters came one by one."""

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise UsageError("A stop string is empty.", "Give at least one character.")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        self.stopped = bool(ends)
        safe = min(ends)[1] if ends else len(text) - self._unsafe(text)
        self._held = "" if ends else text[safe:]
        return text[:safe]

    def finish(self) -> str:
        text, self._held = self._held, ""
        return text

    def _unsafe(self, text: str) -> int:
        """How many characters at the end of a text could be the beginning of a stop string."""
        return max((_overlap(text, stop) for stop in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def _is_byte_token(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _token_bytes(token: str) -> bytes:
    """A token's bytes; one with a character outside the alphabet (an added token) is plain text."""
    alphabet = _alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode()


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, reversed: printable bytes stand for themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
