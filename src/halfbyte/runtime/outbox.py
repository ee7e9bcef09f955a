"""What one thread puts in for another to take: bounded, so that a slow reader holds up nobody but itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition, Lock

from halfbyte.runtime.engine import Output, TokenOutput
from halfbyte.runtime.sequence import Sequence

FULL = 64
"""Tokens that may wait to be taken before the sequence pauses."""


class Outbox:
    """The tokens of one sequence, on their way to whoever asked for them.

    Args:
        bounded: Whether the sequence pauses while many tokens have not been taken.
        resume: Called when enough have been taken for a paused sequence to go on.

    Attributes:
        notify: Called when something was put in, for readers that do not block.
        quiet: Tokens wait without a call of `notify`; only the last one, or a failure, is told.
    """

    def __init__(self, sequence: Sequence, *, bounded: bool, resume: Callable[[], None]) -> None:
        self.notify: Callable[[], None] | None = None
        self.quiet = False
        self._sequence = sequence
        self._bounded, self._resume = bounded, resume
        self._outputs: deque[Output | BaseException | None] = deque()
        self._changed = Condition(Lock())

    def put(self, output: Output | BaseException | None) -> None:
        """Put in a token or a failure, or None at the end."""
        with self._changed:
            self._outputs.append(output)
            if self._bounded and len(self._outputs) >= FULL:
                self._sequence.paused = True
            self._changed.notify()
            notify = None if self.quiet and _goes_on(output) else self.notify
        if notify is not None:
            notify()

    @property
    def has_end(self) -> bool:
        """Whether the last token, or a failure, is there."""
        with self._changed:
            return bool(self._outputs) and not _goes_on(self._outputs[-1])

    def forked(self) -> None:
        """In a child process: no thread of the parent holds the lock, and what it put in is the parent's to take."""
        self._outputs.clear()
        self._changed = Condition(Lock())

    def take(self) -> Output | BaseException | None:
        """Take what was put in first; waits for it."""
        with self._changed:
            while not self._outputs:
                self._changed.wait()
            return self._taken()

    def take_at_once(self) -> tuple[bool, Output | BaseException | None]:
        """Whether there is something, and what was put in first."""
        with self._changed:
            return (True, self._taken()) if self._outputs else (False, None)

    def take_token(self) -> TokenOutput | None:
        """Take what was put in first, if it is a token."""
        with self._changed:
            output = self._outputs[0] if self._outputs else None
            if not isinstance(output, TokenOutput):
                return None
            self._taken()
            return output

    def _taken(self) -> Output | BaseException | None:
        output = self._outputs.popleft()
        if self._sequence.paused and len(self._outputs) <= FULL // 2:
            self._sequence.paused = False
            self._resume()
        return output


def _goes_on(output: Output | BaseException | None) -> bool:
    return isinstance(output, TokenOutput) and output.finish_reason is None
