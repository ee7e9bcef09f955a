"""Models for other programs: a GGUF file, or a folder as AutoAWQ or GPTQ lay it out."""

from __future__ import annotations

from pathlib import Path

from halfbyte.checkpoint.folder import Progress, open_checkpoint
from halfbyte.checkpoint.gguf.writer import KINDS, write_gguf
from halfbyte.checkpoint.layouts.writer import METHODS, write_foreign
from halfbyte.checkpoint.packed import is_packed
from halfbyte.errors import UsageError
from halfbyte.models import build_spec
from halfbyte.quantize import calibration as texts
from halfbyte.quantize.importance import importance

LAYOUTS = ("gguf", *METHODS)
_TOKENS = 8192


def export(
    source: Path,
    target: Path,
    *,
    layout: str = "gguf",
    kind: str | None = None,
    calibration: Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write a model for another program; what is not quite as it was, in sentences.

    Args:
        source: A model folder or GGUF file. For AutoAWQ and GPTQ, one that `quantize` has written with their method.
        target: The file (GGUF) or folder to make.
        layout: One of `LAYOUTS`.
        kind: Of a GGUF file, one of `KINDS`; by default `stored` for a quantized model, and `q4_k_m` for others.
        calibration: Text by which a GGUF file's rounding is weighed, as with llama.cpp's importance matrix.
        name: What a GGUF file says the model is called; by default the source's name.
        progress: Called as progress(what, done, all).

    Raises:
        UsageError: Options that do not go together, or the target is taken.
        UnsupportedModelError: The layout has no place for the model, or for a format it is stored in.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"{layout!r} is no layout to export to.", f"Choose one of {', '.join(LAYOUTS)}.")
    checkpoint = open_checkpoint(source)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    tick = progress or (lambda what, done, total: None)
    if layout != "gguf":
        if kind or calibration or overwrite:
            raise UsageError(
                f"{layout} keeps the codes of the source.", "Kind, calibration and overwrite go with gguf."
            )
        write_foreign(target, checkpoint, spec, checkpoint.settings(), method=layout, progress=tick)
        return ()
    packed = any(is_packed(checkpoint.format(tensor)) for tensor in spec.shapes)
    kind = kind or ("stored" if packed else "q4_k_m")
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is no kind of GGUF file.", f"Choose one of {', '.join(KINDS)}.")
    weights = None
    if calibration is not None:
        if kind in ("stored", "f16", "bf16"):
            raise UsageError(f"Files of the kind {kind} are not calibrated.", "Choose q4_k_m or another packed kind.")
        length = min(texts.LENGTH, spec.context)
        ids = texts.read_calibration(checkpoint, calibration, tokens=_TOKENS, length=length)
        weights = importance(checkpoint, spec, ids, tick)
    rounded = write_gguf(
        target, checkpoint, spec, checkpoint.tokenizer_files(), kind=kind, importance=weights,
        name=name or source.resolve().name, overwrite=overwrite, progress=tick,
    )  # fmt: skip
    return (f"{rounded:,} blocks of q4_1 have an offset rounded to float16 (11 bits).",) if rounded else ()
