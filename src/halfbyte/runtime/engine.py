"""The engine: schedule a batch, run it, hand the tokens back.

The executor is handed in; nothing here knows a device. Any number of threads may use one engine. Whichever needs a
token first runs the next batch, for all sequences that are being answered; the others take their tokens from it.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from weakref import WeakSet

from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.plan.batch import Decoded, Decoder, Float32, Int32, Runner
from halfbyte.runtime.batches import batch_of, tables_of
from halfbyte.runtime.requests import sequence_of, text_of
from halfbyte.runtime.scheduler import Chunk, Scheduler
from halfbyte.runtime.sequence import FinishReason, Sequence
from halfbyte.runtime.turns import Turns
from halfbyte.sampling.params import SamplingParams
from halfbyte.sampling.sampler import Sampled

EXIT_S = 10.0
"""Seconds that the end of the program waits for a batch."""


@dataclass(frozen=True)
class TokenOutput:
    """One token of an answer.

    Attributes:
        sequence: Whose answer; it also tells how many prompt tokens were reused, and the times taken.
        logprob: Natural log-probability under the model's own distribution, before penalties and temperature.
        top_logprobs: The most likely tokens and their log-probabilities, as many as were asked for.
        finish_reason: Why this token is the last; None if it is not.
    """

    sequence: Sequence
    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


class Engine:
    """Answers sequences of tokens with an executor, several at once as far as its plan allows; others wait.

    Args:
        executor: What runs the plan.
        rope_switch: `ModelSpec.rope_switch`: tokens in total beyond which the second RoPE set holds, for all positions.
        decoder: What decodes a sequence that is alone, where the executor can choose tokens itself.
        survives_fork: Whether the executor can run in a process that was forked from this one.
    """

    def __init__(
        self,
        executor: Runner,
        *,
        rope_switch: int | None = None,
        decoder: Decoder | None = None,
        survives_fork: bool = True,
    ) -> None:
        self._executor = executor
        self._decoder = decoder
        self._rope_switch = rope_switch
        self._survives_fork = survives_fork
        self._plan = executor.plan
        self._closed: tuple[str, str] | None = None
        self._begin_anew()
        _ENGINES.add(self)

    def _begin_anew(self) -> None:
        """Nothing is queued, nothing is in the caches, and no thread works."""
        self._turns = Turns()
        self._scheduler = Scheduler(self._plan, self._rope_switch)
        self._arrived: deque[Sequence] = deque()
        self._cancelled: deque[Sequence] = deque()
        self._streams: dict[Sequence, deque[TokenOutput]] = {}
        self._failed: dict[Sequence, HalfbyteError] = {}
        self._outputs: list[TokenOutput] = []
        self._resident: Generator[Decoded, None, None] | None = None
        self._scoring = False

    @property
    def idle(self) -> bool:
        """Whether every sequence has finished and `step` has returned all tokens: it has nothing to do."""
        self._settle_soon()
        return not (self._arrived or self._outputs) and self._scheduler.idle

    def submit(
        self,
        prompt_ids: Iterable[int],
        sampling: SamplingParams,
        *,
        max_tokens: int,
        stop_token_ids: Collection[int] = (),
        ignore_eos: bool = False,
    ) -> Sequence:
        """Queue a prompt, whose tokens later calls of `step` return.

        Args:
            max_tokens: The most tokens of the answer.
            stop_token_ids: Tokens that end the answer; the one that does is its last token.
            ignore_eos: Go on past stop tokens, for measuring.

        Raises:
            UsageError: An empty prompt, token ids or `max_tokens` out of range, or the engine is closed.
            ContextFullError: A prompt that leaves no room in the context for an answer.
        """
        self.check_open()
        sequence = sequence_of(self._plan, prompt_ids, sampling, max_tokens, () if ignore_eos else stop_token_ids)
        self._arrived.append(sequence)
        return sequence

    def step(self) -> list[TokenOutput]:
        """Run one batch and return the tokens of submitted sequences, none while prompts are being read.

        Tokens that came while other threads, or iterators of `generate`, ran batches are returned too. A sequence whose
        answer fills the context finishes with reason `context`.

        Raises:
            DeviceError: The model gave no valid logits.
            UsageError: A `score` is under way, or the engine is closed.
        """
        with self._turn():
            self.check_open()
            self._work(None)
            for sequence in [s for s in self._failed if s not in self._streams]:
                raise self._failed.pop(sequence)
            outputs, self._outputs = self._outputs, []
        return outputs

    def generate(
        self,
        prompt_ids: Iterable[int],
        sampling: SamplingParams,
        *,
        max_tokens: int,
        stop_token_ids: Collection[int] = (),
        ignore_eos: bool = False,
    ) -> AnswerStream:
        """The tokens of one answer, as they come; arguments and errors are those of `submit` and `step`.

        Work starts with the first token asked for. Closing the iterator, or an exception, cancels the sequence.
        """
        self.check_open()
        stop = () if ignore_eos else stop_token_ids
        return AnswerStream(self, sequence_of(self._plan, prompt_ids, sampling, max_tokens, stop))

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence and free its blocks; one that has finished stays as it is. Never waits."""
        self._cancelled.append(sequence)
        self._settle_soon()

    def score(self, token_ids: Iterable[int]) -> Iterator[Float32]:
        """The logits after each token, in order, as chunks `[r, vocab_size]` with r at most the plan's rows.

        Each chunk is valid until the next is asked for.

        Raises:
            UsageError: No tokens, ids out of range, or sequences that have not finished.
            ContextFullError: More tokens than the context holds.
        """
        return self._score(text_of(self._plan, token_ids))

    def close(self) -> None:
        """Cancel every sequence, once the batch at hand is done; later calls raise. Closing again does nothing."""
        self._closed = self._closed or ("the model is closed.", "Load it again.")
        with self._turn():
            self._settle()
            self._stop_resident()
            self._scheduler.cancel_all()

    @property
    def closed(self) -> bool:
        """Whether it answers no more."""
        return self._closed is not None

    def check_open(self) -> None:
        """Raise UsageError if it was closed."""
        if self._closed is not None:
            raise UsageError(*self._closed)

    def _forked(self) -> None:
        """In a child process, answer nothing that was begun in the parent, whose threads are not here."""
        begun = list(self._streams)
        self._begin_anew()
        if not self._survives_fork:
            self._closed = (
                "the model was loaded before this process was forked, and its device cannot be used here.",
                "Load it in this process, or start processes with the method 'spawn'.",
            )
        for sequence in begun:
            sequence.status, sequence.finish_reason = "finished", "cancelled"
            self._failed[sequence] = UsageError(
                "the answer was begun before this process was forked.", "Ask again in this process."
            )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        try:
            self._turns.take()
            yield
        finally:
            self._turns.give_back()

    def _begin(self, sequence: Sequence) -> deque[TokenOutput]:
        """Queue a sequence; its tokens come into what is returned."""
        outputs = self._streams[sequence] = deque()
        self._arrived.append(sequence)
        return outputs

    def _next(self, sequence: Sequence, outputs: deque[TokenOutput]) -> TokenOutput | None:
        """The next token of a sequence that was begun, or None after its last."""
        try:
            while self._turns.take(lambda: bool(outputs) or sequence.finished or self.closed):
                self._work(sequence)
                self._turns.give_back()
        except BaseException:
            self._turns.give_back()
            raise
        self.check_open()
        if error := self._failed.pop(sequence, None):
            raise error
        return outputs.popleft() if outputs else None

    def _settle_soon(self) -> None:
        """Settle now if no thread works; one that does will, before its next batch."""
        if self._turns.try_take():
            try:
                self._settle()
            finally:
                self._turns.give_back()

    def _settle(self) -> None:
        """Let those in who arrived, and those out who were cancelled."""
        while self._arrived:
            self._scheduler.add(self._arrived.popleft())
        while self._cancelled:
            sequence = self._cancelled.popleft()
            if not sequence.finished:
                self._stop_resident()
                self._scheduler.finish(sequence, "cancelled")
            self._streams.pop(sequence, None)
            self._failed.pop(sequence, None)

    def _work(self, sequence: Sequence | None) -> None:
        """Run one batch, or decode one token on the device if `sequence` is alone; tokens go to where they belong."""
        self._settle()
        self._check_not_scoring()
        if sequence is not None and self._can_stay(sequence):
            self._decode_resident(sequence)
            return
        self._stop_resident()
        if chunks := self._scheduler.schedule():
            self._hand_back(chunks, self._executor.run(batch_of(self._plan, chunks)))

    def _can_stay(self, sequence: Sequence) -> bool:
        """Whether the next token can be chosen by the executor itself."""
        return (
            self._decoder is not None
            and not sequence.finished
            and self._scheduler.alone(sequence)
            and self._decoder.supports(sequence.sampling)
            and self._resident_limit(sequence) > 0
        )

    def _resident_limit(self, sequence: Sequence) -> int:
        """Tokens that can be decoded before the answer, the context or the RoPE set ends."""
        length, ends = len(sequence.tokens), [self._plan.context]
        if self._rope_switch is not None and length <= self._rope_switch:
            ends.append(self._rope_switch + 1)
        return min(sequence.max_tokens - len(sequence.generated_ids), min(ends) - length)

    def _decode_resident(self, sequence: Sequence) -> None:
        """One token of a sequence that is alone; the next ones are on their way, until something else is to run."""
        try:
            self._resident = self._resident or self._decoding(sequence)
            token = next(self._resident, None)
        except BaseException:
            self._stop_resident()
            raise
        if token is None:
            self._resident = None
            return
        sequence.num_computed = len(sequence.tokens)
        self._deliver(sequence, Sampled(token.id, token.logprob))
        if sequence.finished:
            self._stop_resident()

    def _decoding(self, sequence: Sequence) -> Generator[Decoded, None, None]:
        if self._decoder is None:
            raise TypeError("there is no decoder")
        length = len(sequence.tokens)
        return self._decoder.decode(
            batch_of(self._plan, [Chunk(sequence, length - 1, length, final=True)]),
            sequence.sampling,
            tables=lambda position: self._slot(sequence, position),
            limit=self._resident_limit(sequence),
            prompt_ids=sequence.prompt_ids,
            generated_ids=tuple(sequence.generated_ids),
        )

    def _slot(self, sequence: Sequence, position: int) -> dict[str, Int32] | None:
        """The block tables with a slot for a position, or None if they have it already."""
        before = dict(sequence.table.held)
        self._scheduler.pools.hold(sequence.table, position + 1)
        sequence.table.written = max(sequence.table.written, position + 1)
        return None if sequence.table.held == before else tables_of(self._plan, [sequence])

    def _stop_resident(self) -> None:
        if self._resident is not None:
            resident, self._resident = self._resident, None
            resident.close()

    def _hand_back(self, chunks: list[Chunk], logits: Float32) -> None:
        ready = [chunk.sequence for chunk in chunks if chunk.final]
        chosen = [_sample(sequence, row) for sequence, row in zip(ready, logits, strict=True)]
        self._scheduler.advance(chunks)
        for sequence, token in zip(ready, chosen, strict=True):
            if isinstance(token, Sampled):
                self._deliver(sequence, token)
            else:
                self._failed[sequence] = token
                self._scheduler.fail(sequence)

    def _deliver(self, sequence: Sequence, token: Sampled) -> None:
        self._scheduler.append(sequence, token.id)
        output = TokenOutput(sequence, token.id, token.logprob, token.top, sequence.finish_reason)
        self._streams.get(sequence, self._outputs).append(output)

    def _score(self, sequence: Sequence) -> Iterator[Float32]:
        with self._turn():
            self.check_open()
            self._settle()
            self._check_not_scoring()
            if not self._scheduler.idle:
                raise UsageError("Sequences are still being answered.", "Score when they have finished.")
            self._scoring = True
        try:
            with closing(self._scheduler.whole(sequence)) as chunks:
                for chunk in chunks:
                    with self._turn():
                        self.check_open()
                        logits = self._executor.run(batch_of(self._plan, [chunk], every_row=True))
                    yield logits
        finally:
            self._scoring = False

    def _check_not_scoring(self) -> None:
        if self._scoring:
            raise UsageError("A text is still being scored.", "Exhaust or close the iterator of score() first.")


