"""The browser that pages are tested in; `scripts/chromium` installs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or "chromium"


class _Handler(BaseHTTPRequestHandler):
    """Serves one page, the data that it fetches from `/data`, and takes the answer that it posts."""

    def __init__(self, page: bytes, data: bytes, answers: Queue[Any], *args: Any) -> None:
        self._page, self._data, self._answers = page, data, answers
        super().__init__(*args)

    def do_GET(self) -> None:
        data = self.path == "/data"
        self._send(self._data if data else self._page, "application/json" if data else "text/html")

    def do_POST(self) -> None:
        self._answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._send(b"", "text/plain")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


def ask(page: Path, data: Any, flags: Sequence[str] = (), *, timeout_s: float = 900) -> Any:
    """Open a page that works on `data`; what it posts when it is done.

    Raises:
        queue.Empty: It was not done in time.
    """
    answers: Queue[Any] = Queue()
    handler = partial(_Handler, page.read_bytes(), json.dumps(data).encode(), answers)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        Thread(target=server.serve_forever, daemon=True).start()
        command = [CHROMIUM, "--headless", "--no-sandbox", f"--user-data-dir={profile}", *flags]
        browser = subprocess.Popen([*command, f"http://127.0.0.1:{server.server_port}/"], stderr=subprocess.DEVNULL)
        try:
            return answers.get(timeout=timeout_s)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
