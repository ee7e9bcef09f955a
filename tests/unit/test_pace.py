"""How many tokens a GPU is given at once, with the loop that gives them on a clock of its own."""

from __future__ import annotations

from collections import deque

import pytest

from halfbyte.runtime.pace import SUBMIT_S, Pace

PAUSE_S, WAKE_S = 30e-6, 60e-6
MOST_TOGETHER = 8


def decoded(pace: Pace, token_s: float, record_s: float, limit: int = 255) -> tuple[float, list[int]]:
    """Seconds for so many tokens, and those of each submit, of a GPU and a host that take as long for one."""
    now = free = 0.0
    sent = received = 0
    flying: deque[tuple[float, int]] = deque()
    counts = []
    pace.begin()
    while received < limit:
        while sent < limit and len(flying) < pace.ahead:
            counts.append(min(pace.steps, limit - sent))
            pace.sent(counts[-1])
            now += counts[-1] * record_s
            free = max(now, free + PAUSE_S) + counts[-1] * token_s
            flying.append((free, counts[-1]))
            sent += counts[-1]
        done, count = flying.popleft()
        now = max(now, done) + WAKE_S
        received += count
        pace.completed(now, count)
    return now, counts


@pytest.mark.parametrize(("token_s", "share"), [(0.0005, 0.8), (0.0012, 0.4), (0.0012, 0.8), (0.003, 0.4), (0.02, 0.1)])
def test_submits_are_alike_and_the_gpu_hardly_waits(token_s: float, share: float) -> None:
    """Also where recording takes most of the time that the GPU does: tokens then come back in bursts."""
    pace = Pace(MOST_TOGETHER, 3)
    for _ in range(2):
        seconds, counts = decoded(pace, token_s, share * token_s)
        assert sum(counts) == 255
        assert seconds / (255 * token_s) < 1.05
    wanted = max(1, min(MOST_TOGETHER, round(SUBMIT_S / token_s)))
    assert counts[0] == 1
    assert set(counts[10:-1]) <= {wanted - 1, wanted, wanted + 1}


def test_where_a_token_takes_long_few_are_computed_ahead() -> None:
    slow, fast = Pace(MOST_TOGETHER, 3), Pace(MOST_TOGETHER, 3)
    decoded(slow, 0.05, 0.001)
    decoded(fast, 0.001, 0.0005)
    assert slow.ahead < fast.ahead
    assert slow.steps == 1


def test_as_many_as_asked_for_are_given_together() -> None:
    assert set(decoded(Pace(1, 1), 0.001, 0.0005)[1]) == {1}
