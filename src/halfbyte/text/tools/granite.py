"""`<|tool_call|>[{"name": …, "arguments": …}]` to the end of the answer: Granite 3.0 to 3.3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps

OPEN = "<|tool_call|>"
_CALL_ROLE, _RESULT_ROLE = "assistant_tool_call", "tool_response"


class OpenList:
    """All calls in one JSON list, which nothing closes; the templates do not write those of earlier turns."""

    keep: tuple[str, ...] = (OPEN,)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return _is_granite(template_source) and _CALL_ROLE not in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With calls in the text."""
        return [_written(message) for message in messages], calls.definitions(tools)

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`."""
        return calls.lark(
            *calls.marked_calls(choice, False, OPEN, mark),
            "call: SPACE? json_calls",
            calls.json_list_rules(parallel),
            *calls.json_call_rules(chosen(tools, choice), "arguments"),
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`."""
        return ReaderParser(_read)


class Roles(OpenList):
    """The same with roles of their own for calls and results: Granite 3.0."""

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return _is_granite(template_source) and _CALL_ROLE in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With calls and results in the roles that the template knows; what is said with a call goes before it."""
        return [part for message in messages for part in _in_roles(message)], calls.definitions(tools)


def _read(reader: Reader) -> Steps[None]:
    while (yield from reader.until(reader.text, OPEN)):
        yield from calls.read_json_calls(reader)


def _is_granite(template_source: str) -> bool:
    return OPEN in template_source and "<|start_of_role|>" in template_source


def _written(message: Message) -> Message:
    if not calls.calls_of(message):
        return message
    return calls.written(message, (OPEN, True), (calls.json_list(message), False))


def _in_roles(message: Message) -> list[Message]:
    if message["role"] == "tool":
        return [{**message, "role": _RESULT_ROLE}]
    if not calls.calls_of(message):
        return [message]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    said = [kept] if calls.text_of(message) else []
    return [*said, {**kept, "role": _CALL_ROLE, "content": calls.json_list(message)}]


FORMATS = (OpenList(), Roles())
