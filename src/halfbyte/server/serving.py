"""What all routes share: the models, the gate, and the way of a request through both."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from starlette.requests import Request

from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.model import AnswerOptions, Model
from halfbyte.server.conversation import ChatCall, Event, answer
from halfbyte.server.errors import UnavailableError, api_error
from halfbyte.server.exchange import Exchange
from halfbyte.server.limits import Gate
from halfbyte.server.logs import Log, failure_line
from halfbyte.server.metrics import Metrics
from halfbyte.server.registry import Registry
from halfbyte.server.settings import Settings


@dataclass
class Reception:
    """What every request passes, whoever answers it.

    Attributes:
        active: Requests under way, by age.
    """

    settings: Settings
    log: Log
    gate: Gate = field(init=False)
    metrics: Metrics = field(init=False)
    active: list[Exchange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate = Gate(self.settings.max_concurrent, self.settings.max_queue)
        self.metrics = Metrics(self.gate)

    def note_failure(self, exchange: Exchange, error: Exception) -> None:
        """Note why a request failed; a bug is logged by itself."""
        known = api_error(error)
        exchange.told = False
        exchange.error = known.code or str(known.status)
        exchange.detail["message"] = str(error)
        if not isinstance(error, HalfbyteError):
            self.log(failure_line(exchange, error))


@dataclass
class Serving(Reception):
    """The state of a server that answers with models of its own."""

    registry: Registry = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.metrics = Metrics(self.gate, self.registry)

    @asynccontextmanager
    async def turn(self, exchange: Exchange, name: str | None) -> AsyncIterator[Model]:
        """The model that a request means, when its turn has come.

        Raises:
            ApiError: There is no such model (404), or no room in the queue (429).
            UnavailableError: The model cannot be loaded, or was closed meanwhile.
        """
        exchange.model = self.registry.name(name)
        async with self.gate.turn(), self.registry.use(exchange.model) as model:
            exchange.turn_s = exchange.age_s
            try:
                yield model
            except UsageError:
                if model.engine.closed:
                    raise UnavailableError("The server is stopping, or has dropped the model.", "Ask again.") from None
                raise

    async def answered(self, exchange: Exchange, call: ChatCall) -> AsyncGenerator[Event, None]:
        """The events of a call, from its turn on, noted in its exchange."""
        if self.settings.log_prompts:
            exchange.detail["messages"] = call.messages
        async with self.turn(exchange, call.model) as model:
            options = with_limits(call.options, exchange, model.plan.context)
            events = answer(model, replace(call, options=options))
            async with aclosing(events):
                async for each in events:
                    exchange.note(each)
                    yield each


def with_limits(options: AnswerOptions, exchange: Exchange, context: int) -> AnswerOptions:
    """Options with the time that is left, and with as many tokens as there is room for if no number was given."""
    limited = AnswerOptions(**options)
    limited["deadline"] = exchange.left_s
    limited.setdefault("max_tokens", context)
    return limited


def serving_of(request: Request) -> Serving:
    """The state of the server that got a request."""
    found = request.app.state.reception
    if not isinstance(found, Serving):
        raise TypeError("the application was not made by create_app")
    return found
