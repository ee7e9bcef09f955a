"""The web server: uvicorn with h11, which refuses what is no HTTP in JSON and waits for nobody for ever."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from halfbyte.errors import UsageError
from halfbyte.server.errors import ApiError, UnavailableError, openai_body
from halfbyte.server.json import dumps
from halfbyte.server.logs import Log, ServerMessages
from halfbyte.server.settings import KIB, Settings

BACKLOG = 512
_KEEP_ALIVE_S = 30
_SPARE_CONNECTIONS = 64
"""Connections beyond those of requests that are answered or wait."""


class HttpServer(uvicorn.Server):
    """A server on a socket that is bound already.

    Args:
        begin: Awaited before the first connection is accepted; what it raises ends the server, and `run` raises it.
    """

    def __init__(self, app: ASGIApp, settings: Settings, begin: Callable[[], Awaitable[None]], log: Log) -> None:
        messages = logging.getLogger("uvicorn.error")
        messages.handlers, messages.propagate = [ServerMessages(log)], False
        self._begin = begin
        super().__init__(
            uvicorn.Config(
                app, http=_protocol(settings), loop="asyncio", ws="none", lifespan="on", log_config=None,
                log_level="warning", access_log=False, server_header=False, timeout_keep_alive=_KEEP_ALIVE_S,
                proxy_headers=settings.behind, forwarded_allow_ips="127.0.0.1", backlog=BACKLOG,
                timeout_graceful_shutdown=max(1, round(settings.grace_s)), h11_max_incomplete_event_size=32 * KIB,
            )
        )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Get ready, then accept connections."""
        await self._begin()
        await super().startup(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: There is no such address here, or somebody else listens there.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen on {host}, port {port}: {reason}.",
            "Choose others with --host and --port; port 0 is a free one.",
        ) from error


def _protocol(settings: Settings) -> type[H11Protocol]:
    most = settings.max_concurrent + settings.max_queue + _SPARE_CONNECTIONS
    patience_s = settings.body_timeout_s

    class Protocol(H11Protocol):
        """One connection."""

        _hurry: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # asyncio does this only where the listening socket names its protocol; else, small events would wait 40 ms
            # for the other side to confirm what came before.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self.connections) > most:
                self._refuse(UnavailableError("There are too many connections.", "Try again later."))
            else:
                self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch(False)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch(self.cycle is None or self.cycle.response_complete)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch(self.cycle.response_complete)

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, "This is no HTTP request.", "Speak HTTP, without TLS."))

        def _watch(self, waiting: bool = True) -> None:
            """Close the connection if the head of a request is not complete in time."""
            if not waiting and self._hurry is not None:
                self._hurry.cancel()
                self._hurry = None
            elif waiting and self._hurry is None:
                self._hurry = self.loop.call_later(patience_s, self._too_late)

        def _too_late(self) -> None:
            self._hurry = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def _refuse(self, error: ApiError) -> None:
            """Answer without a request, and close."""
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                body = dumps(openai_body(error)).encode()
                head = [
                    (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                    (b"connection", b"close"), *((k.encode(), v.encode()) for k, v in error.headers.items()),
                ]  # fmt: skip
                for event in (
                    h11.Response(
                        status_code=error.status, headers=head, reason=HTTPStatus(error.status).phrase.encode()
                    ),
                    h11.Data(data=body),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Protocol
