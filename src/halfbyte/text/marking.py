"""Telling special tokens that a chat template writes from those that a message merely spells.

Before a message goes through the template, each special token spelt in it is put between two marks, characters that
mean nothing to templates. After rendering, what lies between marks is encoded as plain text, the rest as usual: so a
message cannot end its own turn. A lone mark (a template may split texts) is dropped, but still parts what it stood
between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_START, _END = "\U000f5678", "\U000f5679"
"""Private-use characters; what a message has of them is taken out, so that no mark can be forged."""

_MARKS = re.compile(f"[{_START}{_END}]")


class Written(str):
    """A message's text that Halfbyte put together, some of it delimiters that mean what they are.

    Attributes:
        pieces: The text in pieces, each with whether it is such a delimiter. The others are as strangers gave them.
    """

    pieces: tuple[tuple[str, bool], ...]

    def __new__(cls, *pieces: tuple[str, bool]) -> Written:
        written = super().__new__(cls, "".join(text for text, _ in pieces))
        written.pieces = pieces
        return written


class Marker:
    """Marks some special tokens in messages.

    Args:
        special: The tokens' texts, at least one.
    """

    def __init__(self, special: Iterable[str]) -> None:
        self.first, *_ = texts = sorted(special, key=len, reverse=True)
        pattern = "|".join(map(re.escape, texts))
        self._tokens = re.compile(pattern)
        self._marked = re.compile(f"{_START}({pattern}){_END}|{_MARKS.pattern}")

    @classmethod
    def found(cls, special: Sequence[str], values: object) -> Marker | None:
        """A marker of those special tokens that are spelt somewhere in messages or tools; None if there is none."""
        texts = list(_texts(values)) if special else []
        spelt = [token for token in special if any(token in text for text in texts)]
        return cls(spelt) if spelt else None

    def marked(self, value: Any) -> Any:
        """Messages or tools with marks in all texts; keys stay as they are."""
        if isinstance(value, Written):
            return "".join(text if own else self.marked(text) for text, own in value.pieces)
        if isinstance(value, str):
            return self._tokens.sub(f"{_START}\\g<0>{_END}", _MARKS.sub("", value))
        if isinstance(value, Mapping):
            return {key: self.marked(item) for key, item in value.items()}
        return [self.marked(item) for item in value] if isinstance(value, (list, tuple)) else value

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """A rendered text in pieces, each with whether it is a special token to be taken for text."""
        return [(piece, index % 2 == 1) for index, piece in enumerate(self._marked.split(text)) if piece]


def without_marks(text: str) -> str:
    """A text as it would be had nothing been marked."""
    return _MARKS.sub("", text)


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, Written):
        yield from (text for text, own in value.pieces if not own)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
