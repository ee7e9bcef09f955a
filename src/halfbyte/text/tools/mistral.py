"""`[TOOL_CALLS]name[ARGS]{…}`, or `[TOOL_CALLS] [{"name": …, "arguments": …}]` in older ones: Mistral's models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps, ignore

OPEN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_ID = re.compile("[0-9A-Za-z]{9}")


class JsonList:
    """All calls in one JSON list."""

    keep: tuple[str, ...] = (OPEN, ARGS, CALL_ID)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return OPEN in template_source and ARGS not in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With ids of nine letters and digits, which is what the templates insist on."""
        return [_with_ids(message) for message in messages], calls.definitions(tools)

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`."""
        return calls.lark(
            *calls.marked_calls(choice, False, OPEN, mark),
            "call: SPACE? json_calls",
            calls.json_list_rules(parallel),
            *calls.json_call_rules(chosen(tools, choice), "arguments"),
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`; reads both forms."""
        return ReaderParser(_read)


class NamedArguments(JsonList):
    """A name and a JSON object for each call."""

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return OPEN in template_source and ARGS in template_source

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`."""
        called = chosen(tools, choice)
        rules = ["call: " + " | ".join(f"call_{index}" for index in range(len(called)))]
        rules.append(f"id: {mark(CALL_ID)} /[0-9A-Za-z]{{9}}/")
        for index, tool in enumerate(called):
            rules.append(f"call_{index}: {calls.quoted(tool.name)} id? {mark(ARGS)} arguments_{index}")
            rules.append(f"arguments_{index}: {calls.schema_lark(tool.parameters, strict=tool.strict)}")
        return calls.lark(*calls.marked_calls(choice, parallel, OPEN, mark), *rules, calls.SPACE)


def _read(reader: Reader) -> Steps[None]:
    while (yield from reader.until(reader.text, OPEN)):
        yield from reader.skip_space()
        if (yield from reader.peek()) in ("[", "{"):
            yield from calls.read_json_calls(reader)
        else:
            yield from _read_named(reader)


def _read_named(reader: Reader) -> Steps[None]:
    """A name, perhaps an id, and arguments."""
    name: list[str] = []
    yield from reader.run(lambda character: character not in "[{ \t\r\n", name.append)
    if (yield from reader.take(CALL_ID)):
        yield from reader.run(lambda character: character not in "[{", ignore)
    yield from reader.skip_space()
    yield from reader.take(ARGS)
    yield from reader.skip_space()
    if not any(name) or (yield from reader.peek()) != "{":
        reader.give_back()
        return
    reader.start("".join(name))
    if (yield from reader.json_value(reader.arguments)):
        reader.end()


def _with_ids(message: Message) -> Message:
    changed = dict(message)
    made = calls.calls_of(message)
    if made:
        changed["tool_calls"] = [{**call, "id": _short(str(call.get("id", index)))} for index, call in enumerate(made)]
    if "tool_call_id" in message:
        changed["tool_call_id"] = _short(str(message["tool_call_id"]))
    return changed


def _short(call_id: str) -> str:
    """An id of nine letters and digits, the same for the same one."""
    return call_id if _ID.fullmatch(call_id) else hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:9]


FORMATS = (JsonList(), NamedArguments())
