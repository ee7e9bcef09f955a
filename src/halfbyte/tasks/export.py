"""`halfbyte.export`: write a model for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from halfbyte import display
from halfbyte.executors import Progress
from halfbyte.model import locate
from halfbyte.progress import shown
from halfbyte.quantization.export import export as write_exported
from halfbyte.units import size


@dataclass(frozen=True)
class Exported:
    """A model that `export` has written.

    Attributes:
        path: The file or folder.
        nbytes: Bytes of its files.
        notes: Which values changed a little.
    """

    path: Path
    nbytes: int
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        rows = [("size", size(self.nbytes)), *(("note", note) for note in self.notes)]
        return display.table(rows, caption=str(self.path))


def export(
    model: str | Path | None,
    target: str | Path,
    *,
    layout: Literal["gguf", "awq", "gptq", "gptq_v2"] = "gguf",
    kind: str | None = None,
    calibration: str | Path | None = None,
    overwrite: bool = False,
    allow_requantize: bool = False,
    progress: Progress | bool | None = None,
) -> Exported:
    """Write a model as GGUF, or in the layout of AutoAWQ or GPTQ.

    Args:
        model: A folder, a GGUF file, a hub id, or None for the pocket model. For AutoAWQ and GPTQ, a folder that
            `quantize` has written with their method.
        target: The file (GGUF) or folder to write, in a folder that exists.
        layout: `gguf`, `awq` (AutoAWQ's), `gptq` (as older tools expect it) or `gptq_v2`.
        kind: The kind of GGUF file, such as `q4_k_m`, `q8_0`, `f16`, or `stored`, which keeps the bits of a quantized
            model. By default `stored` for a quantized model, and `q4_k_m` for others.
        calibration: A text file whose activations weigh the rounding errors, as llama.cpp's importance matrix does.
        overwrite: Whether to replace the target if it is a file.
        allow_requantize: Whether a quantized matrix may be rounded a second time, into another format.
        progress: True for a bar on the terminal or in the notebook, or a function, called as
            progress(what, done, all).

    Raises:
        UsageError: Options contradict each other, the target exists, or a quantized model would be rounded again.
        ModelNotFoundError, DownloadError: There is no such model, or it could not be fetched.
        InvalidModelError: Its files are damaged.
        UnsupportedModelError: The layout has no place for the model, or for a format it is stored in.
    """
    folder, path = locate(model, None, False), Path(target)
    name = str(model) if model is not None and folder != Path(model) else None
    with shown(progress) as tick:
        notes = write_exported(
            folder, path, layout=layout, kind=kind, calibration=None if calibration is None else Path(calibration),
            name=name, overwrite=overwrite, allow_requantize=allow_requantize, progress=tick,
        )  # fmt: skip
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return Exported(path, sum(file.stat().st_size for file in files), notes)
