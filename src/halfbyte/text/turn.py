"""The next answer of a conversation: how it is asked for, what it may be, and how it is read.

Here a chat template's form of tool calls and its way to mark thoughts come together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from halfbyte.text.forms import Form
from halfbyte.text.grammar import Grammar, GrammarCompiler, Otherwise
from halfbyte.text.reasoning import reasoning_format
from halfbyte.text.tokenizer import Tokenizer
from halfbyte.text.tools import Event, TextPiece, Tool, ToolParser, tool_format
from halfbyte.text.tools.events import Message


class Turn:
    """The assistant's turn, with the tools that it may call.

    Args:
        tokenizer: Of the model.
        messages: The conversation so far.
        tools: Those that the prompt describes.
        called: Those of them that may be called; all by default.
        required: Whether the answer must be calls.
        parallel: Whether it may call several times.
        variables: What else the chat template reads, as for `Tokenizer.render_chat`.

    Attributes:
        messages, tools: As the chat template takes them.
        keep: Special tokens that the text must show to be read.

    Raises:
        UsageError: Messages that are none.
        TemplateError: The chat template refused them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        called: Sequence[Tool] | None = None,
        required: bool = False,
        parallel: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> None:
        source = tokenizer.chat_template(tools=bool(tools)) or ""
        self._calls = tool_format(source)
        self._called = tuple(tools if called is None else called)
        self._required, self._parallel = required, parallel
        self._reasoning = reasoning_format(source, lambda text: tokenizer.token_id(text) is not None)
        self.messages, self.tools = self._calls.conversation(messages, tools)
        self._prompt = (
            tokenizer.render_chat(self.messages, tools=self.tools, variables=variables) if self._reasoning else ""
        )
        marks = (*(self._calls.keep if tools else ()), *(self._reasoning.keep if self._reasoning else ()))
        self.keep = tuple(dict.fromkeys(marks))

    @property
    def is_plain(self) -> bool:
        """Whether all text is the answer's text: there are neither tools nor thoughts."""
        return not self._called and self._reasoning is None

    def is_held(self, form: Form | None) -> bool:
        """Whether `grammar` gives one."""
        return form is not None or bool(self._called)

    def grammar(self, compiler: GrammarCompiler, form: Form | None = None) -> Grammar | None:
        """What the answer may be: thoughts, then text or calls with valid arguments; None if anything.

        Args:
            compiler: Of the model.
            form: That the text must have.

        Raises:
            UsageError: A form or a tool whose schema cannot be enforced.
        """
        before = self._reasoning.before(compiler.mark, self._prompt) if self._reasoning else None
        if not self._called:
            return None if form is None else form.grammar(compiler, before=before)
        after = self._reasoning is None or not self._reasoning.is_part_of_calls
        if self._required or form is None:
            lark = self._lark(compiler, "required" if self._required else "auto")
            return compiler.lark(lark, before=before if after else None)
        return form.grammar(compiler, before=before, otherwise=Otherwise(self._lark(compiler, "required"), after))

    def parser(self) -> ToolParser:
        """A parser for one answer: thoughts, text and calls."""
        parsers: list[ToolParser] = []
        if self._reasoning is not None:
            parsers.append(self._reasoning.parser(self._prompt))
        if self._called:
            parsers.append(self._calls.parser(self._called))
        return _InTurn(parsers)

    def _lark(self, compiler: GrammarCompiler, choice: str) -> str:
        return self._calls.grammar(self._called, choice, self._parallel, compiler.mark)


class _InTurn:
    """Parsers of which each reads the text that the one before leaves."""

    def __init__(self, parsers: Sequence[ToolParser]) -> None:
        self._parsers = tuple(parsers)

    def push(self, text: str) -> list[Event]:
        return self._through(0, [TextPiece(text)])

    def finish(self) -> list[Event]:
        return [
            event for place, parser in enumerate(self._parsers) for event in self._through(place + 1, parser.finish())
        ]

    def _through(self, first: int, events: list[Event]) -> list[Event]:
        for parser in self._parsers[first:]:
            events = [
                found
                for event in events
                for found in (parser.push(event.text) if isinstance(event, TextPiece) else [event])
            ]
        return events
