"""Which candidates are kept: a small function per filter, from scores to the places of those that stay.

Each filter sees the renormalized choice of the one before. `top_k`, `top_p`, `min_p` and `typical_p` keep what
transformers' logits warpers keep; `top_n_sigma` and `xtc` what llama.cpp's samplers keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from halfbyte.sampling.candidates import Float32, Indices, Place
from halfbyte.sampling.noise import coin
from halfbyte.sampling.params import SamplingParams

Filter = Callable[[Float32, SamplingParams, Place], Indices]

XTC_STREAM = 0x5854435F636F696E
"""The stream of random numbers that decide whether top choices are excluded."""

FILTERS: Mapping[str, Filter] = {
    "top_n_sigma": lambda scores, params, _: near_the_best(scores, params.top_n_sigma),
    "top_k": lambda scores, params, _: largest(scores, params.top_k),
    "typical_p": lambda scores, params, _: typical(scores, params.typical_p),
    "top_p": lambda scores, params, _: nucleus(scores, params.top_p),
    "min_p": lambda scores, params, _: np.flatnonzero(weights(scores) >= np.float32(params.min_p)),
    "xtc": lambda scores, params, place: xtc(scores, params.xtc_threshold, _luck(place) < params.xtc_probability),
}
"""Filters by the name of their sampler."""


def near_the_best(scores: Float32, deviations: float) -> Indices:
    """Scores that are at most so many standard deviations, of all finite scores, below the largest."""
    spread = float(scores[np.isfinite(scores)].std(dtype=np.float64))
    return np.flatnonzero(scores >= np.float32(float(scores.max()) - deviations * spread))


def nucleus(scores: Float32, top_p: float) -> Indices:
    """The fewest likely ones whose probabilities reach `top_p`, most likely first."""
    found = weights(scores)
    return _until(found, found, top_p)


def typical(scores: Float32, typical_p: float) -> Indices:
    """The fewest whose probabilities reach `typical_p`, taken by how near their information is to the entropy."""
    found = weights(scores)
    probabilities = found / found.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = -np.log(probabilities)
        entropy = np.nansum(probabilities * information)
    typicality = -np.abs(information - entropy)
    last = _until(typicality, found, typical_p)[-1]
    return np.flatnonzero(typicality >= typicality[last])


def xtc(scores: Float32, threshold: float, exclude: bool) -> Indices:
    """All; or without those of at least `threshold` probability, the least likely of which stays."""
    found = weights(scores)
    top = np.flatnonzero(found / found.sum() >= np.float32(threshold)) if exclude else np.empty(0, np.int64)
    if top.size < 2:
        return np.arange(scores.size)
    kept = np.ones(scores.size, bool)
    kept[top] = False
    kept[top[np.argmin(found[top])]] = True
    return np.flatnonzero(kept)


def _until(preference: Float32, found: Float32, share: float) -> Indices:
    """The fewest indices, of highest preference first, whose weights sum to `share` of all weights.

    Most distributions need a few hundred tokens for any usual share, so those are tried before all are sorted.
    """
    wanted = share * float(found.sum(dtype=np.float64))
    for limit in (256, 8192, found.size):
        candidates = largest(preference, limit)
        order = candidates[np.argsort(-preference[candidates], kind="stable")]
        mass = np.cumsum(found[order], dtype=np.float64)
        if mass[-1] >= wanted or order.size == found.size:
            break
    return order[: int(np.searchsorted(mass, wanted)) + 1]


def largest(values: Float32, k: int) -> Indices:
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


def weights(scores: Float32) -> Float32:
    """Probabilities up to a factor: the most likely has 1."""
    found: Float32 = scores - scores.max()
    np.exp(found, out=found)
    return found


def _luck(place: Place) -> float:
    return coin(place.seed, place.position, XTC_STREAM)
