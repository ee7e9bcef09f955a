"""Tokens as protocols show them: with their text, their bytes and their log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from halfbyte.answer import Token
from halfbyte.text import Tokenizer

LEAST = -9999.0
"""Log-probability of what is impossible: JSON has no infinity."""


@dataclass(frozen=True)
class Spelled:
    """A token with its text and its bytes; where these are no whole characters, the text is like `bytes:\\xe2\\x82`."""

    id: int
    text: str
    bytes: bytes


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its natural log-probability, and the most likely tokens in its place with theirs, in their order."""

    token: Spelled
    logprob: float
    top: tuple[tuple[Spelled, float], ...]


def token_logprob(tokenizer: Tokenizer, token: Token) -> TokenLogprob:
    """A generated token as it is shown."""
    return prompt_logprob(tokenizer, token.id, token.logprob, token.top_logprobs)


def prompt_logprob(
    tokenizer: Tokenizer, token_id: int, logprob: float, top: Iterable[tuple[int, float]]
) -> TokenLogprob:
    """A token of a prompt as it is shown."""
    return TokenLogprob(
        spelled(tokenizer, token_id),
        max(logprob, LEAST),
        tuple((spelled(tokenizer, other), max(value, LEAST)) for other, value in top),
    )


@lru_cache(maxsize=1 << 16)
def spelled(tokenizer: Tokenizer, token_id: int) -> Spelled:
    """A token as it is shown; special tokens show their names, ids without a token nothing."""
    found = tokenizer.token_bytes(token_id)
    try:
        text = found.decode()
    except UnicodeDecodeError:
        text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)
    return Spelled(token_id, text, found)
