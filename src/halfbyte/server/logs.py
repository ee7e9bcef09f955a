"""The log: one line of JSON for each request, on standard error. It holds no word of what was asked or answered."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from halfbyte.server import json
from halfbyte.server.exchange import Exchange

Log = Callable[[dict[str, object]], None]


def to_stderr(line: dict[str, object]) -> None:
    """Write one line of JSON."""
    sys.stderr.write(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line}) + "\n")
    sys.stderr.flush()


def request_line(exchange: Exchange, *, in_full: bool) -> dict[str, object]:
    """What is logged of a request that has ended.

    Args:
        in_full: Whether what was asked, and errors in their own words, may be in it.
    """
    usage = exchange.usage
    line: dict[str, object] = {
        "event": "request",
        "id": exchange.id,
        "client": exchange.client,
        "method": exchange.method,
        "route": exchange.route,
        "status": exchange.status,
        "model": exchange.model,
        "stream": exchange.stream,
        "total_ms": _ms(exchange.age_s),
        "queue_ms": _ms(exchange.turn_s),
        "first_token_ms": _ms(exchange.first_s),
        "prompt_tokens": usage and usage.prompt_tokens,
        "cached_tokens": usage and usage.cached_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "finish": ",".join(exchange.finish),
        "error": exchange.error,
    }
    if in_full:
        line |= exchange.detail
    return {name: value for name, value in line.items() if value not in (None, "")}


def failure_line(exchange: Exchange, error: BaseException) -> dict[str, object]:
    """What is logged of a bug: where it happened. Its message could quote the request, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"event": "bug", "id": exchange.id, "error": type(error).__name__, "where": where}


class ServerMessages(logging.Handler):
    """Makes lines of JSON of what the web server itself has to say."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log a message; of an exception only its kind."""
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        line: dict[str, object] = {"event": "server", "level": record.levelname.lower(), "message": record.msg}
        self._log(line | ({"error": kind} if kind else {}))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
