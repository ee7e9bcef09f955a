"""Many requests of 32 threads to one model: each text is what it is alone, and memory stays as it is.

A hundred requests each time, ten thousand with `--hypothesis-profile=thousand`, as CONTRIBUTING.md says.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

import halfbyte
from halfbyte import Model
from tests.scale import examples

THREADS = 32
REQUESTS = 10 * examples(10)
COMMANDS = ("ls", "grep", "tar", "find")
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 0.7, "top_p": 0.9, "seed": 5},
)
LENGTHS = (4, 10)
LONG = ("tar", 0, 90)
"""An answer that pauses while nobody takes its tokens."""
GROWTH_MB = 8
"""Megabytes of resident memory that may come in the second half of the requests: what the allocator keeps."""


def resident_mb() -> float:
    """The memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.fixture
def model() -> Iterator[Model]:
    with halfbyte.load(device="cpu", context=192, sequences=8) as found:
        yield found


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux tells it")
def test_texts_of_many_requests_are_those_alone_and_memory_is_flat(model: Model) -> None:
    @cache
    def alone(name: str, setting: int, max_tokens: int) -> str:
        options = SETTINGS[setting]
        return model.generate(f"What does {name} do?", max_tokens=max_tokens, ignore_eos=True, **options).text

    for request in itertools.product(COMMANDS, range(len(SETTINGS)), LENGTHS):
        alone(*request)
    alone(*LONG)
    numbers, curve = itertools.count(), list[float]()

    def ask(number: int) -> None:
        chance = Random(number)
        behind, leaves = chance.random() < 0.02, chance.random() < 0.2
        request = LONG if behind else (chance.choice(COMMANDS), chance.randrange(len(SETTINGS)), chance.choice(LENGTHS))
        name, setting, max_tokens = request
        pause_s = chance.choice((0, 0, 0, 0.003))
        stream = model.stream(f"What does {name} do?", max_tokens=max_tokens, ignore_eos=True, **SETTINGS[setting])
        text = next(stream).text
        if behind:
            time.sleep(0.2)
        for token in itertools.islice(stream, chance.randrange(max_tokens) if leaves else None):
            text += token.text
            time.sleep(pause_s)
        stream.close()
        expected = alone(*request)
        assert expected.startswith(text) if leaves else text == expected

    def work(_: int) -> None:
        for number in itertools.takewhile(lambda number: number < REQUESTS, numbers):
            if number % (REQUESTS // 20) == 0:
                gc.collect()
                curve.append(resident_mb())
            ask(number)

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, i) for i in range(THREADS)]:
            done.result()
    assert model.engine.idle
    gc.collect()
    curve.append(resident_mb())
    print(f"{REQUESTS} requests; MB of resident memory:", *(f"{mb:.1f}" for mb in curve))
    assert max(curve[-3:]) - max(curve[:10]) < GROWTH_MB  # a sanitizer takes long to have all of its own memory
