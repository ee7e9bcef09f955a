"""One replica of `halfbyte serve --replicas`, as a process: a whole server on a port of this machine.

    stdin: an `Order` as a line of JSON; its end is the process's end      stdout: a `Report` as a line of JSON

Standard input ends when the front closes it, and when the front is gone, however it went. Signals are the front's.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from halfbyte import system
from halfbyte.errors import HalfbyteError
from halfbyte.model import load
from halfbyte.options import RunOptions
from halfbyte.server import json, logs
from halfbyte.server.app import create_app
from halfbyte.server.http import HttpServer, bind
from halfbyte.server.models import loaded_lines
from halfbyte.server.registry import Registry, Source
from halfbyte.server.settings import Settings

PATIENCE_S = 5.0
"""Seconds that a replica has to end. Nobody waits for its answers any more."""
MODULE = "halfbyte.server.worker"


@dataclass(frozen=True)
class Order:
    """What a replica is told.

    Attributes:
        name: What it is called, from "0" on.
        replicas: How many there are.
        models: Name and path of each model.
    """

    name: str
    replicas: int
    models: tuple[tuple[str, str], ...]
    run: RunOptions
    settings: Settings
    idle_timeout_s: float | None

    def line(self) -> bytes:
        """As a line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Order:
        """An order from its line."""
        given = json.plain(line)
        changed = {"run": RunOptions(**given["run"]), "settings": Settings(**given["settings"])}
        return cls(**{**given, **changed, "models": tuple((name, path) for name, path in given["models"])})


@dataclass(frozen=True)
class Report:
    """What a replica tells when it is ready, or why it is not.

    Attributes:
        port: Where it listens.
        said: What a user should know of its model.
        error: The error as its message, its hint and its exit code.
    """

    port: int = 0
    said: tuple[str, ...] = ()
    error: tuple[str, str, int] | None = None


def main() -> None:
    """Serve until standard input ends."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not (line := sys.stdin.buffer.readline()):
        return
    order = Order.of(line)
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.getLogger("halfbyte").addHandler(_Warnings(order.name))
    system.divide_memory(order.replicas)
    with bind(order.settings.host, 0) as listening:
        server = _server(order, listening, report)
        serving = threading.Thread(target=_serve, args=(server, listening, report), daemon=True)
        serving.start()
        while sys.stdin.buffer.read(4096):
            pass
        server.should_exit = True
        serving.join(PATIENCE_S)
    os._exit(0)


def _server(order: Order, listening: socket.socket, report: TextIO) -> HttpServer:
    sources = [
        Source(name, Path(path), partial(load, path, order.run), tuple(order.run.adapters))
        for name, path in order.models
    ]
    registry = Registry(sources, order.idle_timeout_s)

    def log(line: dict[str, object]) -> None:
        logs.to_stderr({**line, "replica": order.name})

    async def begin() -> None:
        said = tuple(loaded_lines(sources[0].name, await registry.start()))
        _tell(report, Report(listening.getsockname()[1], said))

    return HttpServer(create_app(registry, order.settings, log), order.settings, begin, log)


def _serve(server: HttpServer, listening: socket.socket, report: TextIO) -> None:
    """Run a server; an error ends the process."""
    code = 1
    try:
        server.run([listening])
        code = 0
    except HalfbyteError as error:
        code = error.exit_code
        _tell(report, Report(error=(error.message, error.hint, code)))
    except BaseException:
        traceback.print_exc()
    finally:
        if not server.should_exit:
            os._exit(code)


class _Warnings(logging.Handler):
    """Says the library's warnings as the front says what a replica reports: a line each, with the replica's name."""

    def __init__(self, replica: str) -> None:
        super().__init__(logging.WARNING)
        self._replica = replica

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"replica {self._replica}: {' '.join(record.getMessage().split())}\n")
        sys.stderr.flush()


def _tell(report: TextIO, what: Report) -> None:
    report.write(json.dumps(asdict(what)) + "\n")
    report.flush()


def read_report(line: bytes) -> Report:
    """A report from its line."""
    given: dict[str, Any] = json.plain(line)
    return Report(given["port"], tuple(given["said"]), given["error"] and tuple(given["error"]))


if __name__ == "__main__":
    main()
