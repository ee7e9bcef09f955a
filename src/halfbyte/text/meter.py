"""What the rendering of one chat template may cost, and how large values are.

Every operation whose cost depends on its operands asks here before it runs: `measure` says how large a value is,
`Meter.allow` whether a result of that size may still be made, `Meter.spend` counts what was made. All memory of a
rendering is counted, freed or not, so its sum bounds what is held at any moment; the time is looked at on each of these
occasions, and what is allowed in one step takes well below a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace
from markupsafe import Markup

MEMORY_LIMIT = 2**28
"""Bytes that a rendering may allocate beyond a multiple of its input."""

MAX_CHARACTERS = 2**23
"""Of one text."""

MAX_ITEMS = 2**17
"""Of one value with all that is in it."""

MAX_DEPTH = 100
"""Of lists in lists, and of calls in calls."""

MAX_BITS = 4096
"""Of one integer."""

PER_CHARACTER = 4
PER_REFERENCE = 16
PER_OBJECT = 100
"""Bytes, at most: of a character in a text, of a place in a list, of a small object with its place."""

_ESCAPED = 6
_NUMBER = 25
_OTHER = 200
_BYTES_PER_INPUT_CHARACTER = 64
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


@dataclass(frozen=True)
class Size:
    """How large a value is: what it holds, itself included; the characters of all texts and numbers; levels."""

    items: int
    characters: int
    depth: int = 0

    @property
    def text(self) -> int:
        """Characters of `str(value)` at most: inside a list, texts are quoted and escaped."""
        return self.characters if not self.depth else 10 * self.characters + 4 * self.items


class Meter:
    """Counts the time, memory and depth of calls of one rendering.

    Args:
        seconds: How long it may take.
        input_characters: Size of what it is made from; a longer conversation may take more memory.
    """

    def __init__(self, seconds: float, input_characters: int) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._left = MEMORY_LIMIT + _BYTES_PER_INPUT_CHARACTER * input_characters
        self._depth = 0

    def check_time(self) -> None:
        """SecurityError once the rendering has taken too long."""
        if time.monotonic() > self._deadline:
            raise SecurityError(f"it ran for more than {self._seconds:g} seconds")

    def allow(self, nbytes: int) -> None:
        """SecurityError if so much memory may not be allocated, or the time is over."""
        self.check_time()
        if nbytes > self._left:
            raise SecurityError("its operations take too much memory")

    def spend(self, nbytes: int) -> None:
        """Counts memory that was or will be allocated. SecurityError as for `allow`."""
        self.allow(nbytes)
        self._left -= nbytes

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Around a call. SecurityError where calls in calls go too deep."""
        if self._depth >= MAX_DEPTH:
            raise SecurityError(f"its calls are nested more than {MAX_DEPTH} deep")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1


current: ContextVar[Meter] = ContextVar("meter")
"""The meter of the rendering that runs in this thread."""


def measure(value: object) -> Size:
    """The size of a value, each thing counted as often as it would be met. SecurityError if it is too large."""
    if type(value) is str and len(value) <= MAX_CHARACTERS:
        return Size(1, len(value))
    items, characters, deepest = 1, 0, 0
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if type(one) is str:
            characters += len(one)
        elif (inside := _inside(one)) is None:
            characters += _characters(one)
        else:
            items, deepest = items + len(inside), max(deepest, depth + 1)
            if items > MAX_ITEMS or deepest > MAX_DEPTH:
                raise SecurityError("an operand is too large")
            waiting.extend([(each, depth + 1) for each in inside])
        if characters > MAX_CHARACTERS:
            raise SecurityError("an operand is too large")
    return Size(items, characters, deepest)


def nbytes(value: object) -> int:
    """Bytes of a value itself, without what it refers to."""
    return sys.getsizeof(value, _OTHER)


def _inside(value: Any) -> Sequence[Any] | None:
    """What a value holds; None if it is no container."""
    if isinstance(value, (list, tuple, range)):
        return value
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, Namespace):
        return _inside(object.__getattribute__(value, "_Namespace__attrs"))
    return [*iter(value)] if type(value) in _VIEWS else None


def _characters(value: object) -> int:
    if isinstance(value, str):
        return len(value) * (_ESCAPED if isinstance(value, Markup) else 1)
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise SecurityError("a number is too large")
        return value.bit_length() // 3 + 5
    return _NUMBER if isinstance(value, float) or value is None else _OTHER
