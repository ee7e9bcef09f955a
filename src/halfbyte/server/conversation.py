"""What all chat protocols share: a call, the events of its answer, and the way from one to the other.

A protocol turns its request into a `ChatCall`, and the events into its own JSON. In between, the chat template makes
token ids of the messages, the model answers under the grammar that tools and formats ask for, and a `Reader` for each
choice makes events of the text.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from halfbyte.answer import Token
from halfbyte.async_answer import AsyncStream
from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.model import AnswerOptions, Model
from halfbyte.prompts import Message, Prompt
from halfbyte.server.tokens import TokenLogprob, token_logprob
from halfbyte.text import tools
from halfbyte.text.forms import Form
from halfbyte.text.grammar import Grammar
from halfbyte.text.tools import ToolParser
from halfbyte.text.turn import Turn

PACE_S = 0.02
"""The fewest seconds from one event of an answer to the next: as often as an eye can follow."""
EVENTS_PER_S = 800
"""The most events of all answers together, as each costs the processor some 0.1 ms; they hold the more tokens."""


class NoTurnError(HalfbyteError):
    """The time of a request was up before its answer began."""


@dataclass(frozen=True)
class ChatCall:
    """A request for the next message of a conversation.

    Attributes:
        model: The name that was asked for.
        messages: As chat templates take them, oldest first.
        tools: Functions that may be called: `{"type": "function", "function": {"name", "description", "parameters"}}`.
        tool_choice: `auto`, `none`, `required`, or `Named` for one function that must be called.
        parallel_tool_calls: Whether one answer may call several.
        response_format: What form the answer's text must have.
        options: Sampling, `max_tokens`, `stop`, `seed`, `deadline` and so on.
        n: How many answers.
        logprobs: Whether events tell the tokens, with their log-probabilities.
        top_logprobs: How many of the most likely tokens are told with each.
        template_variables: What else the chat template reads.
    """

    model: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Literal["auto", "none", "required"] | Named = "auto"
    parallel_tool_calls: bool = True
    response_format: Form | None = None
    options: AnswerOptions = field(default_factory=lambda: AnswerOptions())
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    template_variables: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Named:
    """The function that must be called."""

    name: str


@dataclass(frozen=True)
class TextDelta:
    """More text of an answer, and the tokens that were made since the delta before (if they were asked for).

    The end token is not told, as it shows no text. A token's text may come in a later delta than the token: it is held
    back while it could become a stop string.
    """

    choice: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    choice: int
    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """The model calls a function; `index` counts the calls of the choice."""

    choice: int
    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallDelta:
    """More of the JSON of a call's arguments."""

    choice: int
    index: int
    arguments: str


@dataclass(frozen=True)
class Finish:
    """The end of a choice: `stop` (an end token or a stop string), `length` (no more tokens), or `tool_calls`.

    `stop` is the stop string that ended it, if one did.
    """

    choice: int
    reason: Literal["stop", "length", "tool_calls"]
    stop: str | None = None


@dataclass(frozen=True)
class Usage:
    """The last event: tokens of the prompt, those of them that the KV cache held, and tokens of all choices."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Progress:
    """How many tokens all choices have, those of the events that follow included."""

    prompt_tokens: int
    completion_tokens: int


Piece = TextDelta | ReasoningDelta | ToolCallStart | ToolCallDelta | Finish
"""What belongs to a choice."""
Event = Piece | Progress | Usage


class Reader(Protocol):
    """Makes events of the text of one choice. It is fed pieces of text as they come."""

    def push(self, text: str, tokens: tuple[TokenLogprob, ...]) -> list[Event]:
        """What has become certain with this text."""
        ...

    def finish(self) -> list[Event]:
        """What was held back."""
        ...

    @property
    def called_tools(self) -> bool:
        """Whether there was a tool call, so that the choice ends with `tool_calls`."""
        ...


class PlainReader:
    """Takes all text for the answer's text."""

    called_tools = False

    def __init__(self, choice: int) -> None:
        self._choice = choice

    def push(self, text: str, tokens: tuple[TokenLogprob, ...]) -> list[Event]:
        """The text as it is."""
        return [TextDelta(self._choice, text, tokens)] if text or tokens else []

    def finish(self) -> list[Event]:
        """Nothing is held back."""
        return []


