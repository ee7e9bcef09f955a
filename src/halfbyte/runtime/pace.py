"""How many steps are submitted together to a device that chooses tokens itself, as they come back."""

from __future__ import annotations

from collections import deque

SUBMIT_S = 0.006
"""Seconds of work in a submit: the pause between two is a few per cent of a short step, and nobody waits for long."""
COMPLETIONS = 5
"""Completions that tell how long a step takes. Two may be no time apart, if both waited for the host to look."""
AHEAD_ALONE = 2
"""Submits of one step in flight: the host is ready long before such a step, and fewer are computed for nothing."""


class Pace:
    """How many steps go together.

    Args:
        most: The most steps of a submit.
        ahead: The most submits in flight.
    """

    def __init__(self, most: int, ahead: int) -> None:
        self._most, self._ahead = most, ahead
        self._step_s = SUBMIT_S
        self._completions: deque[tuple[float, int]] = deque(maxlen=COMPLETIONS)
        self._sent = self._received = 0

    def begin(self) -> None:
        """Other sequences decode: a step takes what it took before, until their own tell."""
        self._completions.clear()
        self._sent = self._received = 0

    def sent(self, steps: int) -> None:
        """Note that so many steps were submitted."""
        self._sent += steps

    def completed(self, now: float, steps: int) -> None:
        """Note that so many steps have come back by now."""
        self._received += steps
        self._completions.append((now, self._received))
        began, before = self._completions[0]
        if self._received > before:
            self._step_s = (now - began) / (self._received - before)

    @property
    def steps(self) -> int:
        """Steps of the next submit; few at first, lest the device wait for them."""
        return min(self._wanted, self._sent // 2 + 1)

    @property
    def ahead(self) -> int:
        """Submits in flight at most."""
        return self._ahead if self._wanted > 1 else min(self._ahead, AHEAD_ALONE)

    @property
    def _wanted(self) -> int:
        return max(1, min(self._most, round(SUBMIT_S / self._step_s) if self._step_s else self._most))
