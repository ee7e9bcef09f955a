"""The application in front of replicas, with a replica that never ends its answer."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from halfbyte.server.forwarding import Answer, Passed, create_front
from halfbyte.server.http import HttpServer, bind
from halfbyte.server.settings import Settings

from .running import PATIENCE_S, eventually

PIECE = b"x" * 65536


class Endless:
    """One replica that writes for ever; it notes how much was taken, and whether its answer was closed."""

    taken, closed = 0, False
    passed: Passed

    async def counts(self) -> tuple[int, int]:
        return 1, 1

    @asynccontextmanager
    async def answer(self, passed: Passed, key: bytes) -> AsyncIterator[Answer]:
        self.passed = passed
        try:
            yield Answer(200, [(b"content-type", b"text/plain"), (b"connection", b"close")], self._pieces())
        finally:
            self.closed = True

    async def _pieces(self) -> AsyncIterator[bytes]:
        while True:
            self.taken += 1
            await asyncio.sleep(0)
            yield PIECE

    async def ask_all(self, path: str) -> dict[str, bytes]:
        return {}

    async def close(self) -> None:
        pass


@contextmanager
def asked() -> Iterator[tuple[Endless, socket.socket]]:
    """A front, and a connection with a request whose answer nobody reads."""
    replicas, settings, began = Endless(), Settings(port=0, grace_s=1), threading.Event()

    async def begin() -> None:
        began.set()

    with bind("127.0.0.1", 0) as listening:
        server = HttpServer(create_front(replicas, settings, lambda line: None), settings, begin, lambda line: None)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            assert began.wait(PATIENCE_S)
            with socket.create_connection(listening.getsockname()) as connection:
                connection.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                    b"cookie: secret\r\nx-request-id: mine\r\nx-forwarded-for: 1.2.3.4\r\ncontent-length: 2\r\n\r\n{}"
                )
                yield replicas, connection
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_no_more_is_taken_from_a_replica_than_the_client_reads() -> None:
    with asked() as (replicas, connection):
        seen: list[int] = []

        def still() -> bool:
            time.sleep(0.3)
            seen.append(replicas.taken)
            return len(seen) > 1 and seen[-1] == seen[-2] > 0

        eventually(still)
        connection.recv(len(PIECE))
        assert seen[-1] * len(PIECE) < 64 << 20  # what two sockets hold, by far


def test_when_the_client_leaves_the_replicas_answer_is_closed() -> None:
    with asked() as (replicas, connection):
        eventually(lambda: replicas.taken)
        connection.close()
        eventually(lambda: replicas.closed)


def test_a_replica_gets_what_it_needs_of_a_request_and_nothing_else() -> None:
    with asked() as (replicas, connection):
        eventually(lambda: replicas.taken)
        sent = dict(replicas.passed.headers)
        assert float(sent.pop("x-halfbyte-age")) >= 0
        assert sent == {
            "content-type": "application/json", "x-request-id": "mine", "x-forwarded-for": "127.0.0.1",
        }  # fmt: skip
        head = connection.recv(1 << 16).partition(b"\r\n\r\n")[0].lower()
        assert b"connection" not in head
        assert head.count(b"x-request-id: mine") == 1
