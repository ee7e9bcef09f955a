"""The C++ core; what each op computes is defined in `halfbyte.plan.ops`.

Arrays are C-contiguous views with the shapes of the plan; they are kept alive by the program. Each op's
method appends one step. `over_rows` says that the first dimension counts rows of logits, not tokens.
`heads` is (heads, kv_heads, head_dim), `paging` (positions, sequences, blocks), `caches` (k, v).
Arrays or attributes that disagree raise ValueError, those of a wrong dtype TypeError.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Floats: TypeAlias = NDArray[np.float32]
_Ints: TypeAlias = NDArray[np.int32]
_Bytes: TypeAlias = NDArray[np.uint8]
_Heads: TypeAlias = tuple[int, int, int]
_Paging: TypeAlias = tuple[_Ints, _Ints, _Ints]
_Caches: TypeAlias = tuple[NDArray[np.floating], NDArray[np.floating]]

class Matrix:
    @property
    def nbytes(self) -> int: ...

def dense_matrix(values: _Bytes, format: str, rows: int, columns: int) -> Matrix: ...

class Program:
    def __init__(self, threads: int, context: int, isa: str = "", int8: bool = True) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def run(self, tokens: int, rows: int) -> None: ...
    def step_ns(self) -> NDArray[np.int64]: ...
    @property
    def start_ns(self) -> int: ...
    def packed_matrix(
        self, codes: _Bytes, scales: _Bytes, zeros: _Bytes | None, rows: int, columns: int, group: int, bits: int
    ) -> Matrix: ...
    def block_matrix(self, blocks: _Bytes, format: str, rows: int, columns: int) -> Matrix: ...
    def embed(self, ids: _Ints, table: Matrix, out: _Floats, scale: float) -> None: ...
    def rows(self, x: _Floats, rows: _Ints, out: _Floats) -> None: ...
    def add(self, over_rows: bool, x: _Floats, y: _Floats, out: _Floats) -> None: ...
    def gated_activation(self, over_rows: bool, x: _Floats, out: _Floats, activation: str) -> None: ...
    def softcap(self, over_rows: bool, x: _Floats, out: _Floats, cap: float) -> None: ...
    def linear(
        self,
        over_rows: bool,
        x: _Floats,
        weights: Sequence[Matrix],
        bias: _Floats | None,
        out: _Floats,
        residual: _Floats | None,
    ) -> None: ...
    def gated_linear(
        self, over_rows: bool, x: _Floats, weights: Sequence[Matrix], out: _Floats, activation: str
    ) -> None: ...
    def rms_norm(
        self,
        over_rows: bool,
        x: _Floats,
        weight: _Floats,
        out: _Floats,
        eps: float,
        offset: float,
        residual: _Floats | None,
    ) -> None: ...
    def qk_norm(
        self,
        heads: _Heads,
        qkv: _Floats,
        norm_weights: tuple[_Floats, _Floats],
        out: _Floats,
        eps: float,
        offset: float,
    ) -> None: ...
    def rope_table(self, positions: _Ints, sets: _Ints, inv_freq: _Floats, out: _Floats, factor: float) -> None: ...
    def rope(self, heads: _Heads, qkv: _Floats, table: _Floats, out: _Floats) -> None: ...
    def kv_write(self, heads: _Heads, qkv: _Floats, paging: _Paging, caches: _Caches) -> None: ...
    def rope_kv_write(
        self,
        heads: _Heads,
        qkv: _Floats,
        table: _Floats,
        norm_weights: tuple[_Floats, _Floats] | None,
        eps: float,
        offset: float,
        paging: _Paging,
        caches: _Caches,
        out: _Floats,
    ) -> None: ...
    def attention(
        self,
        heads: _Heads,
        q: _Floats,
        caches: _Caches,
        paging: _Paging,
        out: _Floats,
        scale: float,
        window: int,
        softcap: float,
    ) -> None: ...

def isas() -> list[str]: ...
def processor_name() -> str: ...
def processor_features() -> list[str]: ...
def copy_bandwidth(threads: int, nbytes: int, seconds: float) -> float: ...
def int8_rate(threads: int, isa: str, seconds: float) -> float: ...
def read_bandwidth(threads: int, nbytes: int, seconds: float) -> float: ...
