"""Errors as answers: each has a status, and the JSON of the protocol that was spoken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from halfbyte.errors import ContextFullError, DeviceError, GrammarError, HalfbyteError, TemplateError, UsageError
from halfbyte.server.conversation import NoTurnError
from halfbyte.server.json import JsonResponse


class ApiError(HalfbyteError):
    """An error with a status of its own.

    Args:
        code: A word that programs may look for.
        param: The parameter that is wrong.
        headers: Headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str = "",
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})


class UnavailableError(ApiError):
    """What was asked for cannot be done now, but perhaps later."""

    def __init__(self, message: str, hint: str = "", *, code: str = "unavailable", after_s: int = 5) -> None:
        super().__init__(503, message, hint, code=code, headers={"retry-after": str(after_s)})


def api_error(error: Exception) -> ApiError:
    """Any error as one with a status. What is a bug, or the model's files, says nothing of itself to strangers."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextFullError):
        return ApiError(400, error.message, error.hint, code="context_length_exceeded")
    if isinstance(error, UsageError | TemplateError | GrammarError):
        return ApiError(400, error.message, error.hint)
    if isinstance(error, NoTurnError):
        return UnavailableError(error.message, error.hint, code="timeout")
    if isinstance(error, DeviceError):
        return UnavailableError(error.message, "Ask again: the model is loaded anew if need be.", code="device_error")
    if isinstance(error, HalfbyteError):
        return UnavailableError(error.message, error.hint, code="model_unavailable", after_s=60)
    return ApiError(500, "The server failed: this is a bug in Halfbyte.", "Its log has the details.", code="bug")


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_type(status: int) -> str:
    """What OpenAI calls the kind of an error."""
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")


def openai_body(error: ApiError) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    return {
        "error": {
            "message": str(error), "type": error_type(error.status), "param": error.param, "code": error.code,
        }
    }  # fmt: skip


_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 503: "overloaded_error",
}  # fmt: skip
_ANTHROPIC_PATH = "/v1/messages"


def anthropic_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """An error as Anthropic writes it. Clients know by its first words that a conversation is to be made shorter."""
    message = f"prompt is too long: {error}" if error.code == "context_length_exceeded" else str(error)
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def error_response(request: Request, error: Exception, request_id: str) -> Response:
    """The answer to a request that failed, in the shape of its protocol."""
    known, path = api_error(error), request.scope["path"]
    is_anthropic = path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/")
    body = anthropic_body(known, request_id) if is_anthropic else openai_body(known)
    return JsonResponse(body, known.status, headers=known.headers)
