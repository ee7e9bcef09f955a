"""Answers made at random under a constraint: whatever a model could be led to write."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from halfbyte.text import Tokenizer
from halfbyte.text.grammar import Constraint, Grammar

_CLOSING = [bytes([character]) for character in b"\"}])'<>@.:,=0ay-"]


def allowed(constraint: Constraint) -> NDArray[np.intp]:
    """Ids of the tokens that may come next."""
    return np.flatnonzero(np.unpackbits(constraint.words().view(np.uint8), bitorder="little"))


def accepts(grammar: Grammar, ids: Collection[int], stop: int) -> bool:
    """Whether a grammar lets through these tokens, one by one, and then an end."""
    constraint = grammar.start()
    for token_id in [*ids, stop]:
        if token_id not in allowed(constraint):
            return False
        constraint.accept(token_id)
    return True


def walk(
    grammar: Grammar,
    tokenizer: Tokenizer,
    stops: Collection[int],
    seed: int,
    *,
    ends: Sequence[str] = (),
    free: int = 12,
    limit: int = 3000,
) -> list[int]:
    """Tokens of a complete answer. After `free` tokens, those that tend towards an end are preferred, and `ends`."""
    choose = random.Random(seed)
    closing = [token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token) in _CLOSING]
    constraint, ids = grammar.start(), list[int]()
    while len(ids) < limit:
        found = allowed(constraint)
        assert found.size, f"nothing may follow {tokenizer.decode(ids)!r}"
        may_end = any(stop in found for stop in stops)
        if may_end and (len(ids) >= free or found.size <= len(stops) or choose.random() < 0.1):
            return ids
        if ends and len(ids) >= free and choose.random() < 0.3:
            ids += _followed(constraint, tokenizer.encode_inside(choose.choice(ends), parse_special=True))
            continue
        found = found[~np.isin(found, list(stops))]
        near = [token for token in closing if token in found] if len(ids) >= free and choose.random() < 0.9 else []
        ids.append(choose.choice(near) if near else int(found[choose.randrange(found.size)]))
        constraint.accept(ids[-1])
    raise AssertionError(f"no end after {limit} tokens: {tokenizer.decode(ids)[:2000]!r}")


def _followed(constraint: Constraint, ids: Sequence[int]) -> list[int]:
    """As many of these tokens as may come."""
    taken: list[int] = []
    for token_id in ids:
        if token_id not in allowed(constraint):
            break
        constraint.accept(token_id)
        taken.append(token_id)
    return taken
