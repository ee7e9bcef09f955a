"""Log-probabilities of tokens that are known already: those of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from halfbyte.sampling.candidates import Float32
from halfbyte.sampling.noise import UInt32
from halfbyte.sampling.params import SamplingParams
from halfbyte.sampling.sampler import Sampler


@dataclass(frozen=True)
class ScoringParams(SamplingParams):
    """What is told with each token of a prompt: `logprobs` of the most likely ones. Only the host does it."""

    @cached_property
    def beyond_plain(self) -> tuple[str, ...]:
        """No device's sampler takes a token that is given."""
        return ("prompt_logprobs",)


class Scoring(Sampler):
    """Takes a given token, whatever is likely, and tells its log-probability."""

    def __init__(self, params: ScoringParams, token_id: int) -> None:
        super().__init__(params)
        self._token_id = token_id

    def _choose(
        self, logits: Float32, prompt_ids: Sequence[int], generated_ids: Sequence[int], allowed: UInt32 | None
    ) -> int:
        return self._token_id