class TurnReader:
    """Tells thoughts, text and tool calls apart.

    Tokens are told with the text that they are part of; those of thoughts and calls are not.
    """

    def __init__(self, choice: int, parser: ToolParser) -> None:
        self._choice, self._parser = choice, parser
        self._tokens: list[TokenLogprob] = []
        self._in_text = True
        self.called_tools = False

    def push(self, text: str, tokens: tuple[TokenLogprob, ...]) -> list[Event]:
        """What has become certain with this text."""
        found = self._parser.push(text)
        if found and not self._in_text:
            self._tokens.clear()
        self._tokens += tokens
        return self._events(found)

    def finish(self) -> list[Event]:
        """What was held back."""
        events = self._events(self._parser.finish())
        return [*events, *([TextDelta(self._choice, "", self._told())] if self._in_text and self._tokens else [])]

    def _events(self, found: Sequence[tools.Event]) -> list[Event]:
        events: list[Event] = []
        for each in found:
            self._in_text = isinstance(each, tools.TextPiece)
            if not self._in_text:
                self._tokens.clear()
            match each:
                case tools.TextPiece():
                    events.append(TextDelta(self._choice, each.text, self._told()))
                case tools.ReasoningPiece():
                    events.append(ReasoningDelta(self._choice, each.text))
                case tools.ToolCallStart():
                    self.called_tools = True
                    events.append(ToolCallStart(self._choice, each.index, f"call_{secrets.token_hex(12)}", each.name))
                case tools.ToolCallArguments():
                    events.append(ToolCallDelta(self._choice, each.index, each.json_piece))
                case tools.ToolCallEnd():
                    pass
        return events

    def _told(self) -> tuple[TokenLogprob, ...]:
        told = tuple(self._tokens)
        self._tokens.clear()
        return told


async def answer(model: Model, call: ChatCall) -> AsyncGenerator[Event]:
    """The events of an answer; those of several choices come mixed. The last is `Usage`.

    Closing it cancels what is left.

    Raises:
        UsageError: An option is out of range, or asks for what there is not.
        ContextFullError: The conversation does not fit the context.
        TemplateError: The chat template refused the messages.
        GrammarError: Nothing may come next in an answer that has to have a form.
        DeviceError: The device failed.
        NoTurnError: The time was up before the first token.
    """
    options = AnswerOptions(**call.options)
    if call.logprobs:
        options["logprobs"] = call.top_logprobs
    turn, grammar = await asyncio.to_thread(_prepared, model, call)
    options["tools"], options["keep_special"], options["grammar"] = turn.tools, turn.keep, grammar
    options["template_variables"] = call.template_variables

    def reader(choice: int) -> Reader:
        return PlainReader(choice) if turn.is_plain else TurnReader(choice, turn.parser())

    events = respond(model, turn.messages, options, call.n, logprobs=call.logprobs, reader=reader)
    async with aclosing(events):
        async for event in events:
            yield event


def _prepared(model: Model, call: ChatCall) -> tuple[Turn, Grammar | None]:
    turn, form = turn_of(model, call), call.response_format
    return turn, turn.grammar(model.grammar, form) if turn.is_held(form) else None


def turn_of(model: Model, call: ChatCall) -> Turn:
    """How the conversation is put to the model, and what it may answer.

    Raises:
        UsageError: A tool is none, or there is none that could be called as it must be.
        TemplateError: The chat template refused the messages.
    """
    given = tools.read_tools(call.tools) if call.tool_choice != "none" else ()
    choice = call.tool_choice
    if choice not in ("auto", "none") and not given:
        raise UsageError("tool_choice asks for a call, but there are no tools.", "Give tools, or leave it out.")
    called = given
    if isinstance(choice, Named):
        called = tuple(tool for tool in given if tool.name == choice.name)
        if not called:
            names = ", ".join(tool.name for tool in given)
            raise UsageError(f"There is no tool {choice.name[:80]!r} to be called.", f"The tools are {names[:500]}.")
    named = isinstance(choice, Named)
    return Turn(
        model.tokenizer, call.messages, given, called=called, required=named or choice == "required",
        parallel=call.parallel_tool_calls and not named, variables=call.template_variables,
    )  # fmt: skip


