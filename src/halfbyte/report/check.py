"""Speed is shown only of a model that computes the right thing.

A short greedy answer is generated on the device, prompt in one batch, then token by token; the reference executor
reads the same tokens at once. Distributions must agree, and each chosen token must be as likely, within rounding,
as the reference's own choice. Small models are checked whole; of larger ones a layer of each kind, with their own
weights and shapes (random models then also have a vocabulary of 4096).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import DeviceError
from halfbyte.plan import Batch, Executor, Plan
from halfbyte.report.subject import Settings, Subject

LARGEST_KL = 0.02
"""Nats by which a mean next-token distribution may differ from the reference's."""

MOST_NATS_LOST = 0.1
"""How much less likely a chosen token may be than the reference's first choice, in nats."""

PROMPT_TOKENS = 16
NEW_TOKENS = 7

LARGEST_ERROR = 0.1
"""Root mean square by which logits may differ, as a part of the reference's own spread."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How a device's greedy answer compares with the reference.

    Attributes:
        kl: Mean Kullback-Leibler divergence from the reference, in nats.
        nats_lost: The worst choice: log-probability of the reference's token less that of the chosen one.
        error: Root mean square of the logits' differences, as a part of the reference's own spread.
        same: Choices equal to the reference's, of `tokens`.
        layers: Decoder layers that were run, of the model's `all_layers`.
    """

    kl: float
    nats_lost: float
    error: float
    same: int
    tokens: int
    layers: int
    all_layers: int


def check(subject: Subject, settings: Settings) -> Agreement:
    """Compare a device with the reference on a short answer.

    Raises:
        DeviceError: They disagree.
    """
    from halfbyte.reference.executor import ReferenceExecutor

    cut = subject.cut()
    plan, executor = cut.load(settings, context=PROMPT_TOKENS + NEW_TOKENS + 1, sequences=1)
    try:
        ids, logits = greedy(executor, cut.spec.vocab_size)
    finally:
        executor.close()
    expected = ReferenceExecutor(plan, cut.source).run(_batch(plan, ids[:-1], 0, rows=len(logits)))
    found = agreement(expected.astype(np.float64), logits, (len(cut.spec.layers), len(subject.spec.layers)))
    if not (found.kl <= LARGEST_KL and found.nats_lost <= MOST_NATS_LOST and found.error <= LARGEST_ERROR):
        raise DeviceError(
            f"{subject.name} is not timed: on {settings.run.device} it differs from the reference by "
            f"{found.kl:.3g} nats per token (at most {LARGEST_KL}), {found.nats_lost:.3g} at worst (at most "
            f"{MOST_NATS_LOST}), its logits by {found.error:.1%} (at most {LARGEST_ERROR:.0%}).",
            "Please report it with the output of halfbyte doctor; device='reference' gives right answers, slowly.",
        )
    return found


def greedy(executor: Executor, vocabulary: int) -> tuple[list[int], Float64]:
    """A random prompt with its greedy answer, and the logits `[n, vocab_size]` each token was chosen from."""
    ids: list[int] = np.random.default_rng(6).integers(0, vocabulary, PROMPT_TOKENS).tolist()
    logits: list[Float64] = []
    start = 0
    for _ in range(NEW_TOKENS + 1):
        logits.append(executor.run(_batch(executor.plan, ids[start:], start, rows=1))[0].astype(np.float64))
        start = len(ids)
        ids.append(int(logits[-1].argmax()))
    return ids, np.array(logits)


def agreement(expected: Float64, got: Float64, layers: tuple[int, int]) -> Agreement:
    """Compare logits `[n, vocab_size]` for the same tokens."""
    p, q = _log_softmax(expected), _log_softmax(got)
    chosen = got.argmax(axis=1)
    spread = expected.std(axis=1)
    off = (got - expected).std(axis=1)
    lost = p.max(axis=1) - p[np.arange(len(p)), chosen]
    return Agreement(
        kl=float(np.mean(np.sum(np.exp(p) * (p - q), axis=1))), nats_lost=float(lost.max()),
        error=float((off / np.maximum(spread, np.finfo(float).tiny)).max()),
        same=int((p.argmax(axis=1) == chosen).sum()), tokens=len(p), layers=layers[0], all_layers=layers[1],
    )  # fmt: skip


def _log_softmax(logits: Float64) -> Float64:
    shifted = logits - logits.max(axis=1, keepdims=True)
    normalized: Float64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalized


def _batch(plan: Plan, ids: list[int], start: int, rows: int) -> Batch:
    """Tokens of one sequence from position `start` on, with the logits of the last `rows`."""
    count = len(ids)
    return Batch(
        token_ids=np.array(ids, np.int32),
        positions=np.arange(start, start + count, dtype=np.int32),
        sequences=np.zeros(count, np.int32),
        rope_sets=np.zeros(count, np.int32),
        block_tables=plan.own_tables(),
        logit_rows=np.arange(count - rows, count, dtype=np.int32),
    )
