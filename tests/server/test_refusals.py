"""What cannot be answered is refused with a status, and with a sentence that says what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from halfbyte.errors import UsageError
from halfbyte.server.settings import Settings

from .running import Running, running, source

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
VECTORS = "/v1/embeddings"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]


def said(response: httpx.Response) -> str:
    """The message of an error, which is a sentence in OpenAI's form."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].rstrip("”'}").endswith((".", "?", "…", ")"))
    return str(error["message"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/embeddings/", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/v1/%2e%2e/health", 404),
        ("GET", "/health%00", 404),
        ("GET", CHAT, 405),
        ("GET", VECTORS, 405),
        ("PUT", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("POST", "/health", 405),
    ],
)
def test_paths_and_methods_that_there_are_not(server: Running, method: str, path: str, status: int) -> None:
    with server.http() as client:
        response = client.request(method, path)
    assert response.status_code == status
    said(response)
    assert (status == 405) == ("allow" in response.headers)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages is missing"),
        ({"messages": "Hello"}, "messages must be"),
        ({"messages": []}, "prompt is empty"),
        ({"messages": [{"role": "user"}]}, "messages.0 has no content"),
        ({"messages": [{"role": "king", "content": "Hello"}]}, "'king'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0 has no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "tool_calls"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature must be"),
        ({"messages": HELLO, "temperature": -1}, "temperature must be"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens must be"),
        ({"messages": HELLO, "max_tokens": 1.5}, "max_tokens must be"),
        ({"messages": HELLO, "n": 0}, "n is 0"),
        ({"messages": HELLO, "n": 10**9}, "1 to 256"),
        ({"messages": HELLO, "stop": ""}, "stop"),
        ({"messages": HELLO, "stop": ["a"] * 65}, "stop has 65"),
        ({"messages": HELLO, "logit_bias": {"Hello": 1}}, "logit_bias"),
        ({"messages": HELLO, "logit_bias": {"99999999": 1}}, "vocabulary"),
        ({"messages": HELLO, "top_logprobs": 2}, "logprobs"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "20"),
        ({"messages": HELLO, "repeat_penalty": 1.1}, "Did you mean repetition_penalty"),
        ({"messages": HELLO, "functions": [{}]}, "Did you mean tools"),
        ({"messages": HELLO, "audio": {"voice": "x"}}, "'audio'"),
        ({"messages": HELLO, "modalities": ["audio"]}, "modalities"),
        ({"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": HELLO, "tools": [{"type": "web_search"}]}, "tools.0"),
        ({"messages": HELLO, "tool_choice": "perhaps"}, "tool_choice"),
        ({"messages": HELLO, "response_format": {"type": "yaml"}}, "yaml"),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "without a schema"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "tokens; the context holds"),
    ],
)
def test_conversations_that_are_none(server: Running, body: dict[str, Any], words: str) -> None:
    response = server.post(CHAT, body)
    assert response.status_code == 400
    assert words in said(response)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "prompt is missing"),
        ({"prompt": 5}, "prompt is a int"),
        ({"prompt": []}, "prompt is a list"),
        ({"prompt": [True]}, "prompt is a list"),
        ({"prompt": ["a", 5]}, "prompt is a list"),
        ({"prompt": [[]]}, "empty"),
        ({"prompt": [99999999]}, "vocabulary"),
        ({"prompt": [-1]}, "vocabulary"),
        ({"prompt": ["a"] * 257}, "257 prompts"),
        ({"prompt": "a", "suffix": "b"}, "suffix is not supported"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "echo is not set"),
        ({"prompt": "a", "logprobs": 99}, "logprobs"),
        ({"prompt": "a", "logprobs": 99, "echo": True}, "logprobs"),
    ],
)
def test_prompts_that_are_none(server: Running, body: dict[str, Any], words: str) -> None:
    response = server.post(TEXT, body)
    assert response.status_code == 400
    assert words in said(response)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "input is missing"),
        ({"input": None}, "input is a NoneType"),
        ({"input": 5}, "input is a int"),
        ({"input": ""}, "prompt is empty"),
        ({"input": []}, "input is a list"),
        ({"input": ["a", ""]}, "prompt is empty"),
        ({"input": ["a", 5]}, "input is a list"),
        ({"input": [[]]}, "empty"),
        ({"input": [[5], ["a"]]}, "input is a list"),
        ({"input": [99999999]}, "vocabulary"),
        ({"input": [-1]}, "vocabulary"),
        ({"input": ["a"] * 257}, "Send at most 256"),
        ({"input": ["a", "word " * 5000]}, "tokens; the context holds"),
        ({"input": "a", "dimensions": 0}, "dimensions is 0. Vectors of this model have 1 to 512."),
        ({"input": "a", "dimensions": 513}, "dimensions is 513"),
        ({"input": "a", "dimensions": 1.5}, "dimensions must be a valid integer"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format must be 'float' or 'base64'"),
        ({"input": "a", "pooling": "cls"}, "pooling must be 'mean' or 'last'"),
        ({"input": "a", "normalize": 1}, "normalize must be a valid boolean"),
        ({"input": "a", "truncate": True}, "'truncate'"),
        ({"input": "a", "model": 5}, "model must be a valid string"),
    ],
)
def test_inputs_that_are_none(server: Running, body: dict[str, Any], words: str) -> None:
    response = server.post(VECTORS, body)
    assert response.status_code == 400
    assert words in said(response)


