"""JSON in and out: bounded when read, always valid when written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.responses import Response

from halfbyte.errors import UsageError

_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)
_HINT = "Send one JSON object in UTF-8."


def loads(body: bytes, max_depth: int) -> dict[str, Any]:
    """The object that a request's body holds.

    Raises:
        UsageError: It is no JSON object, is nested too deep, or has numbers that are none.
    """
    _check_depth(body, max_depth)
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise UsageError(f"The body is not UTF-8: byte {error.start} is wrong.", _HINT) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The body is not JSON: {' '.join(str(error).split())[:200]}.", _HINT) from error
    if not isinstance(value, dict):
        raise UsageError(f"The body is JSON, but no object: it is a {type(value).__name__}.", _HINT)
    return value


def plain(text: bytes) -> Any:
    """The JSON that a process of ours wrote."""
    return json.loads(text)


def dumps(value: Any) -> str:
    """Compact JSON that UTF-8 can hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which came as an escape
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text


class JsonResponse(Response):
    """A JSON answer."""

    def __init__(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(dumps(value).encode(), status, headers, media_type="application/json")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(body: bytes, most: int) -> None:
    depth = 0
    for found in _BRACKETS.finditer(body):
        sign = found[0]
        depth += (sign in b"[{") - (sign in b"]}")
        if depth > most:
            raise UsageError(f"The body is nested more than {most} levels deep.", "Send plainer JSON.")
