"""Writing GGUF files that llama.cpp loads: streamed a few rows at a time, complete or not there at all.

A kind of file is a rule from tensor to format, llama.cpp's own (src/llama-quant.cpp): the output matrix gets 6 bits
where the others have fewer, the mixes give some layers more bits, and rows that are no multiple of a block's 256
values fall back to blocks of 32. Norms and other vectors are f32. A matrix that is stored in the wanted format, or in
Halfbyte's groups of which ggml has a like, keeps its codes.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from halfbyte.atomic import new_path
from halfbyte.checkpoint.gguf.file import DEFAULT_ALIGNMENT, MAGIC, TYPES, Value
from halfbyte.checkpoint.gguf.names import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from halfbyte.checkpoint.gguf.vocabulary import vocabulary
from halfbyte.checkpoint.runnable import block_format, ungrouped
from halfbyte.errors import InvalidModelError, UnsupportedModelError, UsageError
from halfbyte.formats import Format, Parts, Weight, get_format
from halfbyte.formats.ggml import F32, BlockFormat
from halfbyte.models import gguf_architecture
from halfbyte.models.config import yarn_growth
from halfbyte.models.gguf import EMBED, OUTPUT, Architecture, not_in_gguf
from halfbyte.models.spec import LinearScaling, Llama3Scaling, LongRopeScaling, ModelSpec, YarnScaling
from halfbyte.text.files import TokenizerFiles

Progress = Callable[[str, int, int], None]
"""Called as progress(tensor name, bytes done, bytes in all)."""

_PREFIX = re.compile(r"(language_model\.model|model\.language_model)\.")
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_TYPE_NUMBERS = {name: number for number, name in TYPES.items()}
_CHUNK_VALUES = 1 << 20
_VERSION = 3


class Source(Protocol):
    """A `WeightSource` that also tells formats."""

    def format(self, name: str) -> Format: ...
    def weight(self, name: str) -> Weight: ...
    def release(self, name: str) -> None: ...


@dataclass(frozen=True)
class Kind:
    """A rule from tensor to format.

    Attributes:
        base: The format of matrices; None leaves each as it is stored.
        head: That of the output matrix, which may be the embedding table.
        more: That of value and down projections in the layers that matter most.
        number: llama.cpp's number of this kind of file (`llama_ftype`).
    """

    base: str | None
    head: str
    more: str
    number: int


KINDS = {
    "f16": Kind("f16", "f16", "f16", 1),
    "bf16": Kind("bf16", "bf16", "bf16", 32),
    "q8_0": Kind("q8_0", "q8_0", "q8_0", 7),
    "q4_0": Kind("q4_0", "q6_k", "q4_0", 2),
    "q4_1": Kind("q4_1", "q6_k", "q4_1", 3),
    "q4_k": Kind("q4_k", "q6_k", "q4_k", 14),
    "q5_k": Kind("q5_k", "q6_k", "q5_k", 16),
    "q6_k": Kind("q6_k", "q6_k", "q6_k", 18),
    "q4_k_m": Kind("q4_k", "q6_k", "q6_k", 15),
    "q5_k_m": Kind("q5_k", "q6_k", "q6_k", 17),
    "stored": Kind(None, "", "", 1),
}
"""The kinds of file that can be written, by name."""


@dataclass(frozen=True)
class _Outgoing:
    """A tensor to write: GGUF's name, where it comes from, its shape and format."""

    name: str
    shape: tuple[int, ...]
    format: Format
    chunks: Callable[[], Iterator[Parts]]

    @property
    def nbytes(self) -> int:
        return self.format.nbytes(self.shape)


