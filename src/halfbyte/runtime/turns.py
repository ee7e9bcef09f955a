"""Taking turns at work that only one thread may do, and whose results others wait for.

A thread that needs a result works itself unless another does; then it waits until that one has brought its result, or
the work is free. No thread of its own is needed, a single thread never waits, and none works on while its results lie
unused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition, Lock, get_ident

_NOBODY = 0


class Turns:
    """Says whose turn it is."""

    def __init__(self) -> None:
        self._changed = Condition(Lock())
        self._worker = self._afterwards = _NOBODY
        self._next: deque[int] = deque()

    def take(self, ready: Callable[[], bool] | None = None) -> bool:
        """Wait for one's turn: True, and `give_back` has to follow; or until `ready()`: False.

        Whoever has nothing to be ready is next: others that work again and again would never let it in.
        """
        me = get_ident()
        with self._changed:
            if ready is None:
                self._next.append(me)
            try:
                while ready is None or not ready():
                    if self._worker in (_NOBODY, me):
                        self._worker = me
                        return True
                    self._changed.wait()
                return False
            finally:
                if ready is None:
                    self._next.remove(me)

    def try_take(self) -> bool:
        """Take the turn if that needs no waiting at all: also from a destructor, which may run at any point."""
        if not self._changed.acquire(blocking=False):
            return False
        try:
            if self._worker != _NOBODY:
                return False
            self._worker = get_ident()
            return True
        finally:
            self._changed.release()

    def give_back(self) -> None:
        """End one's turn, if one has it, and wake those who wait for it or its results."""
        with self._changed:
            if self._worker == get_ident():
                self._worker = self._afterwards or (self._next[0] if self._next else _NOBODY)
                self._changed.notify_all()

    def keep(self, timeout: float) -> None:
        """Let the work at hand end, but wait at most so many seconds; then it is this thread's turn for ever."""
        with self._changed:
            me = self._afterwards = get_ident()
            self._changed.wait_for(lambda: self._worker in (_NOBODY, me), timeout)
            self._worker = me
