"""`<|tool_call>call:name{key:<|"|>value<|"|>}<tool_call|>`: Gemma 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.literals import Notation, Rules, read_members
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps

OPEN, CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_NOTATION = Notation((QUOTE,), False, (("true",), ("false",), ("null",)), bare_keys=True)


class BareKeys:
    """One call between delimiters, its strings between quotes of their own."""

    keep = (OPEN, CLOSE, QUOTE)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return OPEN in template_source and CLOSE in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With results in the message whose calls they answer, where the templates look for them."""
        given: list[Message] = []
        for message in messages:
            if message["role"] == "tool" and given and calls.calls_of(given[-1]):
                given[-1] = _with_result(given[-1], message)
            else:
                given.append(message)
        return given, calls.definitions(tools)

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`; arguments sorted by name, as in the templates."""
        called = chosen(tools, choice)
        special = mark(QUOTE).startswith("<")
        rules = Rules(_NOTATION, mark, "/(?s:.+)/" if special else r"/[^<]+/")
        for index, tool in enumerate(called):
            rules.members(f"arguments_{index}", _sorted(tool), ":", ",")
        one = [f'call_{i}: {calls.quoted(tool.name + "{")} arguments_{i} "}}"' for i, tool in enumerate(called)]
        return calls.lark(
            *calls.marked_calls(choice, parallel, OPEN, mark),
            f'call: "call:" named_call {mark(CLOSE)}',
            "named_call: " + " | ".join(f"call_{index}" for index in range(len(called))),
            *one,
            *rules.lark(),
            r"NAME: /[A-Za-z_][\w-]*/",
            calls.SPACE,
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`."""
        return ReaderParser(_read)


def _read(reader: Reader) -> Steps[None]:
    while (yield from reader.until(reader.text, OPEN)):
        name: list[str] = []
        yield from reader.skip_space()
        yield from reader.take("call:")
        yield from reader.run(lambda character: character not in "{<" and not character.isspace(), name.append)
        if not any(name) or not (yield from reader.take("{")):
            reader.give_back()
            continue
        reader.start("".join(name))
        if (yield from read_members(reader, _NOTATION, reader.arguments, ":", "}")):
            reader.end()
        yield from reader.skip_space()
        yield from reader.take(CLOSE)


def _sorted(tool: Tool) -> Tool:
    properties = tool.parameters.get("properties")
    if not isinstance(properties, Mapping):
        return tool
    ordered = dict(sorted(properties.items(), key=lambda item: item[0].lower()))
    return replace(tool, parameters={**tool.parameters, "properties": ordered})


def _with_result(message: Message, result: Message) -> Message:
    """A message with calls, and one more result of them."""
    made = calls.calls_of(message)
    found = next((call for call in made if call.get("id") == result.get("tool_call_id")), made[0])
    response = {"name": calls.function_of(found)[0], "response": calls.text_of(result)}
    return {**message, "tool_responses": [*message.get("tool_responses", []), response]}


FORMATS = (BareKeys(),)
