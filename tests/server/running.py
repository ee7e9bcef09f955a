"""A real server on a free port of this machine, in a thread of the test's process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from halfbyte.errors import DeviceError
from halfbyte.model import POCKET, Model, load
from halfbyte.plan.batch import Batch
from halfbyte.plan.drawing import Draw, Pending
from halfbyte.server.app import create_app
from halfbyte.server.http import HttpServer, bind
from halfbyte.server.registry import Registry, Source
from halfbyte.server.settings import Settings

PATIENCE_S = 60.0


def pocket(sequences: int = 4, *, step_s: float = 0.0, batch_tokens: int | None = None) -> Model:
    """The pocket model on the CPU; each of its steps takes so much longer."""
    model = load(device="cpu", threads=1, sequences=sequences, logit_rows=16, batch_tokens=batch_tokens)
    submit = model.executor.submit

    def slow(batch: Batch, draws: Sequence[Draw], *, steps: int = 1) -> Pending:
        time.sleep(step_s)
        return submit(batch, draws, steps=steps)

    if step_s:
        model.executor.submit = slow  # type: ignore[method-assign]
    return model


def source(name: str = "pocket", make: Callable[[], Model] = pocket) -> Source:
    return Source(name, POCKET, make)


@dataclass
class Running:
    """A server that runs."""

    port: int
    settings: Settings
    registry: Registry
    log: list[dict[str, object]]
    key: str = field(default="none")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=PATIENCE_S, **options)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, **options)

    def get(self, path: str) -> httpx.Response:
        with self.http() as client:
            return client.get(path)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        with self.http() as client:
            return client.post(path, json=body, **options)

    def raw(self, sent: bytes, *, wait_s: float = 10.0) -> bytes:
        """What comes back for some bytes, up to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            connection.sendall(sent)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received

    def lines(self, event: str) -> list[dict[str, object]]:
        return [line for line in self.log if line["event"] == event]

    def request_line(self, request_id: str) -> dict[str, object]:
        """The log's line of a request, when it has come."""
        eventually(lambda: any(line.get("id") == request_id for line in self.lines("request")))
        return next(line for line in self.lines("request") if line["id"] == request_id)


@contextmanager
def running(
    sources: Iterable[Source] = (), *, idle_timeout_s: float | None = None, **settings: Any
) -> Iterator[Running]:
    """A server of some models, the pocket model if there are none; its log has no bugs at the end."""
    chosen = Settings(port=0, **settings)
    registry = Registry(list(sources) or [source()], idle_timeout_s)
    log: list[dict[str, object]] = []
    began = threading.Event()

    async def begin() -> None:
        await registry.start()
        began.set()

    def note(line: dict[str, object]) -> None:
        log.append(json.loads(json.dumps(line)))

    with bind("127.0.0.1", 0) as listening:
        server = HttpServer(create_app(registry, chosen, note), chosen, begin, note)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            assert began.wait(PATIENCE_S)
            yield Running(listening.getsockname()[1], chosen, registry, log, chosen.api_key or "none")
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert [line for line in log if line["event"] == "bug"] == []


@contextmanager
def losing() -> Iterator[tuple[Running, Callable[[], None]]]:
    """A server of the pocket model, and what loses the model's device."""
    made: list[Model] = []

    def make() -> Model:
        made.append(pocket())
        return made[-1]

    def gone(*_: object, **__: object) -> None:
        raise DeviceError("The GPU was lost.", "It is gone.")

    def lose() -> None:
        made[-1].executor.submit = gone  # type: ignore[assignment, method-assign]

    with running([source(make=make)]) as server:
        yield server, lose


def eventually(condition: Callable[[], object], wait_s: float = PATIENCE_S) -> None:
    """Wait until something is true."""
    until = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.02)
