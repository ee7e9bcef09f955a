"""`POST /v1/responses`: requests into `ChatCall`, events into OpenAI's items.

Nothing is kept: every request brings its whole conversation.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

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
)
from halfbyte.server.errors import ApiError
from halfbyte.server.growing import respond
from halfbyte.server.limits import read_object
from halfbyte.server.openai_chat import spelled_logprob
from halfbyte.server.openai_forms import response_format
from halfbyte.server.openai_options import HARMLESS as HARMLESS_OF_ALL
from halfbyte.server.openai_options import Sampling, parsed
from halfbyte.server.serving import serving_of
from halfbyte.server.turns import Turns
from halfbyte.text.forms import Form

HARMLESS = HARMLESS_OF_ALL | {
    "client_metadata", "context_management", "max_tool_calls", "prompt_cache_options", "reasoning", "stream_options",
    "truncation",
}  # fmt: skip
"""Parameters that change nothing about the answer, or that only advise the model."""
_LOGPROBS = "message.output_text.logprobs"
_SILENT_ITEMS = frozenset(
    {
        "code_interpreter_call", "compaction", "computer_call", "computer_call_output", "file_search_call",
        "image_generation_call", "mcp_approval_request", "mcp_approval_response", "mcp_list_tools", "tool_search_call",
        "tool_search_output", "web_search_call",
    }
)  # fmt: skip
"""Items about tools that run elsewhere: models here cannot have called them, and are not told."""
_TEXT_PARTS = {
    "input_text": "text", "output_text": "text", "text": "text", "reasoning_text": "text", "summary_text": "text",
    "refusal": "refusal",
}  # fmt: skip
"""Kinds of parts, and where each has its text."""
_AS_IT_CAME = "Give the item as it came."

ToolChoice = Literal["auto", "none", "required"] | Named


class ResponsesRequest(Sampling):
    """The body of a request."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None

    def call(self, model: str) -> ChatCall:
        """As a call that all protocols share.

        Raises:
            ApiError: 400: it refers to what is not kept.
            UsageError: An item, a tool or a choice is none, or asks for what there is not.
        """
        self._check_state()
        options = self.options()
        if self.max_output_tokens is not None:
            options["max_tokens"] = self.max_output_tokens
        offered = functions(self.tools or [])
        choice = tool_choice(self.tool_choice)
        if isinstance(self.tool_choice, Mapping) and self.tool_choice.get("type") == "allowed_tools":
            offered = _allowed(offered, self.tool_choice)
        return ChatCall(
            model=model, messages=messages(self.instructions, self.input), tools=tuple(offered), tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False, response_format=_format(self.text),
            options=options, logprobs=_LOGPROBS in (self.include or ()) or bool(self.top_logprobs),
            top_logprobs=self.top_logprobs or 0,
        )  # fmt: skip

    def _check_state(self) -> None:
        for name in ("previous_response_id", "conversation", "background"):
            if value := getattr(self, name):
                raise ApiError(
                    400, f"{name} is {str(value)[:40]!r}, but this server keeps no responses.",
                    "Leave it out, and send the whole conversation as input.", param=name,
                )  # fmt: skip


async def create_response(request: Request) -> Response:
    """Answer a conversation, at once or in events."""
    serving = serving_of(request)
    body = parsed(ResponsesRequest, await read_object(request, serving.settings), HARMLESS)
    call = body.call(serving.registry.name(body.model))
    return await respond(request, call, GrowingResponse(shown(body, call), call.logprobs), stream=bool(body.stream))


def shown(body: ResponsesRequest, call: ChatCall) -> dict[str, Any]:
    """What of a request is repeated in its response."""
    return {
        "model": call.model, "instructions": body.instructions, "metadata": body.metadata or {},
        "max_output_tokens": body.max_output_tokens, "parallel_tool_calls": call.parallel_tool_calls,
        "previous_response_id": None, "store": False, "temperature": call.options["temperature"],
        "text": body.text or {"format": {"type": "text"}}, "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [], "top_logprobs": call.top_logprobs,
        "top_p": 1.0 if body.top_p is None else body.top_p, "truncation": "disabled",
    }  # fmt: skip


