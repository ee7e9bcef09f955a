"""What changes the scores of candidates and keeps them all: penalties, bias and temperature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from halfbyte.sampling.candidates import Candidates, Float32, Indices, Place
from halfbyte.sampling.params import GREEDY_BELOW, SamplingParams

_SEEN, _ANSWERED = 0, 1


class Penalties:
    """Repetition, presence and frequency penalties over the last tokens, which are counted as the answer grows."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._index: dict[int, int] = {}
        self._ids: Indices = np.empty(0, np.int64)
        self._counts: Float32 = np.zeros((2, 0), np.float32)
        self._window = (0, 0)

    def __call__(self, candidates: Candidates, place: Place) -> Candidates:
        self._slide(place)
        here, there = candidates.find(self._ids)
        scores = candidates.scores.copy()
        scores[here] = self._penalized(scores[here], *self._counts[:, there])
        return candidates.rescored(scores)

    def counted(self, place: Place) -> tuple[Indices, Float32]:
        """The tokens in the window, or in the part of the answer in it, and how often the answer has each there."""
        self._slide(place)
        return self._ids, self._counts[_ANSWERED]

    def _penalized(self, scores: Float32, seen: Float32, answered: Float32) -> Float32:
        repetition = np.float32(self._params.repetition_penalty)
        if repetition != 1:
            scores = np.where(seen > 0, np.where(scores < 0, scores * repetition, scores / repetition), scores)
        scores -= np.float32(self._params.presence_penalty) * (answered > 0)
        scores -= np.float32(self._params.frequency_penalty) * answered
        return scores

    def _slide(self, place: Place) -> None:
        """Count the tokens that have come into the window, and no longer those that have left it."""
        size, (old_start, old_end), end = self._params.repeat_last_n, self._window, place.position
        start = 0 if size < 0 else max(0, end - size)
        self._count(place, old_start, min(start, old_end), -1)
        self._count(place, max(start, old_end), end, 1)
        self._window = (start, end)

    def _count(self, place: Place, start: int, end: int, times: int) -> None:
        prompt, answer = place.between(start, end)
        if self._params.repetition_penalty != 1:
            self._add(_SEEN, prompt, times)
            self._add(_SEEN, answer, times)
        self._add(_ANSWERED, answer, times)

    def _add(self, kind: int, tokens: Iterable[int], times: int) -> None:
        counts = Counter(tokens)
        fresh = [token for token in counts if token not in self._index]
        if fresh:
            self._index.update(zip(fresh, range(len(self._index), len(self._index) + len(fresh)), strict=True))
            self._ids = np.append(self._ids, np.array(fresh, np.int64))
            self._counts = np.append(self._counts, np.zeros((2, len(fresh)), np.float32), axis=1)
        for token, count in counts.items():
            self._counts[kind, self._index[token]] += times * count


class Bias:
    """Adds a number to the scores of some tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self._ids = np.array(list(params.logit_bias), np.int64)
        self._values = np.array(list(params.logit_bias.values()), np.float32)

    def __call__(self, candidates: Candidates, _: Place) -> Candidates:
        here, there = candidates.find(self._ids)
        scores = candidates.scores.copy()
        scores[here] += self._values[there]
        return candidates.rescored(scores)


class Temperature:
    """Divides scores by the temperature: a fixed one, or one that rises with the entropy of the candidates."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params

    def __call__(self, candidates: Candidates, _: Place) -> Candidates:
        temperature = self._dynamic(candidates.scores) if self._params.dynatemp_range else self._params.temperature
        return candidates.rescored(candidates.scores / np.float32(temperature))

    def _dynamic(self, scores: Float32) -> float:
        middle, reach = self._params.temperature, self._params.dynatemp_range
        low = max(0.0, middle - reach)
        share = _entropy(scores) / np.log(scores.size) if scores.size > 1 else 0.0
        return float(max(GREEDY_BELOW, low + (middle + reach - low) * share**self._params.dynatemp_exponent))


def _entropy(scores: Float32) -> float:
    """Of the distribution that scores stand for, in nats."""
    logs = np.maximum(scores - scores.max(), np.float32(-1000))  # where the weight is 0, and its product too
    found = np.exp(logs)
    total = found.sum(dtype=np.float64)
    return float(np.log(total) - (found * logs).sum(dtype=np.float64) / total)
