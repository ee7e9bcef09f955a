"""No request, however odd, gets a 5xx, a stall, or an error that is no sentence."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfbyte.server.anthropic import MessagesRequest
from halfbyte.server.openai_chat import ChatRequest
from halfbyte.server.openai_completions import CompletionRequest
from halfbyte.server.openai_embeddings import EmbeddingsRequest
from halfbyte.server.openai_options import HARMLESS
from halfbyte.server.openai_responses import ResponsesRequest

from .running import Running

PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize",
    "/detokenize",
]  # fmt: skip
KINDS = (ChatRequest, CompletionRequest, ResponsesRequest, MessagesRequest, EmbeddingsRequest)
NAMES = sorted({name for kind in KINDS for name in kind.model_fields} | HARMLESS | {"functions", "content", "tokens"})
TEXTS = st.text(max_size=8)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 30), st.floats(allow_nan=False), TEXTS,
    st.sampled_from(["auto", "none", "user", "system", "text", "json_object", "pocket", "1", "-1"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", "developer", "x"]) | VALUES},
        optional={"content": TEXTS | VALUES, "tool_calls": VALUES, "name": VALUES, "tool_call_id": VALUES},
    ),
    min_size=1, max_size=3,
)  # fmt: skip
KINDS_OF_BLOCKS = [
    "text", "input_text", "thinking", "tool_use", "tool_result", "message", "reasoning", "function_call",
    "function_call_output",
]  # fmt: skip
NAMES_IN_BLOCKS = [
    "text", "thinking", "id", "call_id", "tool_use_id", "name", "input", "arguments", "content", "output", "summary",
]  # fmt: skip
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS_OF_BLOCKS) | VALUES}, optional=dict.fromkeys(NAMES_IN_BLOCKS, TEXTS | VALUES)
)
BLOCKS = st.lists(
    BLOCK | st.builds(lambda role, content: {"role": role, "content": content}, TEXTS, st.lists(BLOCK, max_size=3)),
    min_size=1, max_size=3,
)  # fmt: skip
PLAIN: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/embeddings": {"input": "Hi"},
    "/tokenize": {"content": "Hi"},
    "/detokenize": {"tokens": [5]},
}


def bounded(body: dict[str, Any]) -> dict[str, Any]:
    """The same without what would only take long: very many tokens or answers."""
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
        if isinstance(body.get(name), int) and body[name] > 4:
            body[name] = 4 if name != "n" else 2
    for name in ("max_tokens", "max_output_tokens"):
        if body.get(name, 2) is None:
            body[name] = 2
    return body


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"].strip().endswith((".", "?", ")", "}", "…")), error
        assert error["type"]
        assert len(error["message"]) < 2000
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert '"error":{' not in response.text
        assert re.search(
            r"(data: \[DONE\]|message_stop\"\}|\"response\.(completed|incomplete)\".*)\n\n$", response.text
        )
    else:
        response.json()


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), changes=st.dictionaries(st.sampled_from(NAMES) | TEXTS, VALUES, max_size=3))
def test_odd_parameters(server: Running, path: str, changes: dict[str, Any]) -> None:
    body = bounded({**PLAIN[path], **changes})
    with server.http() as client:
        check(client.post(path, content=json.dumps(body), headers={"content-type": "application/json"}))


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=MESSAGES | BLOCKS, path=st.sampled_from(PATHS[:4]), stream=st.booleans())
def test_odd_messages(server: Running, messages: list[dict[str, Any]], path: str, stream: bool) -> None:
    given = {"input": messages} if "input" in PLAIN[path] else {"messages": messages}
    body = {**PLAIN[path], **given, "stream": stream}
    with server.http() as client:
        check(client.post(path, content=json.dumps(body), headers={"content-type": "application/json"}))


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), place=st.integers(0, 200), piece=st.binary(max_size=6), cut=st.integers(0, 6))
def test_damaged_json(server: Running, path: str, place: int, piece: bytes, cut: int) -> None:
    body = json.dumps(PLAIN[path]).encode()
    damaged = body[:place] + piece + body[place + cut :]
    with server.http() as client:
        check(client.post(path, content=damaged, headers={"content-type": "application/json"}))


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "PATCH", "BREW"]),
    path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    name=st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
)
def test_odd_paths_and_headers(server: Running, method: str, path: str, name: str, value: str) -> None:
    sent = f"{method} /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{name}: {value}\r\n\r\n"
    received = server.raw(sent.encode("latin-1"))
    assert received.startswith(b"HTTP/1.1 ")
    assert int(received.split()[1]) < 500 or b"501" in received
