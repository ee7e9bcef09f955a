"""Quantizing with calibration, a decoder layer at a time.

Two residual streams go through the model for every calibration text: the original's, and that of the model as
quantized so far. AWQ looks at the original's inputs. GPTQ looks at the inputs that the quantized prefix gives,
matrix by matrix in the order of computation, and aims at what the original would have computed: its target is the
least-squares fit, over calibration tokens, of the original's output (plus, where the output is added to the residual
stream, what that stream has lost so far) from the quantized model's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.base import Checkpoint
from halfbyte.formats import Format, Parts
from halfbyte.models.spec import Layer, ModelSpec, SelfAttention
from halfbyte.plan.ops import Add, Linear, Op
from halfbyte.quantization import awq
from halfbyte.quantization.forward import Forward, Values, names_of, stages
from halfbyte.quantization.gptq import DAMPING, damped, gptq
from halfbyte.quantization.grid import Array, Grid, GroupFormat, chunks, is_grouped, pack_rows
from halfbyte.quantization.linalg import add_gram, add_product, cholesky, mirror, solve
from halfbyte.quantization.work import Kept, Stream, WorkFolder

Method = Literal["awq", "gptq"]
Tick = Callable[[str, int, int], None]

SPILL_BYTES = 1_000_000_000
"""Activations of one layer beyond this go to the disk."""

TARGET_DAMPING = 0.3
"""For fitting what the original would have computed: with 1%, 65,000 tokens are overfitted."""

TABLE_DAMPING = 0.3
"""For a table that is also the output matrix: its rows matter for themselves too, as embeddings."""


@dataclass(frozen=True)
class Task:
    """What to do to a model.

    Attributes:
        formats: The format each tensor gets, by name; tensors left out stay as they are. Norms and biases that
            AWQ may scale must be here too.
        scaled: Whether AWQ's scales come before GPTQ.
        ids: Calibration texts, `[texts, tokens]`.
    """

    method: Method
    formats: dict[str, Format]
    ids: NDArray[np.int32]
    scaled: bool = False


def read(checkpoint: Checkpoint, name: str) -> Array:
    """A tensor in float32, decoded some rows at a time; its pages are given back."""
    weight = checkpoint.weight(name)
    if len(weight.shape) == 1:
        return weight.decode()
    values = np.empty(weight.shape, np.float32)
    for rows in chunks(weight.shape):
        parts = {suffix: part[rows] for suffix, part in weight.parts.items()}
        values[rows] = weight.format.decode(parts, values[rows].shape)
        checkpoint.release(name)
    return values


class Layerwise:
    """Runs a task layer by layer, keeping what is finished in a work folder.

    Args:
        tick: Called as tick(what, steps done, steps in all).
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, task: Task, work: WorkFolder, tick: Tick) -> None:
        self.checkpoint, self.spec, self.task, self.work = checkpoint, spec, task, work
        self.forward = Forward(spec, checkpoint.format, task.ids.shape[1])
        self._tick = tick
        self._tied = spec.embed == spec.lm_head
        self._shape = (task.ids.shape[1], spec.hidden_size)

    def run(self) -> None:
        """Do what is not finished yet: the embedding table, every layer, the output matrix."""
        layers = len(self.spec.layers)
        if self.work.finished == 0:
            self._embed()
            self.work.finish(1)
        for index in range(self.work.finished - 1, layers):
            self._tick(f"layer {index + 1} of {layers}", index, layers + 1)
            _LayerTask(self, index).run()
            self.work.finish(index + 2)
        self._tick("output matrix", layers, layers + 1)
        if not self._tied and self.work.finished == layers + 1:
            self._head()
            self.work.finish(layers + 2)
        self._tick("done", layers + 1, layers + 1)

    def read(self, name: str) -> Array:
        """A tensor of the checkpoint in float32; its pages are given back."""
        return read(self.checkpoint, name)

    def streams(self, layer: int) -> tuple[Stream, Stream]:
        """The residual streams before a layer: the original's, and the quantized model's."""
        return self.work.stream("original", layer, self._shape), self.work.stream("quantized", layer, self._shape)

    def original_logits(self) -> Callable[[int], Array]:
        """What gives the original's logits of a text, once all layers are done."""
        stream = self.streams(len(self.spec.layers))[0]
        weights = {name: self.read(name) for name in names_of(self.forward.head, self.spec)}

        def logits(text: int) -> Array:
            values = self.forward.enter(self.forward.head, stream[text])
            return self.forward.advance(self.forward.head, values, weights.__getitem__)

        return logits

    def store(self, name: str, weight: Array, hessian: Array | None, damping: float = DAMPING) -> None:
        """Quantize a matrix and keep its parts."""
        self.work.save(name, self._encode(weight, self.task.formats[name], hessian, damping))

    def stored(self, name: str) -> Array:
        """The values of a matrix that `store` has quantized."""
        return self.task.formats[name].decode(self.work.parts(name), self.spec.shapes[name])

    def _encode(self, weight: Array, form: Format, hessian: Array | None, damping: float) -> Parts:
        if hessian is None or not is_grouped(form):
            return pack_rows(form, weight.shape, lambda rows: form.encode(weight[rows]))
        if self.task.method == "awq":
            grid = awq.clip(weight, hessian, form)
            return pack_rows(form, weight.shape, lambda rows: _from_grid(form, grid[rows], weight[rows]))
        codes, grid = gptq(weight, hessian, form, damping=damping)
        return pack_rows(
            form, weight.shape, lambda rows: form.from_codes(codes[rows], grid[rows].scale, grid[rows].zero)
        )

    def _embed(self) -> None:
        """Quantize the embedding table and start both streams from it."""
        name, table = self.spec.embed, self.checkpoint.weight(self.spec.embed)
        original, changed = self.streams(0)
        self._start(original, table.format, table.parts)
        if name not in self.task.formats:
            self._start(changed, table.format, table.parts)
            return
        hessian = self._final_hessian(original) if self._tied and self.task.method == "gptq" else None
        self.store(name, self.read(name), hessian, TABLE_DAMPING)
        self._start(changed, self.task.formats[name], self.work.parts(name))

    def _start(self, stream: Stream, form: Format, table: Parts) -> None:
        for text, values in enumerate(self.forward.begin(self.task.ids, form, table)):
            stream[text] = values

    def _final_hessian(self, start: Stream) -> Array | None:
        """Σ x·xᵀ of the original model's inputs to its output matrix."""
        if not is_grouped(self.task.formats[self.spec.embed]):
            return None
        streams = [start[text] for text in range(len(self.task.ids))]
        for steps in self.forward.layers:
            weights = {n: self.read(n) for n in names_of(steps, self.spec)}
            for text, x in enumerate(streams):
                streams[text] = self.forward.advance(steps, self.forward.enter(steps, x), weights.__getitem__)
        return self._head_hessian(streams.__getitem__)

    def _head_hessian(self, stream: Callable[[int], Array]) -> Array:
        before, product = stages(self.forward.head)[:2]
        linear = product[0]
        weights = {self.spec.final_norm: self.read(self.spec.final_norm)}
        total = np.zeros((self.spec.hidden_size, self.spec.hidden_size), np.float32)
        for text in range(len(self.task.ids)):
            values = self.forward.enter(self.forward.head, stream(text))
            x = self.forward.advance(before, values, weights.__getitem__)
            add_gram(total, x)
        if not isinstance(linear, Linear):
            raise TypeError(f"the head begins with {type(linear).__name__}")
        return mirror(total)

    def _head(self) -> None:
        """Quantize an output matrix of its own, for the inputs that the quantized layers give."""
        name = self.spec.lm_head
        if name in self.task.formats:
            changed = self.streams(len(self.spec.layers))[1]
            self.store(
                name, self.read(name), self._head_hessian(changed.__getitem__) if self.task.method == "gptq" else None
            )


