"""Values in another notation than JSON: Python's, or one with other quotes. Read as JSON, and described for a grammar.

A grammar holds strings to their `enum` and `const`, numbers to all of their schema, and lists and objects to the
schemas of their parts. Patterns, formats and lengths of strings, and counts of items, are left out of account.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Tool
from halfbyte.text.tools.reader import Emit, Reader, Steps

MAX_DEPTH = 32
_SPACE = " \t\r\n"
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
_CODES = {"x": 2, "u": 4, "U": 8}
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}


@dataclass(frozen=True)
class Notation:
    """How values are written.

    Attributes:
        quotes: Delimiters of strings.
        escapes: Whether a backslash in a string begins an escape.
        words: True, false and nothing, each in all ways that it is written.
        bare_keys: Whether keys of objects stand without quotes.
    """

    quotes: tuple[str, ...]
    escapes: bool
    words: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    bare_keys: bool


# --- reading


def read_value(reader: Reader, notation: Notation, emit: Emit, depth: int = 0) -> Steps[bool]:
    """Hands on the value that comes next as JSON; returns whether it was complete."""
    yield from reader.skip_space()
    for quote in notation.quotes:
        if (yield from reader.take(quote)):
            return (yield from _read_string(reader, notation, quote, emit))
    first = yield from reader.peek()
    if first and first in "[({" and depth < MAX_DEPTH:
        return (yield from _read_items(reader, notation, emit, depth))
    word: list[str] = []
    yield from reader.run(lambda character: character not in ",]})=:" and character not in _SPACE, word.append)
    emit(_word("".join(word)))
    return any(word)


def read_members(reader: Reader, notation: Notation, emit: Emit, sign: str, close: str, depth: int = 0) -> Steps[bool]:
    """Hands on members, `key sign value` up to `close`, as a JSON object; returns whether it was complete."""
    between = "{"
    while True:
        yield from reader.skip_space()
        if (yield from reader.take(close)):
            emit("{}" if between == "{" else "}")
            return True
        key = yield from _read_key(reader, notation, sign)
        yield from reader.skip_space()
        if not key or not (yield from reader.take(sign)):
            return False
        emit(f"{between}{json.dumps(key, ensure_ascii=False)}: ")
        if not (yield from read_value(reader, notation, emit, depth + 1)):
            return False
        yield from reader.skip_space()
        yield from reader.take(",")
        between = ", "


def _read_items(reader: Reader, notation: Notation, emit: Emit, depth: int) -> Steps[bool]:
    if (yield from reader.take("{")):
        return (yield from read_members(reader, notation, emit, ":", "}", depth))
    close = "]" if (yield from reader.take("[")) else ")"
    if close == ")":
        yield from reader.take("(")
    between = "["
    while True:
        yield from reader.skip_space()
        if (yield from reader.take(close)):
            emit("[]" if between == "[" else "]")
            return True
        emit(between)
        if not (yield from read_value(reader, notation, emit, depth + 1)):
            return False
        yield from reader.skip_space()
        yield from reader.take(",")
        between = ", "


def _read_key(reader: Reader, notation: Notation, sign: str) -> Steps[str]:
    """A key, quoted or not."""
    key: list[str] = []
    for quote in notation.quotes:
        if (yield from reader.take(quote)):
            complete = yield from _read_string(reader, notation, quote, key.append)
            return str(json.loads("".join(key))) if complete else ""
    yield from reader.run(lambda character: character not in sign + ",]})\n", key.append)
    return "".join(key).strip()


def _read_string(reader: Reader, notation: Notation, quote: str, emit: Emit) -> Steps[bool]:
    """The rest of a string, after its first quote."""

    def escaped(text: str) -> None:
        emit(json.dumps(text, ensure_ascii=False)[1:-1])

    emit('"')
    marks = (quote, "\\") if notation.escapes else (quote,)
    while (found := (yield from reader.until(escaped, *marks))) == "\\":
        character = yield from reader.some(1)
        if character in _CODES:
            yield from _read_code(reader, _CODES[character], emit)
        else:
            escaped(_ESCAPES.get(character, character if character in "\\'\"/" else "\\" + character))
    emit('"' if found else "")
    return bool(found)


def _read_code(reader: Reader, digits: int, emit: Emit) -> Steps[None]:
    """A character by its number; halves of a pair stay as they are, which JSON has too."""
    text = yield from reader.some(digits)
    try:
        code = int(text, 16)
        emit(json.dumps(chr(code))[1:-1] if code > 0xFFFF else f"\\u{code:04x}")
    except (ValueError, OverflowError):
        emit(json.dumps(text, ensure_ascii=False)[1:-1])


def _word(word: str) -> str:
    """A number or a name as JSON; what is neither is a string without quotes."""
    if word in _WORDS:
        return _WORDS[word]
    for kind in (int, float):
        try:
            value = kind(word)
        except ValueError:
            continue
        if math.isfinite(value):
            return json.dumps(value)
    return json.dumps(word, ensure_ascii=False)


def python_literal(value: object) -> str:
    """A JSON value as Python writes it, with strings as in JSON."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{python_literal(key)}: {python_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(python_literal, value)) + "]"
    return repr(value)


