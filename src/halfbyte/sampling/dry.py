"""DRY, "Don't repeat yourself": makes a token less likely, the longer the repetition it would go on with.

The method is p-e-w's (text-generation-webui, pull request 5677). Sequence breakers work as in llama.cpp.
"""

from __future__ import annotations

import math
from array import array

import numpy as np

from halfbyte.sampling.candidates import Candidates, Indices, Place
from halfbyte.sampling.params import SamplingParams

_MOST = 1e30
"""No penalty is larger: it rules a token out, and leaves room for a small temperature."""


class Dry:
    """Penalizes continued repetitions; reads the tokens as they come."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        breakers = params.dry_breaker_ids
        self._breakers = frozenset(each if isinstance(each, tuple) else (each,) for each in breakers)
        self._lengths = sorted({len(each) for each in self._breakers})
        self._tokens = array("q")
        self._unbroken = 0
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
        """Take the tokens that have come since; count those since the last breaker."""
        for token in (token for part in place.between(len(self._tokens), place.position) for token in part):
            self._tokens.append(token)
            broken = any(tuple(self._tokens[-length:]) in self._breakers for length in self._lengths)
            self._unbroken = 0 if broken else self._unbroken + 1

    def _continuations(self) -> tuple[Indices, Indices]:
        """Tokens that would go on with a repetition, and how many tokens of it are there already."""
        last_n = self._params.dry_penalty_last_n
        tokens = np.frombuffer(self._tokens, np.int64)[-last_n if last_n > 0 else 0 :]
        lengths = repeated(tokens, min(self._unbroken, self._longest))
        ends = np.flatnonzero(lengths >= self._params.dry_allowed_length)
        found, which = np.unique(tokens[ends + 1], return_inverse=True)
        longest = np.zeros(found.size, np.int64)
        np.maximum.at(longest, which, lengths[ends])
        free = np.array([(token,) in self._breakers for token in found.tolist()], bool)
        return found[~free], longest[~free]


def repeated(tokens: Indices, most: int) -> Indices:
    """For each token but the last: how many tokens, up to `most`, ending there are also the last ones of all."""
    last = tokens.size - 1
    lengths = np.zeros(last, np.int64)
    ends = np.flatnonzero(tokens[:last] == tokens[last]) if most else np.empty(0, np.int64)
    length = 1
    while ends.size:
        lengths[ends] = length
        ends = ends[ends >= length] if length < most else ends[:0]
        ends = ends[tokens[ends - length] == tokens[last - length]]
        length += 1
    return lengths
