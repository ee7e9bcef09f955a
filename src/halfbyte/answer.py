"""An answer: its tokens as they come, and the whole of it with its figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from halfbyte import display
from halfbyte.runtime import AnswerStream, TokenOutput
from halfbyte.sampling import Sampled
from halfbyte.text import TextStream


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        text: Text that can be shown with this token: empty while a character or a stop string is incomplete.
        logprob: Natural logarithm of its probability under the model, before any sampling setting.
        top_logprobs: The most likely (id, logprob) pairs, as many as were asked for.
        finish_reason: Set on the last token: `stop`, `length`, or `context` if the context is full.
        stop: The stop string that ended the answer, on the last token.
    """

    id: int
    text: str
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None
    stop: str | None = None

    def __repr__(self) -> str:
        return display.given(self)


@dataclass(frozen=True)
class Generation:
    """An answer and what it took. As a string it is its text.

    Attributes:
        token_ids: Generated ids, a stop token included.
        num_cached_tokens: Prompt tokens that did not have to be computed again after the turn before.
        finish_reason: `stop` (an end token or a stop string), `length` (`max_tokens`), `context` (the context is full),
            `cancelled`, or `deadline` (its time was up).
        prefill_ms: From the prompt to the first token.
        ms_per_token, tokens_per_s: Of the tokens after the first; None if there are none.
        total_s: From the prompt to the end.
        logits_read_back: Whether the host chose the tokens although the device can, because the device's sampler lacks
            an option that was asked for (`typical_p`, `logprobs`).
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int
    num_cached_tokens: int
    finish_reason: str
    prefill_ms: float
    ms_per_token: float | None
    total_s: float
    logits_read_back: bool = False

    @property
    def new_tokens(self) -> int:
        """Tokens generated."""
        return len(self.token_ids)

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed, the first token not counted."""
        return 1000 / self.ms_per_token if self.ms_per_token else None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Generation {display.shortened(self.text)}: {self._figures}>"

    def _repr_html_(self) -> str:
        return display.passage(self.text, caption=self._figures)

    @property
    def _figures(self) -> str:
        speed = f"{self.tokens_per_s:,.0f} tokens/s, " if self.tokens_per_s else ""
        return f"{_tokens(self.new_tokens)} in {self.total_s:.3g} s, {speed}{self.finish_reason}"


class Stream(Iterator[Token]):
    """Tokens as they are made, for one thread at a time. Closing or dropping it early cancels the rest."""

    def __init__(self, outputs: AnswerStream, text: TextStream, logits_read_back: bool) -> None:
        self._outputs = outputs
        self._text = text
        self._logits_read_back = logits_read_back
        self._tokens: list[Token] = []
        self._finish_reason = ""
        self._closed = False
        self._started = self._last = time.perf_counter()

    def __repr__(self) -> str:
        return f"<Stream {self._so_far}>"

    def __next__(self) -> Token:
        if self._closed:
            raise StopIteration
        return self._taken(next(self._outputs))

    @property
    def _so_far(self) -> str:
        text = "".join(token.text for token in self._tokens)
        state = f", {self._finish_reason or 'closed'}" if self._closed else " so far"
        return f"{display.shortened(text)}: {_tokens(len(self._tokens))}{state}"

    def _taken(self, output: TokenOutput) -> Token:
        self._last = time.perf_counter()
        token = self._token(output)
        self._tokens.append(token)
        self._finish_reason = token.finish_reason or ""
        if self._finish_reason:
            self.close()
        return token

    def _token(self, output: TokenOutput) -> Token:
        text, reason = self._text.push(output.token_id), output.finish_reason
        if self._text.stopped:
            reason = "stop"
        if reason:
            text += self._text.finish()
        return Token(output.token_id, text, output.logprob, output.top_logprobs, reason, self._text.stop)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The token ids of the prompt."""
        return self._outputs.sequence.prompt_ids

    @property
    def prompt_scores(self) -> tuple[Sampled, ...]:
        """The tokens of the prompt after the first, with log-probabilities, if `prompt_logprobs` asked for them.

        They are complete with the first token of the answer.
        """
        return tuple(self._outputs.sequence.scores)

    def start(self) -> Self:
        """Have it answered from now on, not only when the first token is asked for."""
        self._outputs.start()
        return self

    def close(self) -> None:
        """Cancel what has not been generated yet; harmless at the end."""
        self._closed = True
        self._outputs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def whole(self) -> Generation:
        """Take all tokens; the answer."""
        with self:
            for _ in self:
                pass
            return self.result()

    def result(self) -> Generation:
        """The answer so far, with its figures."""
        sequence = self._outputs.sequence
        later = len(sequence.generated_ids) - 1
        return Generation(
            text="".join(token.text for token in self._tokens),
            token_ids=tuple(token.id for token in self._tokens),
            logprobs=tuple(token.logprob for token in self._tokens),
            prompt_tokens=len(sequence.prompt_ids),
            num_cached_tokens=sequence.num_cached_tokens if self._tokens else 0,
            finish_reason=self._finish_reason or ("deadline" if sequence.finish_reason == "deadline" else "cancelled"),
            prefill_ms=1000 * sequence.prefill_s,
            ms_per_token=1000 * sequence.decode_s / later if later > 0 else None,
            total_s=self._last - self._started,
            logits_read_back=self._logits_read_back,
        )


def _tokens(count: int) -> str:
    return f"{count:,} token" + "s" * (count != 1)
