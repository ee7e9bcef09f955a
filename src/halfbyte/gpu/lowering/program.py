"""Lowered programs: plain data that says what a device has to run, and over which buffers.

Nothing here knows a device. The same data is run by `halfbyte.gpu.run`, can be written as JSON (`lowering/serial.py`),
compared and hashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.shaders.shader import Shader

Dimensions = tuple[int, int, int]
Kind = Literal["weight", "vector", "constant", "cache", "state", "scratch", "counters", "logits", "sampling"]
Count = Literal["one", "tokens", "rows", "decodes", "prompts"]


class Extent(NamedTuple):
    """How much of a program's capacity one batch uses.

    Attributes:
        tokens, rows: Tokens, and rows of logits.
        keys: The most that a token sees.
        decodes: Leading tokens that are each alone of their sequence.
    """

    tokens: int
    rows: int
    keys: int
    decodes: int = 0

    def count(self, of: Count) -> int:
        """How many there are of something."""
        match of:
            case "one":
                return 1
            case "tokens":
                return self.tokens
            case "rows":
                return self.rows
            case "decodes":
                return self.decodes
            case "prompts":
                return self.tokens - self.decodes


@dataclass(frozen=True)
class Axis:
    """Workgroups along one axis: `base` for every `step` of what the batch has of `count`, the last step perhaps short.

    The count `one` is 1 in every batch; `prompts` are the tokens that are no decodes. There may be no workgroups.
    """

    base: int = 1
    count: Count = "one"
    step: int = 1

    def at(self, extent: Extent) -> int:
        """Workgroups for a batch."""
        return self.base * ceil_div(extent.count(self.count), self.step)


@dataclass(frozen=True)
class KeySplits:
    """Workgroups that share the keys of a token: the most that `split_count` in splits.wgsl gives.

    Attributes:
        chunk: Keys that a workgroup takes at a time.
        chunks: Chunks of a split, as far as `most` allows.
        window: Keys that a token sees at most; 0 for all.
        most: Splits at most.
    """

    chunk: int
    chunks: int
    window: int
    most: int

    def at(self, extent: Extent) -> int:
        """Workgroups for a batch."""
        chunks = ceil_div(extent.keys, self.chunk)
        if self.window:
            chunks = min(chunks, ceil_div(self.window - 1, self.chunk) + 1)
        return max(1, min(self.most, ceil_div(chunks, self.chunks)))


Grid = tuple[Axis | KeySplits, Axis | KeySplits, Axis | KeySplits]
"""Workgroups along x, y and z."""


def grid(x: Axis | KeySplits | int = 1, y: Axis | KeySplits | int = 1, z: Axis | KeySplits | int = 1) -> Grid:
    """A grid; a number stands for as many workgroups in every batch."""
    first, second, third = (Axis(axis) if isinstance(axis, int) else axis for axis in (x, y, z))
    return first, second, third


@dataclass(frozen=True)
class Ref:
    """A buffer, by what it holds.

    Attributes:
        kind: `weight`, `vector`, `constant` and `cache` are found by name in the `Lowered`; there is one `state`.
            `scratch` is what programs leave for each other; `counters` are zero between dispatches, as every dispatch
            that uses them leaves them; `logits` are what every program with logits leaves; `sampling` is what choosing
            tokens takes. The sizes of these are in `buffers`.
        piece, binding: Of weights, which piece of the matrix, and which of its arrays.
    """

    kind: Kind
    name: str = ""
    piece: int = 0
    binding: str = ""


@dataclass(frozen=True)
class Dispatch:
    """One shader over its buffers.

    Attributes:
        shader: Its number.
        bindings: The buffer of each name that the shader binds, in the order of the binding numbers.
        grid: Workgroups.
        label: What it computes, for timings.
        step: The number of the plan's step that it belongs to; None for choosing a token.
        long: What runs instead where the last token sees more than `long_keys` keys.
    """

    shader: int
    bindings: Mapping[str, Ref]
    grid: Grid
    label: str = ""
    step: int | None = None
    long: Dispatch | None = None
    long_keys: int = 0

    @property
    def shaders(self) -> list[int]:
        """Every shader that may run."""
        return [self.shader, *([self.long.shader] if self.long else [])]


@dataclass(frozen=True)
class Output:
    """What a program leaves: float32 rows of `width` values, `stride` values from one to the next."""

    ref: Ref
    width: int
    stride: int


@dataclass(frozen=True)
class Program:
    """Dispatches to run in order.

    Attributes:
        output: Hidden rows or logits; None where a program leaves its results in `sampling` buffers.
        head: The first dispatch that only logits need; a batch without logits ends before it.
    """

    dispatches: tuple[Dispatch, ...]
    output: Output | None = None
    head: int = 0


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a matrix, in one set of buffers.

    Attributes:
        first: The matrix' row that is the piece's row 0.
        format: The weight format of the rows.
        pitch: Bytes of a row by the name of each of the format's arrays.
    """

    first: int
    rows: int
    format: str
    pitch: Mapping[str, int]

    def nbytes(self, binding: str) -> int:
        """Bytes of one array's buffer."""
        return buffer_nbytes(self.rows * self.pitch[binding])


@dataclass(frozen=True)
class Matrix:
    """The rows of one or more weights, stacked: `[rows, columns]` in one or more pieces.

    Attributes:
        heights: Rows of each weight.
    """

    tensors: tuple[str, ...]
    heights: tuple[int, ...]
    rows: int
    columns: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Vector:
    """Weights, one after the other `[size]`, (w + offset) · scale in float32; zeros fill up a multiple of 32 values."""

    tensors: tuple[str, ...]
    offset: float
    size: int
    scale: float = 1.0


@dataclass(frozen=True)
class Cache:
    """A layer's keys or values: `blocks` at most, of `block_nbytes` each, found through a block table."""

    table: str
    block_nbytes: int
    blocks: int


@dataclass(frozen=True)
class Lowered:
    """A model's programs and all that they refer to.

    Attributes:
        programs: `single` (one token and its logits); `body.N` and `head.N.R` (everything before the logits of up to N
            tokens, then logits of up to R rows; `many` for more); `sample.…` (choosing a token for each row).
        matrices, vectors, constants, caches: What refs of these kinds name.
        buffers: Bytes of every other buffer, zero at the start, by name.
    """

    shaders: tuple[Shader, ...]
    programs: Mapping[str, Program]
    state: StateLayout
    matrices: Mapping[str, Matrix] = field(default_factory=dict)
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    constants: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    caches: Mapping[str, Cache] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)


def ceil_div(value: int, step: int) -> int:
    """How many steps reach a value."""
    return -(-value // step)


def padded(width: int) -> int:
    """A width in whole blocks of 32."""
    return -(-width // 32) * 32


def buffer_nbytes(nbytes: int) -> int:
    """The size of a buffer for so many bytes."""
    return max(16, -(-nbytes // 16) * 16)
