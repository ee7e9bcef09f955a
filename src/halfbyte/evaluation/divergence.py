"""How far a model's distribution has moved from another's, token by token on the same text.

Both models run side by side, batch by batch; only a few numbers per token are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halfbyte.errors import UsageError
from halfbyte.evaluation.perplexity import Tick, mean_perplexity, standard_error
from halfbyte.evaluation.scorer import Float64, Scorer, log_probabilities
from halfbyte.evaluation.windows import Ids, Protocol

_ROWS = 64


@dataclass(frozen=True)
class Divergence:
    """What distinguishes a model from its base.

    Attributes:
        kl_mean, kl_p99, kl_max: Mean, 99th percentile and maximum of KL(base ‖ model), in nats per token; `kl_stderr`
            is the mean's standard error.
        top1: Share of tokens for which both models have the same most likely token.
        ppl, ppl_base, ppl_ratio: Perplexities on the text, and the model's over the base's; `ppl_stderr` and
            `ppl_base_stderr` are their standard errors. A single token has no standard errors (None).
        tokens: Tokens scored.
    """

    kl_mean: float
    kl_stderr: float | None
    kl_p99: float
    kl_max: float
    top1: float
    ppl: float
    ppl_base: float
    ppl_ratio: float
    tokens: int
    ppl_stderr: float | None
    ppl_base_stderr: float | None


def divergence(
    model: Scorer, base: Scorer, ids: Ids, protocol: Protocol, tick: Tick = lambda what, done, total: None
) -> Divergence:
    """Compare a model with its base on a text.

    Raises:
        UsageError: They have different vocabularies.
    """
    return divergences([model], base, ids, protocol, tick)[0]


def divergences(
    models: Sequence[Scorer], base: Scorer, ids: Ids, protocol: Protocol, tick: Tick = lambda what, done, total: None
) -> list[Divergence]:
    """Compare several models with one base, which is run once. Raises what `divergence` raises."""
    for model in models:
        _check_vocabularies(model, base)
    windows = protocol.cut(ids)
    total = sum(len(window.ids) - window.first_scored for window in windows)
    columns: list[list[Float64]] = [[] for _ in models]
    done = 0
    for theirs, *ours in zip(base.score(windows), *(model.score(windows) for model in models), strict=True):
        for start in range(0, len(theirs.targets), _ROWS):
            rows = slice(start, start + _ROWS)
            expected = log_probabilities(theirs.logits[rows])
            for column, scored in zip(columns, ours, strict=True):
                column.append(_compare(log_probabilities(scored.logits[rows]), expected, theirs.targets[rows]))
        done += len(theirs.targets)
        tick("divergence", done, total)
    return [_summary(np.concatenate(column, axis=1)) for column in columns]


def _check_vocabularies(model: Scorer, base: Scorer) -> None:
    if model.model.spec.vocab_size != base.model.spec.vocab_size:
        sizes = f"{model.model.spec.vocab_size:,} and {base.model.spec.vocab_size:,}"
        raise UsageError(
            f"The models' vocabularies differ: {sizes} tokens.", "Compare a model with the one it was made from."
        )


def _compare(ours: Float64, theirs: Float64, targets: np.ndarray) -> Float64:
    """For each token: KL, agreement on the most likely token, and both negative log-likelihoods; `[4, tokens]`."""
    each = np.arange(len(targets))
    kl = np.maximum((np.exp(theirs) * (theirs - ours)).sum(axis=1), 0)
    agree = theirs.argmax(axis=1) == ours.argmax(axis=1)
    return np.stack([kl, agree, -ours[each, targets], -theirs[each, targets]])


def _summary(columns: Float64) -> Divergence:
    kl, agree, ours, theirs = columns
    (ppl, ppl_stderr), (ppl_base, ppl_base_stderr) = mean_perplexity(ours), mean_perplexity(theirs)
    return Divergence(
        kl_mean=float(kl.mean()),
        kl_stderr=standard_error(kl),
        kl_p99=float(np.percentile(kl, 99)),
        kl_max=float(kl.max()),
        top1=float(agree.mean()),
        ppl=ppl,
        ppl_base=ppl_base,
        ppl_ratio=ppl / ppl_base,
        tokens=len(kl),
        ppl_stderr=ppl_stderr,
        ppl_base_stderr=ppl_base_stderr,
    )
