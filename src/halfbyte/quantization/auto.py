"""Spending a budget of bits where a model is most sensitive.

Each matrix is quantized by itself in a coarse format (GPTQ), the KL divergence that causes is measured on calibration
text, and for other formats it is taken as proportional to the error of the matrix's output, Δ·H·Δᵀ, when rounding to
nearest. Divergences of
several matrices are taken as additive. Bits are then bought one step at a time, always where a bit saves most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.base import Checkpoint
from halfbyte.errors import UsageError
from halfbyte.formats import Format, get_format
from halfbyte.models.spec import ModelSpec
from halfbyte.plan.ops import Linear, Op
from halfbyte.quantization.forward import Forward, names_of
from halfbyte.quantization.gptq import gptq
from halfbyte.quantization.grid import Array, chunks, fit, is_grouped
from halfbyte.quantization.layerwise import read
from halfbyte.quantization.linalg import add_gram, mirror
from halfbyte.quantization.work import Stream

PROBE = "q3g64z"
CHOICES = ("q3g128z", "q3g64z", "q3g32z", "q4g128z", "q4g64z", "q4g32z", "q6_k", "q8g128")
_HEADER_BYTES = 160
"""What a part takes in the header of its file, about."""

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Choice:
    """A format for a matrix: the bits it takes there, and the divergence it is expected to cause."""

    format: str
    bits: int
    divergence: float


def allocate(choices: dict[str, list[Choice]], budget: float) -> dict[str, str]:
    """A format for each tensor, of all together at most `budget` bits and little divergence.

    Raises:
        UsageError: Even the smallest formats need more.
    """
    chosen = {name: min(options, key=lambda choice: choice.bits) for name, options in choices.items()}
    left = _left(budget, [choice.bits for choice in chosen.values()])
    while True:
        steps = [
            ((chosen[name].divergence - better.divergence) / (better.bits - chosen[name].bits), name, better)
            for name, options in choices.items()
            for better in options
            if 0 < better.bits - chosen[name].bits <= left and better.divergence < chosen[name].divergence
        ]
        if not steps:
            return {name: choice.format for name, choice in chosen.items()}
        _, name, better = max(steps, key=lambda step: step[0])
        left -= better.bits - chosen[name].bits
        chosen[name] = better


def auto_formats(
    checkpoint: Checkpoint, spec: ModelSpec, ids: NDArray[np.int32], bits_per_weight: float, folder: Path, tick: Tick
) -> dict[str, str]:
    """The format of each matrix so that the whole file has at most `bits_per_weight`.

    Args:
        ids: Calibration texts `[texts, tokens]`; the time this takes is proportional to their tokens.
        folder: Where what does not fit in memory is kept meanwhile.

    Raises:
        UsageError: The budget is too small.
    """
    matrices = {name: shape for name, shape in spec.shapes.items() if len(shape) == 2}
    fixed = sum(checkpoint.format(n).nbytes(s) + _HEADER_BYTES for n, s in spec.shapes.items() if n not in matrices)
    budget = bits_per_weight * spec.parameters - 8 * fixed
    _left(budget, [min(_bits(shape).values()) for shape in matrices.values()])
    with TemporaryDirectory(prefix=".sensitivity.", dir=folder) as work:
        choices = _Probes(checkpoint, spec, ids, Path(work), tick).choices()
    return allocate(choices, budget)


def _bits(shape: tuple[int, ...]) -> dict[str, int]:
    """The formats that a matrix can have, and the bits it takes in each."""
    forms = [get_format(name) for name in CHOICES if name != "q6_k" or shape[1] % 256 == 0]
    return {form.name: 8 * (form.nbytes(shape) + _HEADER_BYTES * len(form.layout(shape))) for form in forms}


def _left(budget: float, least: Sequence[int]) -> float:
    """What a budget leaves when every matrix has its smallest format. Raises UsageError if that is too much."""
    left = budget - sum(least)
    if left < 0:
        raise UsageError("The budget is too small even for 3 bits per weight.", "Allow more bits.")
    return left


class _Probes:
    """Measures what rounding each matrix alone does to the model's distribution."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, ids: NDArray[np.int32], work: Path, tick: Tick) -> None:
        self.checkpoint, self.spec, self.ids, self._tick = checkpoint, spec, ids, tick
        self.forward = Forward(spec, checkpoint.format, ids.shape[1])
        shape = (ids.shape[1], spec.hidden_size)
        self.streams = [Stream(work / f"{layer}.f32", shape) for layer in range(len(spec.layers) + 1)]
        self.base = Stream(work / "base.f32", (ids.shape[1], spec.vocab_size))
        table = checkpoint.weight(spec.embed)
        for text, values in enumerate(self.forward.begin(ids, table.format, table.parts)):
            self.streams[0][text] = values
        after = [*self.streams[1:], self.base]
        for steps, before, out in zip((*self.forward.layers, self.forward.head), self.streams, after, strict=True):
            for text, values in enumerate(self._through(steps, self._texts(before), self._weight)):
                out[text] = values if out is not self.base else _log_probabilities(values)

    def choices(self) -> dict[str, list[Choice]]:
        """What each matrix can be stored as."""
        names = [name for name, shape in self.spec.shapes.items() if len(shape) == 2]
        found: dict[str, list[Choice]] = {}
        for first, steps in enumerate((*self.forward.layers, self.forward.head)):
            hessians = self._hessians(steps, self.streams[first])
            for name in hessians:
                self._tick(f"sensitivity of {name}", len(found), len(names))
                found[name] = self._choices(name, 0 if name == self.spec.embed else first, hessians[name])
        if self.spec.embed not in found:
            found[self.spec.embed] = self._choices(self.spec.embed, 0, None)
        return {name: found[name] for name in names}

    def _texts(self, stream: Stream) -> Iterator[Array]:
        return (stream[text] for text in range(len(self.ids)))

    def _choices(self, name: str, first: int, hessian: Array | None) -> list[Choice]:
        weight = self._weight(name)
        divergence = self._divergence(name, first, self._probe(weight, hessian))
        scale = divergence / max(self._error(weight, PROBE, hessian), 1e-30)
        return [
            Choice(form, bits, scale * self._error(weight, form, hessian)) for form, bits in _bits(weight.shape).items()
        ]

    def _probe(self, weight: Array, hessian: Array | None) -> Array:
        """A matrix in the coarse format."""
        form = get_format(PROBE)
        values = np.empty_like(weight)
        if hessian is None or not is_grouped(form):
            for rows in chunks(weight.shape):
                values[rows] = _stored(weight[rows], form)
            return values
        codes, grid = gptq(weight, hessian, form, passes=0)
        for rows in chunks(weight.shape):
            values[rows] = grid[rows].values(codes[rows])
        return values

    def _error(self, weight: Array, form_name: str, hessian: Array | None) -> float:
        """The error of a matrix's output when it is rounded to nearest in a format."""
        form = get_format(form_name)
        importance = None if hessian is None else np.diagonal(hessian)
        total = 0.0
        for rows in chunks(weight.shape):
            some = weight[rows]
            rounded = fit(some, form, importance).round(some) if is_grouped(form) else _stored(some, form)
            difference = rounded - some
            total += float(np.vdot(difference if hessian is None else difference @ hessian, difference))
        return total

    def _divergence(self, name: str, first: int, values: Array) -> float:
        """Mean KL divergence from the original's distribution when a matrix, read from section `first` on, changes."""
        weight = _with(self._weight, name, values)
        streams = list(self._texts(self.streams[first]))
        if name == self.spec.embed:
            streams = [self.forward.start(text, values) for text in self.ids]
        for steps in self.forward.layers[first:]:
            streams = list(self._through(steps, streams, weight))
        total = 0.0
        for text, logits in enumerate(self._through(self.forward.head, streams, weight)):
            base, changed = self.base[text], _log_probabilities(logits)
            total += float((np.exp(base) * (base - changed)).sum(axis=1).mean())
        return max(total / len(streams), 0.0)

    def _through(self, steps: list[Op], streams: Iterable[Array], weight: Callable[[str], Array]) -> Iterator[Array]:
        """Streams after some steps."""
        weights = {name: weight(name) for name in names_of(steps, self.spec)}
        for stream in streams:
            yield self.forward.advance(steps, self.forward.enter(steps, stream), weights.__getitem__)

    def _hessians(self, steps: list[Op], stream: Stream) -> dict[str, Array]:
        """Σ x·xᵀ of the inputs of each matrix of a section; matrices with the same inputs share it."""
        products = [step for step in steps if isinstance(step, Linear)]
        widths = {step.x: self.spec.shapes[step.weights[0]][1] for step in products}
        totals = {x: np.zeros((width, width), np.float32) for x, width in widths.items()}
        weights = {name: self._weight(name) for name in names_of(steps, self.spec)}
        for values in (self.forward.enter(steps, x) for x in self._texts(stream)):
            self.forward.advance(steps[: 1 + steps.index(products[-1])], values, weights.__getitem__)
            for x, total in totals.items():
                add_gram(total, values[x])
        return {name: mirror(totals[step.x]) for step in products for name in step.weights}

    def _weight(self, name: str) -> Array:
        return read(self.checkpoint, name)


def _log_probabilities(logits: Array) -> Array:
    return logits - _log_sum(logits)


def _log_sum(rows: Array) -> Array:
    top = rows.max(axis=1, keepdims=True)
    total: Array = np.log(np.exp(rows - top).sum(axis=1, keepdims=True)) + top
    return total


def _stored(weight: Array, form: Format) -> Array:
    return form.decode(form.encode(weight), weight.shape)


def _with(weights: Callable[[str], Array], name: str, values: Array) -> Callable[[str], Array]:
    return lambda wanted: values if wanted == name else weights(wanted)
