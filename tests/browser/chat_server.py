"""A server that says to the chat page what a test has written for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from halfbyte.server.page import PAGE_HEADERS, page_files

GOOD = {
    "bits_per_weight": 4.512,
    "kl_divergence": 0.02134,
    "perplexity_ratio": 1.0123,
    "device": "NVIDIA H200",
    "context": 8192,
}
MODELS = (
    {"id": "Qwen3-4B-q4", "object": "model", "halfbyte": GOOD},
    {"id": "Llama-3.2-1B", "object": "model", "halfbyte": {"device": "cpu"}},
    {"id": "plain", "object": "model"},
)
Piece = Mapping[str, Any] | Event
"""A chunk of a stream, or what the stream waits for."""


@dataclass
class Reply:
    """What one request for an answer gets: chunks, or an error. `cut` drops the connection after
    them, `hushed` ends it in order but without a word that the answer is complete."""

    chunks: Sequence[Piece] = ()
    status: int = 200
    error: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    hushed: bool = False


@dataclass
class ChatServer:
    """What is asked of it and what it answers, in turn."""

    replies: list[Reply] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    key: str = ""
    ready: Event = field(default_factory=Event)
    """Cleared, the list of models waits."""
    url: str = ""
    left: Event = field(default_factory=Event)
    """Set when a browser goes away in the middle of an answer."""


def delta(**fields: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def spoken(text: str, size: int = 6) -> list[dict[str, Any]]:
    """A text as chunks of so many characters."""
    return [delta(content=text[i : i + size]) for i in range(0, len(text), size)]


def end(reason: str = "stop", *, tokens: int = 42, prompt: int = 11, cached: int = 0) -> list[dict[str, Any]]:
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    return [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
        {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, **details}},
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: ChatServer, *args: Any) -> None:
        self._chat = server
        super().__init__(*args)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self._allowed():
                self._chat.ready.wait(30)
                self._send(200, "application/json", json.dumps({"object": "list", "data": MODELS}).encode())
            return
        for file in page_files():
            if file.path == self.path:
                self._send(200, file.content_type, file.body, {**PAGE_HEADERS, "ETag": file.etag})
                return
        self._send(404, "text/plain", b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        assert self.path == "/v1/chat/completions"
        self._chat.bodies.append(body)
        reply = self._chat.replies.pop(0)
        if reply.status != 200:
            self._fail(reply.status, reply.error, reply.headers)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._event(": heartbeat")
            for piece in reply.chunks:
                if isinstance(piece, Event):
                    self._wait(piece)
                else:
                    self._event(f"data: {json.dumps(piece)}")
            if reply.cut:
                self.close_connection = True
                return
            if not reply.hushed:
                self._event("data: [DONE]")
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            self._chat.left.set()
            self.close_connection = True

    def _wait(self, gate: Event) -> None:
        """Wait, as a model that computes does; heartbeats tell whether anybody is there."""
        while not gate.wait(0.05):
            self._event(": heartbeat")

    def _event(self, text: str) -> None:
        data = f"{text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _allowed(self) -> bool:
        if not self._chat.key or self.headers["Authorization"] == f"Bearer {self._chat.key}":
            return True
        self._fail(401, "This server asks for an API key.")
        return False

    def _fail(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": None}})
        self._send(status, "application/json", body.encode(), headers)

    def _send(self, status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    chat = ChatServer()
    chat.ready.set()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, chat)) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        chat.url = f"http://127.0.0.1:{server.server_port}/"
        try:
            yield chat
        finally:
            server.shutdown()
