"""From logits to the next token.

    logits → samplers, in the order that the settings say → mirostat, if asked for → draw

Each sampler is a step from candidates to candidates: `scores.py` and `dry.py` change scores, `filters.py` says which
candidates stay.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from halfbyte.errors import DeviceError
from halfbyte.sampling.candidates import Candidates, Float32, Indices, Place
from halfbyte.sampling.dry import Dry
from halfbyte.sampling.filters import FILTERS, largest
from halfbyte.sampling.mirostat import Mirostat
from halfbyte.sampling.noise import MOST, UInt32, noise
from halfbyte.sampling.params import SamplingParams
from halfbyte.sampling.scores import Bias, Penalties, Temperature

_PIECE = 1 << 13
_LIKELY = 4.0

Step = Callable[[Candidates, Place], Candidates]

_RESCORING: Mapping[str, Callable[[SamplingParams], Step]] = {
    "penalties": Penalties, "logit_bias": Bias, "dry": Dry, "temperature": Temperature,
}  # fmt: skip
"""Samplers that change scores; the others are filters."""


@dataclass(frozen=True)
class Sampled:
    """A chosen token.

    Attributes:
        id: The token.
        logprob: Its natural log-probability under the model's own distribution: before penalties and temperature.
        top: The most likely tokens and their log-probabilities, most likely first, as many as were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one sequence; holds its seed and what its samplers remember of past tokens."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        self._steps = [_step(name, params) for name in params.active]
        self._mirostat = Mirostat(params) if params.uses_mirostat else None

    def sample(
        self,
        logits: Float32,
        prompt_ids: Sequence[int],
        generated_ids: Sequence[int],
        allowed: UInt32 | None = None,
    ) -> Sampled:
        """The next token after `prompt_ids` and `generated_ids`.

        Args:
            logits: `[vocab_size]`; not changed.
            prompt_ids: The prompt, the same at each call.
            generated_ids: The answer so far, which grows from call to call.
            allowed: A bit for each token that may be chosen, as 32 tokens a word; None for all.

        Raises:
            InvalidLogitsError: Logits without a finite maximum, or none among those allowed: NaN or infinity came out
                of the model.
        """
        likeliest = int(np.argmax(logits))
        peak = float(logits[likeliest])
        if not np.isfinite(peak):
            raise invalid_logits(peak, likeliest)
        chosen = self._choose(logits, prompt_ids, generated_ids, allowed)
        log_sum = peak + float(np.log(np.exp(logits - logits[likeliest]).sum()))
        return Sampled(chosen, float(logits[chosen]) - log_sum, _top(logits, self.params.logprobs, log_sum))

    def counted(self, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> tuple[Indices, Float32]:
        """The tokens that penalties concern, and how often `generated_ids` has each; no tokens without penalties.

        Arguments are those of `sample`.
        """
        place = Place(prompt_ids, generated_ids, self.seed)
        for step in self._steps:
            if isinstance(step, Penalties):
                return step.counted(place)
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def candidates(
        self,
        logits: Float32,
        prompt_ids: Sequence[int],
        generated_ids: Sequence[int],
        allowed: UInt32 | None = None,
    ) -> Candidates:
        """The tokens that the next one is drawn from, and their scores; arguments as for `sample`.

        With temperature 0 these are all that may come, and the one with the largest score is taken.
        """
        candidates = Candidates(logits) if allowed is None else _permitted(logits, allowed)
        place = Place(prompt_ids, generated_ids, self.seed)
        for step in self._steps:
            candidates = step(candidates, place)
        return self._mirostat.within(candidates, len(generated_ids)) if self._mirostat else candidates

    def _choose(
        self, logits: Float32, prompt_ids: Sequence[int], generated_ids: Sequence[int], allowed: UInt32 | None
    ) -> int:
        candidates = self.candidates(logits, prompt_ids, generated_ids, allowed)
        if self.params.greedy:
            return int(candidates.ids[np.argmax(candidates.scores)])
        chosen = _draw(candidates.scores, candidates.ids, self.seed, len(prompt_ids) + len(generated_ids))
        if self._mirostat:
            self._mirostat.learn(candidates, chosen, len(generated_ids))
        return chosen


class InvalidLogitsError(DeviceError):
    """The model gave no valid logits for one sequence."""


def invalid_logits(peak: float, token: int) -> InvalidLogitsError:
    """The error that reports logits whose largest, that of `token`, is not finite."""
    return InvalidLogitsError(
        f"The model gave no valid logits: {peak} for token {token}.",
        "The device or the weights are faulty: compare with device='reference'.",
    )


def _permitted(logits: Float32, allowed: UInt32) -> Candidates:
    """The tokens whose bits are set; one at least."""
    bits = np.unpackbits(allowed.astype("<u4").view(np.uint8), bitorder="little", count=logits.size)
    found = Candidates(logits).keep(np.flatnonzero(bits))
    best = int(np.argmax(found.scores))
    if not np.isfinite(found.scores[best]):
        raise invalid_logits(float(found.scores[best]), int(found.ids[best]))
    return found


def _step(name: str, params: SamplingParams) -> Step:
    if name in _RESCORING:
        return _RESCORING[name](params)
    chosen = FILTERS[name]
    return lambda candidates, place: candidates.keep(chosen(candidates.scores, params, place))


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
    ids = largest(logits, count)
    ids = ids[np.argsort(-logits[ids], kind="stable")][:count]
    return tuple((int(i), float(logits[i]) - log_sum) for i in ids)
