"""Answers whose events name their types: both Anthropic's messages and OpenAI's responses grow event by event."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from halfbyte.server.conversation import ChatCall, Event
from halfbyte.server.errors import ApiError, api_error
from halfbyte.server.exchange import exchange_of
from halfbyte.server.json import JsonResponse, dumps
from halfbyte.server.limits import unless_left
from halfbyte.server.serving import serving_of
from halfbyte.server.sse import HEARTBEAT, EventStream, event


class Growing(Protocol):
    """An answer as it grows; the events that its methods give are those of the wire."""

    def start(self) -> Iterable[dict[str, Any]]:
        """The first events."""

    def take(self, each: Event) -> Iterable[dict[str, Any]]:
        """The events for one of the answer, by which it grows."""

    def fail(self, error: ApiError, request_id: str) -> dict[str, Any]:
        """The last event of an answer that fails on its way."""

    def as_json(self) -> dict[str, Any]:
        """The answer as far as it has come."""


async def respond(
    request: Request, call: ChatCall, growing: Growing, *, stream: bool, heartbeat: bytes = HEARTBEAT
) -> Response:
    """Answer a call, at once or in events."""
    serving, exchange = serving_of(request), exchange_of(request)
    exchange.stream = stream
    events = serving.answered(exchange, call)
    if not stream:
        return JsonResponse(await unless_left(request, _whole(events, growing)))

    def failed(error: Exception) -> bytes:
        serving.note_failure(exchange, error)
        return _written(growing.fail(api_error(error), exchange.id))

    return await EventStream(_events(events, growing), failed, serving.settings.heartbeat_s, heartbeat).begin(request)


async def _whole(events: AsyncGenerator[Event, None], growing: Growing) -> dict[str, Any]:
    async with aclosing(events):
        async for each in events:
            for _ in growing.take(each):
                pass
    return growing.as_json()


async def _events(events: AsyncGenerator[Event, None], growing: Growing) -> AsyncGenerator[bytes, None]:
    begun = False
    async with aclosing(events):
        async for each in events:
            if not begun:
                begun = True
                for made in growing.start():
                    yield _written(made)
            for made in growing.take(each):
                yield _written(made)


def _written(made: dict[str, Any]) -> bytes:
    return event(dumps(made), made["type"])
