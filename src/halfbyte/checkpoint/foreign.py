"""Checkpoints that other tools quantized (AutoAWQ, GPTQ, compressed-tensors), and formats no executor computes with.

Each scheme reads a matrix as codes, scales and zero points in rows and groups (`Grouped`). That is what Halfbyte's
own group formats are made of, so a matrix becomes one of them without any loss, unless its columns belong to groups
in no order (act-order), its groups have odd sizes, or its scales are no float16 numbers: then it is decoded to f16.
Groups larger than 128 are cut into several with the same scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.checks import damaged, shown
from halfbyte.checkpoint.folder import Checkpoint
from halfbyte.checkpoint.packed import Packed, repack
from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.errors import InvalidModelError, UnsupportedModelError
from halfbyte.formats import Format, Parts, Weight, get_format, q3g, q4g
from halfbyte.formats.ggml import BLOCKS, F32, U8, BlockFormat
from halfbyte.formats.q3g import Q3G
from halfbyte.formats.q4g import Q4G
from halfbyte.formats.q8g import Q8G

FALLBACK = "f16"
_DENSE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_GROUPS = (128, 64, 32)
_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True)
class Grouped:
    """A quantized matrix `[rows, columns]`: value = scale · (code - zero) of its row and group.

    Attributes:
        bits: Of a code: 3, 4 or 8.
        size: Columns a group has.
        scales, zeros: `[rows, groups]`.
        order: The group of each column, where that is not column // size.
        codes: Gives the codes `[rows, columns]`, 0 … 2^bits - 1.
    """

    shape: tuple[int, int]
    bits: int
    size: int
    scales: F32
    zeros: U8
    order: NDArray[np.intp] | None
    codes: Callable[[], U8]

    @cached_property
    def format(self) -> Format:
        """The format that holds it."""
        size = next((g for g in _GROUPS if self.size % g == 0 or self.size >= self.shape[1]), None)
        symmetric = bool((self.zeros == 1 << self.bits - 1).all())
        with np.errstate(over="ignore"):
            exact = bool((self.scales.astype(np.float16).astype(np.float32) == self.scales).all())
        if size is None or self.order is not None or not exact or (self.bits == 8 and not symmetric):
            return get_format(FALLBACK)
        return get_format(f"q{self.bits}g{size}{'' if symmetric else 'z'}")

    def weight(self) -> Weight:
        """The matrix in its format."""
        if self.format.name == FALLBACK:
            return Weight(self.format, self.shape, self.format.encode(self._values()))
        parts = assemble(_groups(self.format), self.codes(), self._spread(self.scales), self._spread(self.zeros))
        return Weight(self.format, self.shape, parts)

    def _values(self) -> F32:
        order = self.order if self.order is not None else np.arange(self.shape[1]) // self.size
        values = self.codes().astype(np.float32)
        values -= self.zeros[:, order]
        values *= self.scales[:, order]
        return values

    def _spread(self, of_group: NDArray[Any]) -> NDArray[Any]:
        """Scales or zero points for the format's groups, which may be smaller than these."""
        size = _groups(self.format).group
        starts = np.arange(-(-self.shape[1] // size)) * size
        return of_group[:, starts // self.size]


def assemble(form: Q3G | Q4G | Q8G, codes: U8, scales: F32, zeros: U8) -> Parts:
    """The parts of a matrix in one of Halfbyte's group formats.

    Args:
        codes: `[rows, columns]`, 0 … 2^bits - 1; 128 means 0 in 8 bits.
        scales, zeros: `[rows, groups]`; zero points are left out where the format has none.
    """
    if isinstance(form, Q8G):
        padded = np.zeros((len(codes), scales.shape[1] * form.group), np.uint8)
        padded[:, : codes.shape[1]] = _recentre(codes)
        return {".q": padded, ".scale": scales.astype(np.float16)}
    return form.from_codes(codes, scales, zeros.astype(np.float32))


def _groups(form: Format) -> Q3G | Q4G | Q8G:
    """A format that is known to be one of Halfbyte's group formats."""
    if not isinstance(form, Q3G | Q4G | Q8G):
        raise TypeError(f"{form.name} has no groups")
    return form


def take_apart(weight: Weight) -> tuple[U8, F32, U8]:
    """The inverse of `assemble`: codes `[rows, columns]`, scales and zero points `[rows, groups]`."""
    form, (rows, columns), parts = _groups(weight.format), weight.shape, weight.parts
    stored = np.ascontiguousarray(parts[".q"]).view(np.uint8)
    codes = {"q4": q4g.unpack, "q3": q3g.unpack, "q8": _recentre}[form.name[:2]](stored)
    scales = parts[".scale"].astype(np.float32)
    middle = {"q4": 8, "q3": 4, "q8": 128}[form.name[:2]]
    zeros = np.full(scales.shape, middle, np.uint8)
    if ".zero" in parts and not isinstance(form, Q8G):
        zeros = form.zeros(parts, rows, scales.shape[1]).astype(np.uint8)
    return codes[:, :columns], scales, zeros


def _recentre(codes: U8) -> U8:
    """Codes around 128 to two's complement, and back."""
    return codes ^ np.uint8(128)


def unpack_words(words: NDArray[np.generic], bits: int) -> U8:
    """Codes `[n, k·32/bits]` from words of 32 bits `[n, k]` that hold them one after the other, lowest bits first."""
    stored = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return stored
    if bits == 4:
        return np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(words), -1)
    stream = np.unpackbits(stored, axis=-1, bitorder="little").reshape(len(words), -1, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]


def pack_words(codes: U8, bits: int) -> NDArray[np.int32]:
    """The inverse of `unpack_words`; the codes of a row must fill whole words."""
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little", count=bits)
    return np.packbits(stream.reshape(len(codes), -1), axis=-1, bitorder="little").view("<i4")


class Scheme(Protocol):
    """How a tool lays out a quantized matrix as several stored tensors."""

    @property
    def marker(self) -> str:
        """The suffix of the tensor that every quantized matrix has."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of all tensors of a matrix, `marker` included."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Those that may be missing."""
        ...

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Rows and columns of the matrix, from its tensors' shapes by suffix; ValueError where they contradict."""
        ...

    def read(self, shape: tuple[int, int], tensors: Mapping[str, NDArray[np.generic]]) -> Grouped:
        """The matrix; ValueError where its tensors contradict each other."""
        ...


class ForeignCheckpoint(Checkpoint):
    """A model folder that another tool quantized; a `WeightSource` in Halfbyte's formats."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        files: Mapping[str, SafetensorsFile],
        scheme: Scheme,
    ) -> None:
        self.path, self.config, self.generation_config, self.manifest = path, config, generation_config, None
        self._files, self._scheme = files, scheme
        self._quantized = {base: self._shape_of(base) for base in self._bases()}
        self._plain = [name for name in files if not self._belongs(name) and not self._is_empty_bias(name)]
        self._formats: dict[str, Format] = {}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        quantized = {f"{base}.weight": shape for base, shape in self._quantized.items()}
        return {name: self._files[name].entries[name].shape for name in self._plain} | quantized

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(file.entries[name].nbytes for name, file in self._files.items())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: matrices that could not stay packed."""
        unpacked = [base for base in self._quantized if self.format(f"{base}.weight").name == FALLBACK]
        if not unpacked:
            return ()
        return (f"{len(unpacked)} quantized matrices fit none of Halfbyte's formats and are held in {FALLBACK}.",)

    def format(self, name: str) -> Format:
        """The format `weight` gives a tensor in. Raises as `Checkpoint.format` does."""
        if name not in self._formats:
            self._formats[name] = self._find_format(name)
        return self._formats[name]

    def weight(self, name: str) -> Weight:
        """A tensor: a view of the memory map if it is plain, else a copy in one of Halfbyte's formats."""
        form, base = self.format(name), name.removesuffix(".weight")
        if base in self._quantized:
            return self._read(base).weight()
        return Weight(form, self.shapes[name], {"": self._files[name].tensor(name)})

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; they are read again when touched."""
        base = name.removesuffix(".weight")
        stored = [f"{base}.{suffix}" for suffix in self._scheme.suffixes] if base in self._quantized else [name]
        for part in stored:
            if part in self._files:
                self._files[part].release(part)

    def _find_format(self, name: str) -> Format:
        base = name.removesuffix(".weight")
        if base in self._quantized:
            return self._read(base).format
        if name not in self._plain:
            self._reject(f"it lacks the tensor {shown(name)}", [name])
        dtype = self._files[name].entries[name].dtype
        if dtype not in _DENSE:
            raise UnsupportedModelError(
                f"{self.path}: tensor {shown(name)} is stored as {dtype}, which Halfbyte cannot compute with.",
                "Use a checkpoint in bf16, f16 or f32.",
            )
        return get_format(_DENSE[dtype])

    def _bases(self) -> list[str]:
        marker = f".{self._scheme.marker}"
        return [name.removesuffix(marker) for name in self._files if name.endswith(marker)]

    def _belongs(self, name: str) -> bool:
        """Whether a stored tensor is a part of a quantized matrix."""
        base, _, suffix = name.rpartition(".")
        return base in self._quantized and suffix in self._scheme.suffixes

    def _is_empty_bias(self, name: str) -> bool:
        """Whether this is the bias of a quantized matrix, which some tools store though the model has none."""
        if not name.endswith(".bias") or name.removesuffix(".bias") not in self._quantized:
            return False
        return not self._files[name].tensor(name).any()

    def _shape_of(self, base: str) -> tuple[int, int]:
        present = [suffix for suffix in self._scheme.suffixes if f"{base}.{suffix}" in self._files]
        lacking = [s for s in self._scheme.suffixes if s not in present and s not in self._scheme.optional]
        if lacking:
            damaged(self.path, f"{shown(base)} lacks {lacking[0]}")
        shapes = {s: self._files[f"{base}.{s}"].entries[f"{base}.{s}"].shape for s in present}
        try:
            return self._scheme.shape(shapes)
        except ValueError as error:
            damaged(self.path, f"the parts of {shown(base)} have contradictory shapes ({error})")

    def _read(self, base: str) -> Grouped:
        names = {suffix: f"{base}.{suffix}" for suffix in self._scheme.suffixes if f"{base}.{suffix}" in self._files}
        tensors = {suffix: self._files[name].tensor(name) for suffix, name in names.items()}
        try:
            return self._scheme.read(self._quantized[base], tensors)
        except ValueError as error:
            damaged(self.path, f"the parts of {shown(base)} contradict each other ({error})")


def open_foreign(
    path: Path, config: dict[str, Any], generation_config: dict[str, Any], files: Mapping[str, SafetensorsFile]
) -> ForeignCheckpoint:
    """A model folder whose `config.json` has a `quantization_config`, its files open already.

    Raises:
        InvalidModelError: Its tensors contradict each other or the configuration.
        UnsupportedModelError: A method, layout or number of bits that Halfbyte cannot read.
    """
    from halfbyte.checkpoint.layouts import autoawq, compressed_tensors, gptq

    readers: dict[str, Callable[[Path, Mapping[str, Any]], Scheme]]
    readers = {"awq": autoawq.scheme, "gptq": gptq.scheme, "compressed-tensors": compressed_tensors.scheme}
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        raise InvalidModelError(f"{path}: quantization_config is {shown(settings)}.", "Download the model again.")
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in readers:
        raise UnsupportedModelError(
            f"{path} is quantized with {shown(method)}, which Halfbyte cannot read.",
            f"It reads {', '.join(readers)}; otherwise use the model's bf16, f16 or f32 checkpoint.",
        )
    return ForeignCheckpoint(path, config, generation_config, files, readers[method](path, settings))


def as_float(values: NDArray[np.generic]) -> F32:
    """Stored scales in float32; 16-bit integers are bfloat16's bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def expect(condition: bool, what: str) -> None:
    """ValueError saying what is wrong, unless the condition holds."""
    if not condition:
        raise ValueError(what)


class Runnable:
    """A `WeightSource` whose formats are those that executors compute with; the others are turned into them.

    What is lost, if anything, is the difference between a block format with offsets and 8 bits a value.

    Args:
        checkpoint: Where the tensors come from.
    """

    def __init__(self, checkpoint: Checkpoint | Packed) -> None:
        self.checkpoint = checkpoint

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        return self.checkpoint.shapes

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: formats that are turned into others, the most frequent first."""
        turned: dict[tuple[str, str], int] = {}
        for name in self.shapes:
            pair = self.checkpoint.format(name).name, self.format(name).name
            if pair[0] != pair[1]:
                turned[pair] = turned.get(pair, 0) + 1
        ordered = sorted(turned.items(), key=lambda item: -item[1])
        return tuple(f"{count} matrices in {stored} run as {runs}." for (stored, runs), count in ordered)

    def format(self, name: str) -> Format:
        """The format `weight` gives a tensor in. Raises as `Checkpoint.format` does."""
        stored = self.checkpoint.format(name)
        return get_format(stored.runs_as) if isinstance(stored, BlockFormat) else stored

    def weight(self, name: str) -> Weight:
        """A tensor in its format. Raises as `Checkpoint.weight` does."""
        weight, form = self.checkpoint.weight(name), self.format(name)
        if weight.format == form:
            return weight

        def release() -> None:
            self.checkpoint.release(name)

        return regrouped(weight, release) or repack(weight, form, name, release)

    def release(self, name: str) -> None:
        """Give back the memory map's pages of a tensor."""
        self.checkpoint.release(name)


def regrouped(weight: Weight, release: Callable[[], None] = lambda: None) -> Weight | None:
    """A matrix of one of ggml's symmetric formats in Halfbyte's groups of 32, bit for bit; None for other formats.

    It is made a few rows at a time; `release` is called after each.
    """
    stored = weight.format
    if not isinstance(stored, BlockFormat) or stored.group_parts is None:
        return None
    form, (rows, columns) = get_format(stored.runs_as), weight.shape
    shapes = {suffix: shape for suffix, (_, shape) in form.layout(weight.shape).items()}
    parts: Parts = {".q": np.empty(shapes[".q"], np.uint8), ".scale": np.empty(shapes[".scale"], np.float16)}
    step = max(1, _CHUNK_VALUES // max(1, columns))
    for start in range(0, rows, step):
        chunk = np.ascontiguousarray(weight.parts[BLOCKS][start : start + step]).view(np.uint8)
        codes, scales = stored.group_parts(chunk.reshape(-1, stored.block_bytes))
        parts[".q"][start : start + step] = codes.reshape(len(chunk), -1)
        parts[".scale"][start : start + step] = scales.reshape(len(chunk), -1)
        release()
    return Weight(form, weight.shape, parts)


def block_format(stored: Format) -> str:
    """The format of ggml's that holds the codes of Halfbyte's groups; the name of any other format."""
    match stored:
        case Q4G(zero_points=zero_points):
            return "q4_1" if zero_points else "q4_0"
        case Q8G():
            return "q8_0"
    return stored.name


def ungrouped(weight: Weight, form: BlockFormat) -> tuple[Weight, int] | None:
    """A matrix in Halfbyte's groups in the blocks of ggml's that hold its codes, and how many were rounded.

    A group becomes one block or several, bit for bit; but the offset -s·z of `q4_1` is rounded to float16.
    """
    stored, (rows, columns) = weight.format, weight.shape
    if not isinstance(stored, Q4G | Q8G) or block_format(stored) != form.name or columns % form.values:
        return None
    blocks = columns // form.values

    def of_blocks(groups: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(groups, stored.group // form.values, axis=1)[:, :blocks, None]

    scale, rounded = of_blocks(weight.parts[".scale"]), 0
    codes = np.ascontiguousarray(weight.parts[".q"]).view(np.uint8)
    codes = codes.reshape(rows, -1, form.values * stored.bits // 8)[:, :blocks]
    fields = [scale]
    if isinstance(stored, Q4G) and stored.zero_points:
        zeros = stored.zeros(weight.parts, rows, stored.groups(columns))
        exact = -scale.astype(np.float32) * of_blocks(zeros)
        offset = exact.astype(np.float16)
        rounded = int(np.count_nonzero(offset != exact))
        fields.append(offset)
    halves = [np.ascontiguousarray(field).view(np.uint8) for field in fields]
    return Weight(form, weight.shape, {BLOCKS: np.concatenate([*halves, codes], axis=-1).reshape(rows, -1)}), rounded


def whole_number(settings: Mapping[str, Any], key: str, path: Path) -> int:
    """An integer of a `quantization_config`.

    Raises:
        InvalidModelError: There is none.
    """
    value = settings.get(key)
    if type(value) is not int or abs(value) > math.pow(2, 31):
        raise InvalidModelError(f"{path}: {key} of quantization_config is {shown(value)}.", "Download the model again.")
    return value
