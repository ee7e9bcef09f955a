"""What the server costs: python -m benchmarks.serving --clients 1,8,32 [--model M | --synthetic NAME] [--device cpu]

One process has a model, its engine and a server. So many clients at a time, in this process, send the server requests;
then the engine answers as many requests of the same lengths without it. Both in turns, several times. A line of JSON
for each number of clients: tokens per second of both, their ratio, times to the first event and between events, and
how busy processors, threads and the GPU were, as shares of the time. The GPU's is from one more turn, which its clock
slows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from benchmarks.clients import Answer, connected
from halfbyte.report import host
from halfbyte.report.workload import Arrival, Workload, arrivals

KIND = "halfbyte serve"
SCHEMA = 1
VOCABULARY = 256
"""Prompts have tokens below this, which every model has."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """The process with the model."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.about = self._said()
        self.port = int(self.about["port"])

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else sys.exit("the process with the model has ended")

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return self._said()

    def alone(self, clients: int, workload: Workload) -> float:
        """Tokens per second without the server."""
        asked = {"clients": clients, "workload": asdict(workload), "vocabulary": VOCABULARY}
        return float(self._answer(asked)["tokens_per_s"])

    def clock(self, on: bool) -> bool:
        """Have the GPU timed from now on, or no more; whether it is."""
        return bool(self._answer({"clock": on})["clock"])

    def spent(self) -> dict[str, Any]:
        """What `serving_worker.spent` tells."""
        return self._answer({})

    def cpu_s(self) -> float:
        """Processor time that it has taken so far, in seconds."""
        with open(f"/proc/{self._process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def worker(asked: dict[str, Any]) -> Iterator[Worker]:
    """A process with a model; it ends with the block."""
    command = [sys.executable, "-m", "benchmarks.serving_worker", json.dumps(asked)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Worker(process)
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
        finally:
            process.kill()


async def _client(port: int, coming: Iterator[Arrival], answers: list[Answer]) -> None:
    async with connected(port) as client:
        for asked in coming:
            body = {"prompt": list(asked.prompt_ids), "max_tokens": asked.new_tokens, "ignore_eos": True}
            answer = await client.stream("/v1/completions", {**body, "temperature": 0})
            if answer.tokens != asked.new_tokens:
                sys.exit(f"an answer has {answer.tokens} tokens in place of {asked.new_tokens}, status {answer.status}")
            answers.append(answer)


async def _all(port: int, clients: int, coming: Sequence[Arrival]) -> list[Answer]:
    answers: list[Answer] = []
    shared = iter(coming)
    await asyncio.gather(*(_client(port, shared, answers) for _ in range(clients)))
    return answers


def served(server: Worker, clients: int, workload: Workload) -> dict[str, float]:
    """Figures of the workload, answered by the server."""
    coming = arrivals(workload, VOCABULARY)
    before = server.spent()
    began, server_s, own_s = time.perf_counter(), server.cpu_s(), time.process_time()
    answers = asyncio.run(_all(server.port, clients, coming))
    seconds, server_s, own_s = time.perf_counter() - began, server.cpu_s() - server_s, time.process_time() - own_s
    after = server.spent()
    gaps = sorted(b - a for answer in answers for a, b in zip(answer.event_s, answer.event_s[1:], strict=False))
    firsts = sorted(answer.event_s[0] for answer in answers)
    return {
        "tokens_per_s": sum(answer.tokens for answer in answers) / seconds,
        "first_p50_ms": 1000 * _at(firsts, 0.5), "first_p99_ms": 1000 * _at(firsts, 0.99),
        "gap_p50_ms": 1000 * _at(gaps, 0.5), "gap_p99_ms": 1000 * _at(gaps, 0.99),
        "events": len(gaps) + len(firsts), "server_cpu": server_s / seconds, "client_cpu": own_s / seconds,
        **_shares(before, after, seconds),
    }  # fmt: skip


def _shares(before: dict[str, Any], after: dict[str, Any], seconds: float) -> dict[str, float]:
    """How busy the threads of the server and of the engine were, how long that waited for a GPU, and its submits."""
    if before["engine_id"] != after["engine_id"]:
        before = {**before, "engine": 0.0}
    names = {"server": "server_thread", "engine": "engine_thread", "wait_s": "gpu_wait"}
    shares = {told: (after[name] - before[name]) / seconds for name, told in names.items() if name in after}
    return shares | ({"submits": after["submits"] - before["submits"]} if "submits" in after else {})


def gpu_busy(server: Worker, clients: int, workload: Workload) -> dict[str, float]:
    """The share of the time in which the GPU works, with the server and without; nothing if it has no clock."""
    if not server.clock(True):
        return {}
    tokens, shares = workload.requests * workload.new_tokens[0], dict[str, float]()
    for told, work in (
        ("gpu_busy", lambda: served(server, clients, workload)["tokens_per_s"]),
        ("engine_gpu_busy", lambda: server.alone(clients, workload)),
    ):
        before = server.spent()["gpu_s"]
        seconds = tokens / work()
        shares[told] = round((server.spent()["gpu_s"] - before) / seconds, 3)
    server.clock(False)
    return shares


def _at(values: Sequence[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def measure(server: Worker, clients: int, shape: Workload, rounds: int) -> dict[str, Any]:
    """Figures of both ways in turns, after one that does not count; medians over the rounds.

    Every turn has prompts of its own, of which the server's cache has nothing.
    """
    of_server, of_engine = [], []
    shape = replace(shape, requests=shape.requests * clients)
    for turn in range(2 * rounds + 2):
        workload = replace(shape, seed=1000 * clients + turn)
        if turn % 2:
            of_server.append(served(server, clients, workload))
        else:
            of_engine.append(server.alone(clients, workload))
    counted = of_server[1:]
    ratios = [each["tokens_per_s"] / engine for each, engine in zip(counted, of_engine[1:], strict=True)]
    return {
        "clients": clients, "requests": shape.requests, "prompt_tokens": shape.prompt_tokens[0],
        "new_tokens": shape.new_tokens[0],
        **{name: round(statistics.median(each[name] for each in counted), 3) for name in counted[0]},
        "engine_tokens_per_s": round(statistics.median(of_engine[1:]), 1),
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
        **gpu_busy(server, clients, replace(shape, seed=1000 * clients + 999)),
    }  # fmt: skip


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--synthetic", help="random weights in the shapes of this model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clients", default="1,8,32", help="numbers of clients, one after the other")
    parser.add_argument("--requests", type=int, default=4, help="requests per client")
    parser.add_argument("-p", "--prompt-tokens", type=int, default=128)
    parser.add_argument("-n", "--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    numbers = [int(number) for number in given.clients.split(",")]
    shape = Workload(given.requests, (given.prompt_tokens,) * 2, (given.new_tokens,) * 2)
    options = {"device": given.device, "threads": given.threads, "context": shape.context, "sequences": max(numbers)}
    asked = {"model": given.synthetic or given.model, "synthetic": given.synthetic is not None, "options": options}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"schema": SCHEMA, "kind": KIND, "time": now, **asked}
    with worker(asked) as server:
        about |= {"machine": host.machine() | server.about["device"], "versions": host.versions()}
        for clients in numbers:
            found = measure(server, clients, shape, given.rounds)
            print(json.dumps({**about, **found}), flush=True)


if __name__ == "__main__":
    main()
