"""Writing quantized models as AutoAWQ and GPTQ lay them out, for transformers, vLLM and the like.

A layer's matrices that are in the most frequent of Halfbyte's group formats keep their codes, scales and zero points
bit for bit. Everything else, such as embeddings and the output matrix, is written in f16, as those tools do, and is
listed as not quantized. Memory holds one tensor.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.atomic import new_path
from halfbyte.checkpoint.folder import CONFIG_NAME
from halfbyte.checkpoint.gguf.writer import Progress, Source
from halfbyte.checkpoint.layouts.autoawq import AutoAwq
from halfbyte.checkpoint.layouts.autoawq import settings as awq_settings
from halfbyte.checkpoint.layouts.gptq import V1, V2, Gptq
from halfbyte.checkpoint.shards import WEIGHTS_NAME
from halfbyte.errors import UnsupportedModelError, UsageError
from halfbyte.formats import Format, Weight, get_format
from halfbyte.models.spec import ModelSpec

METHODS = ("awq", V1, V2)
"""The layouts that can be written: AutoAWQ's, and GPTQ's versions 1 and 2."""

_BITS = {"awq": ("4",), V1: ("3", "4", "8"), V2: ("3", "4", "8")}
_ALIGN = 32
_GROUPED = re.compile(r"q([348])g(\d+)(z?)")
_DTYPES: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "F16": np.dtype("<f2")}


class _Writer(Protocol):
    def write(self, weight: Weight) -> dict[str, NDArray[np.generic]]: ...


@dataclass(frozen=True)
class _Part:
    """A stored array and its place among the tensors' bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * _DTYPES[self.dtype].itemsize


def write_foreign(
    target: Path,
    source: Source,
    spec: ModelSpec,
    settings: Mapping[str, bytes],
    *,
    method: str,
    progress: Progress | None = None,
) -> None:
    """Write a quantized model as a Hugging Face folder in another tool's layout.

    Args:
        target: The folder to make.
        source: Its tensors, in Halfbyte's group formats, under the names of `spec`.
        settings: Contents of the folder's other files by name, `config.json` among them.
        method: One of `METHODS`. GPTQ's version 1 is what older tools expect.
        progress: Called as progress(tensor, bytes written, bytes in all).

    Raises:
        UsageError: The method is unknown, or the target is taken.
        UnsupportedModelError: No matrix is in a format that the method has.
        HalfbyteError: The disk is full or the folder cannot be written; nothing is left of the attempt.
    """
    if method not in METHODS:
        raise UsageError(f"{method!r} is no layout of quantized models.", f"Choose one of {', '.join(METHODS)}.")
    form = _common_format(source, spec, method)
    writer, config = _writer(method, form, _skipped(source, spec, form))
    kept = {name for name in spec.shapes if _fits(source, spec, name, form)}
    parts = _places(spec, form, kept, method)
    total = max(part.stop for part in parts.values())
    with new_path(target, total) as folder:
        folder.mkdir()
        for name, data in settings.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        document = json.loads(settings[CONFIG_NAME]) | {"quantization_config": config, "dtype": "float16"}
        document.pop("torch_dtype", None)
        (folder / CONFIG_NAME).write_text(json.dumps(document, indent=2), encoding="utf-8")
        with (folder / WEIGHTS_NAME).open("xb") as file:
            _write_tensors(file, source, spec, kept, writer, parts, progress)


def _common_format(source: Source, spec: ModelSpec, method: str) -> Format:
    """The group format of most of the layers' matrices."""
    formats = Counter(source.format(name).name for name in spec.shapes if _is_linear(spec, name))
    fitting = [name for name, _ in formats.most_common() if _has(method, name)]
    if not fitting:
        stored = ", ".join(formats)
        raise UnsupportedModelError(
            f"The layers are in {stored}, which {method} has no layout for.", "Quantize the model to q4g128z first."
        )
    return get_format(fitting[0])


