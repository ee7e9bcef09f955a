"""Calls written as JSON, `{"name": …, "arguments": …}`: their grammar and how they are read; what formats build on."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from halfbyte.text.grammar import WHITE_SPACE
from halfbyte.text.marking import Written
from halfbyte.text.tools.events import Mark, Message, Tool
from halfbyte.text.tools.reader import Reader, Steps

_ARGUMENTS = ("arguments", "parameters")
_ASIDE = ("type", "id")
"""Keys that may stand before the name."""

SPACE = "SPACE: /[ \\t\\r\\n]{1,8}/"
TEXT = "TEXT: /(?s:.+)/"


# --- grammar


def schema_lark(schema: Mapping[str, Any], *, strict: bool = False) -> str:
    """A JSON schema as part of a Lark rule."""
    options = {"whitespace_pattern": WHITE_SPACE, "lenient": not strict}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def quoted(text: str) -> str:
    """Characters as part of a Lark rule."""
    return json.dumps(text, ensure_ascii=False)


def json_call_rules(tools: Sequence[Tool], arguments: str) -> list[str]:
    """Rules of which `json_call` is one call.

    Args:
        tools: Those that may be called.
        arguments: The key before the arguments.
    """
    rules = ["json_call: " + " | ".join(f"json_call_{index}" for index in range(len(tools)))]
    for index, tool in enumerate(tools):
        parts = ["{", quoted("name"), ":", quoted(tool.name), ",", quoted(arguments), ":"]
        head = " SPACE? ".join(map(quoted, parts))
        rules.append(f'json_call_{index}: {head} SPACE? arguments_{index} SPACE? "}}"')
        rules.append(f"arguments_{index}: {schema_lark(tool.parameters, strict=tool.strict)}")
    return [*rules, SPACE]


def marked_calls(choice: str, parallel: bool, opening: str, mark: Mark) -> list[str]:
    """Rules of answers whose calls each begin with a delimiter; the rule `call` is what follows it.

    Where the delimiter is a special token, text has none of it; else text ends where it is first spelt.
    """
    begin = mark(opening)
    if choice != "auto":
        return [f"start: {begin} call" + (f" (SPACE? {begin} call)*" if parallel else "")]
    if begin.startswith("<"):
        return ["start: TEXT? " + (f"({begin} call TEXT?)*" if parallel else f"({begin} call)?"), TEXT]
    lead = f"lead[lazy]: /(?s:.*)/ {begin}"
    return ["start: (lead call)* TEXT?" if parallel else "start: TEXT? | lead call", lead, TEXT]


def json_list_rules(parallel: bool) -> str:
    """The rule `json_calls`: calls in a JSON list."""
    more = ' (SPACE? "," SPACE? json_call)*' if parallel else ""
    return f'json_calls: "[" SPACE? json_call{more} SPACE? "]"'


def lark(*rules: str) -> str:
    """A grammar of these rules, each once."""
    return "\n".join(dict.fromkeys(rules)) + "\n"


# --- reading


def read_json_call(reader: Reader, names: Collection[str] | None = None) -> Steps[bool]:
    """Reads one call, whose end it tells; returns whether there was one.

    What proves to be none before its name is known is given back as text, with what the reader remembers.

    Args:
        names: Names that make it a call; any by default.
    """
    started = yield from _read_members(reader, names)
    if started:
        reader.remember()
    else:
        reader.give_back()
    return started


def read_json_calls(reader: Reader) -> Steps[None]:
    """Reads one call, or a list of calls."""
    yield from reader.skip_space()
    if not (yield from reader.take("[")):
        yield from read_json_call(reader)
        return
    while True:
        yield from reader.skip_space()
        if not (yield from read_json_call(reader)):
            return
        yield from reader.skip_space()
        if not (yield from reader.take(",")):
            yield from reader.take("]")
            return


def _read_members(reader: Reader, names: Collection[str] | None) -> Steps[bool]:
    """Reads a call's object; returns whether a call was told of."""
    started, written = False, False
    early: list[str] = []
    if not (yield from reader.take("{")):
        return False
    while True:
        yield from reader.skip_space()
        key = yield from reader.json_string()
        yield from reader.skip_space()
        if key is None or not (yield from reader.take(":")):
            return started
        yield from reader.skip_space()
        if key == "name" and not started:
            name = yield from reader.json_string()
            if name is None or (names is not None and name not in names):
                return False
            reader.start(name)
            started = True
            if early:
                reader.arguments(_object("".join(early)))
                written = True
        elif key in _ARGUMENTS and started and not written:
            written = True
            if not (yield from _pass_arguments(reader)):
                return True
        elif key in _ARGUMENTS and not early:
            if not (yield from reader.json_value(early.append)):
                return False
        elif started or key in _ASIDE:
            yield from reader.json_value(lambda piece: None)
        else:
            return False
        yield from reader.skip_space()
        if (yield from reader.take("}")):
            if started:
                reader.arguments("" if written else "{}")
                reader.end()
            return started
        if not (yield from reader.take(",")):
            return started


def _pass_arguments(reader: Reader) -> Steps[bool]:
    """Hands on arguments as they come; those that are no object, once they are whole."""
    if (yield from reader.peek()) == "{":
        return (yield from reader.json_value(reader.arguments))
    taken: list[str] = []
    complete = yield from reader.json_value(taken.append)
    reader.arguments(_object("".join(taken)))
    return complete


def _object(text: str) -> str:
    """Arguments as a JSON object: some models write one as a string, or null for none."""
    try:
        value = json.loads(text)
        if isinstance(value, str):
            value = json.loads(value)
    except (ValueError, RecursionError):
        return "{}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else "{}"


# --- conversations


def definitions(tools: Sequence[Tool]) -> list[Mapping[str, Any]] | None:
    """Tools as most chat templates take them."""
    return [tool.definition for tool in tools] or None


def calls_of(message: Message) -> list[Mapping[str, Any]]:
    """The calls in a message of a conversation: `{"id": …, "function": {"name": …, "arguments": …}}`."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, (list, tuple)) else []


def function_of(call: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A call's name, and its arguments as an object."""
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = json.loads(_object(arguments))
    return str(function.get("name", "")), dict(arguments) if isinstance(arguments, Mapping) else {}


def written(message: Message, *pieces: tuple[str, bool]) -> Message:
    """A message whose calls stand in its text, for templates that do not write them; see `Written`."""
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": Written((text_of(message), False), *pieces)}


def json_list(message: Message) -> str:
    """A message's calls as a JSON list."""
    made = [function_of(call) for call in calls_of(message)]
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in made], ensure_ascii=False)


def text_of(message: Message) -> str:
    """A message's content as text."""
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""
