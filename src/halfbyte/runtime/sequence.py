"""A prompt and its answer, and how far they have been computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from halfbyte.runtime.blocks import BlockTable
from halfbyte.sampling import Sampler, SamplingParams

Status = Literal["waiting", "running", "finished"]
FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(eq=False)
class Sequence:
    """One request: its tokens, its place in the caches, its end.

    Attributes:
        prompt_ids: The prompt.
        generated_ids: The answer so far, with its stop token if it has come.
        tokens: Both together.
        num_computed: Leading tokens whose keys and values are in the cache, or will be by the batches under way.
        num_ahead: Tokens of the answer that are under way and not read yet.
        slot: Its row of the block tables while it runs.
        paused: Whether nobody takes its tokens for now.
        reused_tokens: Prompt tokens that were in the cache already when the sequence was last admitted.
        rope_set: The set of RoPE frequencies that the cache was computed with.
        finish_reason: `stop` (a stop token), `length` (`max_tokens`), `context` (no room left) or `cancelled`.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    generated_ids: list[int] = field(default_factory=list, init=False)
    tokens: list[int] = field(init=False, repr=False)
    num_computed: int = field(default=0, init=False)
    num_ahead: int = field(default=0, init=False)
    slot: int = field(default=-1, init=False)
    paused: bool = field(default=False, init=False)
    reused_tokens: int = field(default=0, init=False)
    rope_set: int = field(default=0, init=False)
    status: Status = field(default="waiting", init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    table: BlockTable = field(default_factory=BlockTable, init=False, repr=False)
    sampler: Sampler = field(init=False, repr=False)
    _submitted: float = field(default_factory=perf_counter, init=False, repr=False)
    _first_token: float | None = field(default=None, init=False, repr=False)
    _last_token: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt_ids)
        self.sampler = Sampler(self.sampling)

    @property
    def length(self) -> int:
        """All tokens, with those that are not read yet."""
        return len(self.tokens) + self.num_ahead

    @property
    def num_pending(self) -> int:
        """Tokens still to be computed before the next one can be chosen."""
        return self.length - self.num_computed

    @property
    def num_missing(self) -> int:
        """Tokens of the answer that may still be asked for."""
        return self.max_tokens - len(self.generated_ids) - self.num_ahead

    @property
    def finished(self) -> bool:
        """Whether no token will follow."""
        return self.status == "finished"

    @property
    def prefill_s(self) -> float:
        """Seconds from submission to the first token, waiting included; 0 before it."""
        return self._first_token - self._submitted if self._first_token is not None else 0.0

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the latest."""
        if self._first_token is None or self._last_token is None:
            return 0.0
        return self._last_token - self._first_token

    def append(self, token_id: int) -> None:
        """Take the next token of the answer."""
        self.num_ahead -= 1
        self.tokens.append(token_id)
        self.generated_ids.append(token_id)
        self._last_token = perf_counter()
        if self._first_token is None:
            self._first_token = self._last_token

    def reason_to_finish(self, context: int) -> FinishReason | None:
        """Why the latest token was the last, if it was."""
        if self.generated_ids[-1] in self.stop_token_ids:
            return "stop"
        if len(self.generated_ids) >= self.max_tokens:
            return "length"
        return "context" if len(self.tokens) >= context else None
