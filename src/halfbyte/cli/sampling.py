"""Sampling options as keyword arguments of `Model.stream`; those that contradict each other are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halfbyte.errors import UsageError

_NEED_TEMPERATURE = {"top_k": (0, 1), "top_p": (1.0,), "min_p": (0.0,), "typical_p": (1.0,), "seed": (None,)}
"""Options of random sampling, with the values at which they change nothing."""


def sampling_arguments(logit_bias: Sequence[str] | None = None, **values: Any) -> dict[str, Any]:
    """The sampling options of a command line as keyword arguments.

    Raises:
        UsageError: A value is out of range, a bias is not `ID=X`, or an option needs a temperature that is not set.
    """
    from halfbyte.sampling.params import SamplingParams

    values["logit_bias"] = dict(map(_bias, logit_bias or ()))
    if SamplingParams(**values).greedy:
        for name, neutral in _NEED_TEMPERATURE.items():
            if values[name] not in neutral:
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{flag} {values[name]} has no effect at temperature {values['temperature']:g}.",
                    f"Set --temperature as well, or leave out {flag}.",
                )
    return values


def _bias(text: str) -> tuple[int, float]:
    token_id, _, value = text.partition("=")
    try:
        return int(token_id), float(value)
    except ValueError as error:
        raise UsageError(
            f"--logit-bias {text!r} is not ID=X.", "Write a token id and a number, such as 42=-5."
        ) from error
