"""What may be asked of an engine, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from halfbyte.errors import ContextFullError, UsageError
from halfbyte.options import whole
from halfbyte.plan.plan import LOGITS, Plan
from halfbyte.runtime.sequence import Sequence
from halfbyte.sampling.params import SamplingParams


def sequence_of(
    plan: Plan, prompt_ids: Iterable[int], sampling: SamplingParams, max_tokens: int, stop_token_ids: Collection[int]
) -> Sequence:
    """A request as a sequence.

    Raises:
        UsageError: An empty prompt, or token ids or `max_tokens` out of range.
        ContextFullError: A prompt that leaves no room in the context for an answer.
    """
    ids = checked_ids(plan, prompt_ids)
    if len(ids) >= plan.context:
        raise _prompt_too_long(len(ids), plan.context)
    most = whole(max_tokens)
    if most is None or most < 1:
        raise UsageError(f"max_tokens must be a whole number of at least 1 (got {max_tokens!r}).", "Try 256.")
    beyond = [token for token in sampling.logit_bias if token >= _vocabulary(plan)]
    if beyond:
        raise _not_in_vocabulary("logit_bias", beyond[0], _vocabulary(plan))
    return Sequence(ids, sampling, most, frozenset(stop_token_ids))


def text_of(plan: Plan, token_ids: Iterable[int]) -> Sequence:
    """A text to be scored, as a sequence.

    Raises:
        UsageError: No tokens, or ids out of range.
        ContextFullError: More tokens than the context holds.
    """
    ids = checked_ids(plan, token_ids)
    if len(ids) > plan.context:
        raise _text_too_long(len(ids), plan.context)
    return Sequence(ids, SamplingParams(), max_tokens=0)


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
        if not 0 <= worst < _vocabulary(plan):
            raise _not_in_vocabulary("The prompt", worst, _vocabulary(plan))
    return ids


def _vocabulary(plan: Plan) -> int:
    return plan.tensors[LOGITS].shape[-1]


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


def _not_in_vocabulary(where: str, token: int, vocab_size: int) -> UsageError:
    return UsageError(
        f"{where} has token id {token}; the vocabulary has {vocab_size:,} tokens.",
        "Token ids depend on the tokenizer: use those of this model.",
    )
