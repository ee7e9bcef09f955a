"""The application: which path is answered by what, and what every request passes through.

    Front: id, host, key, log, metrics, errors → Starlette's routes → a handler

Handlers raise what is wrong; `Front` makes JSON of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halfbyte.server import anthropic, logs, models, native, site
from halfbyte.server.errors import ApiError, UnavailableError, error_response
from halfbyte.server.exchange import Exchange, request_id
from halfbyte.server.limits import ClientLeftError, check_host, check_key, check_length
from halfbyte.server.openai_chat import chat_completions
from halfbyte.server.openai_completions import completions
from halfbyte.server.openai_embeddings import embeddings
from halfbyte.server.openai_responses import create_response
from halfbyte.server.registry import Registry
from halfbyte.server.serving import Reception, Serving
from halfbyte.server.settings import AGE, Settings

_PAGE = site.routes()
OPEN = frozenset({"/health", *(route.path for route in _PAGE)})
"""Paths that need no key: the page asks for it."""
SLACK_S = 5.0
"""Seconds beyond a request's time in which its last words may be sent."""
_CLIENT_LEFT = 499
"""The status that is logged of a request whose client did not wait."""

ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v1/responses", create_response, methods=["POST"]),
    Route("/v1/messages", anthropic.create_message, methods=["POST"]),
    Route("/v1/messages/count_tokens", anthropic.count_tokens, methods=["POST"]),
    Route("/v1/models", models.models, methods=["GET"]),
    Route("/v1/models/{name:path}", models.model, methods=["GET"]),
    Route("/tokenize", native.tokenize, methods=["POST"]),
    Route("/detokenize", native.detokenize, methods=["POST"]),
    Route("/tokenizer_info", native.tokenizer_info, methods=["GET"]),
    Route("/health", native.health, methods=["GET"]),
    Route("/metrics", native.metrics, methods=["GET"]),
    Route("/slots", native.slots, methods=["GET"]),
    *_PAGE,
]


def create_app(registry: Registry, settings: Settings, log: logs.Log = logs.to_stderr) -> Starlette:
    """The ASGI application over some models. It closes them when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await registry.close()

    return application(ROUTES, Serving(settings, log, registry=registry), lifespan)


def application(
    routes: Sequence[Route], reception: Reception, lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]
) -> Starlette:
    """An ASGI application whose requests all pass `Front`."""
    app = Starlette(routes=routes, middleware=[Middleware(Front, reception=reception)], lifespan=lifespan)
    app.state.reception = reception
    app.router.redirect_slashes = False
    app.add_exception_handler(HTTPException, _refused)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Make a sentence of what the routes refuse."""
    if not isinstance(error, HTTPException):
        raise error
    method, path = request.method[:20], request.url.path[:80]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        raise ApiError(405, f"{path} does not take {method}.", f"Use {allowed}.", headers={"allow": allowed})
    raise ApiError(error.status_code, f"There is nothing at {path!r}.", "See /v1/models and /v1/chat/completions.")


class Front:
    """What every request passes through."""

    def __init__(self, app: ASGIApp, reception: Reception) -> None:
        self._app, self._reception = app, reception

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens; note and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, settings = Request(scope, receive), self._reception.settings
        client = request.client.host if request.client else ""
        exchange = Exchange(
            request_id(request.headers.get("x-request-id")), settings.timeout_s, client=client, method=request.method
        )
        scope.setdefault("state", {})["exchange"] = exchange
        self._reception.active.append(exchange)
        try:
            await self._answered(request, exchange, _Sender(send, exchange))
        finally:
            self._reception.active.remove(exchange)
            route = scope.get("route")
            exchange.route = route.path if isinstance(route, Route) else ""
            if not exchange.told:
                self._reception.metrics.count(exchange)
                self._reception.log(logs.request_line(exchange, in_full=settings.log_prompts))

    async def _answered(self, request: Request, exchange: Exchange, sender: _Sender) -> None:
        error: Exception
        try:
            check_length(request)
            check_host(request, self._reception.settings)
            if request.scope["path"] not in OPEN:
                check_key(request, self._reception.settings.api_key)
            if self._reception.settings.behind:
                exchange.started -= float(request.headers.get(AGE, "0"))
                exchange.told = request.method == "GET"
            async with asyncio.timeout(exchange.left_s + SLACK_S):
                await self._app(request.scope, request.receive, sender)
            return
        except ClientLeftError:
            exchange.status, exchange.error = _CLIENT_LEFT, "client_left"
            return
        except asyncio.CancelledError:
            exchange.status, exchange.error = exchange.status or 503, "stopped"
            raise
        except TimeoutError:
            error = UnavailableError("The request took too long.", "Ask for less.", code="timeout")
        except Exception as failure:
            error = failure
        self._reception.note_failure(exchange, error)
        if sender.started:
            raise _CutError from error
        await error_response(request, error, exchange.id)(request.scope, request.receive, sender)


class _CutError(Exception):
    """An answer that cannot be finished: the connection is closed, so that nobody takes its part for the whole."""


class _Sender:
    """Sends an answer with its request's id, and notes its status."""

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send, self._exchange = send, exchange
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._exchange.status = message["status"]
            named = (b"x-request-id", self._exchange.id.encode())
            message = {**message, "headers": [*message.get("headers", ()), named]}
        await self._send(message)