class _LayerTask:
    """One decoder layer: scaled, quantized, and both streams taken through it.

    With GPTQ alone, a matrix is read when its turn comes and dropped after it; AWQ's scales need all of a layer.
    """

    def __init__(self, owner: Layerwise, index: int) -> None:
        self.owner, self.task, self.forward = owner, owner.task, owner.forward
        self.layer: Layer = owner.spec.layers[index]
        self.steps = owner.forward.layers[index]
        self.scaled: dict[str, Array] = {}
        self.before = owner.streams(index)
        self.after = owner.streams(index + 1)

    def run(self) -> None:
        if self.task.method == "awq" or self.task.scaled:
            self._scale()
        if self.task.method == "gptq":
            self._quantize_in_order()

    def _texts(self) -> range:
        return range(len(self.task.ids))

    def _original(self, name: str) -> Array:
        """A tensor before rounding, with what scaling has changed."""
        return self.scaled[name] if name in self.scaled else self.owner.read(name)

    def _scale(self) -> None:
        """Fold AWQ's factors into the layer; with the method `awq`, quantize it too."""
        weights = {name: self.owner.read(name) for name in names_of(self.steps, self.owner.spec)}
        inputs = self._inputs(weights)
        forms: dict[str, GroupFormat] = {n: f for n, f in self.task.formats.items() if n in weights and is_grouped(f)}
        awq.scale_layer(self.owner.spec, self.layer, weights, inputs, forms)
        for name in awq.scaled_vectors(self.layer):
            if name in self.task.formats:
                self.owner.work.save(name, self.task.formats[name].encode(weights[name]))
        if self.task.method == "gptq":
            self.scaled = weights
            return
        mixer = self.layer.mixer
        qkv = mixer.qkv.weights if isinstance(mixer, SelfAttention) else ()
        unclipped = qkv if len(qkv) == 1 else qkv[:2]
        for name in inputs:
            if name in self.task.formats:
                self.owner.store(name, weights.pop(name), None if name in unclipped else inputs[name].hessian)

    def _inputs(self, weights: Mapping[str, Array]) -> dict[str, awq.Inputs]:
        """What the original's matrices see; its stream is taken through the layer on the way."""
        products = [step for step in self.steps if isinstance(step, Linear)]
        widths = {step.x: self.owner.spec.shapes[step.weights[0]][1] for step in products}
        hessians = {x: np.zeros((width, width), np.float32) for x, width in widths.items()}
        means = {x: np.zeros(width, np.float32) for x, width in widths.items()}
        for text in self._texts():
            values = self.forward.enter(self.steps, self.before[0][text])
            self.after[0][text] = self.forward.advance(self.steps, values, weights.__getitem__)
            for x in widths:
                add_gram(hessians[x], values[x])
                means[x] += np.abs(values[x]).mean(axis=0) / len(self.task.ids)
        for hessian in hessians.values():
            mirror(hessian)
        return {name: awq.Inputs(hessians[step.x], means[step.x]) for step in products for name in step.weights}

    def _quantize_in_order(self) -> None:
        cut = stages(self.steps)
        sides = [self._side(name, before) for name, before in zip(("original", "quantized"), self.before, strict=True)]
        for stage, following in zip(cut, [*cut[1:], []], strict=True):
            for side, weight in zip(sides, (self._original, self._quantized), strict=True):
                weights = {name: weight(name) for name in names_of(stage, self.owner.spec)}
                for text in self._texts():
                    values = side[text]
                    self.forward.advance(stage, values, weights.__getitem__)
                    _forget(values, cut, stage, self.steps[-1].outputs[0])
                    side[text] = values
            for name in names_of(stage, self.owner.spec):
                self.scaled.pop(name, None)
            if following and isinstance(following[0], Linear):
                self._product(following, *sides)
        for side, after in zip(sides, self.after, strict=True):
            for text in self._texts():
                after[text] = side[text][self.steps[-1].outputs[0]]

    def _quantized(self, name: str) -> Array:
        """A tensor as the quantized model has it."""
        matrix = name in self.task.formats and len(self.owner.spec.shapes[name]) == 2
        return self.owner.stored(name) if matrix else self._original(name)

    def _side(self, name: str, before: Stream) -> Kept:
        """What one of the two models has computed of each text so far."""
        spill = 8 * self.task.ids.size * self.owner.spec.intermediate_size > SPILL_BYTES
        side = Kept(self.owner.work.path / name if spill else None, self.forward.fixed)
        for text in self._texts():
            side[text] = self.forward.enter(self.steps, before[text])
        return side

    def _product(self, stage: Sequence[Op], original: Kept, quantized: Kept) -> None:
        """Quantize the matrices that a stage begins with."""
        linear = stage[0]
        if not isinstance(linear, Linear) or not any(name in self.task.formats for name in linear.weights):
            return
        residual = _residual(stage)
        columns = self.owner.spec.shapes[linear.weights[0]][1]
        hessian = _gram(linear, columns, quantized)
        targets = {name: self._original(name) for name in linear.weights if name in self.task.formats}
        missing = _missing(linear, residual, targets, original, quantized)
        factor = cholesky(damped(hessian, TARGET_DAMPING))
        scale = np.float32(_mean_diagonal(hessian))
        for name, target in targets.items():
            solve(missing[name], factor)
            missing[name] /= scale
            missing[name] += target
        del factor, targets, target
        for name in list(missing):
            self.owner.store(name, missing.pop(name), hessian)


