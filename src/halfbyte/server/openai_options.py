"""Parameters that OpenAI's protocols have in common: how an answer is sampled, and how it is sent."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from halfbyte._version import __version__
from halfbyte.errors import UsageError
from halfbyte.model import AnswerOptions
from halfbyte.options import check_names
from halfbyte.sampling.params import OTHER_NAMES
from halfbyte.server.conversation import Progress, Usage
from halfbyte.server.errors import ApiError

HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prediction", "extra_body", "extra_headers",
    }
)  # fmt: skip
"""Parameters that change nothing about the answer."""
FINGERPRINT = f"halfbyte-{__version__}"
OTHER_FORMS = dict.fromkeys(
    ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding", "grammar", "json_schema"),
    "structured_outputs",
)
"""What older and other programs call the form of an answer."""
_MOST_STOPS = 64
_OTHER_NAMES = {
    **OTHER_NAMES, "max_tokens": "max_output_tokens", "messages": "input", "response_format": "text",
    "stop": "stop_sequences",
}  # fmt: skip
"""What other protocols call a parameter; a name counts only where it is known."""


class StreamOptions(BaseModel):
    """How a stream is sent.

    Attributes:
        include_usage: Whether its last event tells the tokens used.
        continuous_usage_stats: Whether its other events tell those so far, too; vLLM's name.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    def so_far(self, progress: Progress) -> dict[str, Any]:
        """What an event tells of usage."""
        if not self.include_usage:
            return {}
        return {"usage": _counted(progress) if self.continuous_usage_stats else None}


class Sampling(BaseModel):
    """A request's model and its sampling. Values are checked for their types here, for their ranges later."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str | None = None
    stream: bool | None = None
    seed: int | None = None
    temperature: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    top_n_sigma: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_last_n: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: str | list[str] | None = None
    samplers: list[str] | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None

    def options(self) -> AnswerOptions:
        """As options of an answer; the temperature is 1 if there is none, as protocols have it.

        Raises:
            UsageError: A token id in `logit_bias` is none.
        """
        options: Any = {name: value for name in _PASSED if (value := getattr(self, name)) is not None}
        options.setdefault("temperature", 1.0)
        if self.seed is not None:
            options["seed"] = self.seed % 2**64
        if self.top_k == -1:
            options["top_k"] = 0
        if self.logit_bias is not None:
            options["logit_bias"] = {_token_id(token): value for token, value in self.logit_bias.items()}
        return cast(AnswerOptions, options)


_PASSED = tuple(name for name in Sampling.model_fields if name not in {"model", "stream", "seed", "logit_bias"})


class Sampled(Sampling):
    """What OpenAI's older protocols have beside that."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None

    @property
    def streamed(self) -> StreamOptions:
        """How a stream is sent."""
        return self.stream_options or StreamOptions()

    @property
    def count(self) -> int:
        """How many answers to each prompt."""
        return 1 if self.n is None else self.n

    def options(self) -> AnswerOptions:
        """As options of an answer.

        Raises:
            UsageError: A token id in `logit_bias` is none, or there are too many stop strings.
        """
        options = super().options()
        if self.max_tokens is not None:
            options["max_tokens"] = self.max_tokens
        if self.stop is not None:
            options["stop"] = stops("stop", [self.stop] if isinstance(self.stop, str) else self.stop)
        return options


R = TypeVar("R", bound=BaseModel)


def parsed(kind: type[R], body: dict[str, Any], harmless: frozenset[str] = HARMLESS) -> R:
    """A request of some kind.

    Args:
        harmless: Parameters that are taken and not used.

    Raises:
        ApiError: 400, with the name of the parameter: it has the wrong type, or is none that is known.
    """
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        raise _wrong(error) from None
    unknown = [name for name, value in (request.model_extra or {}).items() if value is not None]
    known = [*kind.model_fields, *harmless]
    try:
        check_names("parameter", unknown, known, {**_OTHER_NAMES, **OTHER_FORMS})
    except UsageError as error:
        name = next(name for name in unknown if name not in known)
        raise ApiError(400, error.message[:300], error.hint, param=name[:80], code="unknown_parameter") from None
    if isinstance(request, Sampled) and request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options has no effect without stream.", "Set stream.", param="stream_options")
    return request


def usage(found: Usage) -> dict[str, Any]:
    """What was used, as OpenAI writes it."""
    return {**_counted(found), "prompt_tokens_details": {"cached_tokens": found.cached_tokens}}


def _counted(found: Usage | Progress) -> dict[str, Any]:
    prompt, completion = found.prompt_tokens, found.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _wrong(error: ValidationError) -> ApiError:
    """The first thing that is wrong, in a sentence."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"] if not _names_a_type(part))[:80]
    if first["type"] == "missing":
        return ApiError(400, f"The parameter {name} is missing.", "Every request needs it.", param=name)
    given = repr(first["input"])
    given = given if len(given) <= 60 else f"{given[:60]}…"
    what = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return ApiError(400, f"{name} must be {what} (got {given}).", "Leave it out for the default.", param=name)


def _names_a_type(part: str | int) -> bool:
    """Whether a part of a place in a request is pydantic's name for one type of several."""
    return part in ("str", "int", "float", "bool") or (isinstance(part, str) and "[" in part)


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise UsageError(
            f"logit_bias has the key {text[:40]!r}.", "Its keys are token ids, such as those of /tokenize."
        )
    return int(text)


def stops(name: str, found: list[str]) -> list[str]:
    """Strings that end an answer, given as some parameter.

    Raises:
        UsageError: There are too many.
    """
    if len(found) > _MOST_STOPS:
        raise UsageError(f"{name} has {len(found)} strings.", f"It may have at most {_MOST_STOPS}.")
    return found
