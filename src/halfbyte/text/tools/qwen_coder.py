"""`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen3-Coder and later Qwen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.literals import KINDS, kinds, referred
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps, ignore

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _END = "<function=", "</function>"
_PARAMETER, _VALUE_END = "<parameter=", "</parameter>"
_PLAIN = (True, False, None)
"""Values that the templates write as Python does."""
_WORDS = {"True": "true", "False": "false", "None": "null"}


class TaggedParameters:
    """Tags for the call, the function and each parameter; strings stand without quotes."""

    keep: tuple[str, ...] = (OPEN, CLOSE)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return _FUNCTION in template_source and _PARAMETER in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """As they are."""
        return list(messages), calls.definitions(tools)

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`. Of strings, `enum` and `const` are enforced."""
        called = chosen(tools, choice)
        rules = ["function: " + " | ".join(f"function_{index}" for index in range(len(called)))]
        for index, tool in enumerate(called):
            rules += _function_rules(index, tool)
        return calls.lark(
            *calls.marked_calls(choice, parallel, OPEN, mark),
            rf'call: "\n{_FUNCTION}" function "{_END}\n" {mark(CLOSE)}',
            *rules,
            rf'free_value[lazy]: /(?s:.*)/ "\n{_VALUE_END}\n"',
            calls.SPACE,
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`; whether a value is a string is told by the tool's schema."""
        table = {tool.name: tool.parameters for tool in tools}
        return ReaderParser(lambda reader: _read(reader, table))


def _function_rules(index: int, tool: Tool) -> list[str]:
    properties = tool.parameters.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = tool.parameters.get("required")
    required = required if isinstance(required, (list, tuple)) else []
    rules, parts = [], []
    for place, (key, schema) in enumerate(properties.items()):
        name = f"parameter_{index}_{place}"
        parts.append(name if key in required else f"{name}?")
        rules.append(f"{name}: {calls.quoted(f'{_PARAMETER}{key}>' + chr(10))} {_value_rule(schema, tool)}")
    head = calls.quoted(f"{tool.name}>\n")
    return [f"function_{index}: {' '.join([head, *parts])}", *rules]


def _value_rule(schema: Any, tool: Tool) -> str:
    """A value and the end of its tag."""
    end = calls.quoted(f"\n{_VALUE_END}\n")
    target = referred(schema, tool.parameters) if isinstance(schema, Mapping) else None
    schema = schema if target is None else target
    values = (
        schema.get("enum", [schema["const"]] if "const" in schema else None) if isinstance(schema, Mapping) else None
    )
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, str) for value in values):
        return "(" + " | ".join(calls.quoted(f"{value}\n{_VALUE_END}\n") for value in values) + ")"
    allowed = kinds(schema, tool.parameters)
    if "string" in allowed:
        return "free_value"
    shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    json_lark = calls.schema_lark({**shared, **schema}, strict=tool.strict)
    given = (
        values
        if isinstance(values, (list, tuple))
        else _PLAIN[:2] * ("boolean" in allowed) + _PLAIN[2:] * ("null" in allowed)
    )
    words = [calls.quoted(str(value)) for value in given if any(value is plain for plain in _PLAIN)]
    return f"({' | '.join([json_lark, *words])}) {end}"


# --- reading


def _read(reader: Reader, tools: Mapping[str, Mapping[str, Any]]) -> Steps[None]:
    while found := (yield from reader.until(reader.text, OPEN, _FUNCTION)):
        yield from reader.skip_space()
        if found == OPEN and not (yield from reader.take(_FUNCTION)):
            reader.give_back()
            continue
        name: list[str] = []
        if not (yield from reader.until(name.append, ">")):
            reader.give_back()
            return
        yield from _read_call(reader, "".join(name).strip(), tools)
        yield from reader.skip_space()
        yield from reader.take(CLOSE)


def _read_call(reader: Reader, name: str, tools: Mapping[str, Mapping[str, Any]]) -> Steps[None]:
    reader.start(name)
    schema = tools.get(name, {})
    properties = schema.get("properties")
    between = "{"
    while (found := (yield from reader.until(ignore, _PARAMETER, _END))) == _PARAMETER:
        key: list[str] = []
        if not (yield from reader.until(key.append, ">")):
            return
        word = "".join(key).strip()
        reader.arguments(f"{between}{json.dumps(word, ensure_ascii=False)}: ")
        between = ", "
        value = properties.get(word) if isinstance(properties, Mapping) else None
        if not (yield from _read_argument(reader, kinds(value, schema) if value is not None else KINDS)):
            return
    if found:
        reader.arguments("{}" if between == "{" else "}")
        reader.end()


def _read_argument(reader: Reader, allowed: frozenset[str]) -> Steps[bool]:
    """One value: a line break after the tag and one before its end are not part of it."""
    yield from reader.take("\n")
    if allowed == {"string"}:
        return (yield from _read_string(reader))
    taken: list[str] = []
    found = yield from reader.until(taken.append, _VALUE_END)
    if found:
        reader.arguments(_json("".join(taken).removesuffix("\n"), allowed))
    return bool(found)


def _read_string(reader: Reader) -> Steps[bool]:
    def escaped(text: str) -> None:
        reader.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    reader.arguments('"')
    while (found := (yield from reader.until(escaped, "\n", _VALUE_END))) == "\n":
        if (yield from reader.take(_VALUE_END)):
            break
        escaped("\n")
    reader.arguments('"' if found else "")
    return bool(found)


def _json(text: str, allowed: frozenset[str]) -> str:
    """A value whose type is not only that of strings."""
    word = _WORDS.get(text.strip(), text.strip())
    try:
        value = json.loads(word)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, str) or (
        "string" in allowed and kinds({"const": value}, {}).isdisjoint(allowed | _also(allowed))
    ):
        return json.dumps(text, ensure_ascii=False)
    return word


def _also(allowed: frozenset[str]) -> frozenset[str]:
    return frozenset({"integer"}) if "number" in allowed else frozenset()


FORMATS = (TaggedParameters(),)