async def respond(
    model: Model,
    prompt: Prompt,
    options: AnswerOptions,
    n: int,
    *,
    logprobs: bool,
    reader: Callable[[int], Reader],
) -> AsyncGenerator[Event, None]:
    """The events of `n` answers to a prompt, as `answer` says, with a reader for each choice."""
    streams = await asyncio.to_thread(model.astreams, prompt, n, **options)
    events = follow(model, streams, [reader(choice) for choice in range(n)], logprobs=logprobs)
    async with aclosing(events):
        async for event in events:
            yield event


async def follow(
    model: Model, streams: Sequence[AsyncStream], readers: Sequence[Reader], *, logprobs: bool, end_told: bool = False
) -> AsyncGenerator[Event, None]:
    """The events of answers to one prompt, with a reader for each; closing it closes them.

    Tokens that come within a time of `PACE_S` or more are told together.

    Args:
        logprobs: Whether the tokens are told.
        end_told: Whether an end token is told, too.
    """
    hidden = () if end_told else model.stop_token_ids
    open_choices, made = set(range(len(streams))), 0
    try:
        lists = merged([stream.lists(lambda: pace_s(model)) for stream in streams])
        async with aclosing(lists):
            async for choice, tokens in lists:
                made += len(tokens)
                yield Progress(len(streams[choice].prompt_ids), made)
                reader, text = readers[choice], "".join(token.text for token in tokens)
                for event in _told(model, reader, tokens, hidden) if logprobs else reader.push(text, ()):
                    yield event
                if reason := tokens[-1].finish_reason:
                    open_choices.remove(choice)
                    for event in _end(choice, reason, readers[choice], tokens[-1].stop):
                        yield event
        if all(not stream.result().token_ids for stream in streams):
            raise NoTurnError(
                "The time of the request was up before its answer began.", "Ask again later, or give it more time."
            )
        for choice in sorted(open_choices):
            for event in _end(choice, "deadline", readers[choice]):
                yield event
        yield _usage(streams)
    finally:
        for stream in streams:
            await stream.aclose()


def pace_s(model: Model) -> float:
    """Seconds from one event of an answer to the next, while so many are under way."""
    return max(PACE_S, model.engine.under_way / EVENTS_PER_S)


def _told(model: Model, reader: Reader, tokens: Sequence[Token], hidden: Collection[int]) -> Iterator[Event]:
    """The events of some tokens that are told: one by one, since a part of them may be of thoughts, another of text."""
    for token in tokens:
        is_hidden = token.finish_reason == "stop" and token.id in hidden
        yield from reader.push(token.text, () if is_hidden else (token_logprob(model.tokenizer, token),))


def _end(choice: int, reason: str, reader: Reader, stop: str | None = None) -> list[Event]:
    """The last events of a choice."""
    events = reader.finish()
    return [*events, _finish(choice, reason, reader, stop)]


def _finish(choice: int, reason: str, reader: Reader, stop: str | None) -> Finish:
    """Protocols have no word for a full context or for time that is up: there, too, tokens are missing."""
    if reason == "stop":
        return Finish(choice, "tool_calls" if reader.called_tools else "stop", stop)
    return Finish(choice, "length")


def _usage(streams: Sequence[AsyncStream]) -> Usage:
    results = [stream.result() for stream in streams]
    return Usage(
        results[0].prompt_tokens, results[0].num_cached_tokens, sum(len(result.token_ids) for result in results)
    )


T = TypeVar("T")


async def merged(sources: Sequence[AsyncIterator[T]]) -> AsyncGenerator[tuple[int, T], None]:
    """What several sources give, as it comes, each with the number of its source."""
    if len(sources) == 1:
        async for only in sources[0]:
            yield 0, only
        return
    waiting = {_next(source): number for number, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: waiting[task]):
                number, found = waiting.pop(task), task.result()
                if found is not None:
                    waiting[_next(sources[number])] = number
                    yield number, found
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _next(source: AsyncIterator[T]) -> asyncio.Task[T | None]:
    async def following() -> T | None:
        return await anext(source, None)

    return asyncio.create_task(following())