def write_gguf(
    target: Path,
    source: Source,
    spec: ModelSpec,
    tokenizer: TokenizerFiles,
    *,
    kind: str = "q4_k_m",
    importance: Mapping[str, F32] | None = None,
    name: str = "model",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a model as one GGUF file.

    Returns:
        How many blocks of q4_1 got an offset that is not exactly the stored one: rounded to float16, to 11 bits.

    Args:
        target: The file to make.
        source: Its tensors, under the names of `spec`.
        kind: One of `KINDS`.
        importance: Σx² of each input channel `[columns]`, by tensor name, for those matrices where it is known.
        name: What the file says the model is called. To llama.cpp, a name with "phi-3" means Phi-3's vocabulary.
        overwrite: Whether a file may be replaced.
        progress: Called as progress(tensor, bytes written, bytes in all).

    Raises:
        UsageError: The kind is unknown, or the target is taken.
        UnsupportedModelError: A model, tokenizer or stored format that GGUF has no place for.
        InvalidModelError: A tensor holds NaN or infinity.
        HalfbyteError: The disk is full or the file cannot be written; nothing is left of the attempt.
    """
    if kind not in KINDS:
        raise UsageError(f"There is no kind of GGUF file {kind!r}.", f"Choose one of {', '.join(KINDS)}.")
    architecture = gguf_architecture(spec.model_type)
    if architecture is None:
        raise UnsupportedModelError(f"GGUF files of {spec.model_type} models are not supported.")
    if not architecture.written:
        raise UnsupportedModelError(
            f"GGUF files of the architecture {architecture.name} can be read, but not written.",
            "Write another layout, such as awq or gptq.",
        )
    if not architecture.windows and any(attention.window for attention in spec.attentions):
        raise UnsupportedModelError(
            f"This {spec.model_type} model has layers with a sliding window, for which GGUF files of the architecture "
            f"{architecture.name} have no place.",
            "Write another layout, such as awq or gptq.",
        )
    rounded: Counter[str] = Counter()
    tensors = _tensors(source, spec, architecture, KINDS[kind], importance or {}, rounded)
    metadata = _metadata(spec, architecture, name, KINDS[kind].number)
    metadata |= vocabulary(tokenizer, spec.vocab_size, spec.stop_token_ids)
    header = _header(metadata, tensors)
    total = sum(tensor.nbytes for tensor in tensors)
    with new_path(target, len(header) + total, overwrite=overwrite) as path, path.open("xb") as file:
        file.write(header)
        done = 0
        for tensor in tensors:
            _write_tensor(file, tensor)
            done += tensor.nbytes
            if progress is not None:
                progress(tensor.name, done, total)
        file.flush()
        os.fsync(file.fileno())
    return rounded.total()


def _tensors(
    source: Source,
    spec: ModelSpec,
    architecture: Architecture,
    kind: Kind,
    importance: Mapping[str, F32],
    rounded: Counter[str],
) -> list[_Outgoing]:
    """What goes into the file, in its order; once written, `rounded` counts by tensor."""
    tied = spec.embed == spec.lm_head
    outgoing, attention = [], spec.attentions[0]
    for name, shape in spec.shapes.items():
        plain = _PREFIX.sub("model.", name, count=1)
        known = OUTPUT if name == spec.lm_head and not tied else architecture.gguf(plain)
        if known is None:
            raise UnsupportedModelError(f"GGUF's architecture {architecture.name} has no tensor for {name}.")
        form = _choose(kind, known, shape, source.format(name), len(spec.layers), tied)
        stored = (shape[0], *shape[2:]) if architecture.is_kernel(plain) else shape
        order = architecture.rows(plain, attention)
        chunks = _chunks(source, name, shape, form, order, importance.get(name), rounded)
        if architecture.is_shifted(name):
            chunks = _shifted(chunks, architecture.norm_offset, architecture.norm_factor(spec, name))
        outgoing.append(_Outgoing(known, stored, form, chunks))
    return outgoing + [_vector(name, factors) for name, factors in _rope_factors(spec).items()]


def _choose(kind: Kind, name: str, shape: tuple[int, ...], stored: Format, layers: int, tied: bool) -> Format:
    """The format of a tensor, by GGUF's name."""
    if len(shape) != 2:
        return get_format("f32")
    if kind.base is None:
        return _as_stored(name, shape, stored)
    match = _LAYER.fullmatch(name)
    wanted = kind.base
    if name == OUTPUT or (tied and name == EMBED):
        wanted = kind.head
    elif match and match[2] in ("attn_v", "attn_qkv", "ffn_down") and _matters(int(match[1]), layers):
        wanted = kind.more
    for form in (wanted, _FALLBACK.get(wanted, wanted)):
        found = get_format(form)
        if not isinstance(found, BlockFormat) or shape[1] % found.values == 0:
            return found
    return get_format("f16")


def _matters(layer: int, layers: int) -> bool:
    """Layers that a mix gives more bits: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _as_stored(name: str, shape: tuple[int, ...], stored: Format) -> Format:
    form = get_format(block_format(stored))
    if form.name not in _TYPE_NUMBERS or (isinstance(form, BlockFormat) and shape[1] % form.values):
        raise UnsupportedModelError(
            f"GGUF has no format for {name} of shape {list(shape)} in {stored.name}.", "Choose a kind such as q8_0."
        )
    return form


def _chunks(
    source: Source,
    name: str,
    shape: tuple[int, ...],
    form: Format,
    order: np.ndarray | None,
    importance: F32 | None,
    rounded: Counter[str],
) -> Callable[[], Iterator[Parts]]:
    """A tensor in its format, a few rows at a time."""

    def chunks() -> Iterator[Parts]:
        weight = source.weight(name)
        step = max(1, _CHUNK_VALUES // max(1, math.prod(shape[1:])))
        for start in range(0, shape[0], step):
            rows = slice(start, start + step) if order is None else order[start : start + step]
            parts = {suffix: part[rows] for suffix, part in weight.parts.items()}
            count = min(step, shape[0] - start)
            yield _convert(Weight(weight.format, (count, *shape[1:]), parts), form, name, importance, rounded)
            source.release(name)

    return chunks


def _convert(weight: Weight, form: Format, name: str, importance: F32 | None, rounded: Counter[str]) -> Parts:
    """Rows of a tensor in another format, bit for bit where that can be; `rounded` counts where almost."""
    if weight.format == form:
        return weight.parts
    if isinstance(form, BlockFormat):
        same = ungrouped(weight, form)
        if same is not None:
            rounded[name] += same[1]
            return same[0].parts
    values = weight.decode()
    if not np.isfinite(values).all():
        raise InvalidModelError(f"The tensor {name} holds NaN or infinity.", "The checkpoint is damaged.")
    return form.encode(values, importance) if isinstance(form, BlockFormat) else form.encode(values)


def _shifted(chunks: Callable[[], Iterator[Parts]], offset: float, factor: float) -> Callable[[], Iterator[Parts]]:
    """A norm as it is stored: (w + offset)·factor."""

    def shifted() -> Iterator[Parts]:
        for parts in chunks():
            yield {"": (parts[""].astype(np.float32) + np.float32(offset)) * np.float32(factor)}

    return shifted


def _vector(name: str, values: F32) -> _Outgoing:
    return _Outgoing(name, values.shape, get_format("f32"), lambda: iter([{"": values}]))


def _rope_factors(spec: ModelSpec) -> dict[str, F32]:
    """Divisors of the rotary frequencies, where they are scaled one by one."""
    rope = spec.ropes[spec.attentions[0].rope]
    match rope.scaling:
        case Llama3Scaling():
            plain = type(rope)(rope.dim, rope.theta).inv_freq()[0]
            return {ROPE_FREQS: (plain / rope.inv_freq()[0]).astype(np.float32)}
        case LongRopeScaling(short, long) if short == long and rope.attention_factor == 1:
            return {ROPE_FREQS: np.array(short, np.float32)}
        case LongRopeScaling(short, long):
            return {ROPE_LONG: np.array(long, np.float32), ROPE_SHORT: np.array(short, np.float32)}
    return {}


def _metadata(spec: ModelSpec, architecture: Architecture, name: str, number: int) -> dict[str, Value]:
    """Everything but the tokenizer."""
    attention = spec.attentions[0]
    windows = [each.window for each in spec.attentions]
    unlimited = (each.rope for each in spec.attentions if not each.window)
    rope = spec.ropes[next(unlimited, attention.rope)]
    own: dict[str, Value] = {
        "context_length": spec.context,
        "embedding_length": spec.hidden_size,
        "block_count": len(spec.layers),
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        "attention.sliding_window": max((window or 0 for window in windows), default=0),
        "rope.dimension_count": rope.dim,
        "rope.freq_base": rope.theta,
        "vocab_size": spec.vocab_size,
    }
    match rope.scaling:
        case LinearScaling(factor):
            own |= {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case LongRopeScaling(original_context=original, attention_factor=factor) if factor != 1:
            own |= {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": factor}
        case YarnScaling(truncate=False):
            raise not_in_gguf("The model's rotary embedding scales by YaRN without rounding")
        case YarnScaling(factor, original, attention_factor, fast, slow):
            own |= {
                "rope.scaling.type": "yarn", "rope.scaling.factor": factor,
                "rope.scaling.original_context_length": original,
                "rope.scaling.attn_factor": attention_factor / yarn_growth(factor),
                "rope.scaling.yarn_beta_fast": fast, "rope.scaling.yarn_beta_slow": slow,
            }  # fmt: skip
    own |= architecture.metadata(spec)
    named: dict[str, Value] = {f"{architecture.name}.{key}": value for key, value in own.items()}
    general: dict[str, Value] = {
        "general.architecture": architecture.name, "general.name": name, "general.file_type": number,
        "general.quantization_version": 2, "general.alignment": DEFAULT_ALIGNMENT,
    }  # fmt: skip
    return general | named


def _header(metadata: Mapping[str, Value], tensors: Sequence[_Outgoing]) -> bytes:
    """All that comes before the first tensor's bytes, padded to the alignment."""
    out = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        out += [_text(key), _value(value)]
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape[::-1]
        number = _TYPE_NUMBERS[tensor.format.name]
        out += [_text(tensor.name), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, number, offset)]
        offset += _aligned(tensor.nbytes)
    header = b"".join(out)
    return header.ljust(_aligned(len(header)), b"\0")


def _aligned(nbytes: int) -> int:
    return -(-nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """A metadata value with its type before it."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    number = {"b": 7, "i": 5, "f": 6}[value.dtype.kind]
    dtype = {7: "?", 5: "<i4", 6: "<f4"}[number]
    return struct.pack("<IIQ", 9, number, len(value)) + value.astype(dtype).tobytes()


def _write_tensor(file: BinaryIO, tensor: _Outgoing) -> None:
    written = 0
    for parts in tensor.chunks():
        (part,) = parts.values()
        file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        written += part.nbytes
    if written != tensor.nbytes:
        raise ValueError(f"{tensor.name} has {written} bytes instead of {tensor.nbytes}")
    file.write(b"\0" * (_aligned(written) - written))
