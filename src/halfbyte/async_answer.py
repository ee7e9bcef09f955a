"""An answer for coroutines. A module of its own, as importing asyncio takes longer than many an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Self

from halfbyte.answer import Generation, Stream, Token


class AsyncStream(AsyncIterator[Token]):
    """As `Stream`, for a coroutine: other coroutines run while it waits. Cancelling the task cancels the rest."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._outbox = stream._outputs.outbox
        self._changed: asyncio.Event | None = None

    async def __anext__(self) -> Token:
        stream = self._stream
        if stream._closed:
            raise StopAsyncIteration
        try:
            return stream._taken(stream._outputs.given(await self._next()))
        except StopIteration:
            stream.close()
            raise StopAsyncIteration from None
        except BaseException:
            stream.close()
            raise

    async def _next(self) -> object:
        if self._changed is None:
            self._changed = self._listen(asyncio.get_running_loop())
            self._stream.start()
        while True:
            self._changed.clear()
            there, output = self._outbox.take_at_once()
            if there:
                return output
            await self._changed.wait()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Event:
        changed = asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the event loop is closed, and the reader gone with it
                loop.call_soon_threadsafe(changed.set)

        self._outbox.notify = notify
        return changed

    async def aclose(self) -> None:
        """Cancel what has not been generated yet; harmless at the end."""
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream.close()

    def result(self) -> Generation:
        """The answer so far, with its figures."""
        return self._stream.result()
