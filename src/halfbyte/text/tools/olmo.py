"""`<function_calls>name(key="value")</function_calls>`: OLMo 3, whose calls are Python's, each in a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.lfm import PYTHON, STRINGS, read_python
from halfbyte.text.tools.literals import Rules, python_call
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps

OPEN, CLOSE = "<function_calls>", "</function_calls>"
_CALLS = "tool_calls"
"""What templates have that write calls from where other templates look for them."""


class Lines:
    """A line for each call between tags."""

    keep: tuple[str, ...] = (OPEN, CLOSE)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return OPEN in template_source and _CALLS in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """As they are."""
        return list(messages), calls.definitions(tools)

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`."""
        called = chosen(tools, choice)
        rules = Rules(PYTHON, mark, *STRINGS)
        for index, tool in enumerate(called):
            rules.members(f"arguments_{index}", tool, "=", ", ")
        one = [f'call_{i}: {calls.quoted(tool.name + "(")} arguments_{i} ")"' for i, tool in enumerate(called)]
        more = r' ("\n" python_call)*' if parallel else ""
        return calls.lark(
            *calls.marked_calls(choice, False, OPEN, mark),
            f"call: SPACE? python_call{more} SPACE? {mark(CLOSE)}",
            "python_call: " + " | ".join(f"call_{index}" for index in range(len(called))),
            *one,
            *rules.lark(),
            calls.SPACE,
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`."""
        return ReaderParser(_read)


class Keys(Lines):
    """The same where the template wants tools and calls as text, under keys of its own."""

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return OPEN in template_source and _CALLS not in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With tools in the system message, calls as text, and results from the environment."""
        given = [_with_keys(message) for message in messages]
        if not tools:
            return given, None
        functions = json.dumps([tool.definition for tool in tools], ensure_ascii=False)
        if not given or given[0]["role"] != "system":
            given.insert(0, {"role": "system", "content": _SYSTEM})
        return [{**given[0], "functions": functions}, *given[1:]], None


_SYSTEM = (
    "You are a helpful function-calling AI assistant. You are provided with function signatures within "
    "<functions></functions> XML tags. You may call one or more functions to assist with the user query. Output any "
    "function calls within <function_calls></function_calls> XML tags. Do not make assumptions about what values to "
    "plug into functions."
)


def _read(reader: Reader) -> Steps[None]:
    while (yield from reader.until(reader.text, OPEN)):
        yield from reader.skip_space()
        if (yield from read_python(reader)):
            yield from reader.take(CLOSE)


def _with_keys(message: Message) -> Message:
    if message["role"] == "tool":
        return {**message, "role": "environment"}
    made = [python_call(*calls.function_of(call)) for call in calls.calls_of(message)]
    if not made:
        return message
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "function_calls": "\n".join(made)}


FORMATS = (Lines(), Keys())
