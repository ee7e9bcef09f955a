"""A prompt and its answer, and how far they have been computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from halfbyte.runtime.blocks import BlockTable
from halfbyte.runtime.constraint import Constraint
from halfbyte.runtime.pooling import Pooler
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from halfbyte.sampling.scoring import ScoringParams

Status = Literal["waiting", "running", "finished"]
FinishReason = Literal["stop", "length", "context", "cancelled", "deadline"]


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
        num_cached_tokens: Prompt tokens that were in the cache already when the sequence was first admitted.
        num_preemptions: How often it gave up its blocks for others, to be computed again.
        rope_set: The set of RoPE frequencies that the cache is computed with.
        priority: Sequences of a higher priority go first.
        arrival: Its number among all sequences of the scheduler.
        turn: When tokens of its prompt were last computed; those that had no turn for longest are next.
        expires: When it ends, finished or not, on the clock of `perf_counter`; None if it has time.
        scope: Sequences of one scope share cache blocks; None shares with nobody.
        constraint: What its answer may be, which has accepted every token of `generated_ids`; None for anything.
        scoring: What is told of each token of the prompt after the first; None if nothing is.
        scores: What has been told so far.
        adapter: The number of the adapter that it is computed with; 0 for none.
        pooler: What takes the hidden states of its prompt; None if they are not wanted. It then has no answer.
        chain: Hashes that name its full blocks, as `prefixes` makes them, with their root.
        stops: Ends of blocks of its prompt at which a batch ends, so that the state there can be kept.
        finish_reason: `stop` (a stop token), `length` (`max_tokens`), `context` (no room left), `cancelled` or
            `deadline` (its time was up).
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    expires: float | None = None
    scope: bytes | None = b""
    constraint: Constraint | None = None
    scoring: ScoringParams | None = None
    pooler: Pooler | None = None
    adapter: int = 0
    scores: list[Sampled] = field(default_factory=list, init=False, repr=False)
    generated_ids: list[int] = field(default_factory=list, init=False)
    tokens: list[int] = field(init=False, repr=False)
    num_computed: int = field(default=0, init=False)
    num_ahead: int = field(default=0, init=False)
    slot: int = field(default=-1, init=False)
    paused: bool = field(default=False, init=False)
    num_cached_tokens: int = field(default=0, init=False)
    num_preemptions: int = field(default=0, init=False)
    rope_set: int = field(default=0, init=False)
    arrival: int = field(default=-1, init=False)
    turn: int = field(default=-1, init=False)
    chain: list[bytes] = field(default_factory=list, init=False, repr=False)
    stops: set[int] = field(default_factory=set, init=False, repr=False)
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
    def num_unscored(self) -> int:
        """Tokens of the prompt that are still to be told with their log-probabilities."""
        return 0 if self.scoring is None else len(self.prompt_ids) - 1 - len(self.scores)

    @property
    def num_missing(self) -> int:
        """Tokens of the answer that may still be asked for."""
        return self.max_tokens - len(self.generated_ids) - self.num_ahead

    @property
    def num_known(self) -> int:
        """Leading tokens that have been read and whose keys and values are in the cache."""
        return min(self.num_computed, len(self.tokens))

    @property
    def order(self) -> tuple[int, int]:
        """What sequences are sorted by: those of a higher priority first, then those that came first."""
        return -self.priority, self.arrival

    def expired(self, now: float) -> bool:
        """Whether its time is up."""
        return self.expires is not None and now >= self.expires

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
