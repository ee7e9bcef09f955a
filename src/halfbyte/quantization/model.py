"""`quantize`: a model in, a folder with a smaller one out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.atomic import check_space, claimed, disk_errors
from halfbyte.checkpoint.base import Checkpoint, Progress
from halfbyte.checkpoint.manifest import Manifest
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.checkpoint.packed import Recipe, RepackedWeights, is_packed
from halfbyte.checkpoint.writer import Outgoing, check_target, write_folder
from halfbyte.errors import UsageError
from halfbyte.formats import Format, Parts, get_format
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.quantization import calibration as texts
from halfbyte.quantization.options import Options
from halfbyte.quantization.recipe import for_model, group_format, listed
from halfbyte.quantization.work import WorkFolder, is_resumable, refuse_other_work, work_path
from halfbyte.units import size

if TYPE_CHECKING:
    from halfbyte.quantization.layerwise import Layerwise

_AUTO_TOKENS = 4096


def quantize(
    source: Path,
    target: Path,
    *,
    name: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Manifest:
    """Write a model with its matrices in few bits to the folder `target`; returns the manifest.

    Only tensors that text generation needs are written. The work of the calibrated methods is kept beside the target
    until that is complete; the same call resumes it.

    Args:
        source: A folder or GGUF file.
        name: What the manifest says the model was made from; by default the source folder's name.
        overwrite: Whether a folder that Halfbyte wrote may be replaced.
        restart: Whether unfinished work of an earlier call is discarded.
        progress: Called as progress(what, done, all): bytes while writing, layers before.
        **options: Fields of `Options`.

    Raises:
        UsageError: The source is packed already, an option is out of range, the target is taken or being written by
            another process, or unfinished work of other options lies beside it.
        HalfbyteError: The disk is too small or full.
        InvalidModelError: The source is damaged, or holds NaN or infinity.
        UnsupportedModelError: The source is of a kind Halfbyte cannot run.
    """
    wanted = Options(**options)
    check_target(target, source, overwrite)
    job = _Job(source, target, wanted, progress or (lambda what, done, total: None))
    return job.run(name or source.resolve().name, overwrite=overwrite, restart=restart)


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

    def run(self, name: str, *, overwrite: bool, restart: bool) -> Manifest:
        """Write the folder, alone: while another process writes it this one is refused."""
        path, task = work_path(self.target), self._fingerprint()
        needed = self._disk_bytes()
        with disk_errors(self.target, needed), claimed(self.target):
            check_target(self.target, self.source, overwrite)
            refuse_other_work(path, task, restart=restart)
            check_space(self.target, needed - sum(file.stat().st_size for file in path.glob("*")))
            if self.options.method == "rtn" and self.options.budget is None:
                return self._round(self._recipe(None), name, overwrite)
            work = WorkFolder(path, task)
            try:
                manifest = self._made(work, name, overwrite)
            except BaseException:
                if not is_resumable(path):
                    work.remove()
                raise
            work.remove()
            return manifest

    def _round(self, recipe: Recipe, name: str, overwrite: bool) -> Manifest:
        packed = RepackedWeights(self.checkpoint, recipe)
        return self._write(packed, {}, lambda tensor: self._rounded(packed, tensor), name, overwrite)

    def _made(self, work: WorkFolder, name: str, overwrite: bool) -> Manifest:
        recipe = self._recipe(work)
        if self.options.method == "rtn":
            return self._round(recipe, name, overwrite)
        from halfbyte.quantization.layerwise import Layerwise

        packed = RepackedWeights(self.checkpoint, recipe)
        task = self._task(packed)
        layerwise = Layerwise(self.checkpoint, self.spec, task, work, self.progress)
        layerwise.run()
        made = dict(task.formats)
        refined = self._refined(layerwise, packed) if self.options.refine else {}
        made |= {tensor: get_format("f32") for tensor in refined if len(self.spec.shapes[tensor]) == 1}

        def parts(tensor: str) -> Parts:
            if tensor in refined:
                return refined[tensor]
            return work.parts(tensor) if tensor in made else packed.weight(tensor).parts

        return self._write(packed, made, parts, name, overwrite)

    def _refined(self, layerwise: Layerwise, packed: RepackedWeights) -> dict[str, Parts]:
        """The tensors that refining changes, after quantizing layer by layer."""
        from halfbyte.quantization.refine import Refiner, Stored

        task = layerwise.task
        stored = {}
        for tensor, shape in self.spec.shapes.items():
            form = task.formats.get(tensor) or packed.format(tensor)
            parts = layerwise.work.parts(tensor) if tensor in task.formats else packed.weight(tensor).parts
            stored[tensor] = Stored(form, parts, form.decode(parts, shape))
        refiner = Refiner(self.spec, layerwise.forward, stored, task.ids, layerwise.original_logits())
        return refiner.run(self.options.refine, self.progress)

    def _write(
        self, packed: RepackedWeights, made: Mapping[str, Format], parts: Any, name: str, overwrite: bool
    ) -> Manifest:
        tensors = []
        for tensor, shape in self.spec.shapes.items():
            form = made.get(tensor) or packed.format(tensor)
            changed = tensor in made or is_packed(form)
            tensors.append(Outgoing(tensor, shape, form, self.options.method if changed else "copy"))
        return write_folder(
            self.target, tensors, parts, settings=self.checkpoint.settings(), origin=self.source, source=name,
            overwrite=overwrite, progress=self.progress,
        )  # fmt: skip

    def _recipe(self, work: WorkFolder | None) -> Recipe:
        """The format of each tensor, from the options or from what the budget buys, which is kept in `work`."""
        o = self.options
        if o.budget is not None and work is not None:
            return listed(work.formats(lambda: self._budgeted(work.path)))
        ends = [(o.embed_bits, o.embed_group_size), (o.head_bits, o.head_group_size)]
        if self.spec.embed == self.spec.lm_head:
            ends = [_first_of_each(*ends)] * 2
        embed, head = (group_format(*o.end(*asked), o.zero_points) for asked in ends)
        body = group_format(o.bits, o.group_size, o.zero_points)
        return for_model(self.spec, body, o.embed_format or embed, o.head_format or head)

    def _budgeted(self, folder: Path) -> dict[str, str]:
        """The formats that the budget buys; what does not fit in memory meanwhile goes to the folder."""
        from halfbyte.quantization.auto import auto_formats

        return auto_formats(
            self.checkpoint, self.spec, self._ids(_AUTO_TOKENS), self._net_budget(), folder, self.progress
        )

    def _net_budget(self) -> float:
        return (self.options.budget or 0.0) - self._bits_of_norms()

    def _bits_of_norms(self) -> float:
        """Bits per weight added by storing every norm in f32, if the method changes norms."""
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

    def _task(self, packed: RepackedWeights) -> Any:
        from halfbyte.quantization.awq import scaled_vectors
        from halfbyte.quantization.layerwise import Task

        method: Literal["awq", "gptq"] = "gptq" if self.options.method == "gptq" else "awq"
        scaled = method == "awq" or self.options.awq_scales
        formats: dict[str, Format] = {n: packed.format(n) for n in self.spec.shapes if is_packed(packed.format(n))}
        vectors = {name for layer in self.spec.layers for name in scaled_vectors(layer)}
        formats |= dict.fromkeys(vectors if scaled else (), get_format("f32"))
        return Task(method, formats, self._ids(self.options.calibration_tokens), scaled)

    def _fingerprint(self) -> dict[str, Any]:
        """What must be equal for unfinished work to be resumed; how results are refined or clipped may change."""
        o = self.options
        text = o.calibration.read_bytes() if o.calibration else b""
        later = ("refine", "clip", "calibration", "budget")
        return {
            "source": str(self.source.resolve()),
            "source_bytes": self.checkpoint.nbytes,
            "calibration": hashlib.sha256(text).hexdigest() if text else None,
            "budget": None if o.budget is None else self._net_budget(),
            **{name: value for name, value in asdict(o).items() if name not in later},
        }

    def _disk_bytes(self) -> int:
        """About the disk space that the result and the work before it take together."""
        o, spec = self.options, self.spec
        if o.budget is not None:
            result = int(o.budget * spec.parameters / 8)
        else:
            packed = RepackedWeights(self.checkpoint, self._recipe(None))
            result = sum(packed.format(name).nbytes(shape) for name, shape in spec.shapes.items())
        if o.method == "rtn":
            return result
        from halfbyte.quantization.layerwise import SPILL_BYTES

        tokens = min(o.calibration_tokens, o.calibration.stat().st_size if o.calibration else 0)
        streams = 4 * 4 * tokens * spec.hidden_size
        wide = 8 * tokens * (spec.hidden_size + 2 * spec.intermediate_size)
        return 2 * result + streams + (wide if wide > SPILL_BYTES else 0)

    def _rounded(self, packed: RepackedWeights, tensor: str) -> Parts:
        from halfbyte.quantization.rtn import clipped

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
                f"The output matrix of this model is its embedding table: the two cannot have {first} and {second}.",
                "Give both the same bits and group size.",
            )


def _refuse_too_large(spec: ModelSpec) -> None:
    from halfbyte.quantization.refine import needed_bytes
    from halfbyte.system import available_memory

    needed = needed_bytes(spec)
    if needed > available_memory():
        free = size(available_memory())
        raise UsageError(
            f"Refining this model takes {size(needed)} of memory; {free} are available.", "Leave out `refine`."
        )


def _first_of_each(*pairs: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
    """Of the first values and of the second ones, the first that is given."""
    bits, sizes = ([value for value in values if value is not None] for values in zip(*pairs, strict=True))
    return (bits or [None])[0], (sizes or [None])[0]
