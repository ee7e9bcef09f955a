"""Calls by prompt, for chat templates that know no tools: a text describes the tools and asks for JSON between tags."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Message, Tool
from halfbyte.text.tools.hermes import CLOSE, OPEN, TaggedJson

_RESULT, _RESULT_END = "<tool_response>", "</tool_response>"


class Prompted(TaggedJson):
    """One JSON object between tags for each call, as a text at the start of the conversation asks for."""

    keep = (OPEN, CLOSE)

    def matches(self, template_source: str) -> bool:
        """For no template: it is what is left where no other format matches."""
        return False

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With tools, calls and results as text; results are the user's, and turns still alternate."""
        given: list[Message] = []
        for message in map(_written, messages):
            if (
                given
                and message["role"] == "user" == given[-1]["role"]
                and (_is_result(message) or _is_result(given[-1]))
            ):
                given[-1] = {**given[-1], "content": _joined(given[-1], message)}
            else:
                given.append(message)
        return (_with_tools(given, description(tools)) if tools else given), None


def description(tools: Sequence[Tool]) -> str:
    """What a model is told of its tools."""
    functions = [json.dumps(tool.definition["function"], ensure_ascii=False) for tool in tools]
    example = json.dumps({"name": "NAME", "arguments": {"KEY": "VALUE"}})
    return "\n".join((
        "You can call functions. These are they, each with a JSON schema of its arguments:",
        *functions,
        "",
        "When a function helps with what is asked, do not answer yet, but write its call and nothing else:",
        OPEN, example, CLOSE,
        f"Then stop. Its result comes in the next message, between {_RESULT} and {_RESULT_END}. "
        "Write one such block for each call. Without need of a function, answer as usual.",
    ))  # fmt: skip


def _written(message: Message) -> Message:
    """A message whose calls or results are text."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"{_RESULT}\n{calls.text_of(message)}\n{_RESULT_END}"}
    made = [calls.function_of(call) for call in calls.calls_of(message)]
    if not made:
        return message
    blocks = [
        f"{OPEN}\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n{CLOSE}"
        for name, arguments in made
    ]
    text = "\n".join([text for text in (calls.text_of(message),) if text] + blocks)
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": text}


def _is_result(message: Message) -> bool:
    return calls.text_of(message).startswith(_RESULT)


def _with_tools(messages: list[Message], text: str) -> list[Message]:
    """The text in the system message if there is one, else before the user's first."""
    for place, message in enumerate(messages):
        if message["role"] in ("system", "developer", "user"):
            told = {"content": text}
            parts = (told, message) if message["role"] == "user" else (message, told)
            return [*messages[:place], {**message, "content": _joined(*parts)}, *messages[place + 1 :]]
    return [{"role": "user", "content": text}, *messages]


def _joined(first: Message, second: Message) -> object:
    """Two contents as one: text, or parts where one of them has parts."""
    contents = [first.get("content") or "", second.get("content") or ""]
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(str(content) for content in contents if content)
    parts = [[{"type": "text", "text": content}] if isinstance(content, str) else content for content in contents]
    return [part for some in parts if isinstance(some, (list, tuple)) for part in some]


FORMATS = (Prompted(),)
