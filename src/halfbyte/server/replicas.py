"""Replicas on this machine: a process each, which is started again when it ends, and asked over HTTP.

Each has a key of its own, so that nobody comes past the front.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TypeVar

import httpx2 as httpx

from halfbyte.errors import HalfbyteError
from halfbyte.server.forwarding import Answer, Passed, no_replica, replica_lost
from halfbyte.server.logs import Log
from halfbyte.server.routing import choose
from halfbyte.server.worker import MODULE, PATIENCE_S, Order, read_report

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
"""Seconds before a replica is started again: twice as many each time, from the first on once it has lived longer."""
_ASKED_S = 5.0
"""Seconds that a replica has to tell of itself."""
_KEPT_S = 5.0
"""Seconds that a connection is kept without a request; less than a replica keeps it."""
_SLACK_S = 2.0
T = TypeVar("T")


class LocalReplicas:
    """The `Replicas` of some orders, one process for each."""

    def __init__(self, orders: Sequence[Order], log: Log) -> None:
        self._log, self._sequences = log, orders[0].run.sequences
        self._replicas = {order.name: _Replica(order) for order in orders}
        self._watches: list[asyncio.Task[None]] = []
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=_ASKED_S), trust_env=False, follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEPT_S),
        )  # fmt: skip

    async def start(self) -> dict[str, tuple[str, ...]]:
        """Start them, the first one alone: what it finds out about the machine is known to the others.

        Returns:
            What each says of its model.

        Raises:
            HalfbyteError: One cannot start.
        """
        first, *others = self._replicas.values()
        try:
            said = [await first.start(), *await asyncio.gather(*(other.start() for other in others))]
        except BaseException:
            await self.close()
            raise
        self._watches = [asyncio.create_task(self._watch(each)) for each in self._replicas.values()]
        return dict(zip(self._replicas, said, strict=True))

    async def counts(self) -> tuple[int, int]:
        """How many can answer now, and how many there are to be."""
        return sum(each.ready for each in self._replicas.values()), len(self._replicas)

    @asynccontextmanager
    async def answer(self, passed: Passed, key: bytes) -> AsyncIterator[Answer]:
        """The answer of the replica that should have the key, or of another one if it cannot be reached."""
        tried: set[str] = set()
        while True:
            chosen = self._chosen(key, tried)
            chosen.load += 1
            try:
                try:
                    response = await self._client.send(chosen.request(self._client, passed), stream=True)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    tried.add(chosen.order.name)
                    continue
                except httpx.TransportError as error:
                    raise replica_lost() from error
                try:
                    yield Answer(response.status_code, response.headers.raw, _pieces(response))
                finally:
                    await response.aclose()
                return
            finally:
                chosen.load -= 1

    async def ask_all(self, path: str) -> dict[str, bytes]:
        """What each replica answers to a GET."""
        ready = [each for each in self._replicas.values() if each.ready]
        answers = await asyncio.gather(*(self._ask(each, path) for each in ready))
        return {each.order.name: text for each, text in zip(ready, answers, strict=True) if text is not None}

    async def close(self) -> None:
        """End all processes."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(each.end() for each in self._replicas.values()))
        await self._client.aclose()

    def _chosen(self, key: bytes, tried: set[str]) -> _Replica:
        loads = {name: each.load for name, each in self._replicas.items() if each.ready and name not in tried}
        if not loads:
            raise no_replica()
        return self._replicas[choose(key, loads, self._sequences)]

    async def _ask(self, asked: _Replica, path: str) -> bytes | None:
        try:
            async with asyncio.timeout(_ASKED_S):
                response = await self._client.send(asked.request(self._client, Passed("GET", path, {}, b"")))
        except (httpx.TransportError, TimeoutError):
            return None
        return response.content if response.is_success else None

    async def _watch(self, watched: _Replica) -> None:
        """Start a replica again whenever it ends, and tell the log."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            code = await watched.ended()
            if time.monotonic() - began > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            told: dict[str, object] = {"event": "replica", "replica": watched.order.name}
            self._log({**told, "state": "ended", "code": code, "again_s": pause_s})
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
            try:
                await watched.start()
                self._log({**told, "state": "ready"})
            except (HalfbyteError, OSError) as error:
                self._log({**told, "state": "failed", "message": str(error)})


class _Replica:
    """One of them: its process, and how many requests it answers."""

    def __init__(self, order: Order) -> None:
        self.order, self.load = order, 0
        self._process: Process | None = None
        self._port, self._key = 0, ""

    @property
    def ready(self) -> bool:
        """Whether it can be asked."""
        return bool(self._port)

    async def start(self) -> tuple[str, ...]:
        """Start its process, and wait until it is ready.

        Raises:
            HalfbyteError: It says why it is not, or it ended.
        """
        self._key = secrets.token_urlsafe(32)
        order = replace(self.order, settings=replace(self.order.settings, api_key=self._key))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", MODULE, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True
        )
        with suppress(ConnectionError):
            _open(process.stdin).write(order.line())
            await _open(process.stdin).drain()
        line = await _open(process.stdout).readline()
        if not line:
            code = await process.wait()
            raise HalfbyteError(f"replica {order.name} ended with code {code} before it was ready.")
        report = read_report(line)
        if report.error is not None:
            await process.wait()
            message, hint, code = report.error
            error = HalfbyteError(f"replica {order.name}: {message}", hint)
            error.exit_code = code
            raise error
        self._port = report.port
        return report.said

    async def ended(self) -> int:
        """The exit code of its process, once it has ended."""
        code = await _open(self._process).wait()
        self._port = 0
        return code

    async def end(self) -> None:
        """End its process."""
        self._port = 0
        process = self._process
        if process is None:
            return
        _open(process.stdin).close()
        try:
            async with asyncio.timeout(PATIENCE_S + _SLACK_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def request(self, client: httpx.AsyncClient, passed: Passed) -> httpx.Request:
        """A request to it."""
        headers = {**passed.headers, "authorization": f"Bearer {self._key}", "accept-encoding": "identity"}
        return client.build_request(
            passed.method, f"http://127.0.0.1:{self._port}{passed.path}", headers=headers, content=passed.body
        )


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in response.aiter_raw():
            yield piece
    except httpx.TransportError as error:
        raise replica_lost() from error


def _open(found: T | None) -> T:
    if found is None:
        raise TypeError("the replica was not started")
    return found
