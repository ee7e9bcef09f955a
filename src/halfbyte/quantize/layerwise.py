"""Quantizing with calibration, a decoder layer at a time.

Two residual streams go through the model for every calibration text: the original's, and that of the model as
quantized so far. AWQ looks at the original's inputs. GPTQ looks at the inputs that the quantized prefix gives,
matrix by matrix in the order of computation, and aims at what the original would have computed: its target is the
least-squares fit, over calibration tokens, of the original's output (plus, where the output is added to the residual
stream, what that stream has lost so far) from the quantized model's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.folder import Checkpoint
from halfbyte.formats import Format, Parts
from halfbyte.models.spec import Layer, ModelSpec
from halfbyte.plan.ops import Add, Linear, Op
from halfbyte.quantize import awq
from halfbyte.quantize.forward import Forward, Values, names_of, stages
from halfbyte.quantize.gptq import DAMPING, damped, gptq
from halfbyte.quantize.grid import Array, GroupFormat, is_grouped
from halfbyte.quantize.work import Kept, Stream, WorkFolder

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
        formats: The format each tensor gets, by name; tensors left out stay as they are. Norms that AWQ may
            scale must be here too.
        scaled: Whether AWQ's scales come before GPTQ.
        ids: Calibration texts, `[texts, tokens]`.
    """

    method: Method
    formats: dict[str, Format]
    ids: NDArray[np.int32]
    scaled: bool = False


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
        values = self.checkpoint.weight(name).decode()
        self.checkpoint.release(name)
        return values

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

    def store(self, name: str, weight: Array, hessian: Array | None, damping: float = DAMPING) -> Array:
        """Quantize a matrix, keep its parts, and give the values that they stand for."""
        form = self.task.formats[name]
        parts = self._encode(weight, form, hessian, damping)
        self.work.save(name, parts)
        return form.decode(parts, weight.shape)

    def _encode(self, weight: Array, form: Format, hessian: Array | None, damping: float) -> Parts:
        if hessian is None or not is_grouped(form):
            return form.encode(weight)
        if self.task.method == "awq":
            grid = awq.clip(weight, hessian, form)
            return form.from_codes(grid.codes(weight), grid.scale, grid.zero)
        codes, grid = gptq(weight, hessian, form, damping=damping)
        return form.from_codes(codes, grid.scale, grid.zero)

    def _embed(self) -> None:
        """Quantize the embedding table and start both streams from it."""
        table = quantized = self.read(self.spec.embed)
        if self.spec.embed in self.task.formats:
            hessian = self._final_hessian(table) if self._tied and self.task.method == "gptq" else None
            quantized = self.store(self.spec.embed, table, hessian, TABLE_DAMPING)
        original, changed = self.streams(0)
        for text, ids in enumerate(self.task.ids):
            original[text] = self.forward.start(ids, table)
            changed[text] = self.forward.start(ids, quantized)

    def _final_hessian(self, table: Array) -> Array | None:
        """Σ x·xᵀ of the original model's inputs to its output matrix."""
        if not is_grouped(self.task.formats[self.spec.embed]):
            return None
        streams = [self.forward.start(ids, table) for ids in self.task.ids]
        for steps in self.forward.layers:
            weights = {n: self.read(n) for n in names_of(steps, self.spec)}
            streams = [self.forward.advance(steps, self.forward.enter(steps, x), weights.__getitem__) for x in streams]
        return self._head_hessian(lambda text: streams[text])

    def _head_hessian(self, stream: Callable[[int], Array]) -> Array:
        before, product = stages(self.forward.head)[:2]
        linear = product[0]
        weights = {self.spec.final_norm: self.read(self.spec.final_norm)}
        total = np.zeros((self.spec.hidden_size, self.spec.hidden_size), np.float32)
        for text in range(len(self.task.ids)):
            values = self.forward.enter(self.forward.head, stream(text))
            x = self.forward.advance(before, values, weights.__getitem__)
            total += x.T @ x
        if not isinstance(linear, Linear):
            raise TypeError(f"the head begins with {type(linear).__name__}")
        return total

    def _head(self) -> None:
        """Quantize an output matrix of its own, for the inputs that the quantized layers give."""
        name = self.spec.lm_head
        if name in self.task.formats:
            changed = self.streams(len(self.spec.layers))[1]
            self.store(
                name, self.read(name), self._head_hessian(changed.__getitem__) if self.task.method == "gptq" else None
            )


