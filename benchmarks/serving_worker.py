"""The process that `benchmarks.serving` measures: one model, a server of it, and its engine without the server.

Says its port and device in a line of JSON, then answers lines with lines: to `{"clients", "workload"}` it says how many
tokens per second the engine gives alone, to `{"clock": true}` or false whether it times the GPU from now on, to `{}`
what it has spent so far. It ends with its input.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from halfbyte.executors import factory
from halfbyte.model import POCKET, Model, load
from halfbyte.options import RunOptions
from halfbyte.placement import place_first
from halfbyte.report.subject import synthetic
from halfbyte.report.workload import Arrival, Workload, arrivals
from halfbyte.runtime import Engine, SamplingParams
from halfbyte.server.app import create_app
from halfbyte.server.http import HttpServer, bind
from halfbyte.server.registry import Registry, Source
from halfbyte.server.settings import Settings
from halfbyte.text import Tokenizer
from halfbyte.text.files import read_tokenizer_files


def loaded(model: str, options: RunOptions, *, random: bool) -> Model:
    """A stored model, or random weights in the shapes of one with the pocket model's tokenizer."""
    if not random:
        return load(model, options)
    subject, tokenizer = synthetic(model), Tokenizer(read_tokenizer_files(POCKET))
    placed = place_first(options, subject.spec, subject.source)
    return Model(name=model, path=POCKET, spec=subject.spec, tokenizer=tokenizer, placed=placed, load_s=0.0)


def alone(model: Model, clients: int, coming: Sequence[Arrival]) -> float:
    """Tokens per second of the engine, which has as many requests as there are clients until they run out."""
    engine = Engine(model.executor, rope_switch=model.spec.rope_switch, prefill_chunk=model.options.prefill_chunk)
    waiting, tokens, under_way = deque(coming), 0, 0
    began = time.perf_counter()
    while waiting or under_way:
        while waiting and under_way < clients:
            asked = waiting.popleft()
            engine.submit(asked.prompt_ids, SamplingParams(), max_tokens=asked.new_tokens)
            under_way += 1
        for output in engine.step():
            tokens += 1
            under_way -= output.finish_reason is not None
    return tokens / (time.perf_counter() - began)


def spent(model: Model, server: threading.Thread) -> dict[str, Any]:
    """Seconds so far: of the processor by the server's thread and by the engine's, and what the executor counts.

    The engine's thread is another one after each pause; its id tells which.
    """
    engine = next((thread for thread in threading.enumerate() if thread.name == "halfbyte engine"), None)
    return {
        "server": _cpu_s(server), "engine": _cpu_s(engine) if engine else 0.0,
        "engine_id": engine.native_id if engine else None, **model.executor.counters(),
    }  # fmt: skip


def _cpu_s(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def main() -> None:
    """Serve until the input ends."""
    asked = json.loads(sys.argv[1])
    model = loaded(asked["model"], RunOptions(**asked["options"]), random=asked["synthetic"])
    settings = Settings(port=0, max_concurrent=max(32, model.plan.sequences))
    registry = Registry([Source(model.name, POCKET, lambda: model)])
    with bind(settings.host, settings.port) as listening, ExitStack() as clock:

        async def begin() -> None:
            await registry.start()
            about = factory(model.device).describe(model.executor)
            print(json.dumps({"port": listening.getsockname()[1], "device": about}), flush=True)

        server = HttpServer(create_app(registry, settings, lambda line: None), settings, begin, lambda line: None)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        for line in sys.stdin:
            wanted = json.loads(line)
            told: dict[str, Any]
            if "workload" in wanted:
                coming = arrivals(Workload(**wanted["workload"]), wanted["vocabulary"])
                told = {"tokens_per_s": alone(model, wanted["clients"], coming)}
            elif "clock" in wanted:
                clock.close()
                timed = factory(model.device).timed(model.executor) if wanted["clock"] else None
                if timed is not None:
                    clock.enter_context(timed)
                told = {"clock": timed is not None}
            else:
                told = spent(model, thread)
            print(json.dumps(told), flush=True)
        clock.close()
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
