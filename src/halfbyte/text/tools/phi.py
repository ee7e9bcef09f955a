"""`<|tool_call|>[{"name": …, "arguments": …}]<|/tool_call|>`: Phi-4-mini."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"


class DelimitedList:
    """All calls in one JSON list between delimiters."""

    keep = (OPEN, CLOSE)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return "<|tool|>" in template_source and "<|/tool|>" in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """The model's own template has tools as a text in the system message, and calls as the model writes them."""
        given = [_written(message) for message in messages]
        if not tools:
            return given, None
        functions = [tool.definition["function"] for tool in tools]
        if not given or given[0]["role"] != "system":
            given.insert(0, {"role": "system", "content": ""})
        given[0] = {**given[0], "content": calls.text_of(given[0]), "tools": json.dumps(functions, ensure_ascii=False)}
        return given, None

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`."""
        return calls.lark(
            *calls.marked_calls(choice, False, OPEN, mark),
            f"call: SPACE? json_calls SPACE? {mark(CLOSE)}",
            calls.json_list_rules(parallel),
            *calls.json_call_rules(chosen(tools, choice), "arguments"),
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`."""
        return ReaderParser(_read)


def _read(reader: Reader) -> Steps[None]:
    while (yield from reader.until(reader.text, OPEN)):
        yield from calls.read_json_calls(reader)
        yield from reader.skip_space()
        yield from reader.take(CLOSE)


def _written(message: Message) -> Message:
    """A message with its calls in its text."""
    if not calls.calls_of(message):
        return message
    return calls.written(message, (OPEN, True), (calls.json_list(message), False), (CLOSE, True))


FORMATS = (DelimitedList(),)
