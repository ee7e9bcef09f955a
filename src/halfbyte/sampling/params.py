"""What can be asked about how the next token is chosen, wherever that happens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import TypedDict

from halfbyte import display
from halfbyte.errors import UsageError
from halfbyte.options import check_names

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would only overflow."""

OTHER_NAMES = {
    "temp": "temperature", "max_new_tokens": "max_tokens", "max_length": "max_tokens", "n_predict": "max_tokens",
    "max_completion_tokens": "max_tokens", "repeat_penalty": "repetition_penalty", "rep_pen": "repetition_penalty",
    "penalty_repeat": "repetition_penalty", "penalty_present": "presence_penalty", "penalty_freq": "frequency_penalty",
    "penalty_last_n": "repeat_last_n", "repetition_penalty_range": "repeat_last_n", "rep_pen_range": "repeat_last_n",
    "typical": "typical_p", "typ_p": "typical_p", "top_nsigma": "top_n_sigma", "nsigma": "top_n_sigma",
    "dynatemp": "dynatemp_range", "xtc_prob": "xtc_probability", "dry_range": "dry_penalty_last_n",
    "dry_breakers": "dry_sequence_breakers", "sequence_breakers": "dry_sequence_breakers",
    "mirostat_mode": "mirostat", "mirostat_ent": "mirostat_tau", "mirostat_lr": "mirostat_eta",
    "sampler_order": "samplers", "sampler_priority": "samplers", "sampler_seq": "samplers",
    "stop_sequences": "stop", "stop_strings": "stop", "random_seed": "seed", "top_logprobs": "logprobs",
    "eos": "ignore_eos", "functions": "tools", "system_prompt": "system",
}  # fmt: skip
"""What other programs call options of an answer."""

_OTHER_SAMPLERS = {
    "temp": "temperature", "dynatemp": "temperature", "typ_p": "typical_p", "typical": "typical_p", "nucleus": "top_p",
    "bias": "logit_bias", "repetition_penalty": "penalties", "presence_penalty": "penalties",
    "frequency_penalty": "penalties", "top_nsigma": "top_n_sigma",
}  # fmt: skip
"""What other programs call samplers of an order."""

_ACTS: Mapping[str, Callable[[SamplingParams], bool]] = {
    "penalties": lambda p: p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0,
    "logit_bias": lambda p: bool(p.logit_bias),
    "dry": lambda p: p.dry_multiplier > 0 and p.dry_penalty_last_n != 0,
    "temperature": lambda p: p.temperature != 1 or p.dynatemp_range > 0,
    "top_n_sigma": lambda p: p.top_n_sigma > 0,
    "top_k": lambda p: p.top_k > 0,
    "typical_p": lambda p: p.typical_p < 1,
    "top_p": lambda p: p.top_p < 1,
    "min_p": lambda p: p.min_p > 0,
    "xtc": lambda p: p.xtc_probability > 0,
}  # fmt: skip
"""Every sampler in the default order, and whether it does anything with some settings."""

SAMPLERS = tuple(_ACTS)
"""The default order."""

_GREEDY = ("penalties", "logit_bias", "dry")
"""Samplers that may change which token is the most likely one: all that greedy choice asks."""

_PLAIN = ("penalties", "logit_bias", "temperature", "top_k", "top_p", "min_p")