def _has(method: str, form: str) -> bool:
    match = _GROUPED.fullmatch(form)
    return match is not None and match[1] in _BITS[method]


def _is_linear(spec: ModelSpec, name: str) -> bool:
    """Whether a tensor is a matrix of a layer."""
    return len(spec.shapes[name]) == 2 and name not in (spec.embed, spec.lm_head)


def _fits(source: Source, spec: ModelSpec, name: str, form: Format) -> bool:
    """Whether a tensor is written packed: in the common format, its rows and groups filling whole words."""
    if not _is_linear(spec, name) or source.format(name) != form:
        return False
    rows, columns = spec.shapes[name]
    return rows % _ALIGN == 0 and columns % form.group == 0  # type: ignore[attr-defined]


def _skipped(source: Source, spec: ModelSpec, form: Format) -> list[str]:
    """Modules of layers that are not quantized; embeddings and the output matrix never are."""
    names = [name for name in spec.shapes if _is_linear(spec, name) and not _fits(source, spec, name, form)]
    return ["lm_head", *(name.removesuffix(".weight") for name in names)]


def _writer(method: str, form: Format, skipped: list[str]) -> tuple[_Writer, dict[str, Any]]:
    match = _GROUPED.fullmatch(form.name)
    bits, group, symmetric = (int(match[1]), int(match[2]), not match[3]) if match else (0, 0, False)
    if method == "awq":
        return AutoAwq(group), awq_settings(group, skipped)
    gptq = Gptq(bits, group, method)
    return gptq, gptq.settings(symmetric, skipped)


def _places(spec: ModelSpec, form: Format, kept: set[str], method: str) -> dict[str, _Part]:
    """Where each stored array goes, words of 32 bits first so that all lie at multiples of their width."""
    wanted: list[tuple[str, str, tuple[int, ...]]] = []
    for name, shape in spec.shapes.items():
        if name not in kept:
            wanted.append((name, "F16", shape))
            continue
        base, bits, (rows, columns) = name.removesuffix("weight"), int(form.name[1]), shape
        groups = columns // form.group  # type: ignore[attr-defined]
        weight = (columns, rows // 8) if method == "awq" else (columns * bits // 32, rows)
        wanted += [
            (f"{base}qweight", "I32", weight),
            (f"{base}qzeros", "I32", (groups, rows * bits // 32)),
            (f"{base}scales", "F16", (groups, rows)),
        ]
        wanted += [] if method == "awq" else [(f"{base}g_idx", "I32", (columns,))]
    places: dict[str, _Part] = {}
    position = 0
    for name, dtype, shape in sorted(wanted, key=lambda part: part[1] != "I32"):
        places[name] = _Part(dtype, shape, position)
        position = places[name].stop
    return places


def _write_tensors(
    file: BinaryIO,
    source: Source,
    spec: ModelSpec,
    kept: set[str],
    writer: _Writer,
    places: Mapping[str, _Part],
    progress: Progress | None,
) -> None:
    body, done, total = _write_header(file, places), 0, max(part.stop for part in places.values())
    for name in spec.shapes:
        weight = source.weight(name)
        if name in kept:
            arrays = {name.removesuffix("weight") + suffix: part for suffix, part in writer.write(weight).items()}
        else:
            arrays = {name: get_format("f16").encode(weight.decode())[""]}
        for stored, array in arrays.items():
            place = places[stored]
            if array.shape != place.shape or array.dtype != _DTYPES[place.dtype]:
                raise ValueError(f"{stored} is {array.dtype} {array.shape} instead of {place.dtype} {place.shape}")
            file.seek(body + place.start)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            done += array.nbytes
        source.release(name)
        if progress is not None:
            progress(name, done, total)
    file.flush()
    os.fsync(file.fileno())


def _write_header(file: BinaryIO, places: Mapping[str, _Part]) -> int:
    """Write the safetensors header; returns where the tensors' bytes begin."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, part in places.items():
        header[name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [part.start, part.stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return 8 + len(text)
