"""The closed set of operations a plan is made of.

Each op is a frozen dataclass whose string fields name tensors of the plan; `reads` and `writes` say
which. Shapes below use T for the plan's token capacity, R for its logit rows, H for the hidden size.
Every executor implements every op; the NumPy ones in `halfbyte.reference` are the definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from halfbyte.models.spec import Activation

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a plan's tensors, by name."""


@dataclass(frozen=True)
class Op:
    """Base of all ops."""

    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("out",)
    reusable: ClassVar[tuple[str, ...]] = ()
    """Fields whose buffer the output may take over: row t of the output needs of them row t only."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors this op reads, in field order."""
        return self._names(self.reads)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors this op writes."""
        return self._names(self.writes)

    @property
    def in_place(self) -> tuple[str, ...]:
        """Names of inputs whose buffer the output may share."""
        return self._names(self.reusable)

    def _names(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        names: list[str] = []
        for field in fields:
            value = getattr(self, field)
            if isinstance(value, tuple):
                names.extend(value)
            elif value is not None:
                names.append(value)
        return tuple(names)

    def flops(self, shapes: Shapes, context: int) -> int:
        """Multiplications and additions for a full batch of the plan's capacity.

        Args:
            context: Keys that each token sees.
        """
        return 0


@dataclass(frozen=True)
class Embed(Op):
    """out[T, H] = table[ids[t]] · scale"""

    reads = ("ids", "table")
    ids: str
    table: str
    out: str
    scale: float = 1.0


@dataclass(frozen=True)
class RopeTable(Op):
    """out[T, 2, D/2] = cos and sin of positions[t] · inv_freq[sets[t]], times `factor`.

    The angle is a float32 product, as in the reference implementations.
    """

    reads = ("positions", "sets", "inv_freq")
    positions: str
    sets: str
    inv_freq: str
    out: str
    factor: float = 1.0

    def flops(self, shapes: Shapes, context: int) -> int:
        return math.prod(shapes[self.out])


@dataclass(frozen=True)
class RmsNorm(Op):
    """out[T, H] = x / √(mean(x²) + eps) · (offset + weight) · scale  [+ residual]"""

    reads = ("x", "weight", "residual")
    reusable = ("residual", "x")
    x: str
    weight: str
    out: str
    eps: float
    offset: float = 0.0
    residual: str | None = None
    scale: float = 1.0

    def flops(self, shapes: Shapes, context: int) -> int:
        return 4 * math.prod(shapes[self.out])


@dataclass(frozen=True)
class Linear(Op):
    """out[T, ΣN] = x[T, K] · Wᵀ  [+ b]  [+ residual].

    W stacks the rows of `weights`, each [N, K]; b stacks `bias`, each [N]: one vector per matrix, or none at all.
    """

    reads = ("x", "weights", "bias", "residual")
    reusable = ("residual",)
    x: str
    weights: tuple[str, ...]
    out: str
    residual: str | None = None
    bias: tuple[str, ...] = ()

    def flops(self, shapes: Shapes, context: int) -> int:
        return 2 * shapes[self.x][0] * sum(math.prod(shapes[w]) for w in self.weights)


@dataclass(frozen=True)
class LowRank(Op):
    """out[T, N] = y, with s · B · (A · x) of the token's adapter added to some parts of it (arXiv 2106.09685).

    `adapters` [T] has the number of each token's adapter, from 1 to n; tokens with 0 get y alone. Part p of the output
    begins at `columns[p]`. `a[p]` [n·r, K] stacks the A of all adapters for it, `b[p]` [n·rows of the part, r] their B,
    and `scales[p]` [n] has what products are multiplied by.
    """

    reads = ("x", "y", "a", "b", "scales", "adapters")
    reusable = ("y",)
    x: str
    y: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    scales: tuple[str, ...]
    adapters: str
    out: str
    columns: tuple[int, ...]

    def flops(self, shapes: Shapes, context: int) -> int:
        each = sum(math.prod(shapes[name]) for name in (*self.a, *self.b))
        return 2 * shapes[self.x][0] * each // shapes[self.scales[0]][0]


@dataclass(frozen=True)
class GatedLinear(Op):
    """out[T, I] = act(g) · u, where [g | u][T, 2I] = x[T, K] · Wᵀ and W stacks `weights` (gate rows, then up rows)."""

    reads = ("x", "weights")
    x: str
    weights: tuple[str, ...]
    out: str
    activation: Activation

    def flops(self, shapes: Shapes, context: int) -> int:
        return 2 * shapes[self.x][0] * sum(math.prod(shapes[w]) for w in self.weights)


@dataclass(frozen=True)
class GatedActivation(Op):
    """out[T, I] = act(x[:, :I]) · x[:, I:]; `gelu_tanh` is the tanh form of GELU."""

    reads = ("x",)
    x: str
    out: str
    activation: Activation

    def flops(self, shapes: Shapes, context: int) -> int:
        return 8 * math.prod(shapes[self.out])


@dataclass(frozen=True)
class Add(Op):
    """out = x + y, element by element."""

    reads = ("x", "y")
    reusable = ("x", "y")
    x: str
    y: str
    out: str

    def flops(self, shapes: Shapes, context: int) -> int:
        return math.prod(shapes[self.out])


@dataclass(frozen=True)
class _Heads(Op):
    """Fields shared by ops over `qkv`: rows of (heads + 2·kv_heads)·head_dim values, q then k then v."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class QkNorm(_Heads):
    """out = qkv with each head of q and of k RMS-normed by its weight [head_dim]; v unchanged.

    With `whole`, all heads of q of a token are normed together by a weight [heads·head_dim], and so are those of k.
    With `v_norm`, which does not go with `whole`, each head of v is normed too, without a weight. `kv_heads` may be 0.
    """

    reads = ("qkv", "q_weight", "k_weight")
    reusable = ("qkv",)
    qkv: str
    q_weight: str
    k_weight: str
    out: str
    eps: float
    offset: float = 0.0
    whole: bool = False
    v_norm: bool = False

    def flops(self, shapes: Shapes, context: int) -> int:
        return 4 * math.prod(shapes[self.out])


