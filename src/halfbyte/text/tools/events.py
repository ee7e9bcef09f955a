"""What tool formats share: tools, the events of an answer that may call them, and what a format offers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from halfbyte.errors import UsageError

Message = Mapping[str, Any]
Mark = Callable[[str], str]
"""Gives a delimiter's text as Lark: `GrammarCompiler.mark`."""

MAX_DEPTH = 60
"""Of a tool's schema."""

_NAME = re.compile(r"[\w.:/-]{1,256}")


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: What the model calls it.
        parameters: JSON schema of its arguments, which are an object.
        strict: Whether a keyword that cannot be enforced is an error; else it is left out of account.
        definition: As the client gave it: `{"type": "function", "function": {…}}`.
    """

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False
    definition: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPiece:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class ReasoningPiece:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """A call begins; calls of an answer are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """Part of the arguments: all parts of a call, joined, are one JSON object."""

    index: int
    json_piece: str


@dataclass(frozen=True)
class ToolCallEnd:
    """The call is complete. A call without an end was cut short."""

    index: int


Event = TextPiece | ReasoningPiece | ToolCallStart | ToolCallArguments | ToolCallEnd


class ToolParser(Protocol):
    """Finds the calls in one answer, whose text comes in pieces cut anywhere."""

    def push(self, text: str) -> list[Event]:
        """What has become certain with this text."""
        ...

    def finish(self) -> list[Event]:
        """What was held back; the answer is over."""
        ...


class ToolFormat(Protocol):
    """How a model writes calls.

    Attributes:
        keep: Delimiters; where they are special tokens, the text must show them (`TextStream(keep=…)`).
    """

    @property
    def keep(self) -> tuple[str, ...]: ...

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        ...

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """Messages and tools as the chat template takes them, for `Tokenizer.render_chat`."""
        ...

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """A Lark grammar of answers that call these tools with valid arguments.

        Args:
            tools: At least one.
            choice: "auto" for text and calls, "required" for calls only, or the name of the tool to call.
            parallel: Whether there may be several calls.
            mark: Gives delimiters as Lark.
        """
        ...

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """A parser for one answer."""
        ...


def read_tools(definitions: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools from a client's definitions: `{"type": "function", "function": {"name": …, "parameters": …}}`.

    Raises:
        UsageError: A definition that is none, or two tools of one name.
    """
    tools = tuple(_tool(index, definition) for index, definition in enumerate(definitions))
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"Two tools are named {twice!r}.", "Give each its own name.")
    return tools


def chosen(tools: Sequence[Tool], choice: str) -> tuple[Tool, ...]:
    """The tools that may be called.

    Raises:
        UsageError: The choice names no tool.
    """
    if choice in ("auto", "required"):
        return tuple(tools)
    found = tuple(tool for tool in tools if tool.name == choice)
    if not found:
        names = ", ".join(tool.name for tool in tools)
        raise UsageError(f"There is no tool {choice[:80]!r} to be called.", f"The tools are {names[:500]}.")
    return found


def _tool(index: int, definition: Mapping[str, Any]) -> Tool:
    function = definition.get("function") if isinstance(definition, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"Tool {index} has no function with a name of letters, digits, _, -, ., : and /.",
            'Give it as {"type": "function", "function": {"name": "add", "parameters": {"type": "object", …}}}.',
        )
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise UsageError(
            f"The parameters of the tool {name!r} are no JSON schema of an object.",
            'Give them as {"type": "object", "properties": {…}}.',
        )
    if not _is_plain(parameters, MAX_DEPTH):
        raise UsageError(
            f"The parameters of the tool {name!r} are nested more than {MAX_DEPTH} levels deep.",
            "Give a plainer schema.",
        )
    return Tool(name, {"type": "object", **parameters}, function.get("strict") is True, definition)


def _is_plain(value: object, depth: int) -> bool:
    """Whether a value is nested at most so deep."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return depth >= 0 and all(_is_plain(item, depth - 1) for item in inner)
