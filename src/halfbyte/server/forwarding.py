"""The application of a server whose replicas answer: what it passes on, and what it tells of all of them together.

    Front → Starlette's routes → `forward`: place in the queue → a replica's answer, byte by byte as it comes

Keys, limits and ids are looked after here. Whatever reaches a replica is logged and counted there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from halfbyte.server import json, logs
from halfbyte.server.app import ROUTES, application
from halfbyte.server.errors import UnavailableError
from halfbyte.server.exchange import Exchange, exchange_of
from halfbyte.server.json import JsonResponse
from halfbyte.server.limits import in_thread_if_large, read_body, unless_left
from halfbyte.server.metrics import joined
from halfbyte.server.models import listed, together
from halfbyte.server.registry import no_model
from halfbyte.server.routing import beginning
from halfbyte.server.serving import Reception
from halfbyte.server.settings import AGE, Settings

_UNQUEUED = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
"""Routes that are answered beside the queue, as no tokens are computed."""
_HOPS = frozenset(
    {
        b"connection", b"date", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"server", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"x-request-id",
    }
)  # fmt: skip
"""Headers of a replica's answer that are not its client's: those of the connection, and those that are written here."""


@dataclass(frozen=True)
class Passed:
    """A request as a replica gets it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """A replica's answer; `body` raises `UnavailableError` where the replica is lost before its end."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: AsyncIterator[bytes]


class Replicas(Protocol):
    """Equal servers that answer for this one."""

    async def counts(self) -> tuple[int, int]:
        """How many can answer now, and how many there are to be."""
        ...

    def answer(self, passed: Passed, key: bytes) -> AbstractAsyncContextManager[Answer]:
        """An answer as it begins. Leaving the context earlier than its end cancels it.

        Args:
            key: Requests with one key should come to one replica.

        Raises:
            UnavailableError: No replica can answer, or the one that was asked is lost.
        """
        ...

    async def ask_all(self, path: str) -> dict[str, bytes]:
        """What replicas answer to a GET of `path`, by their names; those that do not answer are left out."""
        ...

    async def close(self) -> None:
        """End them."""
        ...


@dataclass
class Forwarding(Reception):
    """The state of a server whose replicas answer."""

    replicas: Replicas = field(kw_only=True)


def create_front(replicas: Replicas, settings: Settings, log: logs.Log = logs.to_stderr) -> Starlette:
    """The ASGI application in front of some replicas. It ends them when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await replicas.close()

    return application([_in_front(route) for route in ROUTES], Forwarding(settings, log, replicas=replicas), lifespan)


def _in_front(route: Route) -> Route:
    """The route of the same path in front of replicas; the page needs none."""
    if "POST" in (route.methods or ()):
        return Route(route.path, forward, methods=["POST"])
    return Route(route.path, _TOLD.get(route.path, route.endpoint), methods=["GET"])


async def forward(request: Request) -> Response:
    """Have a replica answer a request."""
    forwarding, exchange = _forwarding(request), exchange_of(request)
    body = await read_body(request, forwarding.settings)
    key = await in_thread_if_large(lambda body: beginning(json.loads(body, forwarding.settings.max_depth)), body)
    passed = Passed("POST", request.url.path, {"content-type": "application/json"}, body)
    return _Passing(forwarding, exchange, passed, key)


class _Passing(Response):
    """A replica's answer on its way, in its turn."""

    def __init__(self, forwarding: Forwarding, exchange: Exchange, passed: Passed, key: bytes) -> None:
        self._forwarding, self._exchange, self._passed, self._key = forwarding, exchange, passed, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it, unless the client goes first."""
        await unless_left(Request(scope, receive), self._pass(send))

    async def _pass(self, send: Send) -> None:
        gate = nullcontext() if self._passed.path in _UNQUEUED else self._forwarding.gate.turn()
        async with gate:
            exchange, passed = self._exchange, self._passed
            passed.headers["x-request-id"] = exchange.id
            passed.headers[AGE] = f"{exchange.age_s:.6f}"
            if exchange.client:
                passed.headers["x-forwarded-for"] = exchange.client
            exchange.told = True
            async with self._forwarding.replicas.answer(passed, self._key) as answer:
                kept = [(name, value) for name, value in answer.headers if name.lower() not in _HOPS]
                await send({"type": "http.response.start", "status": answer.status, "headers": kept})
                async for piece in answer.body:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def models(request: Request) -> Response:
    """All models, with what all replicas together have of them."""
    return JsonResponse(listed(await _models(request)))


async def model(request: Request) -> Response:
    """One model by its name."""
    found = {each["id"]: each for each in await _models(request)}
    name = request.path_params["name"]
    if name not in found:
        raise no_model(name, found)
    return JsonResponse(found[name])


async def _models(request: Request) -> list[dict[str, Any]]:
    told = await _forwarding(request).replicas.ask_all("/v1/models")
    if not told:
        raise no_replica()
    return together([json.plain(text)["data"] for text in told.values()])


async def health(request: Request) -> Response:
    """That some replica answers, and how many do."""
    ready, total = await _forwarding(request).replicas.counts()
    state = {"status": "ok" if ready else "unavailable", "replicas": {"ready": ready, "total": total}}
    return JsonResponse(state, 200 if ready else 503)


async def metrics(request: Request) -> Response:
    """Counts and times of every replica, and of what was answered here."""
    forwarding = _forwarding(request)
    told = {"front": forwarding.metrics.text()} | await forwarding.replicas.ask_all("/metrics")
    return Response(joined(told), media_type="text/plain; version=0.0.4")


async def slots(request: Request) -> Response:
    """The places of every replica."""
    told = await _forwarding(request).replicas.ask_all("/slots")
    return JsonResponse([{**slot, "replica": name} for name, text in told.items() for slot in json.plain(text)])


_TOLD: dict[str, Callable[..., Any]] = {
    "/v1/models": models, "/v1/models/{name:path}": model, "/health": health, "/metrics": metrics, "/slots": slots,
}  # fmt: skip


def no_replica() -> UnavailableError:
    """The error where no replica runs."""
    return UnavailableError("No replica runs now.", "Ask again: they are started again.", code="no_replica")


def replica_lost() -> UnavailableError:
    """The error where a replica ended while it answered."""
    return UnavailableError("The replica that was to answer has ended.", "Ask again.", code="replica_lost", after_s=1)


def _forwarding(request: Request) -> Forwarding:
    found = request.app.state.reception
    if not isinstance(found, Forwarding):
        raise TypeError("the application was not made by create_front")
    return found
