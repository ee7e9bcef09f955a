"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's requests into `ChatCall`, events into its JSON."""

from __future__ import annotations

import asyncio
import json as plain_json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from halfbyte.errors import UsageError
from halfbyte.server.conversation import (
    ChatCall,
    Event,
    Finish,
    Named,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
    turn_of,
)
from halfbyte.server.errors import ApiError, anthropic_body
from halfbyte.server.exchange import exchange_of
from halfbyte.server.growing import respond
from halfbyte.server.json import JsonResponse, dumps
from halfbyte.server.limits import read_object
from halfbyte.server.openai_options import Sampling, parsed, stops
from halfbyte.server.serving import serving_of
from halfbyte.server.sse import event
from halfbyte.server.turns import Turns, is_private
from halfbyte.text.forms import Form, JsonSchema

HARMLESS = frozenset(
    {
        "metadata", "service_tier", "cache_control", "inference_geo", "speed", "diagnostics", "context_management",
        "user_profile_id", "workspace_id", "betas",
    }
)  # fmt: skip
"""Parameters that change nothing about the answer of a model that runs here."""
PING = event(dumps({"type": "ping"}), "ping")
"""What is sent while nothing comes."""

ToolChoice = Literal["auto", "none", "required"] | Named


class MessagesRequest(Sampling):
    """The body of a request; `max_tokens` is missing where tokens are only counted."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None

    @property
    def shows_thoughts(self) -> bool:
        """Whether the answer has blocks with what the model thought: clients that do not ask for them expect none."""
        asked = self.thinking or {}
        return asked.get("type", "disabled") != "disabled" and asked.get("display") != "omitted"

    def call(self, model: str) -> ChatCall:
        """As a call that all protocols share.

        Raises:
            UsageError: A block, a tool or a choice is none, or asks for what there is not.
        """
        options = self.options()
        if self.max_tokens is not None:
            options["max_tokens"] = self.max_tokens
        if self.stop_sequences:
            options["stop"] = stops("stop_sequences", self.stop_sequences)
        return ChatCall(
            model=model, messages=messages(self.system, self.messages),
            tools=tuple(found for place, each in enumerate(self.tools or ()) if (found := tool(place, each))),
            tool_choice=tool_choice(self.tool_choice),
            parallel_tool_calls=not (self.tool_choice or {}).get("disable_parallel_tool_use"),
            response_format=output_format(self.output_config), options=options,
        )  # fmt: skip


async def create_message(request: Request) -> Response:
    """Answer a conversation, at once or in events."""
    serving = serving_of(request)
    body = parsed(MessagesRequest, await read_object(request, serving.settings), HARMLESS)
    if body.max_tokens is None:
        raise UsageError("The parameter max_tokens is missing.", "Every request needs it.")
    if body.messages and body.messages[-1].get("role") == "assistant":
        raise UsageError(
            "The last message is the assistant's, and answers do not continue one.", "End with a message of the user."
        )
    call = body.call(serving.registry.name(body.model))
    message = Message(call.model, body.shows_thoughts)
    return await respond(request, call, message, stream=bool(body.stream), heartbeat=PING)


async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of a request has."""
    serving, exchange = serving_of(request), exchange_of(request)
    body = parsed(MessagesRequest, await read_object(request, serving.settings), HARMLESS)
    call = body.call(serving.registry.name(body.model))
    exchange.model = call.model
    async with serving.registry.use(call.model) as model:
        turn = await asyncio.to_thread(turn_of, model, call)
        ids = await asyncio.to_thread(model.encode, turn.messages, tools=turn.tools)
    return JsonResponse({"input_tokens": len(ids)})


