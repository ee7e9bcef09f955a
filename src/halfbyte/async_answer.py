"""Answers and vectors for coroutines. A module of its own, as importing asyncio takes longer than many an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Self

import numpy as np

from halfbyte.answer import Generation, Stream, Token
from halfbyte.embedding import EmbeddingParams, Float32
from halfbyte.runtime import AnswerStream
from halfbyte.sampling import Sampled


class _Taker:
    """Takes what comes in a stream; other coroutines run while it waits.

    Attributes:
        changed: Set when something has come; None before the first call of `take`.
    """

    def __init__(self, outputs: AnswerStream) -> None:
        self.changed: asyncio.Event | None = None
        self._outputs = outputs

    async def take(self) -> object:
        """What was put in first. Work starts with the first call."""
        if self.changed is None:
            self.changed = self._listen(asyncio.get_running_loop())
            self._outputs.start()
        while True:
            self.changed.clear()
            there, output = self._outputs.outbox.take_at_once()
            if there:
                return output
            await self.changed.wait()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Event:
        changed = asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the event loop is closed, and the reader gone with it
                loop.call_soon_threadsafe(changed.set)

        self._outputs.outbox.notify = notify
        return changed


class AsyncStream(AsyncIterator[Token]):
    """As `Stream`, for a coroutine: other coroutines run while it waits. Cancelling the task cancels the rest."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._outbox = stream._outputs.outbox
        self._taker = _Taker(stream._outputs)

    def __repr__(self) -> str:
        return f"<AsyncStream {self._stream._so_far}>"

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """As `Stream.prompt_ids`."""
        return self._stream.prompt_ids

    @property
    def prompt_scores(self) -> tuple[Sampled, ...]:
        """As `Stream.prompt_scores`."""
        return self._stream.prompt_scores

    async def __anext__(self) -> Token:
        stream = self._stream
        if stream._closed:
            raise StopAsyncIteration
        try:
            return stream._taken(stream._outputs.given(await self._taker.take()))
        except StopIteration:
            stream.close()
            raise StopAsyncIteration from None
        except BaseException:
            stream.close()
            raise

    async def lists(self, pace_s: Callable[[], float]) -> AsyncGenerator[list[Token], None]:
        """The tokens, as lists of those that have come meanwhile. To wait for several costs less than to wait for each.

        Args:
            pace_s: Gives the seconds from one list to the next. The first one and the last one do not wait for them.
        """
        async with self:
            async for token in self:
                tokens = [token]
                while not self._stream._closed and (output := self._outbox.take_token()):
                    tokens.append(self._stream._taken(output))
                yield tokens
                await self._rest(pace_s())

    async def _rest(self, pace_s: float) -> None:
        """Wait for some time, or for the end of the answer."""
        changed, over = self._taker.changed, False
        if changed is None or self._stream._closed:
            return

        def ring() -> None:
            nonlocal over
            over = True
            changed.set()

        timer = asyncio.get_running_loop().call_later(pace_s, ring)
        self._outbox.quiet = True
        try:
            while True:
                changed.clear()
                if over or self._outbox.has_end:
                    break
                await changed.wait()
        finally:
            self._outbox.quiet = False
            timer.cancel()

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


async def all_of(asked: Callable[[], Sequence[AnswerStream]], params: EmbeddingParams, ahead: int) -> Float32:
    """As `embedding.all_of`.

    Args:
        asked: Checks the texts, in a thread of its own.
    """
    streams, vectors = await asyncio.to_thread(asked), []
    try:
        for i, stream in enumerate(streams):
            for each in streams[i : i + ahead]:
                each.start()
            with suppress(StopIteration):
                stream.given(await _Taker(stream).take())
            vectors.append(params.vector(stream))
    finally:
        for stream in streams:
            stream.close()
    return np.stack(vectors)
