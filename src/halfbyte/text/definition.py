"""tokenizer.json, checked before the `tokenizers` library reads it.

The library trusts the file: a size in four bytes makes it allocate gigabytes, a chain of replacements doubles a text
each time, a regular expression can run for hours. So everything but the vocabulary is read here first, and each
part's sizes, and how much longer a chain can make a text, are bounded.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from halfbyte.errors import InvalidModelError, UsageError
from halfbyte.text.regexes import check_pattern

MAX_VOCABULARY = 2**22
MAX_MERGES = 2**24
MAX_ADDED_TOKENS = 2**16
MAX_ADDED_CHARACTERS = 2**24
MAX_PARTS = 1000
MAX_STEPS = 64
MAX_CHARSMAP_BYTES = 2**24
MAX_TEXT = 2**16
MAX_WORD = 1000
MAX_REPLACEMENT = 256
MAX_GROWTH = 4096
MAX_GROWN_CHARACTERS = 2**24

_USUAL_GROWTH = 16
"""Up to this a text may have any length."""

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_S = r"[ \t\n\r]*+"
_TABLE = re.compile(rf"\{{{_S}(?:{_STRING}{_S}:{_S}-?\d+{_S},?{_S})*+\}}", re.DOTALL)
_PAIRS = re.compile(rf"\[{_S}(?:\[{_S}{_STRING}{_S},{_S}[-+.\deE]+{_S}\]{_S},?{_S})*+\]", re.DOTALL)
_MERGE = rf"(?:{_STRING}|\[{_S}{_STRING}{_S},{_S}{_STRING}{_S}\])"
_MERGES = re.compile(rf"\[{_S}(?:{_MERGE}{_S},?{_S})*+\]", re.DOTALL)
_LONG = {"vocab": (_TABLE, _PAIRS), "merges": (_MERGES,)}
"""Parts of a model that are too long to be read twice; a pattern finds their end."""

_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_GROWTH_BY_TYPE = {
    "NFC": 4, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 2, "BertNormalizer": 12, "ByteLevel": 4, "Metaspace": 2,
}  # fmt: skip
"""Characters that one character can become; for the forms of Unicode see its Annex 15."""


@dataclass(frozen=True)
class Growth:
    """How many times longer a text can become before it is cut into tokens."""

    factor: float

    def check(self, path: Path, text: str) -> None:
        """UsageError if a text would become too long."""
        if self.factor > _USUAL_GROWTH and len(text) * self.factor > MAX_GROWN_CHARACTERS:
            raise UsageError(
                f"The text of {len(text):,} characters is too long: {path} makes texts up to "
                f"{self.factor:,.0f} times longer.",
                "Give a shorter text.",
            )


def check_definition(path: Path, definition: bytes) -> Growth:
    """Checks a tokenizer.json and says how much longer it makes a text.

    Raises:
        InvalidModelError: It is not JSON, or some part of it is larger than any tokenizer needs.
    """
    try:
        outline = _outline(definition.decode("utf-8"))
    except UnicodeDecodeError as error:
        _damaged(path, f"byte {error.start} is not UTF-8")
    except RecursionError:
        _damaged(path, "its JSON is nested too deeply")
    except ValueError as error:
        _damaged(path, f"it is not JSON ({str(error)[:200]})")
    try:
        return Growth(_checked(outline))
    except ValueError as error:
        _damaged(path, str(error))


def _damaged(path: Path, what: str) -> NoReturn:
    raise InvalidModelError(f"{path} is damaged: {' '.join(what.split())}.", "Download the model again.")


# --- reading


def _outline(text: str) -> dict[str, Any]:
    """The file's object, with the numbers of entries in place of the vocabulary and the merges."""

    def model(at: int) -> tuple[Any, int]:
        long = {key: _long_reader(text, key) for key in _LONG}
        return _object(text, at, long) if text[at] == "{" else _value(text, at)

    outline, end = _object(text, _space(text, 0), {"model": model})
    if _space(text, end) != len(text):
        raise ValueError("something follows its end")
    return outline


Reader = Callable[[int], tuple[Any, int]]
"""Reads a value from a place on; returns it and where it ends."""


def _object(text: str, at: int, readers: Mapping[str, Reader]) -> tuple[dict[str, Any], int]:
    """A JSON object, some keys of which are read in their own way."""
    entries: dict[str, Any] = {}
    at, mark = _space(text, at + 1), text[at : at + 1]
    if mark != "{":
        raise ValueError("it is not a JSON object")
    while text[at : at + 1] == '"':
        key, at = _value(text, at)
        at = _expect(text, at, ":")
        if key in entries:
            raise ValueError(f"the key {key[:80]!r} comes twice")
        entries[key], at = readers[key](at) if key in readers and text[at : at + 1] else _value(text, at)
        at = _space(text, at)
        if text[at : at + 1] == "}":
            return entries, at + 1
        at = _expect(text, at, ",")
    return entries, _expect(text, at, "}")


def _long_reader(text: str, key: str) -> Reader:
    def read(at: int) -> tuple[Any, int]:
        for pattern in _LONG[key]:
            if match := pattern.match(text, at):
                return text.count('"', at, match.end()) // 2, match.end()
        value, end = _value(text, at)
        return len(value) if isinstance(value, (list, dict)) else 0, end

    return read


