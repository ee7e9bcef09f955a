"""`quantize`: a model in, a folder with a smaller one out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.folder import Checkpoint, Progress, open_checkpoint
from halfbyte.checkpoint.manifest import Manifest
from halfbyte.checkpoint.packed import Packed, Recipe, is_packed
from halfbyte.checkpoint.writer import Outgoing, write_folder
from halfbyte.errors import UsageError
from halfbyte.formats import Format, Parts, get_format
from halfbyte.models import build_spec
from halfbyte.quantize import calibration as texts
from halfbyte.quantize.recipe import for_model, group_format, listed

if TYPE_CHECKING:
    from halfbyte.quantize.layerwise import Layerwise

Method = Literal["rtn", "awq", "awq+", "gptq"]
METHODS: tuple[Method, ...] = ("rtn", "awq", "awq+", "gptq")

_AUTO_TOKENS = 4096


@dataclass(frozen=True)
class Options:
    """What to make of a model.

    Attributes:
        method: `rtn`, `awq`, `awq+` (AWQ, with the table and the output matrix in 4 bits and groups of 32), `gptq`.
        bits: 3, 4 or 8 bits a weight of the decoder layers.
        group_size: Weights that share a scale: 32, 64 or 128.
        zero_points: Whether groups of 3 or 4 bits have a zero point each.
        embed_bits, head_bits: Of the embedding table and the output matrix, 16 to leave them; by default those
            of the layers for rtn and gptq, and 16 for awq. A tied output matrix goes with the table.
        embed_group_size, head_group_size: Their group sizes, by default that of the layers.
        budget: Bits a weight over the whole file; formats are then chosen tensor by tensor.
        clip: Whether `rtn` looks for the ranges with the least squared error.
        awq_scales: Whether AWQ's scales come before GPTQ.
        refine: Steps, of four calibration texts each, in which scales and norms learn the original's distribution.
        calibration: A file of text; needed by all but plain rtn.
        calibration_tokens: How many of its tokens to use.
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
    calibration_tokens: int = texts.TOKENS


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
    job = _Job(source, target, Options(**options), progress or (lambda what, done, total: None))
    return job.run(name or source.resolve().name, overwrite)


class _Job:
    """One model being quantized."""

    def __init__(self, source: Path, target: Path, options: Options, progress: Progress) -> None:
        self.source, self.target, self.options, self.progress = source, target, options, progress
        _check_options(options)
        self.checkpoint = open_checkpoint(source)
        self.spec = build_spec(self.checkpoint.config, self.checkpoint.generation_config, self.checkpoint.shapes)
        self.checkpoint.check(self.spec)
        _refuse_packed(self.checkpoint)

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
        from halfbyte.cpu.machine import available_memory
        from halfbyte.quantize.refine import Refiner, Stored, needed_bytes

        needed = needed_bytes(self.spec)
        if needed > available_memory():
            raise UsageError(f"Refining this model takes {needed / 1e9:,.1f} GB of memory.", "Leave refining out.")
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
        rest = {"awq": 16, "awq+": 4}.get(o.method, o.bits)
        group = 32 if o.method == "awq+" else o.group_size
        embed = group_format(o.embed_bits or rest, o.embed_group_size or group, o.zero_points)
        head = group_format(o.head_bits or rest, o.head_group_size or group, o.zero_points)
        if self.spec.embed == self.spec.lm_head and o.embed_bits is None and o.head_bits is not None:
            embed = head
        body = group_format(o.bits, o.group_size, o.zero_points)
        return for_model(self.spec, body, o.embed_format or embed, o.head_format or head)

    def _budgeted(self, budget: float) -> dict[str, str]:
        """The formats that a budget buys, kept beside the target until that is complete: finding them takes long."""
        from halfbyte.quantize.auto import auto_formats

        task = {**self._fingerprint({}), "budget": budget}
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
            raise UsageError(
                f"{self.options.method} with these options needs calibration text.", "Name a file with --calibration."
            )
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


def _check_options(options: Options) -> None:
    if options.method not in METHODS:
        raise UsageError(f"The method {options.method!r} is unknown.", f"It is one of {', '.join(METHODS)}.")
    if options.bits not in (3, 4, 8):
        raise UsageError(f"{options.bits} bits are not supported.", "Choose 3, 4 or 8.")
    group_format(options.bits, options.group_size, options.zero_points)
    if options.budget is not None and options.method in ("awq", "awq+"):
        raise UsageError("A budget goes with rtn and gptq.", "Choose --method gptq.")
    if options.refine < 0 or (options.refine and options.method == "rtn"):
        raise UsageError(f"{options.refine} steps of refining do not go with {options.method}.", "Choose gptq or awq.")
    if options.budget is not None and not 3 <= options.budget <= 16:
        raise UsageError(f"A budget of {options.budget} bits a weight is out of range.", "It is from 3 to 16.")


def _refuse_packed(checkpoint: Checkpoint) -> None:
    packed = next((name for name in checkpoint.shapes if is_packed(checkpoint.format(name))), None)
    if packed is not None:
        raise UsageError(
            f"{checkpoint.path} is quantized already ({packed} in {checkpoint.format(packed).name}).",
            "Start from the model's bf16, f16 or f32 checkpoint.",
        )
