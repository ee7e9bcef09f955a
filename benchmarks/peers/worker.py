"""An engine in a process of its own: `python -m benchmarks.peers.worker ENGINE FILES THREADS CONTEXT [SEQUENCES]`.

Requests come on standard input, a JSON object a line: {"do": "logits" | "prefill" | "decode", "ids": [...]}, for decode
with "tokens", or {"do": "batch", "prompts": [[...], ...], "tokens": ...}. A reply is {"value": ...} or
{"error": "one line"}; the first one, unasked, says what was loaded. Whatever the engine itself prints goes to standard
error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import IO, Any, cast

from benchmarks.peers.engines import BatchedEngine, Engine


def main() -> None:
    """Load the engine and answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, files, *numbers = sys.argv[1:]
    try:
        engine: Engine = importlib.import_module(f"benchmarks.peers.engines.{name}").Engine(files, *map(int, numbers))
    except Exception as error:
        _reply(replies, {"error": _one_line(error)})
        sys.exit(1)
    _reply(replies, {"value": {"versions": engine.versions, "settings": engine.settings}})
    for line in sys.stdin:
        try:
            _reply(replies, {"value": _answer(engine, json.loads(line))})
        except Exception as error:
            _reply(replies, {"error": _one_line(error)})


def _answer(engine: Engine, request: dict[str, Any]) -> float | list[float]:
    match request["do"]:
        case "logits":
            return [float(value) for value in engine.logits(request["ids"])]
        case "prefill":
            return engine.prefill(request["ids"])
        case "decode":
            return engine.decode(request["ids"], request["tokens"])
        case "batch":
            return cast(BatchedEngine, engine).batch(request["prompts"], request["tokens"])
    raise ValueError(f"unknown request {request['do']!r}")


def _reply(replies: IO[str], reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _one_line(error: Exception) -> str:
    traceback.print_exception(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    main()