_SETTINGS = {"dry": "dry_multiplier", "xtc": "xtc_probability"}
"""The settings that turn samplers on, where they have other names."""


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments."""

    temperature: float
    dynatemp_range: float
    dynatemp_exponent: float
    top_n_sigma: float
    top_k: int
    typical_p: float
    top_p: float
    min_p: float
    xtc_probability: float
    xtc_threshold: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    repeat_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_breaker_ids: Collection[int | tuple[int, ...]]
    logit_bias: Mapping[int, float]
    samplers: Sequence[str]
    seed: int | None
    logprobs: int


_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "dynatemp_range": (0, 100),
    "dynatemp_exponent": (0, 100),
    "top_n_sigma": (-1, 100),
    "typical_p": (0, 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
}
_MANY = 2**31 - 1
_WHOLE_RANGES: dict[str, tuple[int, int]] = {
    "top_k": (0, _MANY),
    "mirostat": (0, 2),
    "repeat_last_n": (-1, _MANY),
    "dry_allowed_length": (1, _MANY),
    "dry_penalty_last_n": (-1, _MANY),
    "seed": (0, 2**64 - 1),
    "logprobs": (0, 20),
}
_BIAS_RANGE = (-100.0, 100.0)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The default is greedy.

    Samplers work one after the other, in the order of `samplers`, each on what the one before left. By default these
    are the changes of logits, then the temperature, then the filters. At last a token is drawn from what is left.

    Attributes:
        temperature: What logits are divided by; 0 takes the most likely token, whatever the filters say.
        dynatemp_range: Let the temperature vary by this much, up or down, with the entropy of the distribution: the
            surer the model, the lower (Zhang et al. 2024, arXiv 2403.14541, as KoboldCpp does it); 0 keeps it fixed.
        dynatemp_exponent: The power of the entropy, as a share of the largest possible one, that the temperature
            follows.
        top_n_sigma: Keep tokens whose logits are at most this many standard deviations below the largest (Tang et al.
            2024, arXiv 2411.07641); 0 or less keeps all.
        top_k: Keep the k most likely tokens, and any as likely as the k-th; 0 keeps all.
        typical_p: Keep the fewest tokens that reach this probability, beginning with those whose information is nearest
            the entropy (Meister et al. 2023, arXiv 2202.00666); 1 keeps all.
        top_p: Keep the fewest most likely tokens whose probabilities reach this; 1 keeps all.
        min_p: Keep tokens at least this many times as likely as the most likely one; 0 keeps all.
        xtc_probability: With this probability, exclude the top choices: of the tokens that reach `xtc_threshold`, keep
            only the least likely one (text-generation-webui, pull request 6335); 0 is off.
        xtc_threshold: The probability that makes a token a top choice; above 0.5 there is only one, which stays.
        mirostat: 2 keeps the surprise of the answer near `mirostat_tau` (Basu et al. 2021, arXiv 2007.14966,
            algorithm 2), as the last step before the draw; 0 is off.
        mirostat_tau: The surprise to aim at, in bits per token.
        mirostat_eta: How much of a deviation is corrected with each token.
        repetition_penalty: Positive logits of tokens of the prompt or the answer are divided by this, negative ones
            multiplied (Keskar et al. 2019, arXiv 1909.05858); 1 is off.
        presence_penalty: Subtracted once from the logits of tokens of the answer so far.
        frequency_penalty: Subtracted from the logits of tokens of the answer, for each time they occur.
        repeat_last_n: How many of the last tokens these three penalties look at; -1 is all, 0 none.
        dry_multiplier: Subtract `dry_multiplier` × `dry_base` to the power of (n - `dry_allowed_length`) from the logit
            of a token that would go on with a repetition of n tokens ("Don't repeat yourself", text-generation-webui,
            pull request 5677); 0 is off.
        dry_base: How fast that grows with n.
        dry_allowed_length: The shortest repetition that is penalized.
        dry_penalty_last_n: How many of the last tokens are searched for repetitions; -1 is all, 0 none.
        dry_breaker_ids: Token ids, or sequences of them, that no repetition reaches over.
        logit_bias: Added to logits, by token id.
        samplers: The order, of the names in `SAMPLERS`. A sampler that is not named does nothing, except `logit_bias`,
            which then comes first. `penalties` stands for the three of them, `temperature` for the dynamic one too.
        seed: The same seed gives the same text for the same logits, in any company; None takes a random one.
        logprobs: How many of the most likely tokens to report with each token.

    Raises:
        UsageError: A value out of its range, or of the wrong type; a sampler that is unknown, named twice, or set but
            not named.
    """

    temperature: float = 0.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = 0.0
    top_k: int = 0
    typical_p: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = -1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_breaker_ids: Collection[int | tuple[int, ...]] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    samplers: Sequence[str] = SAMPLERS
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _check_number(name, getattr(self, name), low, high)
        for name, (least, most) in _WHOLE_RANGES.items():
            if name != "seed" or self.seed is not None:
                _check_whole(name, getattr(self, name), least, most)
        if self.mirostat == 1:
            raise UsageError("mirostat 1 is not available.", "Use 2, or 0 for none.")
        _check_bias(self.logit_bias)
        _check_breakers(self.dry_breaker_ids)
        _check_order(self.samplers)
        for name in _ACTS:
            if name not in self.order and self._uses(name):
                raise _not_named(name, self.samplers)

    def __repr__(self) -> str:
        return display.given(self)

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature < GREEDY_BELOW

    @property
    def order(self) -> tuple[str, ...]:
        """The samplers, with the bias first if `samplers` does not name it."""
        return (*(("logit_bias",) if "logit_bias" not in self.samplers else ()), *self.samplers)

    @cached_property
    def active(self) -> tuple[str, ...]:
        """The samplers that do something with these settings, in their order."""
        return tuple(name for name in self.order if self._uses(name))

    @cached_property
    def in_default_order(self) -> bool:
        """Whether the samplers that do something come in the order of `SAMPLERS`."""
        return list(self.active) == sorted(self.active, key=SAMPLERS.index)

    @property
    def uses_mirostat(self) -> bool:
        """Whether mirostat has the last word on which tokens are drawn from."""
        return self.mirostat == 2 and not self.greedy

    @property
    def plain(self) -> bool:
        """Whether a device's own sampler is enough: see `beyond_plain`. What `logprobs` asks does not count."""
        return not self.beyond_plain

    @cached_property
    def beyond_plain(self) -> tuple[str, ...]:
        """The settings that only the host's sampler follows.

        Every device's sampler knows temperature, top_k, top_p, min_p, the three penalties over all tokens, logit_bias
        and seed, in the default order.
        """
        active = self.active
        plain = [name for name in active if name in _PLAIN]
        found = {_SETTINGS.get(name, name): name not in _PLAIN for name in active} | {
            "dynatemp_range": "temperature" in active and self.dynatemp_range > 0,
            "repeat_last_n": "penalties" in active and self.repeat_last_n >= 0,
            "mirostat": self.uses_mirostat,
            "samplers": plain != sorted(plain, key=SAMPLERS.index),
        }
        return tuple(name for name, beyond in found.items() if beyond)

    def _uses(self, name: str) -> bool:
        return (not self.greedy or name in _GREEDY) and _ACTS[name](self)


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


def _check_breakers(breakers: object) -> None:
    hint = "Give a collection of token ids, or of tuples of them."
    if not isinstance(breakers, Collection) or isinstance(breakers, (str, bytes)):
        raise UsageError(f"dry_breaker_ids is {breakers!r}.", hint)
    for breaker in breakers:
        ids = breaker if isinstance(breaker, tuple) else (breaker,)
        if not ids:
            raise UsageError("dry_breaker_ids has a sequence of no tokens.", hint)
        for token in ids:
            _check_whole("A token id in dry_breaker_ids", token, 0, _MANY)


def _check_order(samplers: object) -> None:
    names = samplers if isinstance(samplers, Sequence) and not isinstance(samplers, str) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise UsageError(f"samplers is {samplers!r}.", f"Give a list of names, such as {list(SAMPLERS)}.")
    check_names("sampler", names, SAMPLERS, _OTHER_SAMPLERS)
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise UsageError(f"samplers names {twice[0]} twice.", "Name each sampler once.")


def _not_named(name: str, samplers: Sequence[str]) -> UsageError:
    return UsageError(
        f"samplers ({', '.join(samplers) or 'empty'}) does not name {name}, for which there are settings.",
        f"Add {name}, or leave its settings out.",
    )
