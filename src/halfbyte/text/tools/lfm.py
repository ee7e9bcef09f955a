"""`<|tool_call_start|>[name(key="value")]<|tool_call_end|>`: LFM2, whose calls are Python's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.literals import Notation, Rules, python_call, read_members
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_CALLS = "tool_calls"
"""What templates have that write the calls of earlier turns."""
PYTHON = Notation(('"', "'"), True, (("True", "true"), ("False", "false"), ("None", "null")), bare_keys=False)
STRINGS = tuple(rf"/([^{quote}\\\x00-\x1f\x7f]|\\[{quote}\\nrt])+/" for quote in PYTHON.quotes)


class PythonCalls:
    """A Python list of calls between delimiters."""

    keep = (OPEN, CLOSE)

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return _is_lfm(template_source) and _CALLS in template_source

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
        more = ' ("," " "? python_call)*' if parallel else ""
        return calls.lark(
            *calls.marked_calls(choice, False, OPEN, mark),
            f'call: "[" python_call{more} "]" {mark(CLOSE)}',
            "python_call: " + " | ".join(f"call_{index}" for index in range(len(called))),
            *one,
            *rules.lark(),
            calls.SPACE,
        )

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`; reads a JSON list too, which the model can be asked for."""
        return ReaderParser(_read)


class UnwrittenPythonCalls(PythonCalls):
    """The same where the template does not write the calls of earlier turns: the first LFM2."""

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return _is_lfm(template_source) and _CALLS not in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """With calls in the text."""
        return [_written(message) for message in messages], calls.definitions(tools)


def _is_named(character: str) -> bool:
    """Whether a character may be in a tool's name."""
    return character.isalnum() or (bool(character) and character in "_.-:/")


def _is_lfm(template_source: str) -> bool:
    return OPEN in template_source or "<|tool_list_start|>" in template_source


def _written(message: Message) -> Message:
    made = [python_call(*calls.function_of(call)) for call in calls.calls_of(message)]
    return calls.written(message, (OPEN, True), (f"[{', '.join(made)}]", False), (CLOSE, True)) if made else message


def _read(reader: Reader) -> Steps[None]:
    while (yield from reader.until(reader.text, OPEN)):
        yield from reader.skip_space()
        listed = yield from reader.take("[")
        yield from reader.skip_space()
        if (yield from reader.peek()) == "{":
            complete = yield from _read_json(reader)
        else:
            complete = yield from read_python(reader)
        if not complete:
            continue
        yield from reader.skip_space()
        if listed:
            yield from reader.take("]")
        yield from reader.skip_space()
        yield from reader.take(CLOSE)


def _read_json(reader: Reader) -> Steps[bool]:
    while (yield from calls.read_json_call(reader)):
        yield from reader.skip_space()
        if not (yield from reader.take(",")):
            return True
        yield from reader.skip_space()
    return False


def read_python(reader: Reader) -> Steps[bool]:
    """Reads calls in Python's form, with commas or line breaks between them; returns whether they were complete."""
    while True:
        name: list[str] = []
        yield from reader.run(_is_named, name.append)
        if not any(name) or not (yield from reader.take("(")):
            reader.give_back()
            return False
        reader.start("".join(name))
        if not (yield from read_members(reader, PYTHON, reader.arguments, "=", ")")):
            return False
        reader.end()
        reader.remember()
        yield from reader.skip_space()
        yield from reader.take(",")
        yield from reader.skip_space()
        following = yield from reader.peek()
        if not _is_named(following):
            return True


FORMATS = (PythonCalls(), UnwrittenPythonCalls())