def _value(text: str, at: int) -> tuple[Any, int]:
    return json.JSONDecoder().raw_decode(text, at)


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, mark: str) -> int:
    at = _space(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(f"{mark!r} is missing at character {at}")
    return _space(text, at + 1)


# --- checking


def _checked(outline: Mapping[str, Any]) -> float:
    """How much longer a text can become. ValueError with the reason if something is too large."""
    model = outline.get("model")
    _check_model(model if isinstance(model, dict) else {})
    _check_added(outline.get("added_tokens"))
    parts = {name: list(_parts(outline.get(name))) for name in _SECTIONS}
    for name, found in parts.items():
        if sum("type" in part for part in found) > MAX_STEPS or len(found) > MAX_PARTS:
            raise ValueError(f"its {name} has too many parts")
        for part in found:
            _check_part(part)
    _check_copies(parts["post_processor"])
    _grown(parts["decoder"])
    return _grown(parts["normalizer"] + parts["pre_tokenizer"])


def _check_model(model: Mapping[str, Any]) -> None:
    for key, limit in (("vocab", MAX_VOCABULARY), ("merges", MAX_MERGES), ("max_input_chars_per_word", MAX_WORD)):
        size = model.get(key)
        if isinstance(size, int) and size > limit:
            raise ValueError(f"its model's {key} is {size:,}, more than {limit:,}")
    for key, value in model.items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"its model's {key[:80]} is {len(value):,} characters long")


def _check_added(tokens: object) -> None:
    added = tokens if isinstance(tokens, list) else []
    if len(added) > MAX_ADDED_TOKENS:
        raise ValueError(f"it adds {len(added):,} tokens, more than {MAX_ADDED_TOKENS:,}")
    contents = [token.get("content") for token in added if isinstance(token, dict)]
    if sum(len(content) for content in contents if isinstance(content, str)) > MAX_ADDED_CHARACTERS:
        raise ValueError("its added tokens are too long")


def _parts(section: object) -> Iterator[dict[str, Any]]:
    """All objects in a section, the outer ones first."""
    waiting, seen = [section], 0
    while waiting and seen <= MAX_PARTS:
        value = waiting.pop()
        if isinstance(value, dict):
            seen += 1
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _check_part(part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if key == "precompiled_charsmap":
            _longest_replacement(value)
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"{key[:80]} is {len(value):,} characters long")
        elif isinstance(value, list) and len(value) > MAX_PARTS:
            raise ValueError(f"{key[:80]} has {len(value):,} parts")
        if key == "Regex" and isinstance(value, str):
            _check_regex(value)


def _check_regex(pattern: str) -> None:
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise ValueError(f"the regular expression {pattern[:80]!r} may take too long: {error}") from error


def _check_copies(parts: list[dict[str, Any]]) -> None:
    """A post-processor may put a text in more than once; each of a chain again."""
    copies = 1
    for part in parts:
        if part.get("type") == "TemplateProcessing":
            lists = [part[key] for key in ("single", "pair") if isinstance(part.get(key), list)]
            copies *= max((str(pieces).count("Sequence") for pieces in lists), default=1) or 1
    if copies > MAX_STEPS:
        raise ValueError("its post_processor repeats a text too often")


def _grown(parts: list[dict[str, Any]]) -> float:
    """The product of what each step can make of one character."""
    factor = 1.0
    for part in parts:
        factor *= _growth(part)
        if factor > MAX_GROWTH:
            raise ValueError("its steps make a text too long")
    return factor


def _growth(part: Mapping[str, Any]) -> float:
    kind = part.get("type")
    if kind == "Replace":
        pattern, content = part.get("pattern"), part.get("content")
        old = pattern.get("String") if isinstance(pattern, dict) else None
        new = len(content) if isinstance(content, str) else 0
        return max(1.0, new / len(old)) if isinstance(old, str) and old else 1.0 + new
    if kind == "Prepend":
        before = part.get("prepend")
        return 1.0 + (len(before) if isinstance(before, str) else 0)
    if kind == "Precompiled":
        return max(1, _longest_replacement(part.get("precompiled_charsmap")))
    return _GROWTH_BY_TYPE.get(kind, 1) if isinstance(kind, str) else 1


def _longest_replacement(charsmap: object) -> int:
    """Bytes of the longest text in SentencePiece's table of characters, which is a trie's size, the trie and texts."""
    if charsmap is None:
        return 1
    if not isinstance(charsmap, str) or len(charsmap) > 2 * MAX_CHARSMAP_BYTES:
        raise ValueError("its precompiled_charsmap is no text of a reasonable length")
    try:
        data = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("its precompiled_charsmap is not base64") from error
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or size > len(data) - 4:
        raise ValueError(f"its precompiled_charsmap of {len(data):,} bytes claims a trie of {size:,} bytes")
    longest = max(map(len, data[4 + size :].split(b"\0")))
    if longest > MAX_REPLACEMENT:
        raise ValueError(f"its precompiled_charsmap replaces a character by {longest:,} bytes")
    return longest
