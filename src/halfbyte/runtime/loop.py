"""One thread that owns an engine, for any number of threads that ask it.

The thread begins with the first request and ends when nothing has been asked for a while. A request is checked by
whoever makes it, queued, and answered through an outbox of its own.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from collections.abc import Sequence as Many
from contextlib import closing, contextmanager
from threading import Condition, Lock, Thread
from typing import Unpack
from weakref import WeakSet

from halfbyte.errors import UsageError
from halfbyte.plan.batch import CacheMemory, Float32
from halfbyte.runtime.cached_prompt import CachedPrompt
from halfbyte.runtime.engine import Engine, Failure, Output, TokenOutput
from halfbyte.runtime.outbox import Outbox
from halfbyte.runtime.pooling import Pooling
from halfbyte.runtime.requests import RequestOptions
from halfbyte.runtime.sequence import Sequence
from halfbyte.sampling import SamplingParams

EXIT_S = 10.0
"""Seconds that the end of the program waits for a batch."""
LINGER_S = 1.0
"""Seconds without work after which the thread ends."""


class EngineLoop:
    """Shares an engine among threads.

    Args:
        survives_fork: Whether the engine's executor can run in a process that was forked from this one.
    """

    def __init__(self, engine: Engine, *, survives_fork: bool = True) -> None:
        self._engine = engine
        self._survives_fork = survives_fork
        self._refusal: tuple[str, str] | None = None
        self._begin_anew()
        _LOOPS.add(self)

    def _begin_anew(self) -> None:
        self._changed = Condition(Lock())
        self._thread: Thread | None = None
        self._arrived: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._outboxes: dict[Sequence, Outbox] = {}
        self._taken = self._halted = False
        self._visitors = 0

    @property
    def idle(self) -> bool:
        """Whether everything that was asked for has been answered or cancelled."""
        with self._between_batches():
            self._settle()
            return not self._outboxes and self._engine.idle

    @property
    def under_way(self) -> int:
        """Answers that were begun and have not ended."""
        return len(self._outboxes)

    @property
    def closed(self) -> bool:
        """Whether it answers no more."""
        return self._refusal is not None

    def check_open(self) -> None:
        """Raise UsageError if it was closed."""
        if self._refusal is not None:
            raise UsageError(*self._refusal)

    def stream(
        self,
        prompt_ids: Iterable[int],
        sampling: SamplingParams,
        *,
        bounded: bool = True,
        **options: Unpack[RequestOptions],
    ) -> AnswerStream:
        """The tokens of one answer, as they come; arguments and errors are those of `Engine.request`.

        Work starts with the first token asked for, or with `AnswerStream.start`. Closing the iterator, or an exception,
        cancels the sequence.

        Args:
            bounded: Whether the sequence pauses while its reader is far behind.
        """
        return self.streams(prompt_ids, sampling, 1, bounded=bounded, **options)[0]

    def streams(
        self,
        prompt_ids: Iterable[int],
        sampling: SamplingParams,
        n: int,
        *,
        bounded: bool = True,
        **options: Unpack[RequestOptions],
    ) -> list[AnswerStream]:
        """As `stream`, for `n` answers to one prompt, as `Engine.requests` says."""
        self.check_open()
        sequences = self._engine.requests(prompt_ids, sampling, n, **options)
        return [AnswerStream(self, s, Outbox(s, bounded=bounded, resume=self._wake)) for s in sequences]

    def pooled(self, token_ids: Iterable[int], pooling: Pooling, adapter: int = 0) -> AnswerStream:
        """A text whose hidden states become one vector; arguments and errors are those of `Engine.pooled`.

        The stream has no tokens; when it ends, the `pooler` of its sequence has the vector.
        """
        self.check_open()
        sequence = self._engine.pooled(token_ids, pooling, adapter)
        return AnswerStream(self, sequence, Outbox(sequence, bounded=False, resume=self._wake))

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence and free its blocks; one that has finished stays as it is.

        Never waits, as a destructor may call it at any point: if the thread cannot be woken now, it looks soon.
        """
        self._cancelled.append(sequence)
        if self._changed.acquire(blocking=False):
            self._changed.notify_all()
            self._changed.release()

    def score(self, token_ids: Iterable[int], adapter: int = 0) -> Iterator[Float32]:
        """As `Engine.score`, between batches."""
        self.check_open()
        return self._score(self._engine.score(token_ids, adapter))

    def cached_prompt(self, prompt_ids: Many[int], memory: CacheMemory, adapter: int = 0) -> CachedPrompt:
        """As `Engine.cached_prompt`, between batches."""
        with self._between_batches():
            self.check_open()
            return self._engine.cached_prompt(prompt_ids, memory, adapter)

    def restore(self, prompt: CachedPrompt, memory: CacheMemory) -> None:
        """As `Engine.restore`, between batches."""
        with self._between_batches():
            self.check_open()
            self._engine.restore(prompt, memory)

    def close(self) -> None:
        """Cancel every sequence, once the batch at hand is done; later calls raise. Closing again does nothing."""
        self._refusal = self._refusal or ("the model is closed.", "Load it again.")
        with self._between_batches():
            self._engine.cancel_all()
            self._end_all(UsageError(*self._refusal))

    def start(self, sequence: Sequence, outbox: Outbox) -> None:
        """Queue a request; its tokens go into the outbox.

        Raises:
            UsageError: It was closed.
        """
        with self._changed:
            self.check_open()
            self._outboxes[sequence] = outbox
            self._arrived.append(sequence)
            if self._thread is None and not self._halted:
                self._thread = Thread(target=self._run, name="halfbyte engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def _between_batches(self) -> Iterator[None]:
        """The engine for whoever calls, once the batch at hand is done."""
        with self._changed:
            self._visitors += 1
            try:
                self._changed.wait_for(lambda: not self._taken)
                self._taken = True
            finally:
                self._visitors -= 1
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()

    def _run(self) -> None:
        while self._take_turn():
            try:
                self._settle()
                for output in self._engine.advance():
                    self._hand_out(output)
            except BaseException as error:
                self._end_all(error)
            finally:
                self._give_back()

    def _take_turn(self) -> bool:
        """Wait for work; False when there has been none for a while, and the thread ends."""
        with self._changed:
            while not self._halted:
                if not (self._visitors or self._taken) and self._has_work():
                    self._taken = True
                    return True
                if not self._changed.wait(LINGER_S) and not (self._has_work() or self._outboxes):
                    break
            self._thread = None
            return False

    def _has_work(self) -> bool:
        return bool(self._arrived or self._cancelled) or not self._engine.resting

    def _settle(self) -> None:
        """Let those in who arrived, and those out who were cancelled."""
        while self._arrived:
            self._engine.add(self._arrived.popleft())
        while self._cancelled:
            sequence = self._cancelled.popleft()
            self._engine.cancel(sequence)
            if outbox := self._outboxes.pop(sequence, None):
                outbox.put(None)

    def _hand_out(self, output: Output) -> None:
        ends = not isinstance(output, TokenOutput) or output.finish_reason is not None
        outbox = self._outboxes.pop(output.sequence, None) if ends else self._outboxes.get(output.sequence)
        if outbox is not None:
            if isinstance(output, Failure):
                outbox.put(output.error)
            elif isinstance(output, TokenOutput):
                outbox.put(output)
            if ends:
                outbox.put(None)

    def _end_all(self, error: BaseException) -> None:
        """Tell everybody who waits why nothing more comes."""
        while self._arrived:
            sequence = self._arrived.popleft()
            sequence.status, sequence.finish_reason = "finished", "cancelled"
        while self._outboxes:
            self._outboxes.popitem()[1].put(error)

    def _score(self, scores: Generator[Float32, None, None]) -> Iterator[Float32]:
        with closing(scores):
            while True:
                with self._between_batches():
                    self.check_open()
                    self._settle()
                    logits = next(scores, None)
                if logits is None:
                    return
                yield logits

    def _forked(self) -> None:
        """In a child process, answer nothing that was begun in the parent, whose threads are not here."""
        begun = list(self._outboxes.items())
        self._begin_anew()
        self._engine.begin_anew()
        if not self._survives_fork:
            self._refusal = (
                "the model was loaded before this process was forked, and its device cannot be used here.",
                "Load it in this process, or start processes with the method 'spawn'.",
            )
        for sequence, outbox in begun:
            sequence.status, sequence.finish_reason = "finished", "cancelled"
            outbox.forked()
            outbox.put(UsageError("the answer was begun before this process was forked.", "Ask again in this process."))

    def _halt(self) -> None:
        """Let the batch at hand end and begin no other: executors go away while the interpreter ends."""
        with self._changed:
            self._halted = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join(EXIT_S)


class AnswerStream(Iterator[TokenOutput]):
    """The tokens of one answer; for one thread at a time. Closing it, or dropping it, cancels what is left.

    Attributes:
        sequence: The request, and how far it has come.
        outbox: Where its tokens arrive.
    """

    def __init__(self, loop: EngineLoop, sequence: Sequence, outbox: Outbox) -> None:
        self.sequence, self.outbox = sequence, outbox
        self._loop = loop
        self._started = self._ended = False

    def start(self) -> None:
        """Have it answered from now on."""
        if not self._started:
            self._started = True
            self._loop.start(self.sequence, self.outbox)

    def __next__(self) -> TokenOutput:
        if self._ended:
            raise StopIteration
        try:
            self._loop.check_open()
            self.start()
            return self.given(self.outbox.take())
        except BaseException:
            self.close()
            raise

    def given(self, output: object) -> TokenOutput:
        """What was taken from the outbox, as a token.

        Raises:
            StopIteration: That was the end.
            BaseException: What was taken, if it is an error.
        """
        if isinstance(output, BaseException):
            raise output
        if not isinstance(output, TokenOutput):
            raise StopIteration
        return output

    def close(self) -> None:
        """Cancel what has not been generated yet; harmless at the end."""
        if not self._ended:
            self._ended = True
            if self._started:
                self._loop.cancel(self.sequence)

    def __del__(self) -> None:
        self.close()


_LOOPS: WeakSet[EngineLoop] = WeakSet()


def _forked_all() -> None:
    for loop in list(_LOOPS):
        loop._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked_all)


@atexit.register
def _halt_all() -> None:
    for loop in list(_LOOPS):
        loop._halt()
