"""Both ends of the way to a replica: `RayReplicas` asks in the ingress, `Replica` answers with its own server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Scope

from halfbyte.cluster.lent import as_lent
from halfbyte.model import load, locate
from halfbyte.options import RunOptions
from halfbyte.server import logs
from halfbyte.server.app import create_app
from halfbyte.server.forwarding import Answer, Passed, replica_lost
from halfbyte.server.registry import Registry, Source, default_name
from halfbyte.server.settings import Settings

Part = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status and headers of an answer, and a part of its body."""
_ASKED_S = 5.0
"""Seconds that replicas have to tell of themselves."""
_LEAVING_S = 5.0
"""Seconds that an answer has to end once its client has left."""
_AHEAD = 16
"""Pieces of an answer that wait until Ray takes them."""


class Replica:
    """A model with a server of its own in a process of Ray; Ray starts it anew when it dies."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it, and then sends requests
        self, model: str, name: str | None, revision: str | None, offline: bool, run: RunOptions, settings: Settings
    ) -> None:
        self._name = ray.get_runtime_context().get_actor_id() or ""
        path = locate(model, revision, offline)
        registry = Registry(
            [Source(name or default_name(model), path, partial(load, path, as_lent(run)), tuple(run.adapters))]
        )
        await registry.start()
        self._app = create_app(registry, settings, self._log)

    async def answer(self, passed: Passed, *, key: bytes) -> AsyncGenerator[Part, None]:
        """The answer in parts. `key` is for the router."""
        async with aclosing(asked(self._app, passed)) as answer:
            async for each in answer:
                yield each

    async def told(self, path: str) -> tuple[str, int, bytes]:
        """The name of this replica, and status and body of its answer to a GET."""
        async with aclosing(asked(self._app, Passed("GET", path, {}, b""))) as answer:
            parts = [each async for each in answer]
        return self._name, parts[0][0], b"".join(body for _, _, body in parts)

    def _log(self, line: dict[str, object]) -> None:
        logs.to_stderr({**line, "replica": self._name})


async def asked(app: ASGIApp, passed: Passed) -> AsyncGenerator[Part, None]:
    """What an ASGI application answers. Closing it is as if the client left.

    The head comes with the first part of the body, so that short answers are lost or had as a whole. Parts that come
    faster than they are taken are joined.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue(_AHEAD)
    unread = [{"type": "http.request", "body": passed.body, "more_body": False}]
    left = asyncio.Event()

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(passed), receive, messages.put)
        finally:
            if not left.is_set():
                await messages.put(None)

    running = asyncio.create_task(run())
    head: Message = {}
    ended = False
    try:
        while not ended:
            found = [await messages.get()]
            while not messages.empty():
                found.append(messages.get_nowait())
            ended = found[-1] is None
            head = next((each for each in found if each and "status" in each), head)
            body = b"".join(each.get("body", b"") for each in found if each)
            if body or (ended and head):
                yield head["status"], list(head["headers"]), body
        await running
    finally:
        left.set()
        await asyncio.wait({running}, timeout=_LEAVING_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _scope(passed: Passed) -> Scope:
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": passed.method, "scheme": "http",
        "path": passed.path, "raw_path": passed.path.encode(), "query_string": b"", "root_path": "", "server": None,
        "headers": [(name.encode(), value.encode()) for name, value in passed.headers.items()],
        "client": (passed.headers.get("x-forwarded-for", ""), 0),
    }  # fmt: skip


class RayReplicas:
    """The `Replicas` of a Ray deployment.

    Args:
        handle: Of a deployment of `Replica`.
        total: How many there are to be.
    """

    def __init__(self, handle: DeploymentHandle[Any], total: int) -> None:
        self._handle, self._total = handle, total
        self._answers = handle.options(method_name="answer", stream=True)

    async def counts(self) -> tuple[int, int]:
        """How many answer now, and how many there are to be."""
        return len(await self.ask_all("/health")), self._total

    @asynccontextmanager
    async def answer(self, passed: Passed, key: bytes) -> AsyncIterator[Answer]:
        """The answer of the replica that the router chose."""
        response: Any = self._answers.remote(passed, key=key)
        try:
            try:
                status, headers, body = await anext(response)
            except (RayError, StopAsyncIteration) as error:
                raise replica_lost() from error
            yield Answer(status, headers, _pieces(body, response))
        finally:
            response.cancel()

    async def ask_all(self, path: str) -> dict[str, bytes]:
        """What each replica answers to a GET."""
        try:
            told = await self._handle.broadcast("told", path).results_async(timeout_s=_ASKED_S, return_exceptions=True)
        except TimeoutError:
            return {}
        answers = [each for each in told if not isinstance(each, BaseException)]
        return {name: body for name, status, body in answers if status == 200}

    async def close(self) -> None:
        """Nothing: Ray ends its replicas itself."""


async def _pieces(first: bytes, response: AsyncIterator[Part]) -> AsyncIterator[bytes]:
    yield first
    try:
        async for _, _, body in response:
            yield body
    except RayError as error:
        raise replica_lost() from error
