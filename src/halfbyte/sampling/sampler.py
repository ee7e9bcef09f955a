"""From logits to the next token.

    logits → repetition, presence and frequency penalties, bias → temperature → top-k → typical → top-p → min-p → draw

Penalties touch only the ids they concern. Each filter after the temperature is a small function from scores to
the indices it keeps, so every filter sees the renormalized choice of the one before. Filters keep what
transformers' logits warpers keep; presence, frequency and bias are OpenAI's.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import DeviceError
from halfbyte.sampling.noise import MOST, noise
from halfbyte.sampling.params import SamplingParams

Float32 = NDArray[np.float32]
Indices = NDArray[np.int64]
_PIECE = 1 << 13
_LIKELY = 4.0

Filter = Callable[[Float32], Indices]


@dataclass(frozen=True)
class Sampled:
    """A chosen token.

    Attributes:
        id: The token.
        logprob: Its natural log-probability under the model's own distribution: before penalties and temperature.
        top: The likeliest tokens and their log-probabilities, likeliest first, as many as were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one sequence; holds its seed and its counts of past tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        self._filters = _filters(params)
        self._penalties = _Penalties(params)

    def sample(self, logits: Float32, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> Sampled:
        """The next token after `prompt_ids` and `generated_ids`.

        Args:
            logits: `[vocab_size]`; not changed.
            prompt_ids: The prompt, the same at each call.
            generated_ids: The answer so far, which grows from call to call.

        Raises:
            DeviceError: Logits without a finite maximum: NaN or infinity came out of the model.
        """
        likeliest = int(np.argmax(logits))
        peak = float(logits[likeliest])
        if not np.isfinite(peak):
            raise DeviceError(
                f"The model gave no valid logits: {peak} for token {likeliest}.",
                "The device or the weights are faulty: compare with device='reference'.",
            )
        position = len(prompt_ids) + len(generated_ids)
        chosen = self._choose(self._penalties.applied(logits, prompt_ids, generated_ids), position)
        log_sum = peak + float(np.log(np.exp(logits - logits[likeliest]).sum()))
        return Sampled(chosen, float(logits[chosen]) - log_sum, _top(logits, self.params.logprobs, log_sum))

    def _choose(self, scores: Float32, position: int) -> int:
        if self.params.greedy:
            return int(np.argmax(scores))
        scores = scores / np.float32(self.params.temperature)
        ids: Indices | None = None
        for keep in self._filters:
            kept = keep(scores)
            scores = scores[kept]
            ids = kept if ids is None else ids[kept]
        return _draw(scores, np.arange(scores.size) if ids is None else ids, self.seed, position)


class _Penalties:
    """Repetition, presence and frequency penalties, counted as the answer grows, and the bias."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._repetition = np.float32(params.repetition_penalty)
        self._counts_answer = bool(params.presence_penalty or params.frequency_penalty)
        self._bias_ids = np.array(list(params.logit_bias), np.int64)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)
        self._index: dict[int, int] = {}
        self._ids: Indices = np.empty(0, np.int64)
        self._counts: Float32 = np.empty(0, np.float32)
        self._counted = 0

    def applied(self, logits: Float32, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> Float32:
        """The logits with penalties and bias: a new array, or `logits` itself where there are none."""
        penalized = self._counts_answer or self._repetition != 1
        if not penalized and not self._bias_ids.size:
            return logits
        scores = logits.copy()
        if penalized:
            self._count(prompt_ids, generated_ids)
            scores[self._ids] = self._penalized(scores[self._ids])
        scores[self._bias_ids] += self._bias
        return scores

    def _penalized(self, scores: Float32) -> Float32:
        if self._repetition != 1:
            scores = np.where(scores < 0, scores * self._repetition, scores / self._repetition)
        scores -= np.float32(self.params.presence_penalty) * (self._counts > 0)
        scores -= np.float32(self.params.frequency_penalty) * self._counts
        return scores

    def _count(self, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> None:
        if not self._index and self._repetition != 1:
            self._add(dict.fromkeys(prompt_ids, 0))
        self._add(Counter(generated_ids[self._counted :]))
        self._counted = len(generated_ids)

    def _add(self, counts: Mapping[int, int]) -> None:
        fresh = [token for token in counts if token not in self._index]
        if fresh:
            self._index.update(zip(fresh, range(len(self._index), len(self._index) + len(fresh)), strict=True))
            self._ids = np.append(self._ids, np.array(fresh, np.int64))
            self._counts = np.append(self._counts, np.zeros(len(fresh), np.float32))
        for token, count in counts.items():
            self._counts[self._index[token]] += count


def _filters(params: SamplingParams) -> tuple[Filter, ...]:
    filters: list[Filter] = []
    if params.top_k:
        filters.append(lambda scores: _largest(scores, params.top_k))
    if params.typical_p < 1:
        filters.append(lambda scores: _typical(scores, params.typical_p))
    if params.top_p < 1:
        filters.append(lambda scores: _nucleus(scores, params.top_p))
    if params.min_p > 0:
        filters.append(lambda scores: np.flatnonzero(_weights(scores) >= np.float32(params.min_p)))
    return tuple(filters)


def _nucleus(scores: Float32, top_p: float) -> Indices:
    weights = _weights(scores)
    return _until(weights, weights, top_p)


def _typical(scores: Float32, typical_p: float) -> Indices:
    weights = _weights(scores)
    probabilities = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = -np.log(probabilities)
        entropy = np.nansum(probabilities * information)
    typicality = -np.abs(information - entropy)
    last = _until(typicality, weights, typical_p)[-1]
    return np.flatnonzero(typicality >= typicality[last])


def _until(preference: Float32, weights: Float32, share: float) -> Indices:
    """The fewest indices, of highest preference first, whose weights sum to `share` of all weights.

    Most distributions need a few hundred tokens for any usual share, so those are tried before all are sorted.
    """
    wanted = share * float(weights.sum(dtype=np.float64))
    for limit in (256, 8192, weights.size):
        candidates = _largest(preference, limit)
        order = candidates[np.argsort(-preference[candidates], kind="stable")]
        mass = np.cumsum(weights[order], dtype=np.float64)
        if mass[-1] >= wanted or order.size == weights.size:
            break
    return order[: int(np.searchsorted(mass, wanted)) + 1]


def _largest(values: Float32, k: int) -> Indices:
    """Indices of the k largest values, and of any equal to the k-th, in rising order.

    The k-th largest of the maxima of more than k groups is a bound that at least k values reach; it costs one
    pass and leaves few to partition.
    """
    if k >= values.size:
        return np.arange(values.size)
    groups = max(1024, 4 * k)
    depth = values.size // groups
    if depth < 4:
        return np.flatnonzero(values >= np.partition(values, -k)[-k])
    maxima = values[: depth * groups].reshape(depth, groups).max(axis=0)
    near: Indices = np.flatnonzero(values >= np.partition(maxima, -k)[-k])
    kept: Indices = near[values[near] >= np.partition(values[near], -k)[-k]]
    return kept


def _weights(scores: Float32) -> Float32:
    """Probabilities up to a factor: the likeliest has 1."""
    weights: Float32 = scores - scores.max()
    np.exp(weights, out=weights)
    return weights


def _draw(scores: Float32, ids: Indices, seed: int, position: int) -> int:
    """The token of `ids` with the largest score plus noise: a draw from the softmax of their `scores`.

    Tokens with large scores come first. Those that even the largest noise cannot lift above the best so far get none.
    """
    likely = scores >= scores.max() - np.float32(_LIKELY)
    found = _best(scores, ids, seed, position, np.flatnonzero(likely))
    rest = np.flatnonzero((scores >= np.float32(found[0] - MOST)) & ~likely)
    return -max([found, _best(scores, ids, seed, position, rest)] if rest.size else [found])[1]


def _best(scores: Float32, ids: Indices, seed: int, position: int, places: Indices) -> tuple[float, int]:
    """The largest score plus noise at some places, and its id negated; in pieces that fit the processor's cache."""
    found: list[tuple[float, int]] = []
    for start in range(0, places.size, _PIECE):
        piece = places[start : start + _PIECE]
        totals = scores[piece] + noise(seed, position, ids[piece])
        best = int(np.argmax(totals))
        found.append((float(totals[best]), -int(ids[piece[best]])))
    return max(found)


def _top(logits: Float32, count: int, log_sum: float) -> tuple[tuple[int, float], ...]:
    if not count:
        return ()
    ids = _largest(logits, count)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    return tuple((int(i), float(logits[i]) - log_sum) for i in ids)
