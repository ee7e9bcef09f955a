"""How much work a regular expression of a tokenizer can make, judged before it is compiled.

A backtracking matcher tries every way in which a pattern can match. For each part of a pattern two numbers bound them:
`degree`, how many repetitions without a small limit stand in a row (the work is about that power of a text's length),
and `ways`, in how many ways the bounded choices beside them can be taken. A repetition without limit of something that
itself can match in several ways takes exponential time; it is refused, as is all that a bound cannot be given for.
The patterns of real tokenizers have degree 1 or 2 and less than a hundred ways.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_LENGTH = 8192
MAX_DEGREE = 3
MAX_WAYS = 4096
MAX_REPEAT = 1000
MAX_NESTING = 50

_SMALL = 8
"""Up to so many repetitions are counted as ways, more as one without limit."""

_COUNT = re.compile(r"\{(\d{0,9})(,?)(\d{0,9})\}")
_GROUP = re.compile(r"\((?:\?(?:[imx-]*:|[=!>]|<[=!]|<[A-Za-z]\w*>|[imx-]+\)))?")
_ESCAPE = re.compile(r"\\(?:[pP]\{\^?[\w ]+\}|x\{[0-9A-Fa-f]+\}|[^kg0-9])", re.DOTALL)


@dataclass(frozen=True)
class _Work:
    degree: int = 0
    ways: int = 1

    def then(self, other: _Work) -> _Work:
        return _checked(_Work(self.degree + other.degree, self.ways * other.ways))

    def either(self, other: _Work) -> _Work:
        return _checked(_Work(max(self.degree, other.degree), self.ways + other.ways))

    def repeated(self, least: int, most: int | None) -> _Work:
        if most is not None and most <= _SMALL:
            return _checked(_Work(self.degree * most, self.ways**most * (most - least + 1)))
        if self != _Work():
            raise ValueError("it repeats something that can match in several ways")
        return self if most == least else _Work(1, 1)


def check_pattern(pattern: str) -> None:
    """ValueError with the reason if a pattern (in Oniguruma's syntax) could take too long."""
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"it has {len(pattern):,} characters")
    end = _Reader(pattern).alternatives(0, 0)[1]
    if end != len(pattern):
        raise ValueError("its parentheses do not match")


class _Reader:
    """Reads a pattern once, from left to right; each method returns the work of a part and where the part ends."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def alternatives(self, at: int, depth: int) -> tuple[_Work, int]:
        """Sequences with bars between them, up to a closing parenthesis or the end."""
        if depth > MAX_NESTING:
            raise ValueError(f"its groups are nested more than {MAX_NESTING} deep")
        work, at = self._sequence(at, depth)
        while self._pattern[at : at + 1] == "|":
            other, at = self._sequence(at + 1, depth)
            work = work.either(other)
        return work, at

    def _sequence(self, at: int, depth: int) -> tuple[_Work, int]:
        work = _Work()
        while at < len(self._pattern) and self._pattern[at] not in "|)":
            one, at = self._atom(at, depth)
            one, at = self._quantified(one, at)
            work = work.then(one)
        return work, at

    def _atom(self, at: int, depth: int) -> tuple[_Work, int]:
        character = self._pattern[at]
        if character == "(":
            return self._group(at, depth)
        if character == "[":
            return _Work(), self._class(at, depth)
        if character == "\\":
            return _Work(), self._match(_ESCAPE, at, "it refers to a group")
        return _Work(), at + 1

    def _group(self, at: int, depth: int) -> tuple[_Work, int]:
        start = self._match(_GROUP, at, "it has a kind of group that is not known")
        if self._pattern[at + 1 : at + 2] == "?" and self._pattern[start - 1] == ")":
            return _Work(), start
        if self._pattern[start : start + 1] in ("?", "*"):
            raise ValueError("it has a kind of group that is not known")
        work, end = self.alternatives(start, depth + 1)
        if self._pattern[end : end + 1] != ")":
            raise ValueError("its parentheses do not match")
        return work, end + 1

    def _class(self, at: int, depth: int) -> int:
        """The end of a set of characters; sets may stand in sets."""
        at += 2 if self._pattern[at + 1 : at + 2] == "^" else 1
        at += 1 if self._pattern[at : at + 1] == "]" else 0
        while at < len(self._pattern) and self._pattern[at] != "]":
            if self._pattern[at] == "[" and depth < MAX_NESTING:
                at = self._class(at, depth + 1)
            else:
                at += 2 if self._pattern[at] == "\\" else 1
        if at >= len(self._pattern):
            raise ValueError("its brackets do not match")
        return at + 1

    def _quantified(self, work: _Work, at: int) -> tuple[_Work, int]:
        """The work with all quantifiers that follow."""
        while at < len(self._pattern):
            character = self._pattern[at]
            if character in "*+?":
                work = work.repeated(1 if character == "+" else 0, 1 if character == "?" else None)
                at += 1
                modifiers = "?+"  # lazy, possessive
            elif (match := _COUNT.match(self._pattern, at)) and (match[1] or match[3]):
                work = work.repeated(*_counts(match))
                at = match.end()
                modifiers = "?"  # a plus here repeats once more
            else:
                return work, at
            if (following := self._pattern[at : at + 1]) and following in modifiers:
                at += 1
        return work, at

    def _match(self, pattern: re.Pattern[str], at: int, what: str) -> int:
        match = pattern.match(self._pattern, at)
        if match is None:
            raise ValueError(what)
        return match.end()


def _counts(match: re.Match[str]) -> tuple[int, int | None]:
    """Least and most repetitions of `{n}`, `{n,}`, `{,m}` or `{n,m}`."""
    least = int(match[1] or 0)
    most = int(match[3]) if match[3] else (None if match[2] else least)
    if max(least, most or 0) > MAX_REPEAT:
        raise ValueError(f"it repeats something {max(least, most or 0):,} times")
    return least, most


def _checked(work: _Work) -> _Work:
    if work.degree > MAX_DEGREE or work.ways > MAX_WAYS:
        raise ValueError("there are too many ways in which it can match")
    return work
