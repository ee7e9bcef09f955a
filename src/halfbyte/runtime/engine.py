"""The engine: schedule a batch, have it run, hand its tokens back.

The executor is handed in; nothing here knows a device. Where that chooses tokens itself, batches are submitted before
the tokens of earlier ones have been read. An engine is for one thread; `EngineLoop` shares one.

What a constraint allows is known when every earlier token of its answer has been accepted. So a batch with constrained
sequences is submitted, and `Pending.choose` makes its draws later, while the device computes: a flight is chosen as
soon as it is the oldest. A flight whose draws wait must be chosen before another batch is submitted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable
from collections.abc import Sequence as Many
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Unpack

from halfbyte.errors import DeviceError, GrammarError, HalfbyteError, UsageError
from halfbyte.plan.batch import CacheMemory, Float32, Runner
from halfbyte.plan.drawing import Pending, Token
from halfbyte.runtime.batches import batch_of, draws_of, pooled_of
from halfbyte.runtime.cached_prompt import CachedPrompt, put_in, take_out
from halfbyte.runtime.pace import Pace
from halfbyte.runtime.pooling import Pooling
from halfbyte.runtime.requests import RequestOptions, pooled_text_of, sequences_of, text_of
from halfbyte.runtime.scheduler import Chunk, Scheduler
from halfbyte.runtime.sequence import FinishReason, Sequence
from halfbyte.sampling import Sampled, SamplingParams


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


@dataclass(frozen=True)
class Failure:
    """Why a sequence ended without its next token."""

    sequence: Sequence
    error: HalfbyteError


@dataclass(frozen=True)
class Ended:
    """A sequence that ended between two tokens, or whose hidden states are complete; its `finish_reason` tells why."""

    sequence: Sequence


Output = TokenOutput | Failure | Ended


class _Flight(NamedTuple):
    """A batch that was submitted: the sequence of each row that gets a token, and where the tokens come from.

    Attributes:
        pooled: The chunks whose hidden states are wanted, each with its place in the batch.
    """

    sequences: list[Sequence]
    pending: Pending
    steps: int
    pooled: list[tuple[Chunk, int]]

    @property
    def constrained(self) -> bool:
        """Whether what may come is not known for all its tokens, until it is the oldest flight."""
        return any(map(_constrained, self.sequences))


class Engine:
    """Answers sequences of tokens with an executor, several at once as far as its plan allows; others wait.

    Args:
        executor: What runs the plan.
        rope_switch: `ModelSpec.rope_switch`: tokens in total beyond which the second RoPE set holds, for all positions.
        prefill_chunk: The most tokens of prompts in a batch in which other sequences decode; None for as many as the
            plan has.
        each_token: Whether each token is read before anything else is submitted, for measuring.
    """

    def __init__(
        self,
        executor: Runner,
        *,
        rope_switch: int | None = None,
        prefill_chunk: int | None = None,
        each_token: bool = False,
    ) -> None:
        self._executor = executor
        self._plan = executor.plan
        self._rope_switch = rope_switch
        self._prefill_chunk = prefill_chunk
        self._pace = Pace(1, 1) if each_token else Pace(executor.most_steps, executor.ahead)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nothing is queued, nothing is in the caches, nothing is under way."""
        self._scheduler = Scheduler(self._plan, self._rope_switch, self._prefill_chunk)
        self._flights: deque[_Flight] = deque()
        self._decoding: list[Sequence] = []
        self._outputs: list[Output] = []
        self._scoring = False

    @property
    def idle(self) -> bool:
        """Whether every sequence has finished and `step` has returned all tokens: it has nothing to do."""
        return not self._outputs and self._scheduler.idle

    @property
    def resting(self) -> bool:
        """Whether a step would bring nothing: it is idle, or nobody takes the tokens of those it answers."""
        return not self._outputs and not self._flights and self._scheduler.resting

    def request(
        self, prompt_ids: Iterable[int], sampling: SamplingParams, **options: Unpack[RequestOptions]
    ) -> Sequence:
        """A checked request, to be queued by `add`; for any thread.

        Raises:
            UsageError: An empty prompt, token ids or an option out of range, or a text is being scored.
            ContextFullError: A prompt that leaves no room in the context for an answer.
        """
        return self.requests(prompt_ids, sampling, 1, **options)[0]

    def requests(
        self, prompt_ids: Iterable[int], sampling: SamplingParams, n: int, **options: Unpack[RequestOptions]
    ) -> list[Sequence]:
        """As `request`, for `n` answers to one prompt; if there is a seed, each has that of the one before plus 1."""
        self._check_not_scoring()
        return sequences_of(self._plan, prompt_ids, sampling, n, **options)

    def pooled(self, token_ids: Iterable[int], pooling: Pooling, adapter: int = 0) -> Sequence:
        """A checked request for the hidden states of a text as one vector, to be queued by `add`; for any thread.

        The sequence has no answer, and finishes with reason `stop` when its `pooler` has the vector.

        Raises:
            UsageError: No tokens, or ids out of range, or a text is being scored.
            ContextFullError: More tokens than the context holds.
        """
        self._check_not_scoring()
        return pooled_text_of(self._plan, token_ids, pooling, adapter)

    def add(self, sequence: Sequence) -> None:
        """Queue a request."""
        self._scheduler.add(sequence)

    def submit(
        self, prompt_ids: Iterable[int], sampling: SamplingParams, **options: Unpack[RequestOptions]
    ) -> Sequence:
        """Queue a prompt, whose tokens later calls of `step` return. Arguments and errors are those of `request`."""
        sequence = self.request(prompt_ids, sampling, **options)
        self.add(sequence)
        return sequence

    def step(self) -> list[TokenOutput]:
        """Have batches run, and return the tokens of the oldest; none while prompts are being read.

        A sequence whose answer fills the context finishes with reason `context`.

        Raises:
            DeviceError: The device failed, or the model gave no valid logits for a sequence, which has ended.
            GrammarError: The grammar of a sequence, which has ended, allows no token.
        """
        outputs = self.advance()
        failed = next((output for output in outputs if isinstance(output, Failure)), None)
        if failed is not None:
            self._outputs = [output for output in outputs if output is not failed]
            raise failed.error
        return [output for output in outputs if isinstance(output, TokenOutput)]

    def advance(self) -> list[Output]:
        """As `step`, but among the outputs is also what ended without a token: every sequence, if the device failed."""
        try:
            self._outputs += [Ended(sequence) for sequence in self._scheduler.end_expired()]
            self._submit()
            if self._flights:
                self._collect(self._flights.popleft())
        except HalfbyteError as error:
            self._fail_all(error)
        except BaseException:
            self.cancel_all()
            raise
        outputs, self._outputs = self._outputs, []
        return outputs

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence and free its blocks; one that has finished stays as it is."""
        if not sequence.finished:
            self._scheduler.finish(sequence, "cancelled")

    def cancel_all(self) -> None:
        """End every sequence."""
        self._flights.clear()
        self._scheduler.cancel_all()

    def score(self, token_ids: Iterable[int], adapter: int = 0) -> Generator[Float32, None, None]:
        """The logits after each token, in order, as chunks `[r, vocab_size]` with r at most the plan's rows.

        Each chunk is valid until the next is asked for. `adapter` is that of `RequestOptions`.

        Raises:
            UsageError: No tokens, ids out of range, or sequences that have not finished.
            ContextFullError: More tokens than the context holds.
        """
        return self._score(text_of(self._plan, token_ids, adapter))

    def cached_prompt(self, prompt_ids: Many[int], memory: CacheMemory, adapter: int = 0) -> CachedPrompt:
        """As much of a prompt as the caches hold.

        Args:
            memory: The caches of the engine's executor.
            adapter: The number of the adapter that the prompt was computed with.
        """
        scheduler = self._scheduler
        rope_set = scheduler.rope_set(len(prompt_ids))
        return take_out(self._plan, scheduler.pools, memory, prompt_ids, rope_set, adapter)

    def restore(self, prompt: CachedPrompt, memory: CacheMemory) -> None:
        """Put a prompt back into the caches.

        Raises:
            UsageError: There is no room for it.
        """
        put_in(self._plan, self._scheduler.pools, memory, prompt)

    def _submit(self) -> None:
        """Submit batches as far ahead of their tokens as the device allows."""
        while len(self._flights) < self._pace.ahead and self._all_named() and (chunks := self._scheduler.schedule()):
            sequences = [chunk.sequence for chunk in chunks for _ in chunk.rows]
            steps = 1
            if sequences != self._decoding or not all(self._draws(s) for s in sequences):
                self._pace.begin()
            elif not any(map(_constrained, sequences)):
                steps = self._scheduler.stretch(chunks, self._pace.steps)
            self._decoding = sequences
            pending = self._executor.submit(batch_of(self._plan, chunks), draws_of(chunks), steps=steps)
            self._scheduler.advance(chunks, steps)
            self._pace.sent(steps)
            self._flights.append(_Flight(sequences, pending, steps, pooled_of(chunks)))
            if len(self._flights) == 1:
                pending.choose()

    def _all_named(self) -> bool:
        """Whether the next batch can name every token that is under way: each is drawn on the device, none waits.

        Hidden states have to be read first: those of the next batch take their place.
        """
        drawn = all(self._draws(sequence) for flight in self._flights for sequence in flight.sequences)
        waiting = any(flight.constrained for flight in islice(self._flights, 1, None))
        return drawn and not waiting and not any(flight.pooled for flight in self._flights)

    def _draws(self, sequence: Sequence) -> bool:
        return self._executor.draws(sequence.sampling)

    def _collect(self, flight: _Flight) -> None:
        for tokens in flight.pending.tokens():
            for sequence, token in zip(flight.sequences, tokens, strict=True):
                if not sequence.finished:
                    self._deliver(sequence, _accepted(sequence, token))
        if flight.pooled:
            self._pool(flight.pending.hidden(), flight.pooled)
        self._pace.completed(time.perf_counter(), flight.steps)
        if self._flights:
            self._flights[0].pending.choose()

    def _pool(self, states: Float32, pooled: Iterable[tuple[Chunk, int]]) -> None:
        """Give hidden states `[tokens of the batch, hidden_size]` to those who want them."""
        for chunk, begin in pooled:
            sequence, pooler = chunk.sequence, chunk.sequence.pooler
            if pooler is None or sequence.finished:
                continue
            try:
                pooler.take(chunk.start, states[begin : begin + chunk.stop - chunk.start])
            except DeviceError as error:
                self._scheduler.fail(sequence)
                self._outputs.append(Failure(sequence, error))
            else:
                if pooler.vector is not None:
                    self._scheduler.finish(sequence, "stop")
                    self._outputs.append(Ended(sequence))

    def _deliver(self, sequence: Sequence, token: Token) -> None:
        if isinstance(token, Sampled) and sequence.num_unscored:
            sequence.scores.append(token)
        elif isinstance(token, Sampled):
            self._scheduler.append(sequence, token.id)
            self._outputs.append(TokenOutput(sequence, token.id, token.logprob, token.top, sequence.finish_reason))
        else:
            if isinstance(token, GrammarError):
                self._scheduler.finish(sequence, "cancelled")
            else:
                self._scheduler.fail(sequence)
            self._outputs.append(Failure(sequence, token))

    def _fail_all(self, error: HalfbyteError) -> None:
        """End every sequence with the same error; nothing in the caches is trusted."""
        self._flights.clear()
        for sequence in self._scheduler.fail_all():
            self._outputs.append(Failure(sequence, error))

    def _check_not_scoring(self) -> None:
        if self._scoring:
            raise UsageError("A text is still being scored.", "Exhaust or close the iterator of score() first.")

    def _score(self, sequence: Sequence) -> Generator[Float32, None, None]:
        self._check_not_scoring()
        if not self._scheduler.idle:
            raise UsageError("Sequences are still being answered.", "Score when they have finished.")
        self._scoring = True
        try:
            with closing(self._scheduler.whole(sequence)) as chunks:
                for chunk in chunks:
                    yield self._executor.run(batch_of(self._plan, [chunk], every_row=True))
        finally:
            self._scoring = False


def _constrained(sequence: Sequence) -> bool:
    return sequence.constraint is not None


def _accepted(sequence: Sequence, token: Token) -> Token:
    """A token, once the sequence's constraint has taken it, or why it does not."""
    try:
        if sequence.constraint is not None and isinstance(token, Sampled) and not sequence.num_unscored:
            sequence.constraint.accept(token.id)
    except HalfbyteError as error:
        return error
    return token
