"""Mirostat 2: a bound on the surprise of a token that follows the surprise of those before (arXiv 2007.14966)."""

from __future__ import annotations

import numpy as np

from halfbyte.sampling.candidates import Candidates, Float32
from halfbyte.sampling.filters import weights
from halfbyte.sampling.params import SamplingParams


class Mirostat:
    """Keeps tokens whose surprise is within a bound, and moves the bound after each token towards a mean surprise.

    The bound follows from the logits and the tokens of the answer alone. It is kept for each token of the answer, so
    a token that is chosen again is chosen the same way.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._target = params.mirostat_tau
        self._rate = params.mirostat_eta
        self._bounds = [2.0 * params.mirostat_tau]

    def within(self, candidates: Candidates, answered: int) -> Candidates:
        """The candidates within the bound that holds after `answered` tokens of the answer; one at least."""
        found = surprises(candidates.scores)
        kept = np.flatnonzero(found <= self._bound(answered))
        return candidates.keep(kept if kept.size else np.array([np.argmin(found)]))

    def learn(self, candidates: Candidates, token: int, answered: int) -> None:
        """Set the next bound, after `token` was drawn from `candidates` as the answer's token number `answered`."""
        surprise = float(surprises(candidates.scores)[np.flatnonzero(candidates.ids == token)[0]])
        bound = self._bound(answered) - self._rate * (surprise - self._target)
        self._bounds[answered + 1 :] = [bound]

    def _bound(self, answered: int) -> float:
        return self._bounds[min(answered, len(self._bounds) - 1)]


def surprises(scores: Float32) -> Float32:
    """-log2 of the probability of each."""
    found: Float32 = (np.log(weights(scores).sum()) - (scores - scores.max())) / np.float32(np.log(2))
    return found
