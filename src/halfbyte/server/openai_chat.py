"""`POST /v1/chat/completions`: requests into `ChatCall`, events into OpenAI's JSON."""

from __future__ import annotations

import json as plain_json
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from halfbyte.errors import UsageError
from halfbyte.server.conversation import (
    ChatCall,
    Finish,
    Named,
    Piece,
    Progress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
)
from halfbyte.server.errors import ApiError, api_error, openai_body
from halfbyte.server.exchange import Exchange, exchange_of
from halfbyte.server.json import JsonResponse, dumps
from halfbyte.server.limits import read_object, unless_left
from halfbyte.server.openai_forms import Formed
from halfbyte.server.openai_options import FINGERPRINT, StreamOptions, parsed, usage
from halfbyte.server.openai_options import HARMLESS as HARMLESS_OF_ALL
from halfbyte.server.serving import Serving, serving_of
from halfbyte.server.sse import EventStream, event
from halfbyte.server.tokens import Spelled, TokenLogprob

HARMLESS = HARMLESS_OF_ALL | {"verbosity"}
"""Parameters that change nothing about the answer, or that only advise the model."""
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class ChatRequest(Formed):
    """The body of a request."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def call(self, model: str) -> ChatCall:
        """As a call that all protocols share.

        Raises:
            UsageError: A message, a tool or a format is none; two parameters contradict each other.
        """
        if self.top_logprobs and not self.logprobs:
            raise UsageError("top_logprobs has no effect without logprobs.", "Set logprobs to true.")
        if self.modalities not in (None, ["text"]):
            raise UsageError(f"modalities is {self.modalities!r}.", "Models answer with text only.")
        options = self.options()
        if self.max_completion_tokens is not None:
            options["max_tokens"] = self.max_completion_tokens
        return ChatCall(
            model=model, messages=[message(place, each) for place, each in enumerate(self.messages)],
            tools=tuple(_tool(place, each) for place, each in enumerate(self.tools or ())),
            tool_choice=tool_choice(self.tool_choice), parallel_tool_calls=self.parallel_tool_calls is not False,
            response_format=self.form, options=options, n=self.count,
            logprobs=bool(self.logprobs), top_logprobs=self.top_logprobs or 0,
            template_variables=template_variables(self.reasoning_effort, self.chat_template_kwargs),
        )  # fmt: skip


def template_variables(effort: str | None, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a chat template reads besides messages and tools; `given` counts before the effort asked for."""
    return {**({} if effort is None else {"reasoning_effort": effort}), **(given or {})} or None


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, at once or in events."""
    serving, exchange = serving_of(request), exchange_of(request)
    body = parsed(ChatRequest, await read_object(request, serving.settings), HARMLESS)
    exchange.stream = bool(body.stream)
    call = body.call(serving.registry.name(body.model))
    check_count(call.n, 1, serving.settings.max_answers)
    head = head_of("chatcmpl", call.model, "chat.completion")
    if body.stream:
        chunks = _chunks(serving, exchange, call, head, body.streamed)
        return await events_of(chunks, serving, exchange).begin(request)
    return JsonResponse(await unless_left(request, _whole(serving, exchange, call, head)))


def check_count(n: int, prompts: int, most: int) -> None:
    """Refuse too many answers, or none.

    Raises:
        ApiError: 400.
    """
    if not n >= 1 or n * prompts > most:
        raise ApiError(
            400, f"n is {n} for {prompts} prompt{'s' * (prompts > 1)}.",
            f"One request may ask for 1 to {most} answers.", param="n",
        )  # fmt: skip


def events_of(source: AsyncGenerator[bytes, None], serving: Serving, exchange: Exchange) -> EventStream:
    """A stream of OpenAI's events, which ends with an error if it fails on its way."""

    def failed(error: Exception) -> bytes:
        serving.note_failure(exchange, error)
        return event(dumps(openai_body(api_error(error))))

    return EventStream(source, failed, serving.settings.heartbeat_s)


def head_of(kind: str, model: str, what: str) -> dict[str, Any]:
    """What every answer and every chunk of it begins with."""
    return {
        "id": f"{kind}-{secrets.token_hex(12)}", "object": what, "created": int(time.time()), "model": model,
        "system_fingerprint": FINGERPRINT,
    }  # fmt: skip


async def _chunks(
    serving: Serving, exchange: Exchange, call: ChatCall, head: dict[str, Any], options: StreamOptions
) -> AsyncGenerator[bytes, None]:
    head = {**head, "object": "chat.completion.chunk"}
    used = options.so_far(Progress(0, 0))
    begun: set[int] = set()
    events = serving.answered(exchange, call)
    async with aclosing(events):
        async for each in events:
            if isinstance(each, Progress):
                used = options.so_far(each)
                continue
            if isinstance(each, Usage):
                if options.include_usage:
                    yield event(dumps({**head, "choices": [], "usage": usage(each)}))
                continue
            choice = _chunk(each, call.logprobs)
            if each.choice not in begun:
                begun.add(each.choice)
                choice["delta"] = {"role": "assistant", **choice["delta"]}
            yield event(dumps({**head, "choices": [choice], **used}))
    yield event("[DONE]")


