"""Agreement first, then time: engines take turns, one repetition each, while the others stand still.

The bandwidth of the machine is measured at every round, so that it and the engines saw the same conditions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.catalog import HALFBYTE, Peer
from benchmarks.peers.environment import PeerError
from benchmarks.peers.remote import Remote
from halfbyte.models.spec import ModelSpec

LARGEST_KL = 0.02
"""Nats by which an engine's next-token distribution may differ from Halfbyte's and still count as the same model."""

PROMPTS = 8
PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Task:
    """What is timed.

    Attributes:
        size: Prompt tokens of a prefill, or of each prompt of a batch; the context at which a decode ends.
        steps: Tokens a repetition decodes; 1 for a prefill. For a batch, new tokens after each prompt, the first
            included: its time is from the first prompt to the last token.
        sequences: Prompts that are answered together.
    """

    kind: Literal["prefill", "decode", "batch"]
    size: int
    steps: int = 1
    sequences: int = 1

    @property
    def title(self) -> str:
        match self.kind:
            case "prefill":
                return f"prefill of {self.size:,}"
            case "decode":
                return f"decode at {self.size:,}"
            case "batch":
                return f"{self.sequences} together, {self.size:,} + {self.steps:,} tokens each"

    @property
    def prompt(self) -> int:
        """Tokens of a sequence read before the clock starts (decode) or while it runs (prefill, batch)."""
        return max(1, self.size - self.steps - 1) if self.kind == "decode" else self.size

    @property
    def tokens(self) -> int:
        """Tokens that a repetition's time is for."""
        return self.size if self.kind == "prefill" else self.sequences * self.steps

    @property
    def context(self) -> int:
        """Tokens of a sequence at its end, the last one made included."""
        return self.prompt + self.steps + (self.kind == "decode")


@dataclass(frozen=True)
class Agreement:
    """How an engine's next-token distributions compare with Halfbyte's.

    Attributes:
        kl: Mean Kullback-Leibler divergence from Halfbyte's, in nats.
        same_top: Prompts after which both would say the same token.
    """

    kl: float
    same_top: int
    prompts: int


@dataclass
class Measurement:
    """One engine at one task.

    Attributes:
        seconds: Of each repetition.
        bytes_read: Weights and cache that one decode step reads, by the engine's own storage; None for other tasks.
        bandwidth: Bytes a second that the machine could read, at each round; empty on a GPU.
        error: Why there are no seconds.
        device: Where it ran; on a GPU, threads mean nothing.
    """

    peer: str
    threads: int
    task: Task
    seconds: list[float] = field(default_factory=list)
    bytes_read: int | None = None
    bandwidth: list[float] = field(default_factory=list)
    agreement: Agreement | None = None
    error: str | None = None
    device: Literal["cpu", "gpu"] = "cpu"


class Asked(Protocol):
    """Whoever can be asked to do a task: an engine in another process, or a program that measures itself."""

    def ask(self, do: str, **request: Any) -> Any:
        """The seconds it took. Raises PeerError if it failed."""
        ...


def decode_bytes(spec: ModelSpec, peer: Peer, task: Task) -> int:
    """Bytes that a step of a decode task reads, on average over its steps."""
    matrices = sum(
        math.prod(shape)
        for name, shape in spec.shapes.items()
        if len(shape) == 2 and (name != spec.embed or tied(spec))
    )
    mean_context = task.prompt + (task.steps + 1) / 2
    cached = sum(
        2 * attention.kv_heads * attention.head_dim * min(attention.window or math.inf, mean_context)
        for attention in spec.attentions
    )
    return round(matrices * peer.weight_bits / 8 + cached * peer.cache_bytes)


def tied(spec: ModelSpec) -> bool:
    """Whether the embedding table is the output matrix too."""
    return spec.embed == spec.lm_head


def token_ids(vocabulary: int, count: int, *seed: int) -> list[int]:
    """A prompt of random tokens."""
    ids: list[int] = np.random.default_rng([*seed, count]).integers(0, vocabulary, count).tolist()
    return ids


def agreement(reference: Sequence[NDArray[np.float64]], other: Sequence[NDArray[np.float64]]) -> Agreement:
    """Compare logits `[vocabulary]` after the same prompts."""
    divergences, same = [], 0
    for expected, got in zip(reference, other, strict=True):
        p, q = _log_softmax(expected), _log_softmax(got[: len(expected)])
        divergences.append(float(np.sum(np.exp(p) * (p - q))))
        same += int(expected.argmax() == got.argmax())
    return Agreement(float(np.mean(divergences)), same, len(divergences))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normalized


def agreements(remotes: Mapping[str, Remote], vocabulary: int) -> dict[str, Agreement | PeerError]:
    """Each engine against Halfbyte, over a few prompts; an error for one that fails or is another model.

    Raises:
        PeerError: Halfbyte itself fails.
    """
    prompts = [token_ids(vocabulary, PROMPT_TOKENS, seed) for seed in range(PROMPTS)]
    reference = _logits(remotes[HALFBYTE], prompts)
    found: dict[str, Agreement | PeerError] = {}
    for name, remote in remotes.items():
        try:
            found[name] = _checked(agreement(reference, reference if name == HALFBYTE else _logits(remote, prompts)))
        except PeerError as error:
            found[name] = error
    return found


def _logits(remote: Remote, prompts: Sequence[list[int]]) -> list[NDArray[np.float64]]:
    return [np.array(remote.ask("logits", ids=ids), np.float64) for ids in prompts]


def _checked(found: Agreement) -> Agreement:
    if not found.kl <= LARGEST_KL:
        raise PeerError(
            f"not timed: its next-token distributions are {found.kl:.3g} nats from Halfbyte's "
            f"(at most {LARGEST_KL}; same first choice {found.same_top} of {found.prompts})"
        )
    return found


def time_task(
    remotes: Mapping[str, Asked],
    blank: Callable[[str], Measurement],
    task: Task,
    repeat: int,
    vocabulary: int,
    bandwidth: Callable[[], float] | None,
) -> list[Measurement]:
    """Interleaved repetitions of a task after one to warm up; who comes first changes from round to round.

    Args:
        bandwidth: Measures what the machine can read, before each round; None where that says nothing.
    """
    measured = {name: blank(name) for name in remotes}
    for turn in range(repeat + 1):
        request = _request(task, vocabulary, turn)
        rates = [bandwidth()] if bandwidth else []
        names = list(remotes)
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            row = measured[name]
            if row.error is None:
                _repetition(remotes[name], row, request, rates, counts=turn > 0)
        print(f"{task.title}: round {turn} of {repeat}", file=sys.stderr)
    return list(measured.values())


def _request(task: Task, vocabulary: int, turn: int) -> dict[str, Any]:
    """What is asked at each round: other prompts than before, unless the cache of the same one may be used again."""
    match task.kind:
        case "prefill":
            return {"ids": token_ids(vocabulary, task.prompt, turn)}
        case "decode":
            return {"ids": token_ids(vocabulary, task.prompt, 0), "tokens": task.steps}
        case "batch":
            numbers = range(task.sequences)
            prompts = [token_ids(vocabulary, task.prompt, task.sequences, turn, number) for number in numbers]
            return {"prompts": prompts, "tokens": task.steps}


def _repetition(remote: Asked, row: Measurement, request: dict[str, Any], rates: list[float], *, counts: bool) -> None:
    try:
        seconds = remote.ask(row.task.kind, **request)
    except PeerError as error:
        row.error, row.seconds = str(error), []
        return
    if counts:
        row.seconds.append(seconds)
        row.bandwidth += rates
