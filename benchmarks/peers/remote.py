"""The measuring side of a worker. A worker whose turn it is not is stopped, so that no thread of it spins."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from benchmarks.peers.environment import ROOT, PeerError, environment, reason

LONGEST_S = 1800.0


class Remote:
    """An engine in another process, paused between requests.

    Attributes:
        versions, settings: What the engine says about itself.

    Raises:
        PeerError: The engine does not load.
    """

    def __init__(
        self, python: str, engine: str, files: Path, threads: int, context: int, log: Path, *, sequences: int = 1
    ) -> None:
        numbers = [threads, context] + [sequences] * (sequences > 1)
        arguments = [python, "-m", "benchmarks.peers.worker", engine, str(files), *map(str, numbers)]
        variables = environment() | {"OMP_NUM_THREADS": str(threads)}
        if engine.startswith("halfbyte"):
            variables["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, cwd=ROOT, env=variables, bufsize=0
            )
        self._unread = b""
        try:
            loaded = self._reply()
        except PeerError:
            self.close()
            raise
        self.versions: dict[str, str] = loaded["versions"]
        self.settings: dict[str, str] = loaded["settings"]
        self._pause()

    def ask(self, do: str, **request: Any) -> Any:
        """The value of a request to the worker.

        Raises:
            PeerError: The engine failed or did not answer.
        """
        if self._process.stdin is None:
            raise PeerError("the worker has no input")
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
        except OSError as error:
            raise self._ended() from error
        value = self._reply()
        self._pause()
        return value

    def close(self) -> None:
        """End the worker."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def _reply(self) -> Any:
        reply = json.loads(self._line())
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply["value"]

    def _line(self) -> bytes:
        """The next line of the worker's output."""
        if self._process.stdout is None:
            raise PeerError("the worker has no output")
        end = time.monotonic() + LONGEST_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.close()
                    raise PeerError(f"no answer in {LONGEST_S:.0f} s")
                part = os.read(self._process.stdout.fileno(), 1 << 20)
                if not part:
                    raise self._ended()
                self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _ended(self) -> PeerError:
        return PeerError(reason(self._log.read_text(errors="replace"), self._process.wait()))
