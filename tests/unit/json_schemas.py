"""JSON schemas of the kinds that JSONSchemaBench has: every keyword that is enforced, alone and together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

Schema = dict[str, Any]

STRING, INTEGER, NUMBER, BOOLEAN, NULL = ({"type": kind} for kind in ("string", "integer", "number", "boolean", "null"))
SCALARS = (STRING, INTEGER, NUMBER, BOOLEAN, NULL)
FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
PATTERNS = (
    "^[a-z]+$", "^[A-Z]{2}-[0-9]{4}$", "^(red|green|blue)$", "^#[0-9a-fA-F]{6}$", "[0-9]", "^x", "y$", r"^\d{3}-\d{4}$",
    "^[^aeiou]{3,5}$", "^é+$", "^$", r"^\w+(\.\w+)*$",
)  # fmt: skip
NAMES = (
    "a",
    "first name",
    "größe",
    "名前",
    "emoji 🦙",
    'quo"te',
    "back\\slash",
    "tab\t",
    "a/b",
    "$ref2",
    "constructor",
)
BOUNDS = (
    {"minimum": 0}, {"maximum": -3}, {"minimum": 1, "maximum": 10}, {"exclusiveMinimum": 5}, {"exclusiveMaximum": 100},
    {"exclusiveMinimum": -20, "exclusiveMaximum": -10}, {"minimum": 98, "maximum": 1203}, {"minimum": 7, "maximum": 7},
    {"multipleOf": 5}, {"minimum": 10, "maximum": 50, "multipleOf": 4},
)  # fmt: skip
ENUMS = (
    ["a"], ["a", "b", "c"], ["yes", "no", None], [1, 2, 3], [1.5, -2], [True, False], ["", " "], [[1], [2, 3]],
    [{"k": 1}, {"k": 2}], ["schön", "日本", "🦙"], ['"', "\\", "\n"], [0, "0", False, None, [], {}],
)  # fmt: skip


def closed(required: int | None = None, **properties: Any) -> Schema:
    """An object with these properties and no others; the first `required` of them are, all by default."""
    names = list(properties)
    return {
        "type": "object", "properties": properties, "required": names[:required], "additionalProperties": False,
    }  # fmt: skip


def schemas() -> Iterator[Schema]:
    """More than 200 schemas, in a fixed order."""
    yield {"type": "object"}
    yield from SCALARS
    yield from ({"type": list(pair)} for pair in (("string", "null"), ("integer", "boolean"), ("array", "string")))
    yield from ({"enum": values} for values in ENUMS)
    yield from ({"const": values[-1]} for values in ENUMS)
    yield from ({"type": kind, **bounds} for kind, bounds in product(("integer", "number"), BOUNDS))
    yield from ({"type": "string", "format": name} for name in FORMATS)
    yield from ({"type": "string", "pattern": pattern} for pattern in PATTERNS)
    yield from ({"type": "string", "minLength": low, "maxLength": low + 4} for low in (0, 1, 7))
    yield {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 5}
    yield from _arrays()
    yield from _objects()
    yield from _joined()
    yield from _references()
    yield from _records()


def _arrays() -> Iterator[Schema]:
    yield from ({"type": "array", "items": item} for item in SCALARS)
    for low, high in ((0, 0), (0, 1), (1, 1), (2, 4), (3, None)):
        bounds = {"minItems": low} | ({} if high is None else {"maxItems": high})
        yield from ({"type": "array", "items": item, **bounds} for item in (INTEGER, {"enum": ["x", "y"]}, STRING))
    yield {"type": "array", "prefixItems": [INTEGER, STRING], "items": False, "minItems": 2}
    yield {"type": "array", "prefixItems": [INTEGER, BOOLEAN], "items": STRING}
    yield {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": BOOLEAN, "maxItems": 2}}}


def _objects() -> Iterator[Schema]:
    yield from (closed(**{name: STRING}) for name in NAMES)
    yield closed(**dict.fromkeys(NAMES, BOOLEAN))
    yield from (closed(required, a=INTEGER, b=STRING, c=BOOLEAN) for required in range(4))
    yield from ({"type": "object", "additionalProperties": item, "maxProperties": 4} for item in SCALARS)
    yield {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": STRING}
    yield {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}
    yield {"type": "object", "required": ["x", "y"], "additionalProperties": NUMBER}
    yield {"type": "object", "patternProperties": {"^n_": NUMBER, "^s_": STRING}, "additionalProperties": False}
    yield {"type": "object", "additionalProperties": BOOLEAN, "minProperties": 1, "maxProperties": 3}
    yield {"properties": {"a": INTEGER}}
    deep: Schema = closed(leaf=INTEGER)
    for name in "edcba":
        deep = closed(**{name: deep})
        yield deep


def _joined() -> Iterator[Schema]:
    yield from ({"anyOf": [left, right]} for left, right in pairwise(SCALARS))
    yield {"anyOf": [closed(kind={"const": "circle"}, r=NUMBER), closed(kind={"const": "box"}, w=NUMBER, h=NUMBER)]}
    yield {"oneOf": [closed(kind={"const": "circle"}, r=NUMBER), closed(kind={"const": "box"}, w=NUMBER)]}
    yield {"anyOf": [{"type": "array", "items": INTEGER}, closed(a=STRING), NULL]}
    yield {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}]}
    yield {"allOf": [{"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}, {"required": ["b"]}]}
    yield {"type": "object", "properties": {"a": {"anyOf": [INTEGER, NULL]}}, "required": ["a"]}
    yield closed(a={"type": ["integer", "null"]}, b={"type": "array", "items": {"anyOf": [STRING, BOOLEAN]}})


def _references() -> Iterator[Schema]:
    for place in ("$defs", "definitions"):
        yield {**closed(a={"$ref": f"#/{place}/n"}, b={"$ref": f"#/{place}/n"}), place: {"n": {"enum": [1, 2]}}}
        tree = closed(1, value=INTEGER, children={"type": "array", "items": {"$ref": f"#/{place}/tree"}, "maxItems": 2})
        yield {"$ref": f"#/{place}/tree", place: {"tree": tree}}
    yield closed(1, name=STRING, next={"anyOf": [{"$ref": "#"}, NULL]})
    yield {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "string", "maxLength": 3}}, "$ref": "#/$defs/a"}
    yield {"type": "array", "items": {"$ref": "#/$defs/gr%C3%B6%C3%9Fe"}, "$defs": {"größe": {"enum": ["S", "M"]}}}


def _records() -> Iterator[Schema]:
    """What applications ask for."""
    size = {"enum": ["S", "M", "L"]}
    money = {"type": "number", "minimum": 0, "maximum": 9999}
    item = closed(
        2, sku={"type": "string", "pattern": "^[A-Z]{3}[0-9]{3}$"}, count={**INTEGER, "minimum": 1}, size=size
    )
    yield closed(item=item, paid=BOOLEAN)
    yield closed(items={"type": "array", "items": item, "minItems": 1, "maxItems": 3}, total=money)
    yield closed(1, name={**STRING, "minLength": 1}, email={**STRING, "format": "email"}, age={**INTEGER, "minimum": 0})
    note = {"type": ["string", "null"]}
    yield closed(when={**STRING, "format": "date-time"}, where=closed(lat=NUMBER, lon=NUMBER), note=note)
    yield closed(steps={"type": "array", "items": closed(thought=STRING, result=STRING), "maxItems": 3}, answer=STRING)
    yield closed(label={"enum": ["positive", "negative", "neutral"]}, confidence={**NUMBER, "minimum": 0, "maximum": 1})
    for count in (1, 5, 20, 60):
        yield closed(**{f"field_{index}": SCALARS[index % 5] for index in range(count)})
        yield closed(0, **{f"option_{index}": BOOLEAN for index in range(count)})
    for count in (10, 100, 500):
        yield {"enum": [f"value {index}" for index in range(count)]}
    for scalar, low in product(SCALARS, (0, 2)):
        yield closed(a={"type": "array", "items": scalar, "minItems": low, "maxItems": 3}, b={"enum": ["x", "é"]})
    for name, scalar in product(NAMES[:5], SCALARS):
        yield {"type": "array", "items": closed(**{name: scalar}), "maxItems": 2}
