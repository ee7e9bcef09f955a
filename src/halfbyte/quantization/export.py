"""Models for other programs: a GGUF file, or a folder as AutoAWQ or GPTQ lay it out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from halfbyte.atomic import claimed, refuse_unwritable
from halfbyte.checkpoint.base import Progress
from halfbyte.checkpoint.gguf.writer import KINDS, write_gguf
from halfbyte.checkpoint.layouts.writer import METHODS, write_foreign
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.checkpoint.packed import is_packed
from halfbyte.checkpoint.runnable import block_format
from halfbyte.errors import UsageError
from halfbyte.formats import Format
from halfbyte.models import build_spec
from halfbyte.quantization import calibration as texts
from halfbyte.quantization.importance import importance

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
    allow_requantize: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write a model for another program; returns notes on values that changed a little.

    Args:
        source: A model folder or GGUF file. For AutoAWQ and GPTQ, one that `quantize` has written with their method.
        target: The file (GGUF) or folder to make, in a folder that exists.
        layout: One of `LAYOUTS`.
        kind: The kind of GGUF file, one of `KINDS` in any case; by default `stored` for a quantized model, and
            `q4_k_m` for others.
        calibration: Text whose activations weigh the rounding errors, as llama.cpp's importance matrix does.
        name: The model's name in a GGUF file; by default the source's name.
        allow_requantize: Whether a quantized matrix may be rounded a second time, into another format.
        progress: Called as progress(what, done, all).

    Raises:
        UsageError: Options contradict each other, the target is taken or being written, or a quantized model would be
            rounded again.
        UnsupportedModelError: The layout has no place for the model, or for a format it is stored in.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}.", f"Choose one of {', '.join(LAYOUTS)}.")
    _check_target(target, layout, overwrite)
    with claimed(target):
        return _export(source, target, layout, kind, calibration, name, overwrite, allow_requantize, progress)


def _check_target(target: Path, layout: str, overwrite: bool) -> None:
    refuse_unwritable(target, overwrite=overwrite)
    if layout == "gguf" and target.suffix.lower() != ".gguf":
        raise UsageError(f"{target} does not end in .gguf, so it could not be run.", f"Write {target}.gguf instead.")


def _export(
    source: Path,
    target: Path,
    layout: str,
    kind: str | None,
    calibration: Path | None,
    name: str | None,
    overwrite: bool,
    allow_requantize: bool,
    progress: Progress | None,
) -> tuple[str, ...]:
    checkpoint = open_checkpoint(source)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    tick = progress or (lambda what, done, total: None)
    if layout != "gguf":
        if kind or calibration or overwrite or allow_requantize:
            raise UsageError(
                f"layout={layout!r} keeps the quantized values of the source.",
                "Leave out `kind`, `calibration`, `allow_requantize` and `overwrite`: they only apply to gguf.",
            )
        write_foreign(target, checkpoint, spec, checkpoint.settings(), method=layout, progress=tick)
        return ()
    packed = {tensor: checkpoint.format(tensor) for tensor in spec.shapes if is_packed(checkpoint.format(tensor))}
    kind = (kind or ("stored" if packed else "q4_k_m")).lower()
    if kind not in KINDS:
        raise UsageError(f"There is no kind of GGUF file {kind!r}.", f"Choose one of {', '.join(KINDS)}.")
    if not allow_requantize:
        _refuse_requantizing(packed, kind)
    weights = None
    if calibration is not None:
        if kind in ("stored", "f16", "bf16"):
            raise UsageError(
                f"`calibration` has no effect on kind={kind!r}.", "Choose q4_k_m or another quantized kind."
            )
        length = min(texts.LENGTH, spec.context)
        ids = texts.read_calibration(checkpoint, calibration, tokens=_TOKENS, length=length)
        weights = importance(checkpoint, spec, ids, tick)
    rounded = write_gguf(
        target, checkpoint, spec, checkpoint.tokenizer_files(), kind=kind, importance=weights,
        name=name or source.resolve().name, overwrite=overwrite, progress=tick,
    )  # fmt: skip
    return (f"In {rounded:,} blocks, q4_1 stores the zero point's offset rounded to float16.",) if rounded else ()


def _refuse_requantizing(packed: Mapping[str, Format], kind: str) -> None:
    """Refuse a kind that would round quantized matrices again, rather than keep their codes or decode them."""
    wanted = KINDS[kind]
    if kind in ("stored", "f16", "bf16"):
        return
    kept = {wanted.base, wanted.head, wanted.more}
    name, form = next(((n, f) for n, f in packed.items() if block_format(f) not in kept), (None, None))
    if form is not None:
        raise UsageError(
            f"The model is quantized already ({name} in {form.name}); {kind} would round it a second time.",
            "Start from the bf16, f16 or f32 model, use kind='stored', or pass allow_requantize=True.",
        )
