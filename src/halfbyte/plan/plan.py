"""The plan: a flat list of steps over named tensors with static shapes.

Shapes are capacities: a plan for 256 tokens also runs 3. What changes from step to step (ids,
positions, lengths, block tables) lives in the state tensors, which `halfbyte.plan.batch` fills.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.plan.ops import Op, RmsNorm, Rows

Kind = Literal["weight", "constant", "state", "activation", "cache", "output"]

STATE_IDS = "token_ids"
STATE_POSITIONS = "positions"
STATE_SEQUENCES = "sequences"
STATE_ROPE_SETS = "rope_sets"
STATE_ROWS = "logit_rows"
STATE_ADAPTERS = "adapters"
LOGITS = "logits"
HIDDEN = "hidden"


@dataclass(frozen=True)
class Tensor:
    """A named tensor of the plan.

    Attributes:
        dtype: `f32` or `i32`; for caches a name in `halfbyte.plan.cache`, for weights one in `halfbyte.formats`.
        nbytes: Bytes it takes at its full shape.
        offset: Where it lies in the arena, for activations once memory is planned.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    nbytes: int
    offset: int | None = None


@dataclass(frozen=True)
class CacheGroup:
    """Layers whose caches share one block table: all that see the whole context, or all of one window.

    Attributes:
        blocks: State tensor with the block table, int32 `[sequences, columns]`.
        columns: Blocks a sequence has at most; fewer than the context needs when the cache is a ring.
        window: Keys a query sees, or None for all.
        caches: Names of the (k, v) cache tensors, a pair a layer.
    """

    blocks: str
    columns: int
    window: int | None
    caches: tuple[tuple[str, str], ...]

    @property
    def names(self) -> list[str]:
        """Names of all its cache tensors."""
        return [name for pair in self.caches for name in pair]

    def first_seen(self, position: int, block_size: int) -> int:
        """The first block that a position, or a later one, looks back to: it sees `window - 1` positions back."""
        return 0 if self.window is None else max(0, position - (self.window - 1)) // block_size


@dataclass(frozen=True)
class StateGroup:
    """Layers that keep a state of each sequence in place of its keys and values.

    What came before is one state of all these layers: a row of each of their tensors, under the same number. A state is
    of use only to a sequence that begins with all the tokens it has seen.

    Attributes:
        table: State tensor with two numbers for each sequence, int32 `[sequences, 2]`: of the state that a batch goes
            on from, and of the one that it leaves; they may be the same. A sequence whose first token of the batch is
            at position 0 goes on from zeros.
        names: The cache tensors, float32 `[states, …]`.
    """

    table: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Steps to run in order, and every tensor they name.

    Attributes:
        tokens: Capacity T: the most tokens of one batch.
        rows: Capacity R: the most rows of logits of one batch.
        sequences: The most sequences of one batch.
        context: The most positions of a sequence.
        block_size: Positions in a cache block.
        arena_nbytes: Bytes that all activations need together, lifetimes considered.
        constants: Values of the tensors of kind `constant`.
        states: The layers that keep states; None if there are none.
    """

    tokens: int
    rows: int
    sequences: int
    context: int
    block_size: int
    tensors: dict[str, Tensor]
    steps: tuple[Op, ...]
    groups: tuple[CacheGroup, ...]
    constants: dict[str, NDArray[np.float32]]
    arena_nbytes: int = 0
    states: StateGroup | None = None

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        return self.tensors[LOGITS].shape[-1]

    @property
    def cache_tokens(self) -> int:
        """Positions of all sequences together that the largest cache holds."""
        return self.block_size * max(self.tensors[group.caches[0][0]].shape[0] for group in self.groups)

    @property
    def num_states(self) -> int:
        """States of sequences that there is room for."""
        return self.tensors[self.states.names[0]].shape[0] if self.states else 0

    @property
    def states_nbytes(self) -> int:
        """Bytes of all states, however many positions the caches hold."""
        return sum(self.tensors[name].nbytes for name in self.states.names) if self.states else 0

    @property
    def kv_nbytes(self) -> int:
        """Bytes of the keys and values that the caches hold."""
        return sum(tensor.nbytes for tensor in self.of_kind("cache")) - self.states_nbytes

    def own_tables(self) -> dict[str, NDArray[np.int32]]:
        """Tables by which each sequence has its own share of every pool, in order; the pools must hold all of them."""
        numbers = np.arange(self.sequences, dtype=np.int32)[:, None]
        tables: dict[str, NDArray[np.int32]] = {}
        for group in self.groups:
            own = numbers * group.columns + np.arange(group.columns)
            tables[group.blocks] = own.astype(np.int32)
        return tables | ({self.states.table: np.repeat(numbers, 2, axis=1)} if self.states else {})

    @cached_property
    def hidden_steps(self) -> tuple[Op, ...]:
        """What makes `HIDDEN` [T, H], the hidden states of every token after the final norm, before the output matrix.

        Not among `steps`, which norm only the rows of logits. For batches that want them, these steps go before `Rows`.
        There are none where no norm follows the choice of rows.
        """
        pairs = zip(self.steps, self.steps[1:], strict=False)
        found = ((rows, norm) for rows, norm in pairs if isinstance(rows, Rows) and isinstance(norm, RmsNorm))
        return tuple(replace(norm, x=rows.x, out=HIDDEN, scale=1.0) for rows, norm in found)

    def size(self, name: str) -> int:
        """Values in tensor `name`."""
        return math.prod(self.tensors[name].shape)

    def of_kind(self, kind: Kind) -> list[Tensor]:
        """The tensors of one kind, in the order of first use."""
        return [t for t in self.tensors.values() if t.kind == kind]

    def flops(self, step: Op) -> int:
        """Multiplications and additions of a step at full capacity."""
        return step.flops(self._shapes, self.context)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def bytes_moved(self, step: Op) -> int:
        """Bytes a step reads and writes at full capacity, each tensor once; an `Embed` reads only its rows."""
        return sum(self._traffic(step, name) for name in {*step.inputs, *step.outputs})

    def _traffic(self, step: Op, name: str) -> int:
        tensor = self.tensors[name]
        if tensor.kind == "weight" and type(step).__name__ == "Embed":
            return tensor.nbytes // tensor.shape[0] * self.tokens
        if self.states and name in self.states.names:
            return 2 * self.sequences * tensor.nbytes // tensor.shape[0]
        if tensor.kind == "cache":
            group = next(g for g in self.groups if any(name in pair for pair in g.caches))
            per_position = tensor.nbytes // (tensor.shape[0] * self.block_size)
            written = name in step.outputs
            return per_position * (self.tokens if written else min(group.window or self.context, self.context))
        return tensor.nbytes
