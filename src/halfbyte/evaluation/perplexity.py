"""Perplexity: exp of the mean negative log-likelihood of a text's tokens, with its standard error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from halfbyte.evaluation.scorer import Float64, Scorer, log_probabilities
from halfbyte.evaluation.windows import Ids, Protocol

Tick = Callable[[str, int, int], None]

_ROWS = 64


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and how it was measured.

    Attributes:
        stderr: The perplexity times the standard error of the mean log-likelihood, tokens taken as independent;
            None for a single token.
        tokens: Tokens scored.
        bos: Whether windows began with a BOS token.
    """

    protocol: str
    window: int
    bos: bool
    tokens: int
    ppl: float
    stderr: float | None


def perplexity(scorer: Scorer, ids: Ids, protocol: Protocol, tick: Tick = lambda what, done, total: None) -> Perplexity:
    """The perplexity of a text under a protocol. Raises what `Protocol.cut` raises."""
    windows = protocol.cut(ids)
    total = sum(len(window.ids) - window.first_scored for window in windows)
    losses: list[Float64] = []
    done = 0
    for scored in scorer.score(windows):
        for start in range(0, len(scored.targets), _ROWS):
            rows = log_probabilities(scored.logits[start : start + _ROWS])
            losses.append(-rows[np.arange(len(rows)), scored.targets[start : start + _ROWS]])
        done += len(scored.targets)
        tick(f"perplexity, {protocol.name} of {protocol.window}", done, total)
    ppl, stderr = mean_perplexity(np.concatenate(losses))
    return Perplexity(protocol.name, protocol.window, protocol.bos_used, total, ppl, stderr)


def mean_perplexity(losses: Float64) -> tuple[float, float | None]:
    """Perplexity and its standard error (None for a single token) from the negative log-likelihood of each token."""
    value, error = float(np.exp(losses.mean())), standard_error(losses)
    return value, None if error is None else value * error


def standard_error(values: Float64) -> float | None:
    """The standard error of the mean; None for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