@dataclass(frozen=True)
class Rope(_Heads):
    """out = qkv with the first D values of each head of q and k rotated by `table` [T, 2, D/2]; v unchanged.

    Halves are rotated against each other (x[i], x[i + D/2]), as in Hugging Face checkpoints. Then every `hadamard`
    values (a power of two) of these heads are multiplied by the Hadamard matrix of that size (Sylvester's), divided by
    the root of its size: q·k stays as it is, and a k without outliers loses less when a cache rounds it. At position p
    the heads of q are multiplied by 1 + beta · ln(1 + ⌊p / beta_length⌋). `kv_heads` may be 0.
    """

    reads = ("qkv", "table", "positions")
    reusable = ("qkv",)
    qkv: str
    table: str
    positions: str
    out: str
    hadamard: int = 1
    beta: float = 0.0
    beta_length: int = 1

    def flops(self, shapes: Shapes, context: int) -> int:
        return (3 + self.hadamard.bit_length() - 1) * math.prod(shapes[self.out])


@dataclass(frozen=True)
class KvWrite(_Heads):
    """Write k and v of `qkv` to the paged caches [blocks, kv_heads, block_size, head_dim].

    The slot of position p in sequence s is block `blocks[s, (p // block_size) % columns]`, offset
    `p % block_size`: where a table has fewer columns than the context, the cache is a ring (sliding windows). Values
    are rounded to the caches' number format; see `halfbyte.plan.cache`.
    """

    reads = ("qkv", "positions", "sequences", "blocks")
    writes = ("k_cache", "v_cache")
    qkv: str
    positions: str
    sequences: str
    blocks: str
    k_cache: str
    v_cache: str


@dataclass(frozen=True)
class RopeKvWrite(_Heads):
    """QkNorm (when its weights are set), Rope and KvWrite in one: caches get k and v, out[T, heads·head_dim] gets q."""

    reads = ("qkv", "table", "q_weight", "k_weight", "positions", "sequences", "blocks")
    writes = ("out", "k_cache", "v_cache")
    qkv: str
    table: str
    positions: str
    sequences: str
    blocks: str
    k_cache: str
    v_cache: str
    out: str
    q_weight: str | None = None
    k_weight: str | None = None
    eps: float = 0.0
    offset: float = 0.0
    hadamard: int = 1
    beta: float = 0.0
    beta_length: int = 1
    v_norm: bool = False

    def flops(self, shapes: Shapes, context: int) -> int:
        each = (7 if self.q_weight else 3) + self.hadamard.bit_length() - 1
        return each * math.prod(shapes[self.qkv])


@dataclass(frozen=True)
class Attention(_Heads):
    """out[T, heads·head_dim]: softmax attention of each token over its sequence's cache.

    The token at position p sees positions max(0, p − window + 1) … p. Head h reads kv head
    h // (heads // kv_heads). Scores are q·k·scale, then softcap · tanh(score / softcap) where set.
    `q` holds the query heads in the first heads·head_dim values of each row.
    """

    reads = ("q", "k_cache", "v_cache", "positions", "sequences", "blocks")
    q: str
    k_cache: str
    v_cache: str
    positions: str
    sequences: str
    blocks: str
    out: str
    scale: float
    window: int | None = None
    softcap: float | None = None

    def flops(self, shapes: Shapes, context: int) -> int:
        seen = min(self.window or context, context)
        return 4 * shapes[self.q][0] * self.heads * self.head_dim * seen


