# ruff: noqa: RUF001, RUF002 - the models' delimiters have wide bars
"""A name, `<｜tool▁sep｜>` and a JSON object between delimiters: DeepSeek V3.1. V3 and R1 fence the object.

The templates do not tell the model of tools: a text does, at the start of the conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
OPEN, SEPARATOR, CLOSE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_KIND = "function"
_FENCE, _FENCE_END = "```json\n", "\n```"
_WRITES_CALLS = re.compile(r"'tool_calls'\]? (?:in|is) ")
"""In templates that write calls; others do so only if a message's content is none, which it never is."""


class Bare:
    """A name and a JSON object for each call."""

    keep: tuple[str, ...] = (BEGIN, END, OPEN, SEPARATOR, CLOSE)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return BEGIN in template_source and "```json" not in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With tools in the system message."""
        given = [self._prepared(message) for message in messages]
        return (_with_tools(given, self._description(tools)) if tools else given), None

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`."""
        called = chosen(tools, choice)
        one = f"{mark(OPEN)} named_call {mark(CLOSE)}"
        more = f" (SPACE? {one})*" if parallel else ""
        rules = ["named_call: " + " | ".join(f"call_{index}" for index in range(len(called)))]
        for index, tool in enumerate(called):
            rules.append(f"call_{index}: {self._call_lark(tool.name, f'arguments_{index}', mark)}")
            rules.append(f"arguments_{index}: {calls.schema_lark(tool.parameters, strict=tool.strict)}")
        return calls.lark(
            *calls.marked_calls(choice, False, BEGIN, mark), f"call: {one}{more} {mark(END)}", *rules, calls.SPACE
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`; reads both forms."""
        return ReaderParser(_read)

    def _prepared(self, message: Message) -> Message:
        return message

    def _call_lark(self, name: str, arguments: str, mark: Mark) -> str:
        return f"{calls.quoted(name)} {mark(SEPARATOR)} {arguments}"

    def _written(self, name: str, arguments: str) -> str:
        return f"{name}{SEPARATOR}{arguments}"

    def _description(self, tools: Sequence[Tool]) -> str:
        one = self._written("tool_call_name", "tool_call_arguments")
        form = f"{BEGIN}{OPEN}{one}{CLOSE}{{additional_tool_calls}}{END}"
        functions = [(tool, tool.definition.get("function", {}).get("description") or "") for tool in tools]
        return "\n\n".join([
            "## Tools\nYou have access to the following tools:",
            *(
                f"### {tool.name}\nDescription: {about}\n\n"
                f"Parameters: {json.dumps(tool.parameters, ensure_ascii=False)}"
                for tool, about in functions
            ),
            f"IMPORTANT: ALWAYS adhere to this exact format for tool use:\n{form}",
            "Where:\n- `tool_call_name` must be an exact match to one of the available tools\n"
            "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
            "- For multiple tool calls, chain them directly without separators or spaces",
        ])  # fmt: skip


class Fenced(Bare):
    """A kind, a name and a fenced JSON object for each call."""

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return BEGIN in template_source and "```json" in template_source and bool(_WRITES_CALLS.search(template_source))

    def _call_lark(self, name: str, arguments: str, mark: Mark) -> str:
        head, fence = calls.quoted(f"{name}\n{_FENCE}"), calls.quoted(_FENCE_END)
        return f"{calls.quoted(_KIND)} {mark(SEPARATOR)} {head} {arguments} {fence}"

    def _written(self, name: str, arguments: str) -> str:
        return f"{_KIND}{SEPARATOR}{name}\n{_FENCE}{arguments}{_FENCE_END}"


class Unwritten(Fenced):
    """The same where the template leaves out the calls of earlier turns: the models distilled from R1."""

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return BEGIN in template_source and "```json" in template_source and not _WRITES_CALLS.search(template_source)

    def _prepared(self, message: Message) -> Message:
        made = [calls.function_of(call) for call in calls.calls_of(message)]
        if not made:
            return message
        pieces: list[tuple[str, bool]] = [(BEGIN, True)]
        for index, (name, arguments) in enumerate(made):
            text = json.dumps(arguments, ensure_ascii=False)
            pieces += [("\n" if index else "", False), (OPEN, True), (_KIND, False), (SEPARATOR, True)]
            pieces += [(f"{name}\n{_FENCE}{text}{_FENCE_END}", False), (CLOSE, True)]
        return calls.written(message, *pieces, (END, True))


def _read(reader: Reader) -> Steps[None]:
    while found := (yield from reader.until(reader.text, BEGIN, OPEN)):
        if found == BEGIN:
            yield from reader.skip_space()
            if not (yield from reader.take(OPEN)):
                reader.give_back()
                continue
        while (yield from _read_call(reader)):
            yield from reader.skip_space()
            if not (yield from reader.take(OPEN)):
                break
        yield from reader.take(END)


def _read_call(reader: Reader) -> Steps[bool]:
    """A call after its first delimiter; returns whether it was one."""
    head: list[str] = []
    yield from reader.run(lambda character: character != "<", head.append)
    if (yield from reader.take(SEPARATOR)) and "".join(head).strip() == _KIND:
        head.clear()
        yield from reader.run(lambda character: character not in "\n`{<", head.append)
    name = "".join(head).strip()
    yield from reader.skip_space()
    if (yield from reader.take("```")):
        yield from reader.run(lambda character: character not in "{\n", lambda word: None)
        yield from reader.skip_space()
    if not name or (yield from reader.peek()) != "{":
        reader.give_back()
        return False
    reader.start(name)
    if not (yield from reader.json_value(reader.arguments)):
        return False
    reader.end()
    reader.remember()
    yield from reader.skip_space()
    yield from reader.take("```")
    yield from reader.skip_space()
    return (yield from reader.take(CLOSE))


def _with_tools(messages: list[Message], text: str) -> list[Message]:
    """The text at the end of the system message, or as one."""
    if messages and messages[0]["role"] == "system":
        told = "\n\n".join(part for part in (calls.text_of(messages[0]), text) if part)
        return [{**messages[0], "content": told}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


FORMATS = (Bare(), Fenced(), Unwritten())
