"""The options of `quantize`; values that make no sense are refused here, before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from halfbyte.errors import UsageError
from halfbyte.quantization.calibration import TOKENS
from halfbyte.quantization.recipe import group_format

Method = Literal["rtn", "awq", "awq+", "gptq"]
METHODS: tuple[Method, ...] = ("rtn", "awq", "awq+", "gptq")


@dataclass(frozen=True)
class Options:
    """How to quantize a model.

    Attributes:
        method: `rtn`, `awq`, `awq+` (AWQ, with the embedding table and the output matrix in 4 bits and groups of 32),
            `gptq`.
        bits: 3, 4 or 8 bits per weight of the decoder layers.
        group_size: Weights that share a scale: 32, 64 or 128.
        zero_points: Whether each group of 3 or 4 bits has a zero point.
        embed_bits, head_bits: Bits of the embedding table and the output matrix, 16 to leave them; by default those
            of the layers for rtn and gptq, and 16 for awq. A tied output matrix is the embedding table.
        embed_group_size, head_group_size: Their group sizes, by default that of the layers.
        budget: Average bits per weight of the whole file; formats are then chosen tensor by tensor.
        clip: Whether `rtn` searches for the ranges with the least squared error.
        awq_scales: Whether AWQ's scales are applied before GPTQ.
        refine: Steps, of four calibration texts each, that train scales and norms to match the original's output.
        calibration: A text file; needed by all methods but plain rtn, which takes none.
        calibration_tokens: How many of its tokens to use.

    Raises:
        UsageError: A value is out of range, or two contradict each other.
    """

    method: Method = "rtn"
    bits: int = 4
    group_size: int = 32
    zero_points: bool = False
    embed_bits: int | None = None
    head_bits: int | None = None
    embed_group_size: int | None = None
    head_group_size: int | None = None
    embed_format: str | None = None
    head_format: str | None = None
    budget: float | None = None
    clip: bool = False
    awq_scales: bool = False
    refine: int = 0
    calibration: Path | None = None
    calibration_tokens: int = TOKENS

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"There is no method {self.method!r}.", f"Choose one of {', '.join(METHODS)}.")
        if self.bits not in (3, 4, 8):
            raise UsageError(f"{self.bits} bits are not supported.", "Choose 3, 4 or 8.")
        group_format(self.bits, self.group_size, self.zero_points)
        self._check_end("embedding table", self.embed_bits, self.embed_group_size)
        self._check_end("output matrix", self.head_bits, self.head_group_size)
        self._check_method()
        self._check_budget()
        self._check_calibration()

    def end(self, bits: int | None, group_size: int | None) -> tuple[int, int]:
        """Bits and group size of the embedding table or the output matrix, with defaults for those not given."""
        rest = {"awq": 16, "awq+": 4}.get(self.method, self.bits)
        group = 32 if self.method == "awq+" else self.group_size
        return (rest if bits is None else bits), (group if group_size is None else group_size)

    def _check_end(self, what: str, bits: int | None, group_size: int | None) -> None:
        chosen = self.end(bits, group_size)
        group_format(*chosen, self.zero_points)
        if group_size is not None and chosen[0] == 16:
            raise UsageError(
                f"The {what} stays in 16 bits, without groups.", "Give it fewer bits, or leave out its group size."
            )

    def _check_method(self) -> None:
        if self.clip and self.method != "rtn":
            raise UsageError(f"`clip` only applies to rtn; {self.method} has its own clipping.", "Leave out `clip`.")
        if self.awq_scales and self.method != "gptq":
            raise UsageError(f"`awq_scales` only applies to gptq, not to {self.method}.", "Choose method='gptq'.")
        if self.refine < 0:
            raise UsageError(f"refine={self.refine} is not a number of steps.", "Choose 0 or more.")
        if self.refine and self.method == "rtn":
            raise UsageError("`refine` only applies to awq and gptq, not to rtn.", "Choose method='gptq'.")

    def _check_budget(self) -> None:
        if self.budget is None:
            return
        if self.method in ("awq", "awq+"):
            raise UsageError(f"`budget` only applies to rtn and gptq, not to {self.method}.", "Choose method='gptq'.")
        if not 3 <= self.budget <= 16:
            raise UsageError(f"A budget of {self.budget} bits per weight is out of range.", "Choose 3 to 16.")
        ends = (self.embed_bits, self.head_bits, self.embed_group_size, self.head_group_size)
        if any(value is not None for value in (*ends, self.embed_format, self.head_format)):
            raise UsageError("`budget` chooses the formats itself.", "Leave out `budget`, or the bits and group sizes.")

    def _check_calibration(self) -> None:
        if self.calibration is None and (self.method != "rtn" or self.budget is not None):
            what = self.method if self.budget is None else "A budget"
            raise UsageError(f"{what} needs calibration text.", "Name a text file with `calibration`.")
        if self.calibration is not None and self.method == "rtn" and self.budget is None:
            raise UsageError("rtn does not use calibration text.", "Leave out `calibration`, or choose method='gptq'.")
        if self.calibration is not None and not self.calibration.is_file():
            raise UsageError(f"There is no file {self.calibration}.", "Name a UTF-8 text file with `calibration`.")
