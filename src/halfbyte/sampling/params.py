"""What can be asked about how the next token is chosen, wherever that happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TypedDict

from halfbyte.errors import UsageError

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would only overflow."""

OTHER_NAMES = {
    "temp": "temperature", "max_new_tokens": "max_tokens", "max_length": "max_tokens", "n_predict": "max_tokens",
    "max_completion_tokens": "max_tokens", "repeat_penalty": "repetition_penalty", "typical": "typical_p",
    "stop_sequences": "stop", "stop_strings": "stop", "random_seed": "seed", "top_logprobs": "logprobs",
    "eos": "ignore_eos", "functions": "tools", "system_prompt": "system",
}  # fmt: skip
"""What other programs call options of an answer."""


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    logprobs: int


_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_WHOLE_RANGES: dict[str, tuple[int, int]] = {"top_k": (0, 2**31 - 1), "seed": (0, 2**64 - 1), "logprobs": (0, 20)}
_BIAS_RANGE = (-100.0, 100.0)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The default is greedy.

    Attributes:
        temperature: What logits are divided by; 0 takes the most likely token, whatever the filters say.
        top_k: Keep the k most likely tokens, and any as likely as the k-th; 0 keeps all.
        top_p: Keep the fewest most likely tokens whose probabilities reach this; 1 keeps all.
        min_p: Keep tokens at least this many times as likely as the most likely one; 0 keeps all.
        typical_p: Keep the fewest tokens that reach this probability, beginning with those whose information is nearest
            the entropy (Meister et al. 2023, arXiv 2202.00666); 1 keeps all.
        repetition_penalty: Positive logits of tokens of the prompt or the answer are divided by this, negative ones
            multiplied (Keskar et al. 2019, arXiv 1909.05858); 1 is off.
        presence_penalty: Subtracted once from the logits of tokens of the answer so far.
        frequency_penalty: Subtracted from the logits of tokens of the answer, for each time they occur.
        logit_bias: Added to logits, by token id.
        seed: The same seed gives the same text for the same logits, in any company; None takes a random one.
        logprobs: How many of the most likely tokens to report with each token.

    Raises:
        UsageError: A value out of its range, or of the wrong type.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _check_number(name, getattr(self, name), low, high)
        for name, (least, most) in _WHOLE_RANGES.items():
            if name != "seed" or self.seed is not None:
                _check_whole(name, getattr(self, name), least, most)
        _check_bias(self.logit_bias)

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < GREEDY_BELOW


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        raise UsageError(
            f"{name} must be a number between {low:g} and {high:g} (got {value!r}).",
            f"Leave {name} out for the default.",
        )


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise UsageError(
            f"{name} must be a whole number between {low} and {high} (got {value!r}).",
            f"Leave {name} out for the default.",
        )


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise UsageError(f"logit_bias is {bias!r}.", "Give a mapping from token ids to numbers.")
    for token, value in bias.items():
        _check_whole("A token id in logit_bias", token, 0, 2**31 - 1)
        _check_number(f"logit_bias of token {token}", value, *_BIAS_RANGE)
