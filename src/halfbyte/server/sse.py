"""Server-sent events: pieces of an answer as they come, and comments while nothing comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from halfbyte.server.limits import ClientLeftError, left

HEARTBEAT = b": still at work\n\n"


def event(data: str, name: str | None = None) -> bytes:
    """One event; its data has no line breaks."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + data.encode() + b"\n\n"


class EventStream(Response):
    """An answer in events.

    Args:
        source: The events. What it raises before its first one is raised by `begin`; later, `failed` makes an event of
            it, which is the last.
        heartbeat_s: Seconds of silence before a heartbeat.
        heartbeat: What is sent then: a comment, unless the protocol has an event for it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        failed: Callable[[Exception], bytes],
        heartbeat_s: float,
        heartbeat: bytes = HEARTBEAT,
    ) -> None:
        self._source, self._failed, self._heartbeat_s, self._heartbeat = source, failed, heartbeat_s, heartbeat
        self._first: asyncio.Task[bytes | None] | None = None
        self._sent = 0.0
        self.background = None
        self.status_code = 200
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def begin(self, request: Request) -> EventStream:
        """Wait for the first event, or for the time of the first heartbeat; an early error is raised.

        Raises:
            ClientLeftError: The client has gone.
        """
        gone = asyncio.create_task(left(request))
        self._first = task = asyncio.create_task(self._pulled())
        try:
            await asyncio.wait({task, gone}, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            elif gone.done():
                raise ClientLeftError
        except BaseException:
            await self._end()
            raise
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, unless the client goes first."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._sent = asyncio.get_running_loop().time()
        sending = asyncio.create_task(self._send_all(send))
        beating = asyncio.create_task(self._beat(send))
        gone = asyncio.create_task(left(Request(scope, receive)))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ClientLeftError
            sending.result()
        finally:
            tasks = (sending, beating, gone)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end()

    async def _send_all(self, send: Send) -> None:
        try:
            piece = await (self._first or self._pulled())
            while piece is not None:
                await self._put(send, piece)
                piece = await self._pulled()
        except Exception as error:
            await self._put(send, self._failed(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> None:
        """Send heartbeats in times of silence."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._sent + self._heartbeat_s - loop.time())
            if loop.time() - self._sent >= self._heartbeat_s:
                await self._put(send, self._heartbeat)

    async def _put(self, send: Send, piece: bytes) -> None:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        self._sent = asyncio.get_running_loop().time()

    async def _pulled(self) -> bytes | None:
        return await anext(self._source, None)

    async def _end(self) -> None:
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._source.aclose()
