"""One request and its answer, as the log and the metrics see them."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from halfbyte.server.conversation import Event, Finish, Progress, Usage

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class Exchange:
    """What is known of a request so far.

    Attributes:
        id: The client's `x-request-id`, or a random one.
        timeout_s: Seconds that it may take.
        route: The path that answers it, with no part of it chosen by the client; empty if there is none.
        model: The model's name among those of the server.
        turn_s: When its turn came, in seconds after its start.
        first_s: When its first token came.
        tokens: Those of its answer so far.
        error: The code or kind of its error.
        told: Whether another process logs and counts it: the one that answered.
        detail: The error in full, and what was asked; for a log that may hold it.
    """

    id: str
    timeout_s: float
    client: str = ""
    method: str = ""
    route: str = ""
    model: str = ""
    stream: bool = False
    status: int = 0
    turn_s: float | None = None
    first_s: float | None = None
    tokens: int = 0
    usage: Usage | None = None
    finish: list[str] = field(default_factory=list)
    error: str | None = None
    told: bool = False
    detail: dict[str, object] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def age_s(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.started

    @property
    def left_s(self) -> float:
        """Seconds that it may still take; never quite none."""
        return max(0.001, self.timeout_s - self.age_s)

    def note(self, event: Event) -> None:
        """Take an event of the answer into account."""
        if isinstance(event, Usage):
            self.usage = event
        elif isinstance(event, Finish):
            self.finish.append(event.reason)
        elif isinstance(event, Progress):
            self.tokens = event.completion_tokens
            if self.first_s is None:
                self.first_s = self.age_s


def request_id(given: str | None) -> str:
    """The id of a request: the client's own if it is harmless."""
    return given if given and _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def exchange_of(request: Request) -> Exchange:
    """The exchange of a request."""
    found = request.scope["state"]["exchange"]
    if not isinstance(found, Exchange):
        raise TypeError("the request has no exchange")
    return found
