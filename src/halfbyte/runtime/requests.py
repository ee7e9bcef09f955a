"""What may be asked of an engine, checked before anything is computed."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Iterable
from dataclasses import replace
from numbers import Real
from time import perf_counter
from typing import Required, TypedDict

from halfbyte.errors import ContextFullError, UsageError
from halfbyte.options import whole
from halfbyte.plan.plan import Plan
from halfbyte.runtime.constraint import Grammar, started
from halfbyte.runtime.pooling import Pooler, Pooling
from halfbyte.runtime.sequence import Sequence
from halfbyte.sampling.params import SamplingParams
from halfbyte.sampling.scoring import ScoringParams


class RequestOptions(TypedDict, total=False):
    """Keyword arguments of `Engine.request`.

    Attributes:
        max_tokens: The most tokens of the answer.
        stop_token_ids: Tokens that end the answer; the one that does is its last token.
        ignore_eos: Go on past stop tokens, for measuring.
        priority: Requests of a higher priority go first.
        deadline: Seconds from now after which the answer ends as far as it has come, with reason `deadline`.
        cache_prompt: Whether to use what the caches hold of the prompt already, and to leave the prompt there for
            others. By default, unless a seed is to give the same text again: values that were computed in other batches
            may differ in their last bits.
        grammar: What the answer may be; each of several answers follows it on its own.
        prompt_logprobs: How many of the most likely tokens to tell with each token of the prompt, in the sequence's
            `scores`; None to tell nothing of the prompt. Its caches are then neither used nor left to others.
        adapter: The number of the adapter to compute with, one of those that the plan was made for; 0 for none.
    """

    max_tokens: Required[int]
    stop_token_ids: Collection[int]
    ignore_eos: bool
    priority: int
    deadline: float | None
    cache_prompt: bool | None
    grammar: Grammar | None
    prompt_logprobs: int | None
    adapter: int


def sequences_of(
    plan: Plan,
    prompt_ids: Iterable[int],
    sampling: SamplingParams,
    n: int = 1,
    *,
    max_tokens: int,
    stop_token_ids: Collection[int] = (),
    ignore_eos: bool = False,
    priority: int = 0,
    deadline: float | None = None,
    cache_prompt: bool | None = None,
    grammar: Grammar | None = None,
    prompt_logprobs: int | None = None,
    adapter: int = 0,
) -> list[Sequence]:
    """A request as sequences, one for each of `n` answers; they share the blocks of the prompt.

    If there is a seed, each answer has the seed of the one before plus 1.

    Raises:
        UsageError: An empty prompt, or token ids or an option out of range.
        ContextFullError: A prompt that leaves no room in the context for an answer.
    """
    ids = checked_ids(plan, prompt_ids)
    if len(ids) >= plan.context:
        raise _prompt_too_long(len(ids), plan.context)
    beyond = [token for token in sampling.logit_bias if token >= plan.vocab_size]
    if beyond:
        raise _not_in_vocabulary("logit_bias", beyond[0], plan.vocab_size)
    most, count = _at_least_1("max_tokens", max_tokens, 256), _at_least_1("n", n, 1)
    urgency, expires = _priority(priority), _expires(deadline)
    if grammar is not None and ignore_eos:
        raise UsageError("ignore_eos would go on past the end of the grammar.", "Leave out ignore_eos or grammar.")
    scoring = None if prompt_logprobs is None else ScoringParams(logprobs=prompt_logprobs)
    scope = _scope(sampling, cache_prompt, count) if scoring is None else None
    if scoring is not None:  # whose prompt is read on the host is answered there
        sampling = replace(sampling, logprobs=max(1, sampling.logprobs))
    stop = frozenset[int]() if ignore_eos else frozenset(stop_token_ids)
    return [
        Sequence(
            ids,
            _sibling(sampling, i),
            most,
            stop,
            priority=urgency,
            expires=expires,
            scope=scope,
            constraint=started(grammar),
            scoring=scoring,
            adapter=adapter,
        )
        for i in range(count)
    ]


def _at_least_1(name: str, value: int, example: int) -> int:
    number = whole(value)
    if number is None or number < 1:
        raise UsageError(f"{name} must be a whole number of at least 1 (got {value!r}).", f"Try {example}.")
    return number


def _priority(value: int) -> int:
    number = whole(value)
    if number is None:
        raise UsageError(f"priority must be a whole number (got {value!r}).", "The higher, the sooner; 0 is normal.")
    return number


def _expires(deadline: float | None) -> float | None:
    """A deadline on the clock of `perf_counter`."""
    if deadline is None:
        return None
    if isinstance(deadline, bool) or not isinstance(deadline, Real) or math.isnan(float(deadline)):
        raise UsageError(f"deadline must be a number of seconds (got {deadline!r}).", "Try 30.")
    if deadline <= 0:
        raise UsageError(
            f"the deadline is in the past: {float(deadline):g} seconds from now.",
            "Give the seconds that the answer may take, such as 30.",
        )
    return perf_counter() + float(deadline)


def _scope(sampling: SamplingParams, cache_prompt: bool | None, n: int) -> bytes | None:
    """Who shares cache blocks with a request: everybody, only the answers of the request itself, or nobody."""
    if cache_prompt is None:
        cache_prompt = sampling.seed is None or sampling.greedy
    if cache_prompt:
        return b""
    return secrets.token_bytes(16) if n > 1 else None


def _sibling(sampling: SamplingParams, index: int) -> SamplingParams:
    if sampling.seed is None or not index:
        return sampling
    return replace(sampling, seed=(sampling.seed + index) % 2**64)


def text_of(plan: Plan, token_ids: Iterable[int], adapter: int = 0) -> Sequence:
    """A text to be scored, as a sequence.

    Raises:
        UsageError: No tokens, or ids out of range.
        ContextFullError: More tokens than the context holds.
    """
    return Sequence(_checked_text(plan, token_ids, "Score"), SamplingParams(), max_tokens=0, adapter=adapter)


def pooled_text_of(plan: Plan, token_ids: Iterable[int], pooling: Pooling, adapter: int = 0) -> Sequence:
    """A text whose hidden states are wanted as one vector, as a sequence that shares its caches with nobody.

    Raises:
        UsageError: No tokens, or ids out of range.
        ContextFullError: More tokens than the context holds.
    """
    ids = _checked_text(plan, token_ids, "Embed")
    pooler = Pooler(pooling, len(ids))
    return Sequence(ids, SamplingParams(), max_tokens=0, scope=None, pooler=pooler, adapter=adapter)


def _checked_text(plan: Plan, token_ids: Iterable[int], todo: str) -> tuple[int, ...]:
    ids = checked_ids(plan, token_ids)
    if len(ids) > plan.context:
        raise ContextFullError(
            f"The text has {len(ids):,} tokens; the context holds {plan.context:,}.",
            f"{todo} it in pieces, or load the model with a larger context.",
        )
    return ids


def checked_ids(plan: Plan, token_ids: Iterable[int]) -> tuple[int, ...]:
    """Token ids as integers.

    Raises:
        UsageError: There are none, or they are not ids of the vocabulary.
    """
    try:
        found = [(token, whole(token)) for token in token_ids]
    except TypeError as error:
        raise UsageError(f"The prompt is not a list of token ids: {error}.", "Give whole numbers.") from error
    wrong = [token for token, number in found if number is None]
    if wrong:
        raise UsageError(
            f"The prompt is not a list of token ids: {wrong[0]!r} is not a whole number.", "Give whole numbers."
        )
    ids = tuple(number for _, number in found if number is not None)
    if not ids:
        raise UsageError("The prompt is empty.", "Give at least one token.")
    for worst in (min(ids), max(ids)):
        if not 0 <= worst < plan.vocab_size:
            raise _not_in_vocabulary("The prompt", worst, plan.vocab_size)
    return ids


def _prompt_too_long(length: int, context: int) -> ContextFullError:
    return ContextFullError(
        f"The prompt has {length:,} tokens; the context holds {context:,}, of which an answer needs at least one.",
        "Shorten the prompt, or load the model with a larger context.",
    )


def _not_in_vocabulary(where: str, token: int, vocab_size: int) -> UsageError:
    return UsageError(
        f"{where} has token id {token}; the vocabulary has {vocab_size:,} tokens.",
        "Token ids depend on the tokenizer: use those of this model.",
    )
