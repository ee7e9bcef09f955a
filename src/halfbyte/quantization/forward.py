"""The original computation, layer by layer over many calibration texts, through the reference's ops.

A plan's steps fall into sections: what comes before the layers, each layer, and the head. Between sections only
the residual stream is kept. Inside a section the walk stops before each product with weights, so that its input
can be looked at, and its weights replaced, before it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Format, Parts
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import Plan, make_plan
from halfbyte.plan.ops import Attention, Linear, Op
from halfbyte.plan.plan import STATE_IDS, STATE_POSITIONS, STATE_ROPE_SETS, STATE_ROWS, STATE_SEQUENCES
from halfbyte.reference.ops import run_op

Array = NDArray[Any]
Weights = Callable[[str], Array]
Values = dict[str, Array]

_QUERIES = 128


class Forward:
    """Runs the sections of a model's plan over texts of one length.

    Attributes:
        embed: The step that looks up the embeddings.
        layers: The steps of each decoder layer.
        fixed: State, constants and rotary tables: the same for every text.
        head: The steps from the residual stream to the logits of every token.

    Raises:
        UnsupportedModelError: Its layers read something beside the residual stream.
    """

    def __init__(self, spec: ModelSpec, formats: Callable[[str], Format], length: int) -> None:
        if spec.layer_inputs is not None or any(layer.shares is not None for layer in spec.layers):
            raise UnsupportedModelError(
                f"layers of this {spec.model_type} model read more than what the layer before them gives: it cannot be "
                "quantized layer by layer.",
                "Round it to nearest instead (--method rtn).",
            )
        self._width = spec.hidden_size
        self.plan = make_plan(spec, formats, tokens=length, context=length, kv_dtype="f32", kept_states=0, fused=False)
        sections = _sections(self.plan, len(spec.layers))
        self._start, self.layers, self.head = sections[0], sections[1:-1], sections[-1]
        self.embed = next(step for step in self._start if STATE_IDS in step.inputs)
        self.fixed = self._make_fixed(length, int(spec.rope_switch is not None and length > spec.rope_switch))

    def start(self, ids: NDArray[np.int32], table: Array) -> Array:
        """The residual stream of one text, `[tokens, hidden_size]`, from its embedding table."""
        values = {**self.fixed, STATE_IDS: ids}
        return run(self.embed, values, lambda _: table)

    def begin(self, texts: NDArray[np.int32], form: Format, table: Parts) -> Iterator[Array]:
        """The residual streams of texts `[texts, tokens]`; of the table, only rows that occur are decoded."""
        used, ids = np.unique(texts, return_inverse=True)
        some = {suffix: part[used] for suffix, part in table.items()}
        rows = form.decode(some, (len(used), self._width))
        for own in ids.reshape(texts.shape):
            yield self.start(own.astype(np.int32), rows)

    def entry(self, section: Sequence[Op]) -> str:
        """The name by which a section reads the residual stream."""
        made = {name for step in section for name in step.outputs}
        read = (name for step in section for name in step.inputs if name not in self.fixed and name not in made)
        return next(name for name in read if self.plan.tensors[name].kind == "activation")

    def enter(self, section: Sequence[Op], stream: Array) -> Values:
        """The values a section starts from."""
        return {**self.fixed, self.entry(section): stream}

    def advance(self, steps: Sequence[Op], values: Values, weights: Weights) -> Array:
        """Run steps; the last one's output. Caches are made when they are first written."""
        out = np.zeros(0)
        for step in steps:
            for name in step.outputs:
                if self.plan.tensors[name].kind == "cache":
                    values[name] = np.zeros(self.plan.tensors[name].shape, np.float32)
            out = _attend(step, values) if isinstance(step, Attention) else run(step, values, weights)
        return out

    def _make_fixed(self, length: int, rope_set: int) -> Values:
        """State, constants and rotary tables, the same for every text of this length."""
        values: Values = dict(self.plan.constants)
        values |= {STATE_SEQUENCES: np.zeros(length, np.int32), STATE_ROPE_SETS: np.full(length, rope_set, np.int32)}
        values |= {STATE_POSITIONS: np.arange(length, dtype=np.int32), STATE_ROWS: np.arange(length, dtype=np.int32)}
        values |= self.plan.own_tables()
        for step in self._start:
            if STATE_IDS not in step.inputs:
                values[step.outputs[0]] = run(step, values, values.__getitem__)
        return values


def _attend(step: Attention, values: Values) -> Array:
    """Attention of some queries at a time, each over no later keys than it needs."""
    parts: list[Array] = []
    for start in range(0, len(values[step.q]), _QUERIES):
        rows = slice(start, start + _QUERIES)
        some = {**values, **{name: values[name][rows] for name in (step.q, step.positions, step.sequences)}}
        parts.append(run(step, some, some.__getitem__))
    values[step.out] = np.concatenate(parts)
    return values[step.out]


def run(step: Op, values: Values, weights: Weights) -> Array:
    """Run one step and keep its output among the values."""
    out = run_op(step, lambda name: values[name] if name in values else weights(name))
    if out is not None:
        values[step.outputs[0]] = out
        return out
    return np.zeros(0)


def stages(section: Sequence[Op]) -> list[list[Op]]:
    """A section's steps, cut before each product with weights; the first stage has none."""
    cut: list[list[Op]] = [[]]
    for step in section:
        if isinstance(step, Linear):
            cut.append([])
        cut[-1].append(step)
    return cut


def names_of(steps: Sequence[Op], spec: ModelSpec) -> list[str]:
    """The weights that steps read."""
    return [name for step in steps for name in step.inputs if name in spec.shapes]


def _sections(plan: Plan, layers: int) -> list[list[Op]]:
    """Steps before the layers, of each layer, and after them, told apart by the tensors they write."""
    sections: list[list[Op]] = [[] for _ in range(layers + 2)]
    current = 0
    for step in plan.steps:
        first, _, rest = step.outputs[0].partition(".")
        if first == "layers":
            current = 1 + int(rest.partition(".")[0])
        elif current:
            current = layers + 1
        sections[current].append(step)
    return sections
