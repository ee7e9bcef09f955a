"""The matrix products of a model, each as a plan of its own with random weights, and how wrong a result of one is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Format, Weight, get_format
from halfbyte.models.spec import Activation, ModelSpec
from halfbyte.plan import Batch, Plan, Tensor, ops
from halfbyte.plan.plan import LOGITS, STATE_IDS, STATE_POSITIONS, STATE_ROPE_SETS, STATE_ROWS, STATE_SEQUENCES, Kind
from halfbyte.reference.ops import run_op

CHECKED_ROWS = 512
DISTINCT_ROWS = 509
"""Rows that are really random, a prime so that no two rows of one tile are equal; larger matrices repeat them."""


@dataclass(frozen=True)
class Product:
    """A matrix product of a model: out[T, rows] from x[T, columns].

    Attributes:
        rows: Of the matrix; of gate and up together where `activation` is set.
        activation: What the gate goes through, for the gated product of an MLP.
        residual: Whether the result is added to the residual stream.
    """

    name: str
    rows: int
    columns: int
    activation: Activation | None = None
    residual: bool = False

    @property
    def width(self) -> int:
        """Values of a row of its output."""
        return self.rows // 2 if self.activation else self.rows

    def weights(self, copy: int) -> dict[str, tuple[int, int]]:
        """Shapes of the matrices of one copy, by name."""
        names = [f"gate.{copy}", f"up.{copy}"] if self.activation else [f"matrix.{copy}"]
        return dict.fromkeys(names, (self.width, self.columns))


def products(spec: ModelSpec) -> list[Product]:
    """The products of a layer, fused as plans have them, and the output matrix."""
    layer = spec.layers[0]
    attention = layer.mixer.spec
    qkv = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    return [
        Product("qkv", qkv, hidden),
        Product("o", hidden, attention.heads * attention.head_dim, residual=layer.post_mixer_norm is None),
        Product("gate_up", 2 * intermediate, hidden, activation=layer.mlp.activation),
        Product("down", hidden, intermediate, residual=layer.post_mlp_norm is None),
        Product("head", spec.vocab_size, hidden),
    ]


class RandomWeights:
    """The `WeightSource` protocol with random values, the same at each call; matrices in one format."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], matrix_format: str) -> None:
        self._shapes = shapes
        self._format = get_format(matrix_format)

    def format(self, name: str) -> Format:
        """The format of a tensor: what is not a matrix, and what products read from, is float32."""
        plain = len(self._shapes[name]) == 1 or name.endswith("_table")
        return get_format("f32") if plain else self._format

    def weight(self, name: str) -> Weight:
        """Values of a size that keeps activations in range; norms are ones."""
        shape, stored = self._shapes[name], self.format(name)
        if len(shape) == 1:
            return Weight(stored, shape, stored.encode(np.ones(shape, np.float32)))
        scale = 1.0 if name.endswith("_table") else shape[1] ** -0.5
        random = np.random.default_rng(zlib.crc32(name.encode()))
        values = random.standard_normal((min(DISTINCT_ROWS, shape[0]), shape[1]), np.float32) * np.float32(scale)
        parts = {suffix: np.resize(part, (shape[0], *part.shape[1:])) for suffix, part in stored.encode(values).items()}
        return Weight(stored, shape, parts)

    def release(self, name: str) -> None:
        """Nothing is kept."""


def product_plan(product: Product, tokens: int, copies: int, form: str) -> tuple[Plan, RandomWeights]:
    """A plan that runs copies of a product one after another on the same input, and its weights.

    The input and the residual are rows of float32 tables; the last copy's output comes back as logits.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "x_table": (tokens, product.columns),
        "residual_table": (tokens, product.width),
    }
    steps: list[ops.Op] = [
        ops.Embed(STATE_IDS, "x_table", "x"),
        ops.Embed(STATE_IDS, "residual_table", "residual"),
    ]
    for copy in range(copies):
        matrices = product.weights(copy)
        shapes |= matrices
        steps.append(_step(product, tuple(matrices)))
    steps.append(ops.Rows("out", STATE_ROWS, LOGITS))
    weights = RandomWeights(shapes, form)
    found = [_weight_tensor(weights, name, shape) for name, shape in shapes.items()]
    for name in (STATE_IDS, STATE_POSITIONS, STATE_SEQUENCES, STATE_ROPE_SETS, STATE_ROWS):
        found.append(Tensor(name, (tokens,), "i32", "state", 4 * tokens))
    found.append(_activation("x", tokens, product.columns))
    found += [_activation(name, tokens, product.width) for name in ("residual", "out")]
    found.append(_activation(LOGITS, tokens, product.width, "output"))
    tensors = {tensor.name: tensor for tensor in found}
    return Plan(tokens, tokens, 1, tokens, tokens, tensors, tuple(steps), (), {}), weights


def _step(product: Product, matrices: tuple[str, ...]) -> ops.Op:
    if product.activation:
        return ops.GatedLinear("x", matrices, "out", product.activation)
    return ops.Linear("x", matrices, "out", "residual" if product.residual else None)


def _weight_tensor(weights: RandomWeights, name: str, shape: tuple[int, ...]) -> Tensor:
    stored = weights.format(name)
    return Tensor(name, shape, stored.name, "weight", stored.nbytes(shape))


def _activation(name: str, tokens: int, width: int, kind: Kind = "activation") -> Tensor:
    return Tensor(name, (tokens, width), "f32", kind, 4 * tokens * width)


def batch(plan: Plan, start: int, count: int, logit_rows: NDArray[np.int32]) -> Batch:
    """`count` tokens of one sequence from position `start` on; ids count up and stay in the plan's table."""
    table = next(step.table for step in plan.steps if isinstance(step, ops.Embed))
    ids = (np.arange(count, dtype=np.int32) + start) % plan.tensors[table].shape[0]
    zeros = np.zeros(count, np.int32)
    tables = {group.blocks: np.arange(group.columns, dtype=np.int32)[None] for group in plan.groups}
    return Batch(ids, np.arange(start, start + count, dtype=np.int32), zeros, zeros, tables, logit_rows)


def error(product: Product, plan: Plan, weights: RandomWeights, got: NDArray[np.float32]) -> float:
    """‖got - oracle‖ / ‖oracle‖ over the first and last columns of the last copy's output."""
    step = plan.steps[-2]
    half = min(CHECKED_ROWS, product.width) // 2
    chosen = np.r_[0:half, product.width - half : product.width]
    values: dict[str, NDArray[np.float32]] = {
        "x": weights.weight("x_table").decode(),
        "residual": weights.weight("residual_table").decode()[:, chosen],
    }
    for name in step.inputs:
        if name in values:
            continue
        stored = weights.weight(name)
        rows = Weight(stored.format, (len(chosen), product.columns), {k: p[chosen] for k, p in stored.parts.items()})
        values[name] = rows.decode()
    expected = run_op(step, values.__getitem__)
    if expected is None:
        raise TypeError(f"{type(step).__name__} gives no array")
    difference = np.linalg.norm(got[:, chosen].astype(np.float64) - expected)
    return float(difference / np.linalg.norm(expected.astype(np.float64)))
