"""Clients of a server that cost as little as Python can: bytes of a socket, and the time at which they came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

DONE = b"data: [DONE]\n\n"
_END = b"0\r\n\r\n"


@dataclass
class Answer:
    """What came back for a request.

    Attributes:
        status: Of HTTP; 0 if the connection ended before.
        event_s: When bytes of its events came, in seconds after the request was sent.
        tokens: How many the server says it wrote.
        complete: Whether it came to its end.
    """

    status: int = 0
    event_s: list[float] = field(default_factory=list)
    tokens: int = 0
    complete: bool = False


class Client:
    """One connection, for one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def stream(
        self, path: str, body: Mapping[str, Any], *, leave_after: int | None = None, pause_s: float = 0.0
    ) -> Answer:
        """Ask for events, and read them.

        Args:
            leave_after: Events after which the client goes away, if any.
            pause_s: Seconds for which it does not read after each piece.
        """
        answer, began = Answer(), time.perf_counter()
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        sent = json.dumps(asked).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        await self._writer.drain()
        tail = await self._reader.readuntil(b"\r\n\r\n")
        answer.status = int(tail.split(b" ", 2)[1])
        if answer.status != 200:
            return answer
        received = b""
        while not received.endswith(_END):
            piece = await self._reader.read(1 << 16)
            if not piece:
                return answer
            if b"data:" in piece:  # not only a heartbeat
                answer.event_s.append(time.perf_counter() - began)
            received += piece
            if leave_after is not None and len(answer.event_s) >= leave_after:
                return answer
            if pause_s:
                await asyncio.sleep(pause_s)
        answer.complete = DONE in received
        last = received.rfind(b'"completion_tokens":')
        answer.tokens = int(received[last + 20 : last + 40].split(b",")[0].split(b"}")[0]) if last >= 0 else 0
        return answer

    def close(self) -> None:
        """Go away."""
        self._writer.close()


@asynccontextmanager
async def connected(port: int, *, buffer: int = 1 << 20) -> AsyncIterator[Client]:
    """A client of a server on this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=buffer)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        client.close()