@dataclass
class Message:
    """An answer as it grows. Each event makes it grow, and gives the events of the wire.

    Attributes:
        thoughts: Whether what the model thought is part of it.
        blocks: Its content; the input of calls is text until the end.
    """

    model: str
    thoughts: bool = False
    id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    blocks: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: dict[str, int] = field(default_factory=lambda: usage(Usage(0, 0, 0)))
    _open: bool = False

    def start(self) -> Iterator[dict[str, Any]]:
        """The first event. What the prompt takes is told by the last but one, as it is known then."""
        yield {"type": "message_start", "message": self.as_json()}

    def take(self, each: Event) -> Iterator[dict[str, Any]]:
        """The events of the wire for one of an answer."""
        match each:
            case TextDelta():
                if each.text:
                    yield from self._grown("text", "text", each.text, {"citations": None})
            case ReasoningDelta():
                if each.text and self.thoughts:
                    yield from self._grown("thinking", "thinking", each.text, {"signature": ""})
            case ToolCallStart():
                block = {"type": "tool_use", "id": each.id, "name": each.name, "input": {}}
                yield from self._begin(block, {**block, "input": ""})
            case ToolCallDelta():
                self.blocks[-1]["input"] += each.arguments
                yield self._delta({"type": "input_json_delta", "partial_json": each.arguments})
            case Finish():
                yield from self._end()
                self.stop_reason, self.stop_sequence = stop_reason(each), each.stop
            case Usage():
                self.usage = usage(each)
                delta = {"stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence}
                yield {"type": "message_delta", "delta": delta, "usage": self.usage}
                yield {"type": "message_stop"}

    def fail(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """The last event of a message that fails on its way."""
        return anthropic_body(error, request_id)

    def as_json(self) -> dict[str, Any]:
        """The message as far as it has come."""
        return {
            "id": self.id, "type": "message", "role": "assistant", "model": self.model,
            "content": [_whole_block(block) for block in self.blocks], "stop_reason": self.stop_reason,
            "stop_sequence": self.stop_sequence, "usage": self.usage,
        }  # fmt: skip

    def _grown(self, kind: str, name: str, text: str, more: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Text into the open block, or into a new one if another kind is open."""
        if not (self._open and self.blocks[-1]["type"] == kind):
            block = {"type": kind, name: "", **more}
            yield from self._begin(block, dict(block))
        self.blocks[-1][name] += text
        yield self._delta({"type": f"{kind}_delta", name: text})

    def _begin(self, shown: dict[str, Any], kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._end()
        self.blocks.append(kept)
        self._open = True
        yield {"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": shown}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}

    def _end(self) -> Iterator[dict[str, Any]]:
        if self._open:
            self._open = False
            yield {"type": "content_block_stop", "index": len(self.blocks) - 1}


def usage(found: Usage) -> dict[str, int]:
    """What was used, as Anthropic writes it: tokens of the prompt that were in the cache are counted apart."""
    return {
        "input_tokens": found.prompt_tokens - found.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": found.cached_tokens,
        "output_tokens": found.completion_tokens,
    }


def stop_reason(end: Finish) -> str:
    """Why an answer ended, in Anthropic's words."""
    if end.reason == "stop":
        return "end_turn" if end.stop is None else "stop_sequence"
    return "max_tokens" if end.reason == "length" else "tool_use"


def _whole_block(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] != "tool_use":
        return block
    try:
        found = plain_json.loads(block["input"] or "{}")
    except (ValueError, RecursionError):  # it was cut off
        found = {}
    return {**block, "input": found if isinstance(found, dict) else {}}


def messages(system: str | list[dict[str, Any]] | None, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as chat templates take it.

    Raises:
        UsageError: It has a role or a block that models cannot read.
    """
    turns = Turns()
    for text in _system(system):
        turns.say("system", text)
    for place, each in enumerate(given):
        where, role, content = f"messages.{place}", each.get("role"), each.get("content")
        if role not in ("user", "assistant", "system"):
            raise UsageError(f"{where} has the role {str(role)[:40]!r}.", "Roles are user, assistant and system.")
        if isinstance(content, str):
            turns.say(role, content)
            continue
        for number, block in enumerate(_blocks(where, content)):
            _add(turns, role, f"{where}.content.{number}", block)
    return turns.messages


def _system(given: str | list[dict[str, Any]] | None) -> list[str]:
    """The texts of the system, without what is meant for Anthropic's servers."""
    if isinstance(given, list):
        texts = [_text(f"system.{place}", block) for place, block in enumerate(given)]
        return [text for text in texts if not is_private(text)]
    lines = (given or "").split("\n")
    while lines and is_private(lines[0]):
        del lines[0]
    return ["\n".join(lines)] if any(lines) else []


def _blocks(where: str, content: object) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise UsageError(f"{where} has no content.", "Give a text, or a list of blocks.")
    for number, block in enumerate(content):
        if not isinstance(block, dict):
            raise UsageError(f"{where}.content.{number} is no block.", 'Give {"type": "text", "text": "…"}.')
    return content


def _add(turns: Turns, role: Literal["system", "user", "assistant"], where: str, block: Mapping[str, Any]) -> None:
    """Add a block to a conversation."""
    match role, block.get("type"):
        case "user", "tool_result":
            turns.result(_string(where, block, "tool_use_id"), _result(where, block))
        case "assistant", "tool_use":
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise UsageError(f"{where} has no input.", "Give the call as it came.")
            turns.call(_string(where, block, "id"), _string(where, block, "name"), arguments)
        case "assistant", "thinking":
            turns.think(_string(where, block, "thinking"))
        case "assistant", "redacted_thinking":
            pass
        case _:
            turns.say(role, _text(where, block))


def _result(where: str, block: Mapping[str, Any]) -> str:
    """What a tool gave, as text."""
    content = block.get("content")
    if content is None:
        content = ""
    if not isinstance(content, str):
        parts = enumerate(_blocks(where, content))
        content = "\n".join(_text(f"{where}.content.{number}", part) for number, part in parts)
    return f"Error: {content}" if block.get("is_error") else content


def _text(where: str, block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    if kind != "text" or not isinstance(block.get("text"), str):
        raise UsageError(
            f"{where} is a block of type {str(kind)[:40]!r}" + (" without a text." if kind == "text" else "."),
            "Models read text here: " + '{"type": "text", "text": "…"}.',
        )
    return str(block["text"])


def _string(where: str, block: Mapping[str, Any], name: str) -> str:
    found = block.get(name)
    if not isinstance(found, str):
        raise UsageError(f"{where} has no {name}.", "Give the block as it came.")
    return found


def tool(place: int, given: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A tool as chat templates take it; None for tools of Anthropic's own, which no model here was taught.

    Raises:
        UsageError: It has no name or no schema.
    """
    if given.get("type") not in (None, "custom"):
        return None
    name, schema = given.get("name"), given.get("input_schema")
    if not isinstance(name, str) or not isinstance(schema, dict):
        missing = "input_schema" if isinstance(name, str) else "name"
        raise UsageError(f"tools.{place} has no {missing}.", 'Give {"name": "…", "input_schema": {…}}.')
    described = {"description": given["description"]} if isinstance(given.get("description"), str) else {}
    return {"type": "function", "function": {"name": name, **described, "parameters": schema}}


def tool_choice(given: Mapping[str, Any] | None) -> ToolChoice:
    """Which tool must be called.

    Raises:
        UsageError: It says nothing that is known.
    """
    match given:
        case None | {"type": "auto"}:
            return "auto"
        case {"type": "none"}:
            return "none"
        case {"type": "any"}:
            return "required"
        case {"type": "tool", "name": str(name)}:
            return Named(name)
    raise UsageError(f"tool_choice is {str(given)[:60]!r}.", "Its type may be auto, none, any, or tool with a name.")


def output_format(given: Mapping[str, Any] | None) -> Form | None:
    """The form that the text must have.

    Raises:
        UsageError: It is of an unknown type, or has no schema.
    """
    match (given or {}).get("format"):
        case None:
            return None
        case {"type": "json_schema", "schema": dict(schema)}:
            return JsonSchema(schema)
        case other:
            raise UsageError(
                f"output_config.format is {str(other)[:60]!r}.", "It may be of the type json_schema, with a schema."
            )
