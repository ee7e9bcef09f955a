"""The C++ core; what each op computes is defined in `halfbyte.plan.ops`.

Arrays are C-contiguous views with the shapes of the plan; programs and matrices keep those that they use alive.
Arrays or attributes that disagree raise ValueError, those of a type that no op takes TypeError.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Bytes: TypeAlias = NDArray[np.uint8]

class Matrix:
    @property
    def nbytes(self) -> int: ...

class ChoiceSettings:
    """How one sequence's tokens are chosen: `SamplingParams`, with its seed; a temperature of 0 is greedy."""

    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        typical_p: float,
        top_p: float,
        min_p: float,
        repetition: float,
        presence: float,
        frequency: float,
        seed: int,
        logprobs: int,
        bias_ids: NDArray[np.int64],
        bias: NDArray[np.float32],
    ) -> None: ...

class Choice:
    """A chosen token; where `peak`, the logit of the token `likeliest`, is not finite, nothing was chosen."""

    @property
    def id(self) -> int: ...
    @property
    def logprob(self) -> float: ...
    @property
    def likeliest(self) -> int: ...
    @property
    def peak(self) -> float: ...
    @property
    def top(self) -> list[tuple[int, float]]: ...

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

    def step(self, op: str, axis: str, fields: Mapping[str, Any]) -> None:
        """Append the step of one of `ops()`.

        `axis` says what the first dimension of its arrays counts: `tokens`, `rows` of logits, or `hidden`, which are
        the tokens of batches that want hidden states, and none of others. `fields` are those of the op's dataclass:
        arrays, a matrix or a list of them, numbers, names; None or absent where not set.
        """

    def run(self, tokens: int, rows: int, hidden: bool = False) -> None: ...
    def choose(
        self,
        logits: NDArray[np.float32],
        rows: Sequence[tuple[ChoiceSettings, int, NDArray[np.int64], NDArray[np.float32], NDArray[np.uint32] | None]],
    ) -> list[Choice]:
        """The token after each row of `logits`, on all threads.

        A row has its settings, the number of tokens before it, the tokens that penalties concern with their counts, and
        the bits of those that may come; None for all.
        """

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
