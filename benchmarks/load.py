"""A server under a crowd: python -m benchmarks.load --clients 1000 --minutes 10

Starts `halfbyte serve` with the pocket model. Each client asks again and again, with answers of random lengths; of all
requests, a tenth are left in the middle, and a tenth are read slowly. Every half minute a line of JSON tells what came
of them so far, and the server's resident memory; the last one tells the times between events of those that read at
once. Exit code 1 if a request failed that the server's limits did not refuse, or if the server still works at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.clients import Answer, connected
from halfbyte.report import host

REFUSED = (429, 503)
"""What a server answers that has no room."""
SLOW_BUFFER = 4096
"""Bytes that a slow reader's side takes before it reads."""
EVERY_S = 30


@contextmanager
def serving(*options: str) -> Iterator[tuple[int, int]]:
    """A server on a free port: its process id, and the port."""
    command = [sys.executable, "-m", "halfbyte", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if found := re.search(r"listening on http://[^:]+:(\d+)/", line):
                    break
                print(line, end="", file=sys.stderr)
            else:
                sys.exit("the server has ended")
            bugs = subprocess.Popen(["grep", "--count", '"event":"bug"'], stdin=server.stderr, stdout=subprocess.PIPE)
            yield server.pid, int(found[1])
            server.terminate()
            server.wait(60)
            told, _ = bugs.communicate(timeout=10)
            if int(told):
                sys.exit(f"the server's log has {int(told)} bugs")
        finally:
            server.kill()


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


class Crowd:
    """Clients, and what came of their requests.

    Attributes:
        ends: How often each end came: `complete`, `left`, `refused`, or what failed.
        gaps: Seconds between events, of requests that were read at once.
        firsts: Seconds to the first event of the same.
    """

    def __init__(self, port: int) -> None:
        self.ends: Counter[str] = Counter()
        self.gaps: list[float] = []
        self.firsts: list[float] = []
        self.tokens, self.seconds = 0, 0.0
        self._port = port

    async def client(self, number: int, until: float) -> None:
        """One that asks until the time is over."""
        chance = random.Random(number)
        while time.monotonic() < until:
            kind = chance.choices(("at once", "leaves", "slow"), (8, 1, 1))[0]
            try:
                async with connected(self._port, buffer=SLOW_BUFFER if kind == "slow" else 1 << 20) as client:
                    answer = await client.stream(
                        "/v1/chat/completions", _asked(chance),
                        leave_after=chance.randint(1, 4) if kind == "leaves" else None,
                        pause_s=chance.uniform(0.05, 0.5) if kind == "slow" else 0.0,
                    )  # fmt: skip
                self._note(kind, answer)
                refused = answer.status in REFUSED
            except (OSError, asyncio.IncompleteReadError) as error:
                self.ends[f"{type(error).__name__}: {error}"] += 1
                refused = True
            await asyncio.sleep(chance.uniform(1, 3) if refused else chance.uniform(0, 0.5))

    def _note(self, kind: str, answer: Answer) -> None:
        if answer.status in REFUSED:
            self.ends["refused"] += 1
        elif answer.status != 200:
            self.ends[f"status {answer.status}"] += 1
        elif answer.complete:
            self.ends["complete"] += 1
            self.tokens += answer.tokens
            if kind == "at once":
                self.firsts.append(answer.event_s[0])
                self.gaps += [b - a for a, b in zip(answer.event_s, answer.event_s[1:], strict=False)]
        else:
            self.ends["left" if kind == "leaves" else "cut off"] += 1


def _asked(chance: random.Random) -> dict[str, Any]:
    command = chance.choice(("ls", "grep", "tar", "sed", "awk", "cut", "sort", "uniq", "ps", "find"))
    messages = [{"role": "user", "content": f"What does {command} do with {chance.randint(0, 99)} files?"}]
    return {
        "messages": messages,
        "max_tokens": chance.randint(4, 120),
        "ignore_eos": True,
        "seed": chance.getrandbits(31),
    }


async def _run(pid: int, port: int, clients: int, seconds: float) -> Crowd:
    crowd, began = Crowd(port), time.monotonic()
    asking = asyncio.gather(*(crowd.client(number, began + seconds) for number in range(clients)))
    while not asking.done():
        await asyncio.wait({asking}, timeout=EVERY_S)
        line = {"s": round(time.monotonic() - began), **crowd.ends, "tokens": crowd.tokens}
        print(json.dumps({**line, "resident_mb": round(resident_bytes(pid) / 1e6, 1)}), flush=True)
    await asking
    crowd.seconds = time.monotonic() - began
    return crowd


def _at(values: list[float], part: float) -> float:
    return round(1000 * sorted(values)[min(len(values) - 1, int(part * len(values)))], 1) if values else 0.0


def _idle(port: int) -> bool:
    """Whether the server gets to rest."""
    for _ in range(100):
        with urlopen(f"http://127.0.0.1:{port}/metrics") as told:
            text = told.read().decode()
        if "halfbyte_requests_running 0.0" in text and "halfbyte_requests_waiting 0.0" in text:
            return True
        time.sleep(0.1)
    return False


def main() -> None:
    """Have the crowd come, and tell what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sequences", type=int, default=32)
    given = parser.parse_args()
    places = ["--sequences", str(given.sequences), "--max-concurrent", str(given.sequences), "--max-queue", "1000"]
    with serving("--device", "cpu", "--context", "512", *places) as (pid, port):
        crowd = asyncio.run(_run(pid, port, given.clients, 60 * given.minutes))
        idle = _idle(port)
    figures = {
        "kind": "halfbyte serve under load", "machine": host.machine(), "clients": given.clients,
        "minutes": given.minutes, "ends": dict(crowd.ends), "tokens_per_s": round(crowd.tokens / crowd.seconds, 1),
        "first_p50_ms": _at(crowd.firsts, 0.5), "first_p99_ms": _at(crowd.firsts, 0.99),
        "gap_p50_ms": _at(crowd.gaps, 0.5), "gap_p99_ms": _at(crowd.gaps, 0.99), "idle_at_the_end": idle,
    }  # fmt: skip
    print(json.dumps(figures))
    sys.exit(bool(set(crowd.ends) - {"complete", "left", "refused"}) or not idle)


if __name__ == "__main__":
    main()
