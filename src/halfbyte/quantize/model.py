"""`quantize`: a model in, a folder with a smaller one out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.folder import Checkpoint, Progress, open_checkpoint
from halfbyte.checkpoint.manifest import Manifest
from halfbyte.checkpoint.packed import Packed, Recipe, is_packed
from halfbyte.checkpoint.writer import Outgoing, check_target, write_folder
from halfbyte.errors import UsageError
from halfbyte.formats import Format, Parts, get_format
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.quantize import calibration as texts
from halfbyte.quantize.options import Options
from halfbyte.quantize.recipe import for_model, group_format, listed

if TYPE_CHECKING:
    from halfbyte.quantize.layerwise import Layerwise

_AUTO_TOKENS = 4096


def quantize(
    source: Path,
    target: Path,
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Manifest:
    """Write a model with its matrices in few bits to the folder `target`; returns the manifest.

    Only tensors that text generation needs are written. The work of the calibrated methods is kept beside the target
    until that is complete, and taken up again when the same is asked for.

    Args:
        source: A folder or GGUF file.
        name: What the manifest says the model was made from; by default the source folder's name.
        overwrite: Whether a folder that Halfbyte wrote may be replaced.
        progress: Called as progress(what, done, all): bytes while writing, layers before.
        **options: Fields of `Options`.

    Raises:
        UsageError: The source is packed already, an option is out of range, or the target is taken.
        InvalidModelError: The source is damaged, or holds NaN or infinity.
        UnsupportedModelError: The source is of a kind Halfbyte cannot run.
    """
    wanted = Options(**options)
    check_target(target, source, overwrite)
    job = _Job(source, target, wanted, progress or (lambda what, done, total: None))
    return job.run(name or source.resolve().name, overwrite)


class _Job:
    """One model being quantized."""

    def __init__(self, source: Path, target: Path, options: Options, progress: Progress) -> None:
        self.source, self.target, self.options, self.progress = source, target, options, progress
        self.checkpoint = open_checkpoint(source)
        self.spec = build_spec(self.checkpoint.config, self.checkpoint.generation_config, self.checkpoint.shapes)
        self.checkpoint.check(self.spec)
        _refuse_packed(self.checkpoint)
        _refuse_two_for_one(self.spec, options)
        if options.refine:
            _refuse_too_large(self.spec)

    def run(self, name: str, overwrite: bool) -> Manifest:
        manifest = self._made(Packed(self.checkpoint, self._recipe()), name, overwrite)
        self._kept_formats.unlink(missing_ok=True)
        return manifest

    def _made(self, packed: Packed, name: str, overwrite: bool) -> Manifest:
        if self.options.method == "rtn":
            return self._write(packed, {}, lambda tensor: self._rounded(packed, tensor), name, overwrite)
        from halfbyte.quantize.layerwise import Layerwise
        from halfbyte.quantize.work import WorkFolder

        task = self._task(packed)
        work = WorkFolder(self.target.parent / f".{self.target.name}.work", self._fingerprint(task.formats))
        layerwise = Layerwise(self.checkpoint, self.spec, task, work, self.progress)
        layerwise.run()
        made = dict(task.formats)
        refined = self._refined(layerwise, packed) if self.options.refine else {}
        made |= {tensor: get_format("f32") for tensor in refined if len(self.spec.shapes[tensor]) == 1}

        def parts(tensor: str) -> Parts:
            if tensor in refined:
                return refined[tensor]
            return work.parts(tensor) if tensor in made else packed.weight(tensor).parts

        manifest = self._write(packed, made, parts, name, overwrite)
        work.remove()
        return manifest

    def _refined(self, layerwise: Layerwise, packed: Packed) -> dict[str, Parts]:
        """What refining changes of a model that was quantized layer by layer."""
        from halfbyte.quantize.refine import Refiner, Stored

        task = layerwise.task
        stored = {}
        for tensor, shape in self.spec.shapes.items():
            form = task.formats.get(tensor) or packed.format(tensor)
            parts = layerwise.work.parts(tensor) if tensor in task.formats else packed.weight(tensor).parts
            stored[tensor] = Stored(form, parts, form.decode(parts, shape))
        refiner = Refiner(self.spec, layerwise.forward, stored, task.ids, layerwise.original_logits())
        return refiner.run(self.options.refine, self.progress)

    def _write(self, packed: Packed, made: Mapping[str, Format], parts: Any, name: str, overwrite: bool) -> Manifest:
        tensors = []
        for tensor, shape in self.spec.shapes.items():
            form = made.get(tensor) or packed.format(tensor)
            changed = tensor in made or is_packed(form)
            tensors.append(Outgoing(tensor, shape, form, self.options.method if changed else "copy"))
        return write_folder(
            self.target, tensors, parts, settings=self.checkpoint.settings(), origin=self.source, source=name,
            overwrite=overwrite, progress=self.progress,
        )  # fmt: skip

    def _recipe(self) -> Recipe:
        """The format of each tensor, as options or the budget say."""
        o = self.options
        if o.budget is not None:
            return listed(self._budgeted(o.budget - self._bits_of_norms()))
        ends = [(o.embed_bits, o.embed_group_size), (o.head_bits, o.head_group_size)]
        if self.spec.embed == self.spec.lm_head:
            ends = [_first_of_each(*ends)] * 2
        embed, head = (group_format(*o.end(*asked), o.zero_points) for asked in ends)
        body = group_format(o.bits, o.group_size, o.zero_points)
        return for_model(self.spec, body, o.embed_format or embed, o.head_format or head)

    def _budgeted(self, budget: float) -> dict[str, str]:
        """The formats that a budget buys, kept beside the target until that is complete: finding them takes long."""
        from halfbyte.quantize.auto import auto_formats

        task = {**self._fingerprint({}), "budget": budget}
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            kept = json.loads(self._kept_formats.read_bytes())
        except (OSError, ValueError):
            kept = {}
        if kept.get("task") != task:
            found = auto_formats(
                self.checkpoint, self.spec, self._ids(_AUTO_TOKENS), budget, self.target.parent, self.progress
            )
            kept = {"task": task, "formats": found}
            temporary = self._kept_formats.with_suffix(".new")
            temporary.write_text(json.dumps(kept))
            temporary.replace(self._kept_formats)
        return dict(kept["formats"])

    @property
    def _kept_formats(self) -> Path:
        return self.target.parent / f".{self.target.name}.formats.json"

    def _bits_of_norms(self) -> float:
        """Bits a weight that storing every norm in f32 adds, where a method changes norms."""
        if not self.options.refine and not self.options.awq_scales:
            return 0.0
        norms = {name: shape for name, shape in self.spec.shapes.items() if len(shape) == 1}
        added = sum(get_format("f32").nbytes(s) - self.checkpoint.format(n).nbytes(s) for n, s in norms.items())
        return 8 * added / self.spec.parameters

    def _ids(self, tokens: int) -> NDArray[np.int32]:
        if self.options.calibration is None:
            raise TypeError("options without calibration text")
        length = min(texts.LENGTH, self.spec.context)
        return texts.read_calibration(self.checkpoint, self.options.calibration, tokens=tokens, length=length)

    def _task(self, packed: Packed) -> Any:
        from halfbyte.quantize.layerwise import Task

        method: Literal["awq", "gptq"] = "gptq" if self.options.method == "gptq" else "awq"
        scaled = method == "awq" or self.options.awq_scales
        formats: dict[str, Format] = {n: packed.format(n) for n in self.spec.shapes if is_packed(packed.format(n))}
        norms = {name for layer in self.spec.layers for name in (layer.input_norm, layer.mlp_norm)}
        formats |= dict.fromkeys(norms if scaled else (), get_format("f32"))
        return Task(method, formats, self._ids(self.options.calibration_tokens), scaled)

    def _fingerprint(self, formats: Mapping[str, Format]) -> dict[str, Any]:
        """What must be equal for unfinished work to be taken up."""
        text = self.options.calibration.read_bytes() if self.options.calibration else b""
        return {
            "source": str(self.source.resolve()),
            "bytes": self.checkpoint.nbytes,
            "method": self.options.method,
            "awq_scales": self.options.awq_scales,
            "tokens": self.options.calibration_tokens,
            "calibration": hashlib.sha256(text).hexdigest(),
            "formats": {name: form.name for name, form in sorted(formats.items())},
        }

    def _rounded(self, packed: Packed, tensor: str) -> Parts:
        from halfbyte.quantize.rtn import clipped

        return clipped(packed, tensor) if self.options.clip else packed.weight(tensor).parts


def _refuse_packed(checkpoint: Checkpoint) -> None:
    packed = next((name for name in checkpoint.shapes if is_packed(checkpoint.format(name))), None)
    if packed is not None:
        raise UsageError(
            f"{checkpoint.path} is quantized already ({packed} in {checkpoint.format(packed).name}).",
            "Start from the model's bf16, f16 or f32 checkpoint.",
        )


def _refuse_two_for_one(spec: ModelSpec, options: Options) -> None:
    if spec.embed != spec.lm_head:
        return
    sizes = (options.embed_group_size, options.head_group_size)
    for first, second in ((options.embed_bits, options.head_bits), sizes):
        if first is not None and second is not None and first != second:
            raise UsageError(
                f"The output matrix of this model is its embedding table: it cannot have {second} and that {first}.",
                "Give both the same bits and group size.",
            )


def _refuse_too_large(spec: ModelSpec) -> None:
    from halfbyte.cpu.machine import available_memory
    from halfbyte.quantize.refine import needed_bytes

    needed = needed_bytes(spec)
    if needed > available_memory():
        raise UsageError(f"Refining this model takes {needed / 1e9:,.1f} GB of memory.", "Leave refining out.")


def _first_of_each(*pairs: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """Of the first values and of the second ones, the first that is given."""
    bits, sizes = ([value for value in values if value is not None] for values in zip(*pairs, strict=True))
    return (bits or [None])[0], (sizes or [None])[0]
