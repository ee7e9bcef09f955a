"""DRY, "Don't repeat yourself": makes a token less likely, the longer the repetition it would go on with.

The method is p-e-w's (text-generation-webui, pull request 5677). Sequence breakers work as in llama.cpp.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from halfbyte.sampling.candidates import Candidates, Indices, Place
from halfbyte.sampling.params import SamplingParams

_MOST = 1e30
"""No penalty is larger: it rules a token out, and leaves room for a small temperature."""


class Dry:
    """Penalizes continued repetitions. Reads the tokens as they come, in time that grows with the window only."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._breakers = frozenset(each if isinstance(each, tuple) else (each,) for each in params.dry_breaker_ids)
        self._breaker_lengths = sorted({len(each) for each in self._breakers})
        self._recent = deque[int](maxlen=max(self._breaker_lengths, default=0))
        self._num_read = self._unbroken = 0
        self._window: Indices = np.empty(0, np.int64)
        self._lengths: Indices = np.empty(0, np.int64)
        growth = math.log(params.dry_base)
        self._longest = params.dry_allowed_length + (math.ceil(math.log(_MOST) / growth) if growth else 0)

    def __call__(self, candidates: Candidates, place: Place) -> Candidates:
        self._read(place)
        tokens, lengths = self._continuations()
        here, there = candidates.find(tokens)
        if not here.size:
            return candidates
        params = self._params
        penalties = params.dry_multiplier * np.power(params.dry_base, lengths[there] - float(params.dry_allowed_length))
        scores = candidates.scores.copy()
        scores[here] -= np.minimum(penalties, _MOST).astype(np.float32)
        return candidates.rescored(scores)

    def _read(self, place: Place) -> None:
        """Take the tokens that have come since the last call."""
        prompt, answer = place.between(self._num_read, place.position)
        fresh = [*prompt, *answer]
        for token in fresh:
            self._recent.append(token)
            recent = tuple(self._recent)
            broken = any(recent[-length:] in self._breakers for length in self._breaker_lengths)
            self._unbroken = 0 if broken else self._unbroken + 1
        if not self._num_read:
            seen = fresh[-self._params.dry_penalty_last_n :] if self._params.dry_penalty_last_n > 0 else fresh
            self._window, self._lengths = np.array(seen, np.int64), suffix_lengths(seen)
        else:
            for token in fresh:
                self._append(token)
        self._num_read = place.position

    def _append(self, token: int) -> None:
        self._lengths = np.where(self._window == token, np.append(0, self._lengths) + 1, 0)
        self._window = np.append(self._window, token)
        size = self._params.dry_penalty_last_n
        if 0 < size < self._window.size:
            self._window, self._lengths = self._window[1:], self._lengths[1:]
            self._lengths = np.minimum(self._lengths, np.arange(1, size))

    def _continuations(self) -> tuple[Indices, Indices]:
        """Tokens that would go on with a repetition, and how many tokens of it are there already."""
        lengths = np.minimum(self._lengths, min(self._unbroken, self._longest))
        ends = np.flatnonzero(lengths >= self._params.dry_allowed_length)
        found, which = np.unique(self._window[ends + 1], return_inverse=True)
        longest = np.zeros(found.size, np.int64)
        np.maximum.at(longest, which, lengths[ends])
        free = np.array([(token,) in self._breakers for token in found.tolist()], bool)
        return found[~free], longest[~free]


def suffix_lengths(tokens: Sequence[int]) -> Indices:
    """For each token but the last: how many tokens, ending with it, are also the last ones of all.

    This is the Z-algorithm (Gusfield 1997), from the end: its time grows with the number of tokens.
    """
    text = tokens[::-1]
    found = [0] * len(text)
    left = right = 0  # text[left:right], the match that reaches farthest, equals text[: right - left]
    for place in range(1, len(text)):
        size = min(found[place - left], right - place) if place < right else 0
        while place + size < len(text) and text[size] == text[place + size]:
            size += 1
        found[place] = size
        if place + size > right:
            left, right = place, place + size
    return np.array(found[:0:-1], np.int64)