class _LayerTask:
    """One decoder layer: scaled, quantized, and both streams taken through it."""

    def __init__(self, owner: Layerwise, index: int) -> None:
        self.owner, self.task, self.forward = owner, owner.task, owner.forward
        self.layer: Layer = owner.spec.layers[index]
        self.steps = owner.forward.layers[index]
        self.original = {name: owner.read(name) for name in names_of(self.steps, owner.spec)}
        self.quantized = dict(self.original)
        self.before = owner.streams(index)
        self.after = owner.streams(index + 1)

    def run(self) -> None:
        if self.task.method == "awq" or self.task.scaled:
            self._scale()
        if self.task.method == "gptq":
            self._quantize_in_order()
        self._keep_norms()

    def _texts(self) -> range:
        return range(len(self.task.ids))

    def _scale(self) -> None:
        """Fold AWQ's factors into both copies of the layer; with the method `awq`, quantize it too."""
        inputs = self._inputs()
        forms: dict[str, GroupFormat] = {
            n: f for n, f in self.task.formats.items() if n in self.original and is_grouped(f)
        }
        weights = dict(self.original)
        awq.scale_layer(self.owner.spec, self.layer, weights, inputs, forms)
        if self.task.method == "gptq":
            self.original, self.quantized = weights, dict(weights)
            return
        unclipped = self.layer.qkv if len(self.layer.qkv) == 1 else self.layer.qkv[:2]
        for name in inputs:
            if name in self.task.formats:
                self.owner.store(name, weights[name], None if name in unclipped else inputs[name].hessian)
        self.quantized = weights

    def _inputs(self) -> dict[str, awq.Inputs]:
        """What the original's matrices see; its stream is taken through the layer on the way."""
        hessians: dict[str, Array] = {}
        means: dict[str, Array] = {}
        products = [step for step in self.steps if isinstance(step, Linear)]
        for text in self._texts():
            values = self.forward.enter(self.steps, self.before[0][text])
            self.after[0][text] = self.forward.advance(self.steps, values, self.original.__getitem__)
            for step in products:
                x = values[step.x]
                for total, term in ((hessians, x.T @ x), (means, np.abs(x).mean(axis=0) / len(self.task.ids))):
                    total[step.x] = total[step.x] + term if step.x in total else term
        return {name: awq.Inputs(hessians[step.x], means[step.x]) for step in products for name in step.weights}

    def _quantize_in_order(self) -> None:
        cut = stages(self.steps)
        sides = [self._side(name, before) for name, before in zip(("original", "quantized"), self.before, strict=True)]
        for stage, following in zip(cut, [*cut[1:], []], strict=True):
            for side, weights in zip(sides, (self.original, self.quantized), strict=True):
                for text in self._texts():
                    values = side[text]
                    self.forward.advance(stage, values, weights.__getitem__)
                    _forget(values, cut, stage, self.steps[-1].outputs[0])
                    side[text] = values
            if following and isinstance(following[0], Linear):
                self._product(following, *sides)
        for side, after in zip(sides, self.after, strict=True):
            for text in self._texts():
                after[text] = side[text][self.steps[-1].outputs[0]]

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
        hessian, shift, lost = _statistics(linear, _residual(stage), original, quantized)
        solved = np.linalg.inv(damped(hessian, TARGET_DAMPING))
        scale = np.float32(_mean_diagonal(hessian))
        for name in linear.weights:
            if name not in self.task.formats:
                continue
            weight = self.original[name]
            missing = weight @ shift if lost is None else weight @ shift + lost
            target = (weight + missing @ solved / scale).astype(np.float32)
            self.quantized[name] = self.owner.store(name, target, hessian)

    def _keep_norms(self) -> None:
        """Keep the norms that scaling has changed."""
        for name in (self.layer.input_norm, self.layer.mlp_norm):
            if name in self.task.formats:
                self.owner.work.save(name, self.task.formats[name].encode(self.quantized[name]))


def _statistics(
    linear: Linear, residual: str | None, original: Kept, quantized: Kept
) -> tuple[Array, Array, Array | None]:
    """Over all tokens: Σ x̂·x̂ᵀ, Σ (x - x̂)·x̂ᵀ, and Σ (r - r̂)·x̂ᵀ of the residual stream the product is added to."""
    hessian = shift = lost = np.zeros((), np.float32)
    for text in range(len(original)):
        first, second = original[text], quantized[text]
        x = second[linear.x]
        hessian = hessian + x.T @ x
        shift = shift + (first[linear.x] - x).T @ x
        if residual is not None:
            lost = lost + (first[residual] - second[residual]).T @ x
    return hessian, shift, None if residual is None else lost


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
