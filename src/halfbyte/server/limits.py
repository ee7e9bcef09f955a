"""What a request may take: its body's size and time, and its place among those that are answered."""

from __future__ import annotations

import asyncio
import hmac
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from halfbyte.server import json
from halfbyte.server.errors import ApiError
from halfbyte.server.settings import KIB, Settings

LARGE = 64 * KIB
"""Bytes of a body from which on it is parsed in a thread."""
_CLOSE = {"connection": "close"}
"""For answers that come before all of a body has been read."""

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client does not wait for its answer any more."""


async def read_object(request: Request, settings: Settings) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        UsageError: It is no JSON object.
        ApiError, ClientLeftError: As `read_body` raises them.
    """
    return await in_thread_if_large(
        partial(json.loads, max_depth=settings.max_depth), await read_body(request, settings)
    )


async def in_thread_if_large(work: Callable[[bytes], T], body: bytes) -> T:
    """What some work makes of a body; a large one does not hold up others."""
    return work(body) if len(body) < LARGE else await asyncio.to_thread(work, body)


async def read_body(request: Request, settings: Settings) -> bytes:
    """A request's body, which says that it is JSON.

    Raises:
        ApiError: It is of another type (415), too large (413) or too slow (408).
        ClientLeftError: The rest of it does not come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(
            415,
            f"The content type is {kind[:80]!r}.",
            "Send JSON, with Content-Type: application/json.",
            headers=_CLOSE,
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "The body is compressed.", "Send it as it is, without Content-Encoding.", headers=_CLOSE)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _body(request, settings.max_body)
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not arrive within {settings.body_timeout_s:g} seconds.",
            "Send it faster.",
            headers=_CLOSE,
        ) from None


async def _body(request: Request, most: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > most:
        raise _too_large(most)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        if not message.get("more_body"):
            return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body has more than {most:,} bytes.", "Send less.", headers=_CLOSE)


def check_length(request: Request) -> None:
    """Refuse a request that tells its length in two ways: a server on the way may have believed the other one.

    Raises:
        ApiError: 400.
    """
    if "transfer-encoding" in request.headers and "content-length" in request.headers:
        raise ApiError(
            400, "The request has both Content-Length and Transfer-Encoding.", "Send one of the two.", headers=_CLOSE
        )


def check_key(request: Request, key: str | None) -> None:
    """Refuse a request without the key, if there is one.

    Raises:
        ApiError: 401.
    """
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    brought = [given.strip() if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", "")]
    if not any(hmac.compare_digest(each.encode(), key.encode()) for each in brought):
        raise ApiError(
            401, "The API key is missing or wrong.", "Send it as Authorization: Bearer KEY, or as x-api-key.",
            code="invalid_api_key", headers={"www-authenticate": "Bearer", **_CLOSE},
        )  # fmt: skip


_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


def check_host(request: Request, settings: Settings) -> None:
    """Refuse names that other sites may have pointed at this machine: a web page could speak through its visitor.

    Raises:
        ApiError: 421, if the server is open to this machine only, needs no key, and was called by another name.
    """
    if not settings.is_local or settings.api_key is not None:
        return
    given = request.headers.get("host", "")
    name = given if given.endswith("]") else given.rpartition(":")[0] or given
    if name.lower() not in _LOCAL_NAMES | {settings.host, f"[{settings.host}]"}:
        raise ApiError(
            421, f"This server is not called {name[:80]!r}.", "Ask for localhost, or give the server an API key.",
            headers=_CLOSE,
        )  # fmt: skip


class Gate:
    """Lets so many requests through at once; some more wait, in their order."""

    def __init__(self, most: int, queue: int) -> None:
        self.most, self.queue = most, queue
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_s = 1.0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A place among those that are answered.

        Raises:
            ApiError: 429, if too many wait already.
        """
        await self._enter()
        began = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._mean_s += 0.1 * (asyncio.get_running_loop().time() - began - self._mean_s)
            self.running -= 1
            self._admit()

    async def _enter(self) -> None:
        if self.running < self.most and not self._waiting:
            self.running += 1
            return
        if self.waiting >= self.queue:
            after = math.ceil(min(60.0, max(1.0, self._mean_s * (self.waiting + 1) / self.most)))
            raise ApiError(
                429, f"{self.running} requests are being answered and {self.waiting} wait: there is no room for more.",
                f"Ask again in {after} seconds.", code="queue_full", headers={"retry-after": str(after)},
            )  # fmt: skip
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.running -= 1
                self._admit()
            else:
                with suppress(ValueError):
                    self._waiting.remove(place)
            raise

    def _admit(self) -> None:
        while self._waiting and self.running < self.most:
            place = self._waiting.popleft()
            if not place.done():
                self.running += 1
                place.set_result(None)


async def left(request: Request) -> None:
    """Return when the client has gone; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled if the client goes.

    Raises:
        ClientLeftError: It went.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