def _chunk(each: Piece, logprobs: bool) -> dict[str, Any]:
    """A chunk's choice."""
    delta: dict[str, Any] = {}
    told: dict[str, Any] | None = None
    match each:
        case TextDelta():
            delta = {"content": each.text}
            told = {"content": [spelled_logprob(token) for token in each.tokens], "refusal": None} if logprobs else None
        case ReasoningDelta():
            delta = {"reasoning_content": each.text}
        case ToolCallStart():
            function = {"name": each.name, "arguments": ""}
            delta = {"tool_calls": [{"index": each.index, "id": each.id, "type": "function", "function": function}]}
        case ToolCallDelta():
            delta = {"tool_calls": [{"index": each.index, "function": {"arguments": each.arguments}}]}
        case Finish():
            pass
    reason = each.reason if isinstance(each, Finish) else None
    return {"index": each.choice, "delta": delta, "logprobs": told, "finish_reason": reason}


@dataclass
class _Choice:
    """A choice as it grows."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    reason: str = "stop"

    def take(self, each: Piece) -> None:
        match each:
            case TextDelta():
                self.text.append(each.text)
                self.tokens += each.tokens
            case ReasoningDelta():
                self.reasoning.append(each.text)
            case ToolCallStart():
                function = {"name": each.name, "arguments": ""}
                self.calls.append({"id": each.id, "type": "function", "function": function})
            case ToolCallDelta():
                self.calls[each.index]["function"]["arguments"] += each.arguments
            case Finish():
                self.reason = each.reason

    def as_json(self, number: int, logprobs: bool) -> dict[str, Any]:
        text = "".join(self.text)
        said: dict[str, Any] = {"role": "assistant", "content": None if self.calls and not text else text}
        said["refusal"] = None
        if self.reasoning:
            said["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            said["tool_calls"] = self.calls
        told = {"content": [spelled_logprob(token) for token in self.tokens], "refusal": None} if logprobs else None
        return {"index": number, "message": said, "logprobs": told, "finish_reason": self.reason}


async def _whole(serving: Serving, exchange: Exchange, call: ChatCall, head: dict[str, Any]) -> dict[str, Any]:
    choices = [_Choice() for _ in range(call.n)]
    used: dict[str, Any] = {}
    events = serving.answered(exchange, call)
    async with aclosing(events):
        async for each in events:
            if isinstance(each, Usage):
                used = usage(each)
            elif not isinstance(each, Progress):
                choices[each.choice].take(each)
    found = [choice.as_json(number, call.logprobs) for number, choice in enumerate(choices)]
    return {**head, "choices": found, "usage": used}


def spelled_logprob(token: TokenLogprob) -> dict[str, Any]:
    """A token of an answer, as OpenAI writes it."""
    top = [_spelled(other, logprob) for other, logprob in token.top]
    return {**_spelled(token.token, token.logprob), "top_logprobs": top}


def _spelled(token: Spelled, logprob: float) -> dict[str, Any]:
    return {"token": token.text, "logprob": logprob, "bytes": list(token.bytes)}


def message(place: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """A message as chat templates take it.

    Raises:
        UsageError: It has no role, or content that is no text.
    """
    role = given.get("role")
    if role not in _ROLES:
        raise UsageError(f"messages.{place} has the role {str(role)[:40]!r}.", f"Roles are {', '.join(_ROLES)}.")
    made = {name: value for name, value in given.items() if value is not None}
    made["role"] = "system" if role == "developer" else role
    content = made.get("content")
    if isinstance(content, list):
        made["content"] = [_part(place, part) for part in content]
    elif not isinstance(content, str):
        if content is not None or role != "assistant":
            raise UsageError(f"messages.{place} has no content.", "Give a text, or a list of parts with text.")
        made["content"] = ""
    if "tool_calls" in made:
        made["tool_calls"] = _called(place, made["tool_calls"])
    return made


def _part(place: int, part: object) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) and kind in ("text", "input_text") else None
    if not isinstance(text, str):
        raise UsageError(
            f"messages.{place} has a part of type {str(kind)[:40]!r}.",
            'Models read text: {"type": "text", "text": "…"}.',
        )
    return {"type": "text", "text": text}


def _called(place: int, calls: object) -> list[dict[str, Any]]:
    """Tool calls of an earlier answer, with their arguments as objects: that is what templates expect."""
    if not isinstance(calls, list):
        raise UsageError(f"messages.{place}.tool_calls is no list.", "Give the calls as they came.")
    made = []
    for each in calls:
        function = each.get("function") if isinstance(each, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UsageError(f"messages.{place}.tool_calls has a call without a function.", "Give it as it came.")
        made.append({**each, "function": {**function, "arguments": _arguments(function.get("arguments"))}})
    return made


def _arguments(given: object) -> object:
    if not isinstance(given, str):
        return given if given is not None else {}
    try:
        found = plain_json.loads(given)
    except (ValueError, RecursionError):
        return given
    return found if isinstance(found, dict) else given


def _tool(place: int, given: Mapping[str, Any]) -> Mapping[str, Any]:
    function = given.get("function")
    if given.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(
            f"tools.{place} is no function.", 'Give {"type": "function", "function": {"name": "…", "parameters": {…}}}.'
        )
    return given


def tool_choice(given: str | Mapping[str, Any] | None) -> Any:
    """Which tool must be called.

    Raises:
        UsageError: It says nothing that is known.
    """
    if given is None:
        return "auto"
    if given in ("auto", "none", "required"):
        return given
    function = given.get("function") if isinstance(given, Mapping) else None
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        return Named(function["name"])
    raise UsageError(f"tool_choice is {str(given)[:60]!r}.", "It may be auto, none, required, or name a function.")