def _gram(linear: Linear, columns: int, quantized: Kept) -> Array:
    """Σ x̂·x̂ᵀ over all tokens."""
    total = np.zeros((columns, columns), np.float32)
    for text in range(len(quantized)):
        add_gram(total, quantized[text][linear.x])
    return mirror(total)


def _missing(
    linear: Linear, residual: str | None, weights: Mapping[str, Array], original: Kept, quantized: Kept
) -> dict[str, Array]:
    """Σ (y - ŷ)·x̂ᵀ over all tokens: what each product, still with its original weights, lacks.

    To a product that is added to a residual stream, what that has lost so far is lacking too. Where there are fewer
    rows than columns, y - ŷ is computed; else Σ (x - x̂)·x̂ᵀ, which is then the smaller matrix.
    """
    columns = next(iter(weights.values())).shape[1]
    tall = sum(len(weight) for weight in weights.values()) >= columns
    shifts = np.zeros((columns, columns), np.float32) if tall else None
    total = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for text in range(len(original)):
        first, second = original[text], quantized[text]
        x = second[linear.x]
        shift = first[linear.x] - x
        if shifts is not None:
            add_product(shifts, shift, x)
        for name, weight in weights.items():
            lost = [shift @ weight.T] if shifts is None else []
            lost += [] if residual is None else [first[residual] - second[residual]]
            if lost:
                add_product(total[name], sum(lost[1:], lost[0]), x)
    if shifts is not None:
        for name, weight in weights.items():
            for rows in chunks(weight.shape):
                total[name][rows] += weight[rows] @ shifts
    return total


def _from_grid(form: GroupFormat, grid: Grid, weight: Array) -> Parts:
    return form.from_codes(grid.codes(weight), grid.scale, grid.zero)


def _mean_diagonal(hessian: Array) -> float:
    diagonal = np.diagonal(hessian)
    alive = diagonal > 0
    return float(diagonal[alive].mean(dtype=np.float64)) if alive.any() else 1.0


def _residual(stage: Sequence[Op]) -> str | None:
    """The residual stream that a stage's product is added to as it is, if it is."""
    following = stage[1] if len(stage) > 1 else None
    return following.x if isinstance(following, Add) and following.y == stage[0].outputs[0] else None


def _forget(values: Values, cut: list[list[Op]], stage: list[Op], result: str) -> None:
    """Drop what a stage has made and no later one reads."""
    later = [step for following in cut[cut.index(stage) + 1 :] for step in following]
    needed = {name for step in later for name in step.inputs} | {result}
    for name in [name for step in stage for name in (*step.inputs, *step.outputs)]:
        if name not in needed:
            values.pop(name, None)
