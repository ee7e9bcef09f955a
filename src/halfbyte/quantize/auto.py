"""Spending a budget of bits where a model is most sensitive.

Each matrix is quantized by itself in a coarse format (GPTQ), the KL divergence that causes is measured on calibration
text, and for other formats it is taken as proportional to the error of the matrix's output, Δ·H·Δᵀ, when rounding to
nearest. Divergences of
several matrices are taken as additive. Bits are then bought one step at a time, always where a bit saves most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.folder import Checkpoint
from halfbyte.errors import UsageError
from halfbyte.formats import Format, get_format
from halfbyte.models.spec import ModelSpec
from halfbyte.plan.ops import Linear, Op
from halfbyte.quantize.forward import Forward, names_of
from halfbyte.quantize.gptq import gptq
from halfbyte.quantize.grid import Array, fit, is_grouped

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
    left = budget - sum(choice.bits for choice in chosen.values())
    if left < 0:
        raise UsageError("The budget is too small even for 3 bits a weight.", "Allow more bits.")
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
    checkpoint: Checkpoint, spec: ModelSpec, ids: NDArray[np.int32], bits_per_weight: float, tick: Tick
) -> dict[str, str]:
    """The format of each matrix so that the whole file has at most `bits_per_weight`.

    Args:
        ids: Calibration texts `[texts, tokens]`; the time this takes is proportional to their tokens.

    Raises:
        UsageError: The budget is too small.
    """
    choices = _Probes(checkpoint, spec, ids, tick).choices()
    fixed = sum(checkpoint.format(n).nbytes(s) + _HEADER_BYTES for n, s in spec.shapes.items() if n not in choices)
    return allocate(choices, bits_per_weight * spec.parameters - 8 * fixed)


class _Probes:
    """Measures what rounding each matrix alone does to the model's distribution."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, ids: NDArray[np.int32], tick: Tick) -> None:
        self.checkpoint, self.spec, self.ids, self._tick = checkpoint, spec, ids, tick
        self.forward = Forward(spec, checkpoint.format, ids.shape[1])
        table = checkpoint.weight(spec.embed).decode()
        self.streams = [[self.forward.start(text, table) for text in ids]]
        self.hessians: dict[str, Array] = {}
        for steps in self.forward.layers:
            self.streams.append(self._through(steps, self.streams[-1], self._weight, self.hessians))
        self.base = self._log_probabilities(self.streams[-1], self._weight, self.hessians)

    def choices(self) -> dict[str, list[Choice]]:
        """What each matrix can be stored as."""
        names = [name for name, shape in self.spec.shapes.items() if len(shape) == 2]
        result = {}
        for done, name in enumerate(names):
            self._tick(f"sensitivity of {name}", done, len(names))
            result[name] = self._choices(name)
        return result

    def _choices(self, name: str) -> list[Choice]:
        weight = self._weight(name)
        hessian = self.hessians.get(name)
        scale = self._divergence(name, self._probe(weight, hessian)) / max(self._error(weight, PROBE, hessian), 1e-30)
        choices = []
        for form_name in CHOICES:
            form = get_format(form_name)
            if form_name == "q6_k" and weight.shape[1] % 256:
                continue
            error = self._error(weight, form_name, hessian)
            nbytes = form.nbytes(weight.shape) + _HEADER_BYTES * len(form.layout(weight.shape))
            choices.append(Choice(form_name, 8 * nbytes, scale * error))
        return choices

    def _probe(self, weight: Array, hessian: Array | None) -> Array:
        """A matrix in the coarse format."""
        form = get_format(PROBE)
        if hessian is None or not is_grouped(form):
            return _stored(weight, form)
        codes, grid = gptq(weight, hessian, form, passes=0)
        return grid.values(codes)

    def _error(self, weight: Array, form_name: str, hessian: Array | None) -> float:
        """The error of a matrix's output when it is rounded to nearest in a format."""
        form = get_format(form_name)
        importance = None if hessian is None else np.diagonal(hessian)
        rounded = fit(weight, form, importance).round(weight) if is_grouped(form) else _stored(weight, form)
        difference = rounded - weight
        return float(np.vdot(difference if hessian is None else difference @ hessian, difference))

    def _divergence(self, name: str, values: Array) -> float:
        """Mean KL divergence from the original's distribution when one matrix has other values."""
        first = next((i for i, steps in enumerate(self.forward.layers) if any(name in s.inputs for s in steps)), None)
        weight = _with(self._weight, name, values)
        streams = self.streams[-1] if first is None else self.streams[first]
        if name == self.spec.embed:
            first, streams = 0, [self.forward.start(text, values) for text in self.ids]
        for steps in self.forward.layers[len(self.forward.layers) if first is None else first :]:
            streams = self._through(steps, streams, weight, {})
        changed = self._log_probabilities(streams, weight, {})
        terms = [(np.exp(b) * (b - c)).sum(axis=1).mean() for b, c in zip(self.base, changed, strict=True)]
        return max(float(np.mean(terms)), 0.0)

    def _through(
        self, steps: list[Op], streams: list[Array], weight: Callable[[str], Array], hessians: dict[str, Array]
    ) -> list[Array]:
        """Streams after some steps; the Hessians of the products among them are added up."""
        weights = {name: weight(name) for name in names_of(steps, self.spec)}
        out = []
        for stream in streams:
            values = self.forward.enter(steps, stream)
            out.append(self.forward.advance(steps, values, weights.__getitem__))
            for step in steps:
                if isinstance(step, Linear):
                    term = values[step.x].T @ values[step.x]
                    for name in step.weights:
                        hessians[name] = hessians[name] + term if name in hessians else term
        return out

    def _log_probabilities(
        self, streams: list[Array], weight: Callable[[str], Array], hessians: dict[str, Array]
    ) -> list[Array]:
        logits = self._through(self.forward.head, streams, weight, hessians)
        return [rows - _log_sum(rows) for rows in logits]

    def _weight(self, name: str) -> Array:
        values = self.checkpoint.weight(name).decode()
        self.checkpoint.release(name)
        return values


def _log_sum(rows: Array) -> Array:
    top = rows.max(axis=1, keepdims=True)
    total: Array = np.log(np.exp(rows - top).sum(axis=1, keepdims=True)) + top
    return total


def _stored(weight: Array, form: Format) -> Array:
    return form.decode(form.encode(weight), weight.shape)


def _with(weights: Callable[[str], Array], name: str, values: Array) -> Callable[[str], Array]:
    return lambda wanted: values if wanted == name else weights(wanted)
