"""Logits of every token of many windows, several windows in a batch where they are short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.packed import is_packed
from halfbyte.errors import UsageError
from halfbyte.evaluation.windows import Window
from halfbyte.formats import get_format
from halfbyte.model import Model, load
from halfbyte.options import LoadOptions, RunOptions
from halfbyte.plan import Batch

BATCH_TOKENS = 256
_MOST_LOGITS = 1 << 25

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """Tokens of a batch that are predicted: their ids `[n]`, and the logits before each `[n, vocab_size]`."""

    targets: NDArray[np.int32]
    logits: NDArray[np.float32]


class Scorer:
    """A model loaded to score windows of tokens.

    Args:
        model: A folder or hub id.
        window: The longest window.
        options, changes: How the model is run, as for `load`. By default that is how it always runs, so that this is
            what is measured; `activations="f32"` shows the cost of the quantized weights alone. If there is an adapter,
            the model is measured with it.
    """

    def __init__(
        self,
        model: str | Path,
        window: int,
        options: RunOptions | None = None,
        **changes: Unpack[LoadOptions],
    ) -> None:
        count = max(1, BATCH_TOKENS // window)
        run = RunOptions.of(options, **changes)
        if len(run.adapters) > 1:
            raise UsageError(f"there are {len(run.adapters)} adapters.", "Measure one at a time.")
        self._adapter = len(run.adapters)
        self.model: Model = load(
            model, run, context=window, sequences=count, cache_tokens=count * window, logit_rows=BATCH_TOKENS
        )
        vocabulary = self.model.spec.vocab_size
        self.batch_tokens = max(1, min(self.model.plan.tokens, self.model.plan.rows, _MOST_LOGITS // vocabulary))
        if window <= self.batch_tokens // 2:
            self._together = min(count, self.batch_tokens // window)
        else:
            self._together = 1

    def score(self, windows: Sequence[Window]) -> Iterator[Scored]:
        """The logits for every scored token, in order. They are valid until the next item is requested."""
        for first in range(0, len(windows), self._together):
            yield from self._batches(windows[first : first + self._together])

    def _batches(self, windows: Sequence[Window]) -> Iterator[Scored]:
        """Several short windows at once, or one in pieces."""
        if len(windows) > 1:
            yield self._run(windows, 0, max(len(window.ids) for window in windows))
            return
        for start in range(0, len(windows[0].ids), self.batch_tokens):
            yield self._run(windows, start, start + self.batch_tokens)

    def _run(self, windows: Sequence[Window], start: int, stop: int) -> Scored:
        pieces = [window.ids[start:stop] for window in windows]
        wanted = [_predicting(window, start, start + len(piece)) for window, piece in zip(windows, pieces, strict=True)]
        logits = self.model.executor.run(self._batch(windows, pieces, start, wanted))
        targets = [w.ids[start + 1 :][: len(rows)][rows] for w, rows in zip(windows, wanted, strict=True)]
        return Scored(np.concatenate(targets), logits)

    def _batch(
        self, windows: Sequence[Window], pieces: list[NDArray[np.int32]], start: int, wanted: list[NDArray[np.bool_]]
    ) -> Batch:
        plan, switch = self.model.plan, self.model.spec.rope_switch
        lengths = [len(piece) for piece in pieces]
        long = [int(switch is not None and len(window.ids) > switch) for window in windows]
        numbers = np.arange(len(pieces), dtype=np.int32)
        return Batch(
            token_ids=np.concatenate(pieces).astype(np.int32),
            positions=np.concatenate([np.arange(start, start + n, dtype=np.int32) for n in lengths]),
            sequences=np.repeat(numbers, lengths),
            rope_sets=np.repeat(np.array(long, np.int32), lengths),
            block_tables=plan.own_tables(),
            logit_rows=np.flatnonzero(
                np.concatenate([_padded(w, n) for w, n in zip(wanted, lengths, strict=True)])
            ).astype(np.int32),
            adapters=np.full(sum(lengths), self._adapter, np.int32),
        )


def how_it_ran(model: Model) -> dict[str, str]:
    """How a model ran, for the record of a measurement: where, how precisely, and by which version of Halfbyte."""
    from halfbyte._version import __version__

    packed = any(is_packed(get_format(tensor.dtype)) for tensor in model.plan.of_kind("weight"))
    usual = "int8" if packed and model.device != "reference" else "f32"
    return {
        "device": model.device,
        "activations": model.options.activations or usual,
        "kv_cache": model.options.kv_dtype,
        "halfbyte": __version__,
    }


def _predicting(window: Window, start: int, stop: int) -> NDArray[np.bool_]:
    """Which tokens from `start` to `stop` (the window's last excepted) have a scored token after them."""
    positions = np.arange(start, min(stop, len(window.ids) - 1))
    return positions + 1 >= window.first_scored


def _padded(mask: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    return np.concatenate([mask, np.zeros(length - len(mask), bool)])


def log_probabilities(logits: NDArray[np.float32]) -> Float64:
    """Natural logarithms of the softmax of each row, in float64.

    Raises:
        UsageError: The model gave NaN.
    """
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    if np.isnan(values).any():
        raise UsageError("The model computes NaN.", "Its weights are damaged: download or quantize it again.")
    return values
