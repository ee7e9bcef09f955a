"""Round to nearest: each group of weights by itself, without looking at what the model does with them."""

from __future__ import annotations

from pathlib import Path

from halfbyte.checkpoint.folder import Checkpoint, Progress, open_checkpoint
from halfbyte.checkpoint.manifest import Manifest
from halfbyte.checkpoint.packed import Packed, is_packed
from halfbyte.checkpoint.writer import Outgoing, write_folder
from halfbyte.errors import UsageError
from halfbyte.formats import Parts
from halfbyte.models import build_spec
from halfbyte.quantize.recipe import uniform

METHOD = "rtn"


def quantize(
    source: Path,
    target: Path,
    *,
    group_size: int = 32,
    zero_points: bool = False,
    embed_format: str | None = None,
    head_format: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the model in `source` to the folder `target` with its matrices in 4 bits; returns the manifest.

    Memory holds one packed tensor and a few megabytes. Only tensors that text generation needs are written.

    Args:
        group_size: Weights that share a scale: 32, 64 or 128.
        zero_points: Whether each group has a zero point too.
        embed_format, head_format: Other formats for the embedding table and the output matrix.
        name: What the manifest says the model was made from; by default the source folder's name.
        overwrite: Whether a folder that Halfbyte wrote may be replaced.
        progress: Called as progress(tensor, bytes written, bytes in all).

    Raises:
        UsageError: The source is packed already, an option is out of range, or the target is taken.
        InvalidModelError: The source is damaged, or holds NaN or infinity.
        UnsupportedModelError: The source is of a kind Halfbyte cannot run.
    """
    if group_size not in (32, 64, 128):
        raise UsageError(f"Groups of {group_size} are not supported.", "Choose 32, 64 or 128.")
    checkpoint = open_checkpoint(source)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    _refuse_packed(checkpoint)
    recipe = uniform(f"q4g{group_size}{'z' if zero_points else ''}", embed_format=embed_format, head_format=head_format)
    packed = Packed(checkpoint, recipe)

    def parts(tensor: str) -> Parts:
        return packed.weight(tensor).parts

    return write_folder(
        target,
        [_outgoing(packed, tensor) for tensor in spec.shapes],
        parts,
        settings=source,
        source=name or source.resolve().name,
        overwrite=overwrite,
        progress=progress,
    )


def _outgoing(packed: Packed, tensor: str) -> Outgoing:
    form = packed.format(tensor)
    return Outgoing(tensor, packed.shapes[tensor], form, METHOD if is_packed(form) else "copy")


def _refuse_packed(checkpoint: Checkpoint) -> None:
    packed = next((name for name in checkpoint.shapes if is_packed(checkpoint.format(name))), None)
    if packed is not None:
        raise UsageError(
            f"{checkpoint.path} is quantized already ({packed} in {checkpoint.format(packed).name}).",
            "Start from the model's bf16, f16 or f32 checkpoint.",
        )