def python_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as Python writes it."""
    return f"{name}({', '.join(f'{key}={python_literal(value)}' for key, value in arguments.items())})"


# --- grammar


class Rules:
    """Lark rules for values in a notation.

    Args:
        notation: The notation.
        mark: Gives delimiters as Lark.
        strings: For each kind of quotes, a Lark terminal of a string between them, where they are no special tokens.
    """

    def __init__(self, notation: Notation, mark: Mark, *strings: str) -> None:
        self._notation = notation
        self._quotes = tuple(map(mark, notation.quotes))
        self._lark: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._strings = strings

    def members(self, name: str, tool: Tool, sign: str, between: str) -> None:
        """Adds the rule `name`: a tool's arguments, optional ones left out or not, in the order of its schema."""
        schema = tool.parameters
        self._lark[name] = self._object(schema, schema, sign, between, name)

    def lark(self) -> list[str]:
        """All rules so far."""
        terminals = [f"STRING_{place}: {string}" for place, string in enumerate(self._strings)]
        numbers = ["INTEGER: /-?(0|[1-9][0-9]*)/", r"NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/"]
        return [*(f"{name}: {body}" for name, body in self._lark.items()), *terminals, *numbers]

    def _value(self, schema: Any, root: Mapping[str, Any]) -> str:
        """The name of a rule for values of a schema; the same schema has one rule, also inside itself."""
        key = json.dumps(schema, sort_keys=True, default=str)
        if key not in self._names:
            name = self._names[key] = f"value_{len(self._names)}"
            self._lark[name] = ""
            self._lark[name] = self._body(schema, root, name)
        return self._names[key]

    def _body(self, schema: Any, root: Mapping[str, Any], name: str) -> str:
        if not isinstance(schema, Mapping):
            schema = {}
        target = referred(schema, root)
        if target is not None:
            return self._value(target, root)
        if "const" in schema or isinstance(schema.get("enum"), (list, tuple)):
            return " | ".join(self._literal(value) for value in schema.get("enum", [schema.get("const")])) or '""'
        options = next((schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), (list, tuple))), None)
        if options:
            return " | ".join(self._value(option, root) for option in options)
        return " | ".join(self._of_kind(kind, schema, root, name) for kind in sorted(kinds(schema, root)))

    def _of_kind(self, kind: str, schema: Mapping[str, Any], root: Mapping[str, Any], name: str) -> str:
        match kind:
            case "string":
                return self._string
            case "integer" | "number":
                limits = {key: schema[key] for key in _LIMITS if isinstance(schema.get(key), (int, float))}
                return calls.schema_lark({"type": kind, **limits}) if limits else kind.upper()
            case "boolean":
                return " | ".join(map(self._literal, (True, False)))
            case "null":
                return self._literal(None)
            case "array":
                item = self._value(schema.get("items", {}), root)
                few = schema.get("minItems")
                items = f'{item} ("," " "? {item})*'
                return f'"[" {items} "]"' if isinstance(few, int) and few > 0 else f'"[" ({items})? "]"'
            case _:
                between = "," if self._notation.bare_keys else ", "
                return f'"{{" {self._object(schema, root, ":", between, name)} "}}"'

    def _object(self, schema: Mapping[str, Any], root: Mapping[str, Any], sign: str, between: str, name: str) -> str:
        """Members in the schema's order; any members where it names none, but for arguments."""
        properties, required, extra = (schema.get(key) for key in ("properties", "required", "additionalProperties"))
        if isinstance(properties, Mapping) and properties:
            needed = set(required) if isinstance(required, (list, tuple)) else set()
            members = [
                (f"{self._key(key, sign)} {self._value(value, root)}", key in needed)
                for key, value in properties.items()
            ]
            for place in range(len(members)):
                self._chain(name, place, members, between)
            return f"{name}_first_0"
        if extra is False or schema is root:
            return '""'
        member = f"{self._key(None, sign)} {self._value(extra, root)}"
        return f'({member} ("," " "? {member})*)?'

    def _chain(self, name: str, place: int, members: Sequence[tuple[str, bool]], between: str) -> None:
        """Rules for the members from a place on: `first` where none stands before, `rest` where one does."""
        member, needed = members[place]
        is_last = place + 1 == len(members)
        comma = " ".join(f"{calls.quoted(part)}{'?' if part == ' ' else ''}" for part in between)
        rest = "" if is_last else f" {name}_rest_{place + 1}"
        for kind, before in (("first", ""), ("rest", f"{comma} ")):
            skipped = '""' if is_last else f"{name}_{kind}_{place + 1}"
            self._lark[f"{name}_{kind}_{place}"] = before + member + rest + ("" if needed else f" | {skipped}")

    def _key(self, key: str | None, sign: str) -> str:
        """A key, any if it is None, and what comes between it and its value."""
        if self._notation.bare_keys or sign == "=":
            return f"{'NAME' if key is None else calls.quoted(key)} {calls.quoted(sign)}"
        return f'({self._string if key is None else self._literal(key)}) {calls.quoted(sign)} " "?'

    @property
    def _string(self) -> str:
        return " | ".join(f"{mark} STRING_{place}? {mark}" for place, mark in enumerate(self._quotes))

    def _escaped(self, text: str, quote: str) -> str:
        """A text as it stands between quotes."""
        if not self._notation.escapes:
            return text
        inner = json.dumps(text, ensure_ascii=False)[1:-1]
        return inner if quote == '"' else inner.replace('\\"', '"').replace(quote, "\\" + quote)

    def _literal(self, value: object) -> str:
        if isinstance(value, bool) or value is None:
            words = self._notation.words[(True, False, None).index(value)]
            return " | ".join(map(calls.quoted, words))
        if isinstance(value, str):
            return " | ".join(
                f"{mark} {calls.quoted(inner)} {mark}" if (inner := self._escaped(value, quote)) else f"{mark} {mark}"
                for quote, mark in zip(self._notation.quotes, self._quotes, strict=True)
            )
        return calls.quoted(json.dumps(value, ensure_ascii=False))


_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
KINDS = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})


def kinds(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The types that a schema allows, all where it names none."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return KINDS
    target = referred(schema, root)
    if target is not None:
        return kinds(target, root, depth + 1)
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, (list, tuple)):
        return frozenset(_kind(value) for value in values)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), (list, tuple)):
            return frozenset().union(*(kinds(option, root, depth + 1) for option in schema[key]))
    kind = schema.get("type")
    named = [kind] if isinstance(kind, str) else kind if isinstance(kind, (list, tuple)) else []
    found = KINDS.intersection(name for name in named if isinstance(name, str))
    if not found and "properties" in schema:
        return frozenset({"object"})
    return found or KINDS


def referred(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """What a reference inside the same schema points to; None where there is none, or it points nowhere."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: Any = root
    for step in reference[2:].split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, (list, tuple)) else "object"