@dataclass(frozen=True)
class _Stateful(Op):
    """Fields shared by ops that keep a state of each sequence; see `halfbyte.plan.plan.StateGroup`.

    The tokens that a batch has of a sequence go on from row `table[s, 0]` of `states`, or from zeros where the first is
    at position 0, and leave row `table[s, 1]`.
    """

    states: str
    positions: str
    sequences: str
    table: str


_STATE_READS = ("positions", "sequences", "table")


@dataclass(frozen=True)
class CausalConv(_Stateful):
    """out[T, C] = silu(y), or with `gated` c · y, where y[t, i] = Σ_j weight[i, 0, j] · u[t − L + 1 + j, i].

    u are the first C values of x; with `gated` rows of x are [b | c | v], and u = b · v (LFM2's short convolution).
    Before the text u is 0. `states` [N, L − 1, C] hold the last inputs u.
    """

    reads = ("x", "weight", *_STATE_READS)
    writes = ("out", "states")
    x: str
    weight: str
    out: str
    gated: bool

    def flops(self, shapes: Shapes, context: int) -> int:
        return (2 * shapes[self.weight][-1] + 8) * math.prod(shapes[self.out])


@dataclass(frozen=True)
class GatedDeltaRule(_Stateful):
    """out[T, v_heads·v_dim]: linear attention over a matrix that is corrected by each key and fades (arXiv 2412.06464).

    For each value head, S [k_dim, v_dim] being the head's part of the state before a token:

        S ← S · e^decay;  S ← S + k ⊗ (v − Sᵀ k) · β;  out = Sᵀ q / √k_dim

    q and k are divided by √(their sum of squares + 1e-6). decay = −e^a_log · softplus(a + dt_bias), β = sigmoid(b).
    Rows of `qkv` hold k_heads of q, then of k, then v_heads of v; rows of `gates` hold v_heads of b, then of a, from
    `gates_at` on. Value head h reads key head h // (v_heads // k_heads), or with `tiled` h % k_heads. `states` are
    [N, v_heads, k_dim, v_dim].
    """

    reads = ("qkv", "gates", "a_log", "dt_bias", *_STATE_READS)
    writes = ("out", "states")
    qkv: str
    gates: str
    a_log: str
    dt_bias: str
    out: str
    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    gates_at: int
    tiled: bool = False

    def flops(self, shapes: Shapes, context: int) -> int:
        return 7 * shapes[self.out][0] * self.v_heads * self.k_dim * self.v_dim


@dataclass(frozen=True)
class GatedNorm(Op):
    """out[T, heads·D]: each head of x RMS-normed by weight [D], times silu(z), columns `gate_at` and on of `gate`."""

    reads = ("x", "gate", "weight")
    x: str
    gate: str
    weight: str
    out: str
    gate_at: int
    eps: float

    def flops(self, shapes: Shapes, context: int) -> int:
        return 9 * math.prod(shapes[self.out])


@dataclass(frozen=True)
class SplitGates(_Heads):
    """out = rows of q, k and v from rows in which each head of q is followed by as many values of its gate."""

    reads = ("x",)
    x: str
    out: str


@dataclass(frozen=True)
class GateHeads(_Heads):
    """out[T, heads·head_dim] = x · sigmoid(gate), the gates lying in rows of `gates` as `SplitGates` has them."""

    reads = ("x", "gates")
    reusable = ("x",)
    x: str
    gates: str
    out: str

    def flops(self, shapes: Shapes, context: int) -> int:
        return 4 * math.prod(shapes[self.out])


@dataclass(frozen=True)
class GateColumns(Op):
    """out[T, W] = act(x) · y[:, at : at + W]; activations as `GatedActivation` has them."""

    reads = ("x", "y")
    reusable = ("x",)
    x: str
    y: str
    out: str
    at: int
    activation: Activation

    def flops(self, shapes: Shapes, context: int) -> int:
        return 8 * math.prod(shapes[self.out])


@dataclass(frozen=True)
class Scale(Op):
    """out = x · factor, which is a weight [1]."""

    reads = ("x", "factor")
    reusable = ("x",)
    x: str
    factor: str
    out: str

    def flops(self, shapes: Shapes, context: int) -> int:
        return math.prod(shapes[self.out])


@dataclass(frozen=True)
class Rows(Op):
    """out[R, H] = x[rows[r]]: the tokens whose logits are wanted."""

    reads = ("x", "rows")
    x: str
    rows: str
    out: str


@dataclass(frozen=True)
class Softcap(Op):
    """out = cap · tanh(x / cap)"""

    reads = ("x",)
    reusable = ("x",)
    x: str
    out: str
    cap: float

    def flops(self, shapes: Shapes, context: int) -> int:
        return 3 * math.prod(shapes[self.out])
