"""`{"name": …, "parameters": …}` as the whole answer, perhaps after `<|python_tag|>`: Llama 3.1 to 3.3."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps

TAG = "<|python_tag|>"


class BareJson:
    """One JSON object that is the answer."""

    keep = (TAG,)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return "<|start_header_id|>" in template_source and '"parameters": ' in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """One call in each message, for the templates know no more: its result follows it."""
        return [part for index in range(len(messages)) for part in _split(messages, index)], calls.definitions(tools)

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`; one call, whatever `parallel` says. Text that begins as a call of a tool becomes one."""
        called = chosen(tools, choice)
        rules = calls.json_call_rules(called, "parameters")
        tag = mark(TAG)
        tagged = f"{tag} json_call" if tag.startswith("<") else ""
        if choice != "auto":
            return calls.lark(f"start: json_call{' | ' * bool(tagged)}{tagged}", *rules)
        begun = [f"begun_{index}" for index in range(len(called))]
        ways = [*([tagged] if tagged else []), *begun, "TEXT?"]
        for index, tool in enumerate(called):
            name = re.escape(tool.name).replace("/", r"\/")
            rules.append(rf'lead_{index}[lazy]: /\s*\{{\s*"name"\s*:\s*"{name}"/')
            rest = " SPACE? ".join(map(calls.quoted, (",", calls.quoted("parameters"), ":")))
            rules.append(f'begun_{index}: lead_{index} SPACE? {rest} SPACE? arguments_{index} SPACE? "}}"')
        return calls.lark("start: " + " | ".join(ways), *rules, calls.TEXT)

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`; an object that calls none of the tools is text."""
        names = frozenset(tool.name for tool in tools)
        return ReaderParser(lambda reader: _read(reader, names))


def _read(reader: Reader, names: frozenset[str]) -> Steps[None]:
    yield from reader.run(str.isspace, reader.text)
    reader.remember()
    yield from reader.take(TAG)
    while True:
        yield from reader.skip_space()
        if (yield from reader.peek()) != "{" or not (yield from calls.read_json_call(reader, names)):
            break
        yield from reader.skip_space()
        yield from reader.take(";")
    reader.give_back()


def _split(messages: Sequence[Message], index: int) -> list[Message]:
    """A message in as many as it has calls, each followed by its result."""
    message = messages[index]
    before = _calls_before(messages, index) if message["role"] == "tool" else []
    if len(before) > 1 and message.get("tool_call_id") in before:
        return []
    made = calls.calls_of(message)
    if len(made) < 2:
        return [message]
    results = {}
    for result in messages[index + 1 :]:
        if result["role"] != "tool":
            break
        results[result.get("tool_call_id")] = result
    parts: list[Message] = []
    for call in made:
        parts.append({**message, "tool_calls": [call]})
        parts += [results[call.get("id")]] if call.get("id") in results else []
    return parts


def _calls_before(messages: Sequence[Message], index: int) -> list[Any]:
    """Ids of the calls whose results a message is among."""
    while index > 0 and messages[index]["role"] == "tool":
        index -= 1
    return [call.get("id") for call in calls.calls_of(messages[index])]


FORMATS = (BareJson(),)
