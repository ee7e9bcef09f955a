"""Text from tokens as they come, never half a character, never the beginning of a stop string.

Ids pass through a detokenizer, which holds back what a later token could still change, then through a stop filter,
which holds back what could become a stop string. What comes out, joined, is `Tokenizer.decode` of all ids, cut before
the first stop string. Special tokens show no text unless they are kept, but a stop string that spells one ends the text
where it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from halfbyte.errors import UsageError
from halfbyte.text.detokenize import overlap
from halfbyte.text.tokenizer import Tokenizer

_FIRST_MARK = 0xD800
"""Surrogates stand for special tokens inside the stop filter: no decoded text has one."""


class TextStream:
    """Turns ids into text that can be shown at once; the work for each id does not grow with the text.

    Args:
        tokenizer: Whose ids will be pushed.
        stop: Strings before which the text ends. UsageError if one is empty.
        keep: Special tokens, as the vocabulary spells them, that show their text like any other token.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = (), *, keep: Iterable[str] = ()) -> None:
        stops = [stop] if isinstance(stop, str) else list(stop)
        self._tokenizer = tokenizer
        self._special_ids = tokenizer.special_ids.difference(map(tokenizer.token_id, keep))
        self._detokenizer = tokenizer.detokenizer()
        self._marks = _marks(tokenizer, self._special_ids, stops)
        self._filter = _StopFilter({**{stop: stop for stop in stops}, **_spelt_in_marks(tokenizer, stops, self._marks)})

    @property
    def stopped(self) -> bool:
        """Whether a stop string appeared: there will be no more text."""
        return self._filter.stopped

    @property
    def stop(self) -> str | None:
        """The stop string that appeared."""
        return self._filter.found

    def push(self, token_id: int) -> str:
        """Text that has become certain with this id; "" for special tokens not kept and for ids without a token."""
        if token_id in self._special_ids:
            return self._special(token_id)
        token = self._tokenizer.token(token_id)
        if token is None:
            return ""
        with self._tokenizer.blamed():
            return self._shown(self._detokenizer.push(token))

    def finish(self) -> str:
        """All text still held back; bytes that form no character become U+FFFD."""
        with self._tokenizer.blamed():
            text = self._detokenizer.finish()
        return self._shown(text) + self._without_marks(self._filter.finish())

    def _special(self, token_id: int) -> str:
        """What a special token does: nothing, unless a stop string spells it."""
        mark = self._marks.get(token_id)
        if mark is None:
            return ""
        before = self.finish() if self._filter.is_stop(mark) else ""
        return before + self._shown(mark)

    def _shown(self, text: str) -> str:
        return self._without_marks(self._filter.push(text))

    def _without_marks(self, text: str) -> str:
        return "".join(c for c in text if c not in self._marks.values()) if self._marks else text


def _marks(tokenizer: Tokenizer, special_ids: Iterable[int], stops: Sequence[str]) -> dict[int, str]:
    """A character of its own for each special token that a stop string spells, by id."""
    spelt = [i for i in sorted(special_ids) if any((tokenizer.token(i) or "\0") in stop for stop in stops)]
    return {token_id: chr(_FIRST_MARK + place) for place, token_id in enumerate(spelt[:2048])}


def _spelt_in_marks(tokenizer: Tokenizer, stops: Sequence[str], marks: Mapping[int, str]) -> dict[str, str]:
    """The stop strings that spell special tokens, by themselves with marks in their place; longer tokens first."""
    texts = sorted(((tokenizer.token(token_id) or "", mark) for token_id, mark in marks.items()), key=_longest_first)
    spelt = {}
    for stop in stops:
        changed = stop
        for text, mark in texts:
            changed = changed.replace(text, mark)
        if changed != stop:
            spelt[changed] = stop
    return spelt


def _longest_first(item: tuple[str, str]) -> int:
    return -len(item[0])


class _StopFilter:
    """Passes text on up to the first stop string: the one complete first if characters came one by one.

    Args:
        stop: What to look for, and the stop string that is found with it.
    """

    def __init__(self, stop: Mapping[str, str]) -> None:
        if "" in stop:
            raise UsageError("A stop string is empty.", "Give at least one character.")
        self._stop = dict(stop)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        return self.found is not None

    def is_stop(self, text: str) -> bool:
        """Whether a text is itself a stop string."""
        return text in self._stop

    def push(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        ends = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            _, safe, stop = min(ends)
            self.found, self._held = self._stop[stop], ""
        else:
            safe = len(text) - self._unsafe(text)
            self._held = text[safe:]
        return text[:safe]

    def finish(self) -> str:
        text, self._held = self._held, ""
        return text

    def _unsafe(self, text: str) -> int:
        """How many characters at the end of a text could be the beginning of a stop string."""
        return max((overlap(text, stop) for stop in self._stop), default=0)
