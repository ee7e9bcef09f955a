"""The engine: schedule a batch, run it, hand the tokens back.

The executor is handed in; nothing here knows a device. One engine serves one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from operator import index

import numpy as np

from halfbyte.errors import ContextFullError, UsageError
from halfbyte.plan.batch import Batch, Decoded, Decoder, Float32, Int32, Runner
from halfbyte.plan.plan import LOGITS, Plan
from halfbyte.plan.sampling import SamplingParams
from halfbyte.runtime.sampler import Sampled
from halfbyte.runtime.scheduler import Chunk, Scheduler
from halfbyte.runtime.sequence import FinishReason, Sequence


@dataclass(frozen=True)
class TokenOutput:
    """One token of an answer.

    Attributes:
        sequence: Whose answer; it also tells how many prompt tokens were reused, and the times taken.
        logprob: Natural log-probability under the model's own distribution, before penalties and temperature.
        top_logprobs: The likeliest tokens and their log-probabilities, as many as were asked for.
        finish_reason: Why this token is the last; None if it is not.
    """

    sequence: Sequence
    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


class Engine:
    """Answers sequences of tokens with an executor, several at once as far as its plan allows.

    Args:
        executor: What runs the plan.
        rope_switch: `ModelSpec.rope_switch`: tokens in total beyond which the second RoPE set holds, for all positions.
        decoder: What decodes a sequence that is alone, where the executor can choose tokens itself.
    """

    def __init__(self, executor: Runner, *, rope_switch: int | None = None, decoder: Decoder | None = None) -> None:
        self._executor = executor
        self._decoder = decoder
        self._rope_switch = rope_switch
        self._resident: Generator[Decoded, None, None] | None = None
        self._plan = executor.plan
        self._vocab_size = self._plan.tensors[LOGITS].shape[-1]
        self._scheduler = Scheduler(self._plan, rope_switch)
        self._streams: dict[Sequence, deque[TokenOutput]] = {}
        self._scoring = False

    @property
    def idle(self) -> bool:
        """Whether every sequence has finished: `step` has nothing to do."""
        return self._scheduler.idle

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
            UsageError: An empty prompt, or token ids or `max_tokens` out of range.
            ContextFullError: A prompt that leaves no room in the context for an answer.
        """
        sequence = self._sequence(prompt_ids, sampling, max_tokens, () if ignore_eos else stop_token_ids)
        self._scheduler.add(sequence)
        return sequence

    def step(self) -> list[TokenOutput]:
        """Run one batch and return the tokens it gave: at most one a sequence, none while prompts are being read.

        A sequence whose answer fills the context finishes with reason `context`.

        Raises:
            DeviceError: The model gave no valid logits.
            UsageError: A `score` is under way.
        """
        self._check_not_scoring()
        self._stop_resident()
        chunks = self._scheduler.schedule()
        return self._hand_back(chunks, self._run(chunks)) if chunks else []

    def generate(
        self,
        prompt_ids: Iterable[int],
        sampling: SamplingParams,
        *,
        max_tokens: int,
        stop_token_ids: Collection[int] = (),
        ignore_eos: bool = False,
    ) -> Iterator[TokenOutput]:
        """The tokens of one answer, as they come; arguments and errors are those of `submit` and `step`.

        Work starts with the first token asked for. Closing the iterator, or an exception, cancels the sequence.

        Raises:
            ContextFullError: Also after the last token that fits, where the answer is not finished by then.
        """
        return self._stream(self._sequence(prompt_ids, sampling, max_tokens, () if ignore_eos else stop_token_ids))

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence and free its blocks; one that has finished stays as it is."""
        if not sequence.finished:
            self._scheduler.finish(sequence, "cancelled")

    def score(self, token_ids: Iterable[int]) -> Iterator[Float32]:
        """The logits after each token, in order, as chunks `[r, vocab_size]` with r at most the plan's rows.

        Each chunk is valid until the next is asked for.

        Raises:
            UsageError: No tokens, ids out of range, or sequences that have not finished.
            ContextFullError: More tokens than the context holds.
        """
        ids = self._checked_ids(token_ids)
        if len(ids) > self._plan.context:
            raise _text_too_long(len(ids), self._plan.context)
        return self._score(Sequence(ids, SamplingParams(), max_tokens=0))

    def _sequence(
        self, prompt_ids: Iterable[int], sampling: SamplingParams, max_tokens: int, stop_token_ids: Collection[int]
    ) -> Sequence:
        ids = self._checked_ids(prompt_ids)
        if len(ids) >= self._plan.context:
            raise _prompt_too_long(len(ids), self._plan.context)
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens!r}.", "Give a whole number of at least 1.")
        beyond = [token for token in sampling.logit_bias if token >= self._vocab_size]
        if beyond:
            raise _not_in_vocabulary("logit_bias", beyond[0], self._vocab_size)
        return Sequence(ids, sampling, max_tokens, frozenset(stop_token_ids))

    def _checked_ids(self, token_ids: Iterable[int]) -> tuple[int, ...]:
        try:
            ids = tuple(map(index, token_ids))
        except TypeError as error:
            raise UsageError(f"The prompt is not a list of token ids: {error}.", "Give whole numbers.") from error
        if not ids:
            raise UsageError("The prompt is empty.", "Give at least one token.")
        for worst in (min(ids), max(ids)):
            if not 0 <= worst < self._vocab_size:
                raise _not_in_vocabulary("The prompt", worst, self._vocab_size)
        return ids

    def _stream(self, sequence: Sequence) -> Iterator[TokenOutput]:
        outputs = self._streams[sequence] = deque()
        try:
            self._scheduler.add(sequence)
            while outputs or not sequence.finished:
                if outputs:
                    yield outputs.popleft()
                elif self._can_stay(sequence):
                    yield from self._decode_resident(sequence)
                else:
                    self.step()
        finally:
            self._stop_resident()
            del self._streams[sequence]
            self.cancel(sequence)
        if sequence.finish_reason == "context":
            raise _context_full(sequence, self._plan.context)

    def _can_stay(self, sequence: Sequence) -> bool:
        """Whether the next tokens can be chosen by the executor itself."""
        return (
            self._decoder is not None
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

    def _decode_resident(self, sequence: Sequence) -> Iterator[TokenOutput]:
        """Tokens of a sequence that is alone, until it finishes or something else is to run."""
        decoder, length = self._decoder, len(sequence.tokens)
        if decoder is None:
            raise TypeError("there is no decoder")
        resident = self._resident = decoder.decode(
            _batch(self._plan, [Chunk(sequence, length - 1, length, final=True)], every_row=False),
            sequence.sampling,
            tables=lambda position: self._slot(sequence, position),
            limit=self._resident_limit(sequence),
            prompt_ids=sequence.prompt_ids,
            generated_ids=tuple(sequence.generated_ids),
        )
        for token in resident:
            sequence.num_computed = len(sequence.tokens)
            self._scheduler.append(sequence, token.id)
            if sequence.finished:
                self._stop_resident()
            yield TokenOutput(sequence, token.id, token.logprob, (), sequence.finish_reason)
            if self._resident is not resident:
                return

    def _slot(self, sequence: Sequence, position: int) -> dict[str, Int32] | None:
        """The block tables with a slot for a position, or None where they have it already."""
        before = dict(sequence.table.held)
        self._scheduler.pools.hold(sequence.table, position + 1)
        sequence.table.written = max(sequence.table.written, position + 1)
        return None if sequence.table.held == before else _tables(self._plan, [sequence])

    def _stop_resident(self) -> None:
        if self._resident is not None:
            self._resident.close()
            self._resident = None

    def _score(self, sequence: Sequence) -> Iterator[Float32]:
        self._check_not_scoring()
        if not self.idle:
            raise UsageError("Sequences are still being answered.", "Score when they have finished.")
        self._scoring = True
        try:
            with closing(self._scheduler.whole(sequence)) as chunks:
                for chunk in chunks:
                    yield self._run([chunk], every_row=True)
        finally:
            self._scoring = False

    def _check_not_scoring(self) -> None:
        if self._scoring:
            raise UsageError("A text is still being scored.", "Exhaust or close the iterator of score() first.")

    def _run(self, chunks: list[Chunk], *, every_row: bool = False) -> Float32:
        return self._executor.run(_batch(self._plan, chunks, every_row))

    def _hand_back(self, chunks: list[Chunk], logits: Float32) -> list[TokenOutput]:
        ready = [chunk.sequence for chunk in chunks if chunk.final]
        sampled = [s.sampler.sample(row, s.prompt_ids, s.generated_ids) for s, row in zip(ready, logits, strict=True)]
        self._scheduler.advance(chunks)
        return [self._output(sequence, token) for sequence, token in zip(ready, sampled, strict=True)]

    def _output(self, sequence: Sequence, token: Sampled) -> TokenOutput:
        self._scheduler.append(sequence, token.id)
        output = TokenOutput(sequence, token.id, token.logprob, token.top, sequence.finish_reason)
        if sequence in self._streams:
            self._streams[sequence].append(output)
        return output


def _batch(plan: Plan, chunks: list[Chunk], every_row: bool) -> Batch:
    """The chunks side by side; chunk i uses row i of the block tables."""
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    ends = np.cumsum(lengths)
    last = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.final]
    return Batch(
        token_ids=np.concatenate([np.array(c.sequence.tokens[c.start : c.stop], np.int32) for c in chunks]),
        positions=np.concatenate([np.arange(c.start, c.stop, dtype=np.int32) for c in chunks]),
        sequences=np.repeat(np.arange(len(chunks), dtype=np.int32), lengths),
        rope_sets=np.repeat(np.array([c.sequence.rope_set for c in chunks], np.int32), lengths),
        block_tables=_tables(plan, [chunk.sequence for chunk in chunks]),
        logit_rows=np.arange(ends[-1], dtype=np.int32) if every_row else np.array(last, np.int32),
    )


def _tables(plan: Plan, sequences: list[Sequence]) -> dict[str, Int32]:
    """Block tables with a row for each of the sequences."""
    tables = {g.blocks: np.full((plan.sequences, g.columns), -1, np.int32) for g in plan.groups}
    for i, sequence in enumerate(sequences):
        for name, row in sequence.table.rows.items():
            tables[name][i] = row
    return tables


def _prompt_too_long(length: int, context: int) -> ContextFullError:
    return ContextFullError(
        f"The prompt has {length:,} tokens; the context holds {context:,}, of which an answer needs at least one.",
        "Shorten the prompt, or load the model with a larger context.",
    )


def _text_too_long(length: int, context: int) -> ContextFullError:
    return ContextFullError(
        f"The text has {length:,} tokens; the context holds {context:,}.",
        "Score it in pieces, or load the model with a larger context.",
    )


def _context_full(sequence: Sequence, context: int) -> ContextFullError:
    prompt, answer = len(sequence.prompt_ids), len(sequence.generated_ids)
    return ContextFullError(
        f"The context of {context:,} tokens is full: {prompt:,} of prompt and {answer:,} of answer.",
        "Shorten the prompt, ask for fewer tokens, or load the model with a larger context.",
    )


def _not_in_vocabulary(where: str, token: int, vocab_size: int) -> UsageError:
    return UsageError(
        f"{where} has token id {token}; the vocabulary has {vocab_size:,} tokens.",
        f"Token ids of this model are 0 to {vocab_size - 1}.",
    )