def test_harmless_parameters_are_taken(server: Running) -> None:
    harmless = {
        "user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "prompt_cache_key": "k",
        "safety_identifier": "s", "audio": None, "tools": [], "response_format": {"type": "text"},
        "modalities": ["text"], "parallel_tool_calls": True, "reasoning_effort": "low", "verbosity": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    assert server.post(CHAT, {"messages": HELLO, "max_tokens": 1, **harmless}).status_code == 200
    refused = server.post(CHAT, {"messages": HELLO, "chat_template_kwargs": {"messages": []}})
    assert (refused.status_code, "'messages' cannot be set" in said(refused)) == (400, True)


def test_several_models_have_no_tokenizer_in_common() -> None:
    with running([source(), source("other")]) as server:
        assert "several models" in said(server.get("/tokenizer_info"))
        assert server.get("/tokenizer_info?model=other").json()["model"] == "other"
        unknown = server.get("/tokenizer_info?model=none")
        assert (unknown.status_code, "There are pocket, other" in said(unknown)) == (404, True)


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"", "application/json", 400, "not JSON"),
        (b"{", "application/json", 400, "not JSON"),
        (b"[]", "application/json", 400, "no object"),
        (b'"text"', "application/json", 400, "no object"),
        (b'{"messages": NaN}', "application/json", 400, "NaN"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "not JSON"),
        (b"\xff\xfe{}", "application/json", 400, "UTF-8"),
        (b"[" * 100_000, "application/json", 400, "nested"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "application/json", 400, "nested"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", 400, "surrogate"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}', "application/json", 404, "no model"),
        (b"{}", "text/plain", 415, "text/plain"),
        (b"{}", "", 415, "content type"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "form"),
        (b" " * (17 << 20), "application/json", 413, "16,777,216 bytes"),
    ],
)
def test_bodies_that_are_none(server: Running, content: bytes, kind: str, status: int, words: str) -> None:
    with server.http() as client:
        response = client.post(CHAT, content=content, headers={"content-type": kind})
    assert response.status_code == status
    assert words in said(response)


def test_a_compressed_body_is_refused(server: Running) -> None:
    with server.http() as client:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        response = client.post(CHAT, content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 415
    said(response)


def test_brackets_inside_texts_are_no_nesting(server: Running) -> None:
    content = "[" * 200 + '\\"' + "{" * 200
    response = server.post(CHAT, {"messages": [{"role": "user", "content": content}], "max_tokens": 1})
    assert response.status_code == 200


def test_the_client_knows_our_errors(server: Running) -> None:
    with server.client() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "Hello"}])
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as full:
            client.chat.completions.create(model="pocket", messages=[{"role": "user", "content": "word " * 5000}])
        assert full.value.code == "context_length_exceeded"


