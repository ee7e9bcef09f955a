"""The C++ core; what each op computes is defined in `halfbyte.plan.ops`.

Arrays are C-contiguous views with the shapes of the plan; programs and matrices keep those that they use alive.
Arrays or attributes that disagree raise ValueError, those of a type that no op takes TypeError.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Bytes: TypeAlias = NDArray[np.uint8]

class Matrix:
    @property
    def nbytes(self) -> int: ...

class Program:
    def __init__(self, threads: int, context: int, isa: str = "", int8: bool = True, spin: bool = True) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def matrix(
        self,
        format: str,
        codes: _Bytes,
        scales: _Bytes | None,
        zeros: _Bytes | None,
        rows: int,
        columns: int,
        group: int,
    ) -> Matrix:
        """A weight in one of `formats()`: plain ones are read in place, the others repacked by all threads.

        `codes` are the values of a plain format. `group` is the number of columns of a group, where that may vary.
        """

    def step(self, op: str, over_rows: bool, fields: Mapping[str, Any]) -> None:
        """Append the step of one of `ops()`.

        `over_rows` says that the first dimension of its arrays counts rows of logits, not tokens. `fields` are those of
        the op's dataclass: arrays, a matrix or a list of them, numbers, names; None or absent where not set.
        """

    def run(self, tokens: int, rows: int) -> None: ...
    def step_ns(self) -> NDArray[np.int64]: ...
    @property
    def start_ns(self) -> int: ...

def formats() -> list[str]: ...
def ops() -> list[str]: ...
def isas() -> list[str]: ...
def processor_name() -> str: ...
def processor_features() -> list[str]: ...
def copy_bandwidth(threads: int, nbytes: int, seconds: float) -> float: ...
def int8_rate(threads: int, isa: str, seconds: float) -> float: ...
def read_bandwidth(threads: int, nbytes: int, seconds: float) -> float: ...
