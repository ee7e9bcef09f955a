"""What `bench throughput` asks of a model: requests of random tokens, of random lengths, that come at random times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from halfbyte.errors import UsageError


@dataclass(frozen=True)
class Workload:
    """How many requests, how long, and when they come.

    Attributes:
        requests: How many.
        prompt_tokens: The fewest and the most tokens of a prompt after the shared prefix; all lengths are as likely.
        new_tokens: The same for answers; each answer has exactly the length that was drawn for it.
        rate: Requests per second on average, as a Poisson process; None if all come at once.
        shared_prefix: Tokens that all prompts begin with.
        seed: The same seed gives the same requests at the same times.

    Raises:
        UsageError: A number is out of range.
    """

    requests: int
    prompt_tokens: tuple[int, int]
    new_tokens: tuple[int, int]
    rate: float | None = None
    shared_prefix: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for what, (fewest, most) in (("a prompt", self.prompt_tokens), ("an answer", self.new_tokens)):
            if not 1 <= fewest <= most:
                raise UsageError(
                    f"the tokens of {what} cannot be {fewest}-{most}.",
                    "Give the fewest, at least 1, and then the most: 64-512.",
                )
        if self.requests < 1 or self.shared_prefix < 0 or self.seed < 0:
            raise UsageError(
                f"{self.requests} requests, a shared prefix of {self.shared_prefix} tokens and the seed {self.seed} "
                "cannot be measured.",
                "There is at least one request; the others are at least 0.",
            )
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UsageError(
                f"requests cannot come at a rate of {self.rate} per second.", "Give a positive number, or leave it out."
            )

    @property
    def context(self) -> int:
        """Positions that the longest possible request takes."""
        return self.shared_prefix + self.prompt_tokens[1] + self.new_tokens[1]


@dataclass(frozen=True)
class Arrival:
    """A request to come.

    Attributes:
        due_s: Seconds after the first request.
        new_tokens: Tokens of its answer.
    """

    due_s: float
    prompt_ids: tuple[int, ...]
    new_tokens: int


def arrivals(workload: Workload, vocab_size: int) -> list[Arrival]:
    """The requests in the order in which they come, the first at once.

    Lengths, times and tokens are drawn apart: another rate brings the same requests.
    """
    lengths, pauses, tokens = (np.random.default_rng([workload.seed, part]) for part in range(3))
    count = workload.requests
    prompts = lengths.integers(*workload.prompt_tokens, count, endpoint=True)
    answers = lengths.integers(*workload.new_tokens, count, endpoint=True)
    due = np.zeros(count)
    if workload.rate is not None:
        due[1:] = pauses.exponential(1 / workload.rate, count - 1).cumsum()
    prefix = tuple(tokens.integers(0, vocab_size, workload.shared_prefix).tolist())
    return [
        Arrival(when, prefix + tuple(tokens.integers(0, vocab_size, length).tolist()), new)
        for when, length, new in zip(due.tolist(), prompts.tolist(), answers.tolist(), strict=True)
    ]
