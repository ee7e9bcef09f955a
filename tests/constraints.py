"""Simple grammars for tests: rules that say which tokens may come after some."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

Rule = Callable[[list[int]], Iterable[int]]


def mask_of(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """A bit for each of the tokens, counted out one by one."""
    words = [0] * -(-vocab_size // 32)
    for token in ids:
        words[token // 32] |= 1 << token % 32
    return np.array(words, np.uint32)


@dataclass
class Ruled:
    """A constraint: the tokens that a rule names after those that have come."""

    rule: Rule
    vocab_size: int
    accepted: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def words(self) -> np.ndarray:
        self.asked.append(len(self.accepted))
        return mask_of(self.rule(self.accepted), self.vocab_size)

    def accept(self, token_id: int) -> None:
        assert token_id in self.rule(self.accepted)
        self.accepted.append(token_id)


@dataclass
class Rules:
    """A grammar of one rule; keeps what it has started."""

    rule: Rule
    vocab_size: int
    started: list[Ruled] = field(default_factory=list)

    def start(self) -> Ruled:
        self.started.append(Ruled(self.rule, self.vocab_size))
        return self.started[-1]


def even(vocab_size: int) -> Rules:
    return Rules(lambda _: range(0, vocab_size, 2), vocab_size)


def script(ids: Many[int], vocab_size: int) -> Rules:
    """These ids and no others, and nothing after them."""
    return Rules(lambda come: ids[len(come) : len(come) + 1], vocab_size)


def alternating(vocab_size: int) -> Rules:
    """An odd token after an even one, and the other way round; even at first."""
    return Rules(lambda come: range(int(bool(come) and come[-1] % 2 == 0), vocab_size, 2), vocab_size)


@dataclass(frozen=True)
class Fixed:
    """What may come, as it is given."""

    given: np.ndarray

    def words(self) -> np.ndarray:
        return self.given
