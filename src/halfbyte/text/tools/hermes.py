"""`<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen 2.5 and 3, and models that follow them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps, ignore

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_OTHERS = ("<function=", "<arg_key>", "<tool_sep>")
"""What templates of other formats with the same delimiters have."""

_CALLS = "tool_calls"
"""What templates have that write the calls of earlier turns."""


class TaggedJson:
    """One JSON object between tags for each call."""

    keep: tuple[str, ...] = (OPEN, CLOSE)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return _is_tagged(template_source) and _CALLS in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """As they are."""
        return list(messages), calls.definitions(tools)

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`."""
        return calls.lark(
            *calls.marked_calls(choice, parallel, OPEN, mark),
            f"call: SPACE? json_call SPACE? {mark(CLOSE)}",
            *calls.json_call_rules(chosen(tools, choice), "arguments"),
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`."""
        return ReaderParser(read)


class UnwrittenTaggedJson(TaggedJson):
    """The same where the template asks for calls and does not write those of earlier turns: SmolLM3."""

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return _is_tagged(template_source) and _CALLS not in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With calls as text."""
        return [_written(message) for message in messages], calls.definitions(tools)


def _is_tagged(template_source: str) -> bool:
    return OPEN in template_source and not any(other in template_source for other in _OTHERS)


def _written(message: Message) -> Message:
    made = [calls.function_of(call) for call in calls.calls_of(message)]
    if not made:
        return message
    pieces: list[tuple[str, bool]] = []
    for name, arguments in made:
        text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        pieces += [("\n" if pieces or calls.text_of(message) else "", False), (OPEN, True)]
        pieces += [(f"\n{text}\n", False), (CLOSE, True)]
    return calls.written(message, *pieces)


def read(reader: Reader) -> Steps[None]:
    """Text and calls between tags."""
    while (yield from reader.until(reader.text, OPEN)):
        yield from reader.skip_space()
        if (yield from calls.read_json_call(reader)):
            yield from reader.until(ignore, CLOSE)


FORMATS = (TaggedJson(), UnwrittenTaggedJson())