def test_an_error_before_the_first_event_is_no_stream(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 5000}], "stream": True}
    response = server.post(CHAT, body)
    assert response.status_code == 400
    said(response)


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with running(api_key="sesame") as found:
        yield found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "sesame"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer sesam"},
        {"authorization": "Bearer sesame2"},
        {"authorization": "Basic c2VzYW1l"},
        {"x-api-key": ""},
        {"authorization": b"Bearer \xff"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/slots", "/nothing"])
def test_nobody_comes_in_without_the_key(locked: Running, headers: Any, path: str) -> None:
    with locked.http() as client:
        response = client.get(path, headers=headers)
    assert response.status_code == 401
    assert "sesame" not in response.text
    said(response)


def test_the_key_opens_and_health_needs_none(locked: Running) -> None:
    with locked.http() as client:
        assert client.get("/health").json() == {"status": "ok"}
        for headers in ({"authorization": "bearer  sesame"}, {"x-api-key": "sesame"}):
            assert client.get("/v1/models", headers=headers).status_code == 200
    with locked.client() as allowed:
        assert [each.id for each in allowed.models.list()] == ["pocket"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.", ""])
def test_a_server_of_this_machine_answers_to_no_other_name(server: Running, host: str) -> None:
    with server.http() as client:
        response = client.get("/v1/models", headers={"host": host})
    assert response.status_code == 421
    said(response)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]", "[::1]:8080"])
def test_it_answers_to_all_its_own_names(server: Running, host: str) -> None:
    with server.http() as client:
        assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_other_machines_are_let_in_only_on_purpose() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", ""):
        with pytest.raises(UsageError, match="no API key"):
            Settings(host=host)
        assert Settings(host=host, api_key="k").api_key == "k"
        assert Settings(host=host, insecure=True).insecure
    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        assert Settings(host=host).is_local


def post(server: Running, head: str, body: bytes = b"") -> bytes:
    return server.raw(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode("latin-1") + body)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTPP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n",
        b"GET /health\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET /he\x80lth HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\nhello",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x5\r\n\r\nhello",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"GET /" + b"a" * 40_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000,
    ],
)
def test_what_is_no_http_is_refused_in_json(server: Running, sent: bytes) -> None:
    received = server.raw(sent)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in received
    assert received.count(b"HTTP/1.1") == 1


def test_a_body_of_two_lengths_is_not_read_as_two_requests(server: Running) -> None:
    """What follows the chunks of a request with both lengths is not taken for a request by a server that trusts one."""
    smuggled = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = f"Content-Type: application/json\r\nContent-Length: {5 + len(smuggled)}\r\nTransfer-Encoding: chunked\r\n"
    received = post(server, head, b"0\r\n\r\n" + smuggled)
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"HTTP/1.1 400 " in received
    assert b"halfbyte_requests" not in received


def test_damaged_chunks_end_the_connection(server: Running) -> None:
    head = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    received = post(server, head, b"zz\r\nhello\r\n0\r\n\r\n")
    assert b"200" not in received.partition(b"\r\n")[0]
    assert received.count(b"HTTP/1.1 ") <= 1


def test_requests_one_behind_the_other_are_answered_in_order(server: Running) -> None:
    first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    received = server.raw(first * 3 + last)
    assert received.count(b"HTTP/1.1 200 OK") == 4
    assert received.index(b'{"status":"ok"}') < received.index(b'"object":"list"')


def test_a_websocket_is_not_opened(server: Running) -> None:
    received = server.raw(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"
    )
    assert b"101" not in received.partition(b"\r\n")[0]


def test_who_sends_nothing_or_half_a_head_or_half_a_body_does_not_stay() -> None:
    with running(body_timeout_s=0.5) as server:
        for sent in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"):
            received = server.raw(sent, wait_s=20)
            assert received.count(b"HTTP/1.1") == sent.count(b"\r\n\r\n")
        late = post(server, "Content-Type: application/json\r\nContent-Length: 50\r\n", b"{")
        assert late.startswith(b"HTTP/1.1 408 ")
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n".encode())
            gone.sendall(b"Content-Type: application/json\r\n\r\n{")
        assert server.post(CHAT, {"messages": HELLO, "max_tokens": 1}).status_code == 200
