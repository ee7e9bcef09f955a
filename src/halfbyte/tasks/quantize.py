"""`halfbyte.quantize`: write a smaller copy of a model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from halfbyte import display
from halfbyte.errors import UsageError
from halfbyte.executors import Progress
from halfbyte.model import locate
from halfbyte.progress import shown
from halfbyte.quantization import Options
from halfbyte.quantization import quantize as write_quantized
from halfbyte.quantization.calibration import TOKENS
from halfbyte.quantization.options import Method
from halfbyte.units import size


@dataclass(frozen=True)
class Quantized:
    """A model that `quantize` has written.

    Attributes:
        path: Its folder, which `load` takes.
        source: What it was made from.
        bits_per_weight: Stored bits over weights, of the whole model.
        nbytes: Bytes of all files of the folder.
        formats: How many tensors are stored in each format.
        seconds: How long it took.
    """

    path: Path
    source: str
    method: str
    bits_per_weight: float
    nbytes: int
    formats: Mapping[str, int]
    seconds: float

    def _repr_html_(self) -> str:
        formats = ", ".join(f"{count} tensors in {name}" for name, count in self.formats.items())
        rows = [
            ("source", self.source), ("method", self.method), ("bits per weight", f"{self.bits_per_weight:.3f}"),
            ("size", size(self.nbytes)), ("formats", formats), ("time", f"{self.seconds:.1f} s"),
        ]  # fmt: skip
        return display.table(rows, caption=str(self.path))


def quantize(
    model: str | Path,
    target: str | Path,
    *,
    method: Method = "rtn",
    bits: int | None = None,
    group_size: int | None = None,
    zero_points: bool | None = None,
    embed_bits: int | None = None,
    head_bits: int | None = None,
    embed_group_size: int | None = None,
    head_group_size: int | None = None,
    budget: float | None = None,
    clip: bool = False,
    awq_scales: bool = False,
    refine: int = 0,
    calibration: str | Path | None = None,
    calibration_tokens: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | bool | None = None,
) -> Quantized:
    """Write a smaller copy of a model, in 3, 4 or 8 bits per weight.

    If it is interrupted, the same call resumes.

    Args:
        model: A folder, a GGUF file or a hub id, in bf16, f16 or f32.
        target: The folder to write.
        method: `rtn` (round to nearest), `awq`, `awq+` (with the embedding table and the output matrix in 4 bits too)
            or `gptq`. All but plain `rtn` need calibration text.
        bits: Bits per weight of the decoder layers: 3, 4 (the default) or 8.
        group_size: Weights that share a scale: 32, 64 or 128. By default 32; 128 for `awq+`.
        zero_points: Whether each group of 3 or 4 bits has a zero point. By default all methods but `rtn` have them.
        embed_bits, head_bits: Bits of the embedding table and of the output matrix; 16 leaves them as they are. By
            default those of the layers; 16 for `awq`.
        embed_group_size, head_group_size: Their group sizes, by default that of the layers.
        budget: Target average bits per weight of the whole file; sensitive layers get more. For `rtn` and `gptq`.
        clip: For `rtn`: choose ranges by least squared error.
        awq_scales: For `gptq`: apply AWQ's scales first.
        refine: After `gptq` or `awq`, train scales and norms for so many steps to match the original's output.
        calibration: A text file.
        calibration_tokens: How many of its tokens to use, 65,536 by default.
        overwrite: Whether to replace a target that Halfbyte wrote.
        restart: Whether to discard unfinished work of an earlier call.
        progress: True for a bar on the terminal or in the notebook, or a function, called as
            progress(what, done, all).

    Raises:
        UsageError: An option is out of range or contradicts another, the model is quantized already, or the target
            exists.
        ModelNotFoundError, DownloadError: There is no such model, or it could not be fetched.
        InvalidModelError, UnsupportedModelError: Its files are damaged, or of a kind Halfbyte cannot run.
        HalfbyteError: The disk is too small or full.
    """
    if budget is not None and any(value is not None for value in (bits, group_size, zero_points)):
        raise UsageError("`budget` chooses the formats itself.", "Leave out `budget`, or the bits and group sizes.")
    if zero_points and bits == 8 and method != "awq+" and not {3, 4} & {embed_bits, head_bits}:
        raise UsageError("`zero_points` has no effect in 8 bits.", "Leave it out, or choose bits=4 or bits=3.")
    if calibration_tokens is not None and calibration is None:
        raise UsageError("`calibration_tokens` has no effect without `calibration`.", "Name a text file as well.")
    options = Options(
        method=method, clip=clip, awq_scales=awq_scales, refine=refine,
        bits=4 if bits is None else bits,
        group_size=(128 if method == "awq+" else 32) if group_size is None else group_size,
        zero_points=method != "rtn" if zero_points is None else zero_points,
        embed_bits=embed_bits, head_bits=head_bits, embed_group_size=embed_group_size, head_group_size=head_group_size,
        budget=budget, calibration=None if calibration is None else Path(calibration),
        calibration_tokens=TOKENS if calibration_tokens is None else calibration_tokens,
    )  # fmt: skip
    folder, path = locate(model, None, False), Path(target)
    name = None if folder == Path(model) else str(model)
    began = time.monotonic()
    with shown(progress) as tick:
        manifest = write_quantized(
            folder, path, name=name, overwrite=overwrite, restart=restart, progress=tick, **vars(options)
        )
    formats = Counter(record.format for record in manifest.tensors.values())
    return Quantized(
        path=path, source=manifest.source, method=method, bits_per_weight=manifest.bits_per_weight,
        nbytes=sum(file.stat().st_size for file in path.iterdir()), formats=dict(formats.most_common()),
        seconds=time.monotonic() - began,
    )  # fmt: skip
