"""Which replica a request goes to: the one that has its beginning, unless that is clearly busier than others."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfbyte.server.routing import BEGINNING, FEW, SLACK, beginning, choose, ranked

NAMES = [str(number) for number in range(8)]


def key(number: int) -> bytes:
    return beginning({"prompt": f"prompt {number}"})


@given(st.binary(min_size=32, max_size=32), st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1000), min_size=1))
def test_nobody_gets_more_than_the_bound(key: bytes, loads: dict[str, int]) -> None:
    chosen = choose(key, loads, sequences=8)
    most = max(FEW, math.ceil(SLACK * (sum(loads.values()) + 1) / len(loads)))
    assert loads[chosen] < most
    passed_over = ranked(key, loads)[: ranked(key, loads).index(chosen)]
    assert all(loads[name] >= most for name in passed_over)


def test_beginnings_are_spread_evenly() -> None:
    counts = Counter(ranked(key(number), NAMES)[0] for number in range(4000))
    assert len(counts) == len(NAMES)
    # A binomial with mean 500 and a standard deviation of 21.
    assert all(400 < count < 600 for count in counts.values())


def test_when_a_replica_goes_only_its_own_beginnings_move() -> None:
    left = [name for name in NAMES if name != "3"]
    for number in range(200):
        before = ranked(key(number), NAMES)
        assert ranked(key(number), left) == [name for name in before if name != "3"]


def test_requests_that_begin_alike_stay_together_until_their_replica_is_busy() -> None:
    loads = dict.fromkeys(NAMES[:2], 0)
    went: list[str] = []
    for _ in range(20):
        went.append(choose(key(1), loads, sequences=8))
        loads[went[-1]] += 1
    first, second = ranked(key(1), loads)
    assert went[:FEW] == [first] * FEW
    assert second in went
    assert loads[first] <= math.ceil(SLACK * 20 / 2)


def test_nobody_waits_for_a_place_while_others_have_nothing_to_do() -> None:
    first, second = ranked(key(1), NAMES[:2])
    assert choose(key(1), {first: 1, second: 0}, sequences=2) == first
    assert choose(key(1), {first: 2, second: 0}, sequences=2) == second


SYSTEM = {"role": "system", "content": "You answer briefly."}
FIRST = {"role": "user", "content": "What is tar?"}
LATER = [{"role": "assistant", "content": "An archiver."}, {"role": "user", "content": "And gzip?"}]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"messages": [SYSTEM, FIRST]}, {"messages": [SYSTEM, FIRST, *LATER], "temperature": 0.5, "stream": True}),
        ({"input": "What is tar?"}, {"input": "What is tar?", "user": "me"}),
        ({"instructions": "Be brief.", "input": [FIRST]}, {"instructions": "Be brief.", "input": [FIRST, *LATER]}),
        ({"prompt": "x" * BEGINNING + "one"}, {"prompt": "x" * BEGINNING + "another"}),
        (
            {"messages": [{"role": "user", "content": "x" * BEGINNING + "one"}]},
            {"messages": [{"role": "user", "content": "x" * BEGINNING + "another"}]},
        ),
        (
            {"system": [{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, SYSTEM], "messages": [FIRST]},
            {"system": [{"type": "text", "text": "x-anthropic-billing-header: cch=2;"}, SYSTEM], "messages": [FIRST]},
        ),
        (
            {"system": "x-anthropic-billing-header: cch=1;\nBe brief.", "messages": [FIRST]},
            {"system": "x-anthropic-billing-header: cch=2;\nBe brief.", "messages": [FIRST]},
        ),
    ],
)
def test_what_begins_alike_has_one_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert beginning(one) == beginning(other)


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [SYSTEM, {"role": "user", "content": "What is awk?"}]},
        {"messages": [{"role": "system", "content": "You answer at length."}, FIRST]},
        {"messages": [FIRST]},
        {"messages": [SYSTEM, FIRST], "model": "other"},
        {"system": "You answer briefly.", "messages": [FIRST]},
    ],
)
def test_what_begins_differently_has_another(other: dict[str, Any]) -> None:
    assert beginning({"messages": [SYSTEM, FIRST]}) != beginning(other)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda some: st.lists(some), max_leaves=5))
def test_nothing_about_a_body_is_sure(value: Any) -> None:
    names = ("model", "system", "instructions", "messages", "input", "prompt", "content", "tokens")
    assert len(beginning(dict.fromkeys(names, value))) == 32
