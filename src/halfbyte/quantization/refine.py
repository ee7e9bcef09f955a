"""Refining a quantized model as a whole: its scales and norms learn to give the original's distribution.

Codes stay as they are. Each group's scale gets a factor, each norm's weights a change, and both follow the gradient
of KL(original ‖ quantized), averaged over the tokens of the calibration texts (Adam with warm-up and linear decline).
Methods that quantize layer by layer mind the error of each layer's output; here it is that of the model's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Format, Parts
from halfbyte.models.spec import ModelSpec
from halfbyte.plan.plan import STATE_IDS
from halfbyte.quantization.forward import Forward
from halfbyte.quantization.gradient import Gradients, backward
from halfbyte.quantization.grid import Array, GroupFormat, is_grouped, to_f16

RATE = 1e-3
"""Of Adam: about the largest change of a factor, or of a norm's weight, in one step."""

TEXTS_A_STEP = 4
_DECAYS = (0.9, 0.99)
_WARM_UP = 0.1

Tick = Callable[[str, int, int], None]


def needed_bytes(spec: ModelSpec) -> int:
    """Memory that refining takes: the model in float32 before and after its changes, and its gradients twice."""
    return 4 * 4 * spec.parameters


@dataclass(frozen=True)
class Stored:
    """A tensor as a method has left it: its format, parts and the values they stand for."""

    format: Format
    parts: Parts
    values: Array


class Refiner:
    """A quantized model that learns.

    Args:
        forward: For texts of the length of `ids`.
        stored: Every tensor of the model. Those of groups and all norms will change.
        ids: Calibration texts `[texts, tokens]`.
        original: Gives the original model's logits `[tokens, vocab_size]` of a text, by its number.
    """

    def __init__(
        self,
        spec: ModelSpec,
        forward: Forward,
        stored: Mapping[str, Stored],
        ids: NDArray[np.int32],
        original: Callable[[int], Array],
    ) -> None:
        self.spec, self.forward, self.stored, self.ids, self.original = spec, forward, stored, ids, original
        self.weights = {name: tensor.values for name, tensor in stored.items()}
        self._learned: dict[str, _Learned] = {}
        for name, tensor in stored.items():
            if is_grouped(tensor.format):
                self._learned[name] = _Factors(tensor.values, tensor.format)
            elif tensor.values.ndim == 1:
                self._learned[name] = _Changes(tensor.values)

    def run(self, steps: int, tick: Tick) -> dict[str, Parts]:
        """The parts of what has changed, after so many steps of a few texts each; norms are in f32."""
        for number, texts in enumerate(itertools.islice(self._batches(), steps)):
            tick("refining", number, steps)
            gradients = self._gradients(texts)
            rate = RATE * min(1.0, (number + 1) / (_WARM_UP * steps + 1)) * (1 - number / steps)
            for name, learned in self._learned.items():
                self.weights[name] = learned.step(gradients[name], rate, number + 1)
        return {name: learned.parts(self.stored[name].parts) for name, learned in self._learned.items()}

    def _batches(self) -> Iterator[NDArray[np.intp]]:
        """The numbers of the texts of each step: all of them in a random order, again and again."""
        random = np.random.default_rng(0)
        while True:
            order = random.permutation(len(self.ids))
            yield from (order[start : start + TEXTS_A_STEP] for start in range(0, len(order), TEXTS_A_STEP))

    def divergence(self, text: int) -> float:
        """Mean KL divergence from the original on a text."""
        return float((np.exp(p := _logs(self.original(text))) * (p - _logs(self._walk(text)[0]))).sum(axis=1).mean())

    def _gradients(self, texts: NDArray[np.intp]) -> Gradients:
        total: Gradients = {}
        for text in texts:
            for name, term in self._pull(int(text)).items():
                if name in self._learned:
                    total[name] = total[name] + term if name in total else term
        return total

    def _walk(self, text: int) -> tuple[Array, list[dict[str, Array]]]:
        """Logits of a text, and what each section computed on the way."""
        stream = self.forward.start(self.ids[text], self.weights[self.spec.embed])
        kept = []
        for steps in (*self.forward.layers, self.forward.head):
            kept.append(self.forward.enter(steps, stream))
            stream = self.forward.advance(steps, kept[-1], self.weights.__getitem__)
        return stream, kept

    def _pull(self, text: int) -> Gradients:
        """The gradients of every weight."""
        logits, kept = self._walk(text)
        gradient = (np.exp(_logs(logits)) - np.exp(_logs(self.original(text)))) / np.float32(len(logits))
        result: Gradients = {}
        for steps in (self.forward.head, *reversed(self.forward.layers)):
            found = backward(steps, {**self.weights, **kept.pop()}.__getitem__, gradient)
            gradient = found[self.forward.entry(steps)]
            self._add(result, found)
        values = {STATE_IDS: self.ids[text], **self.weights}
        self._add(result, backward([self.forward.embed], values.__getitem__, gradient))
        return result

    def _add(self, result: Gradients, found: Gradients) -> None:
        for name, term in found.items():
            if name in self.weights:
                result[name] = result[name] + term if name in result else term


class _Learned:
    """Numbers around 0 that Adam changes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.change = np.zeros(shape, np.float32)
        self._mean, self._square = np.zeros_like(self.change), np.zeros_like(self.change)

    def _adam(self, gradient: Array, rate: float, step: int) -> None:
        first, second = _DECAYS
        self._mean += np.float32(1 - first) * (gradient - self._mean)
        self._square += np.float32(1 - second) * (np.square(gradient) - self._square)
        size = np.sqrt(self._square / np.float32(1 - second**step)) + np.float32(1e-12)
        self.change -= np.float32(rate / (1 - first**step)) * self._mean / size

    def step(self, gradient: Array, rate: float, step: int) -> Array:
        """Change by the gradient of the tensor's values; the values now."""
        raise NotImplementedError

    def parts(self, before: Parts) -> Parts:
        """What to store."""
        raise NotImplementedError


class _Factors(_Learned):
    """The scales of a tensor of groups, each times 1 + change."""

    def __init__(self, values: Array, form: GroupFormat) -> None:
        rows, columns = values.shape
        super().__init__((rows, -(-columns // form.group)))
        self._values, self._group = values, form.group

    def step(self, gradient: Array, rate: float, step: int) -> Array:
        columns = self._values.shape[1]
        starts = np.arange(0, columns, self._group)
        self._adam(np.add.reduceat(gradient * self._values, starts, axis=1), rate, step)
        values: Array = self._values * np.repeat(1 + self.change, self._group, axis=1)[:, :columns]
        return values

    def parts(self, before: Parts) -> Parts:
        return {**before, ".scale": to_f16(before[".scale"].astype(np.float32) * (1 + self.change)).astype(np.float16)}


class _Changes(_Learned):
    """The weights of a norm, each plus its change."""

    def __init__(self, values: Array) -> None:
        super().__init__(values.shape)
        self._values = values

    def step(self, gradient: Array, rate: float, step: int) -> Array:
        self._adam(gradient, rate, step)
        return self._values + self.change

    def parts(self, before: Parts) -> Parts:
        return {"": self._values + self.change}


def _logs(logits: Array) -> Array:
    """Logarithms of the softmax of each row."""
    values: Array = logits - logits.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values