@dataclass
class GrowingResponse:
    """A response as it grows. Each event makes it grow, and gives the events of the wire.

    Attributes:
        about: What of the request is repeated.
        logprobs: Whether texts tell their tokens.
        items: Its output.
    """

    about: dict[str, Any]
    logprobs: bool = False
    id: str = field(default_factory=lambda: _new("resp"))
    created: int = field(default_factory=lambda: int(time.time()))
    items: list[dict[str, Any]] = field(default_factory=list)
    status: str = "in_progress"
    error: dict[str, str] | None = None
    usage: dict[str, Any] | None = None
    _sent: int = 0
    _open: bool = False
    _cut: bool = False

    def start(self) -> Iterator[dict[str, Any]]:
        """The first events."""
        yield self._event("response.created", response=self.as_json())
        yield self._event("response.in_progress", response=self.as_json())

    def take(self, each: Event) -> Iterator[dict[str, Any]]:
        """The events of the wire for one of an answer."""
        match each:
            case TextDelta():
                yield from self._text(each)
            case ReasoningDelta():
                if each.text:
                    yield from self._reasoning(each.text)
            case ToolCallStart():
                yield from self._begin(
                    {"id": _new("fc"), "type": "function_call", "call_id": each.id, "name": each.name, "arguments": ""}
                )
            case ToolCallDelta():
                self.items[-1]["arguments"] += each.arguments
                yield self._of_item("response.function_call_arguments.delta", delta=each.arguments)
            case Finish():
                self._cut = each.reason == "length"
                yield from self._end()
            case Usage():
                self.usage = usage(each)
                self.status = "incomplete" if self._cut else "completed"
                yield self._event(f"response.{self.status}", response=self.as_json())

    def fail(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """The last event of a response that fails on its way."""
        self.status = "failed"
        self.error = {"code": error.code or "server_error", "message": str(error)}
        return self._event("response.failed", response=self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The response as far as it has come."""
        why = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": self.status,
            "background": False, "error": self.error, "incomplete_details": why, **self.about,
            "output": self.items if self.status != "in_progress" else [], "usage": self.usage,
        }  # fmt: skip

    def _text(self, each: TextDelta) -> Iterator[dict[str, Any]]:
        if not (each.text or each.tokens):
            return
        told = [spelled_logprob(token) for token in each.tokens] if self.logprobs else []
        if not self._is_open("message"):
            yield from self._begin({"id": _new("msg"), "type": "message", "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield from self._begin_part(part)
        part = self.items[-1]["content"][0]
        part["text"] += each.text
        part["logprobs"] += told
        yield self._of_item("response.output_text.delta", content_index=0, delta=each.text, logprobs=told)

    def _reasoning(self, text: str) -> Iterator[dict[str, Any]]:
        if not self._is_open("reasoning"):
            yield from self._begin({"id": _new("rs"), "type": "reasoning", "summary": [], "content": []})
            yield from self._begin_part({"type": "reasoning_text", "text": ""})
        self.items[-1]["content"][0]["text"] += text
        yield self._of_item("response.reasoning_text.delta", content_index=0, delta=text)

    def _is_open(self, kind: str) -> bool:
        return self._open and self.items[-1]["type"] == kind

    def _begin(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._end()
        self.items.append({**item, "status": "in_progress"})
        self._open = True
        yield self._event(
            "response.output_item.added", output_index=len(self.items) - 1, item={**item, "status": "in_progress"}
        )

    def _begin_part(self, part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield self._of_item("response.content_part.added", content_index=0, part=dict(part))
        self.items[-1]["content"] = [part]

    def _end(self) -> Iterator[dict[str, Any]]:
        """The last events of the item that is open."""
        if not self._open:
            return
        self._open, item = False, self.items[-1]
        match item["type"]:
            case "function_call":
                yield self._of_item(
                    "response.function_call_arguments.done", name=item["name"], arguments=item["arguments"]
                )
            case "reasoning":
                part = item["content"][0]
                yield self._of_item("response.reasoning_text.done", content_index=0, text=part["text"])
                yield self._of_item("response.content_part.done", content_index=0, part=part)
            case "message":
                part = item["content"][0]
                yield self._of_item(
                    "response.output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]
                )
                yield self._of_item("response.content_part.done", content_index=0, part=part)
        item["status"] = "incomplete" if self._cut else "completed"
        yield self._event("response.output_item.done", output_index=len(self.items) - 1, item=item)

    def _of_item(self, kind: str, **more: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self.items[-1]["id"], output_index=len(self.items) - 1, **more)

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **more}


def usage(found: Usage) -> dict[str, Any]:
    """What was used. Tokens of thoughts are not counted apart."""
    return {
        "input_tokens": found.prompt_tokens,
        "input_tokens_details": {"cached_tokens": found.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": found.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": found.prompt_tokens + found.completion_tokens,
    }


def _new(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def messages(instructions: str | None, given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as chat templates take it. An empty one is an empty message of the user: some clients probe so.

    Raises:
        UsageError: It has an item that models cannot read.
    """
    turns = Turns()
    if instructions:
        turns.say("system", instructions)
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for place, item in enumerate(items):
        _add(turns, f"input.{place}", item)
    if all(message["role"] == "system" for message in turns.messages):
        turns.say("user", "")
    return turns.messages


def _add(turns: Turns, where: str, item: Mapping[str, Any]) -> None:
    """Add an item to a conversation."""
    kind = item.get("type", "message")
    match kind:
        case "message":
            turns.say(_role(where, item), _texts(f"{where}.content", item.get("content")))
        case "reasoning":
            content = item.get("content") or item.get("summary")
            if content:
                turns.think(_texts(f"{where}.content", content))
        case "function_call" | "custom_tool_call":
            arguments = _string(where, item, "arguments" if kind == "function_call" else "input")
            turns.call(
                _string(where, item, "call_id"), _string(where, item, "name"),
                arguments if kind == "function_call" else {"input": arguments},
            )  # fmt: skip
        case "function_call_output" | "custom_tool_call_output":
            turns.result(_string(where, item, "call_id"), _texts(f"{where}.output", item.get("output")))
        case "item_reference":
            raise UsageError(f"{where} refers to an item, but this server keeps none.", "Send the item itself.")
        case str() if kind in _SILENT_ITEMS:
            pass
        case _:
            raise UsageError(
                f"{where} is of type {str(kind)[:40]!r}.", "Send messages, function calls and their outputs."
            )


def _role(where: str, item: Mapping[str, Any]) -> Literal["system", "user", "assistant"]:
    match item.get("role"):
        case "system" | "developer":
            return "system"
        case "user":
            return "user"
        case "assistant":
            return "assistant"
        case other:
            raise UsageError(
                f"{where} has the role {str(other)[:40]!r}.", "Roles are system, developer, user and assistant."
            )


def _texts(where: str, content: object) -> str:
    """The text of a content: a text, or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UsageError(f"{where} is missing or of the wrong type.", "Give a text, or a list of parts.")
    found = []
    for place, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = (
            part.get(_TEXT_PARTS[kind])
            if isinstance(part, dict) and isinstance(kind, str) and kind in _TEXT_PARTS
            else None
        )
        if not isinstance(text, str):
            raise UsageError(
                f"{where}.{place} is a part of type {str(kind)[:40]!r}, or without a text.",
                'Models read text: {"type": "input_text", "text": "…"}.',
            )
        found.append(text)
    return "\n".join(found)


def _string(where: str, item: Mapping[str, Any], name: str) -> str:
    found = item.get(name)
    if not isinstance(found, str):
        raise UsageError(f"{where} has no {name}.", _AS_IT_CAME)
    return found


def functions(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The functions among tools, as chat templates take them. Tools that run elsewhere are not offered to the model.

    Raises:
        UsageError: A function has no name.
    """
    found = []
    for place, tool in enumerate(tools):
        if tool.get("type") != "function":
            continue
        if not isinstance(tool.get("name"), str):
            raise UsageError(
                f"tools.{place} has no name.", 'Give {"type": "function", "name": "…", "parameters": {…}}.'
            )
        function = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
        found.append({"type": "function", "function": function})
    return found


def _allowed(offered: list[dict[str, Any]], choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [tool.get("name") for tool in choice.get("tools") or () if isinstance(tool, dict)]
    return [tool for tool in offered if tool["function"]["name"] in names]


def tool_choice(given: str | Mapping[str, Any] | None) -> ToolChoice:
    """Which tool must be called.

    Raises:
        UsageError: It says nothing that is known, or chooses what no model here can call.
    """
    match given:
        case None:
            return "auto"
        case "auto" | "none" | "required":
            return given
        case {"type": "function", "name": str(name)}:
            return Named(name)
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [*_]}:
            return cast(Literal["auto", "required"], mode)
    raise UsageError(f"tool_choice is {str(given)[:60]!r}.", "It may be auto, none, required, or name a function.")


def _format(text: Mapping[str, Any] | None) -> Form | None:
    form = (text or {}).get("format")
    if form is None:
        return None
    if not isinstance(form, Mapping):
        raise UsageError(f"text.format is {str(form)[:40]!r}.", 'Give {"type": "text"}.')
    return response_format({**form, "json_schema": form}, "text.format")