class AnswerStream(Iterator[TokenOutput]):
    """The tokens of one answer; for one thread at a time. Closing it, or dropping it, cancels what is left."""

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = engine
        self._outputs: deque[TokenOutput] | None = None
        self._ended = False
        self.sequence = sequence

    def __next__(self) -> TokenOutput:
        if self._ended:
            raise StopIteration
        try:
            if self._outputs is None:
                self._outputs = self._engine._begin(self.sequence)
            output = self._engine._next(self.sequence, self._outputs)
        except BaseException:
            self.close()
            raise
        if output is None:
            self.close()
            raise StopIteration
        return output

    def close(self) -> None:
        """Cancel what has not been generated yet; harmless at the end."""
        if not self._ended:
            self._ended = True
            if self._outputs is not None:
                self._engine.cancel(self.sequence)

    def __del__(self) -> None:
        self.close()


def _sample(sequence: Sequence, logits: Float32) -> Sampled | HalfbyteError:
    """The next token, or why there is none: a failure of one sequence must not end the others."""
    try:
        return sequence.sampler.sample(logits, sequence.prompt_ids, sequence.generated_ids)
    except HalfbyteError as error:
        return error


_ENGINES: WeakSet[Engine] = WeakSet()


def _forked_all() -> None:
    for engine in list(_ENGINES):
        engine._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked_all)


@atexit.register
def _hold_all() -> None:
    """Let daemon threads finish their batch and then wait: executors go away while the interpreter ends."""
    for engine in list(_ENGINES):
        engine._turns.keep(EXIT_S)
