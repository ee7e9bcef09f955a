"""ggml's formats of 32 values a block: `q4_0`, `q4_1`, `q5_0`, `q5_1`, `q8_0`; and what all of ggml's formats share.

A row is cut into blocks of a fixed number of bytes (the last one padded with zeros); its one part is

    .blocks  u8 [rows, blocks·bytes]   exactly as ggml stores a row

Blocks of this module, d and m in float16 (ggml-common.h):

    q4_0  d, 16 nibble pairs                    d·(q - 8)      byte i holds codes i (low) and i + 16
    q4_1  d, m, 16 nibble pairs                 d·q + m
    q5_0  d, 32 high bits, 16 nibble pairs      d·(q - 16)     bit i of the 32 belongs to code i
    q5_1  d, m, 32 high bits, 16 nibble pairs   d·q + m
    q8_0  d, 32 int8                            d·q

Without importance, encoding gives the bytes that ggml's reference code gives. With it (Σx² of each input
channel over a calibration text, ggml's "imatrix"), scales are searched for the least weighted error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Parts, RowLayout, Storage

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
GroupParts = tuple[U8, NDArray[np.float16]]

BLOCKS = ".blocks"
_CHUNK_VALUES = 1 << 17
_THREADS = min(8, os.cpu_count() or 1)
_F16_MAX = np.float32(65504)
_LARGEST = np.float32(1e9)
"""Beyond what any of these formats can hold; its powers still fit float32."""


@dataclass(frozen=True)
class BlockFormat:
    """A format of ggml's.

    Attributes:
        values: Values a block stands for.
        block_bytes: Bytes a block takes.
        decode_blocks: From blocks `[n, block_bytes]` to values `[n, values]`.
        encode_blocks: From values and importance (or None), both `[n, values]`, to blocks; None where ggml's
            search is not offered.
        gpu_storage: What `storage` gives for a number of columns, where executors compute with the format.
        grouped: The format of 32 values a group that it is turned into while loading, where they do not.
        group_parts: From blocks to what that format stores: the bytes of its codes `[n, …]` and float16 scales `[n]`.
    """

    name: str
    values: int
    block_bytes: int
    decode_blocks: Callable[[U8], F32] = field(repr=False)
    encode_blocks: Callable[[F32, F32 | None], U8] | None = field(default=None, repr=False)
    gpu_storage: Callable[[int], Storage] | None = field(default=None, repr=False)
    grouped: str | None = None
    group_parts: Callable[[U8], GroupParts] | None = field(default=None, repr=False)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        rows, columns = shape
        return {BLOCKS: ("U8", (rows, self.row_bytes(columns)))}

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return shape[0] * self.row_bytes(shape[1])

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of this many values."""
        return -(-columns // self.values) * self.block_bytes

    def storage(self, columns: int) -> Storage | None:
        return self.gpu_storage(columns) if self.gpu_storage else None

    def encode(self, values: F32, importance: F32 | None = None) -> Parts:
        """Store float32 values `[rows, columns]`, with the importance of each column if it is known.

        Raises:
            UnsupportedModelError: The format can only be read.
        """
        if self.encode_blocks is None:
            raise UnsupportedModelError(f"the format {self.name} can be read, not written.", "Use q4_k, q5_k or q6_k.")
        rows, columns = values.shape
        blocks = -(-columns // self.values)
        weights = None if importance is None else self._padded(importance.reshape(1, columns), blocks)
        out = np.empty((rows, blocks, self.block_bytes), np.uint8)
        step = max(1, _CHUNK_VALUES // max(1, blocks * self.values))
        search = self.encode_blocks

        def encode_rows(start: int) -> None:
            chunk = self._padded(np.clip(values[start : start + step], -_LARGEST, _LARGEST), blocks)
            repeated = None if weights is None else np.tile(weights, (len(chunk) // max(blocks, 1), 1))
            out[start : start + step] = search(chunk, repeated).reshape(-1, blocks, self.block_bytes)

        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(encode_rows, range(0, rows, step)):
                pass
        return {BLOCKS: out.reshape(rows, -1)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> F32:
        rows, columns = shape
        blocks = np.ascontiguousarray(parts[BLOCKS]).view(np.uint8).reshape(-1, self.block_bytes)
        values = self.decode_blocks(blocks).reshape(rows, -1)
        return np.ascontiguousarray(values[:, :columns])

    def _padded(self, values: F32, blocks: int) -> F32:
        """Rows as blocks `[rows·blocks, values]`, the last of each row filled up with zeros."""
        padded = np.zeros((len(values), blocks * self.values), np.float32)
        padded[:, : values.shape[1]] = values
        return padded.reshape(-1, self.values)


def half(blocks: U8, at: int) -> F32:
    """The float16 at byte `at` of each block, as a column `[n, 1]`."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def to_half(values: F32) -> NDArray[np.float16]:
    """Float16; beyond its range its largest."""
    return np.clip(values, -_F16_MAX, _F16_MAX).astype(np.float16)


def half_bytes(values: NDArray[np.float16]) -> U8:
    """The bytes `[n, 2]` of float16 values `[n]`."""
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 2)


def inverse(scale: F32) -> F32:
    """1 / scale, and 0 where the scale is 0 or so small that this would be infinite."""
    usable = np.abs(scale) > np.float32(3e-38)
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=usable)


def nibbles(pairs: U8) -> U8:
    """Bytes `[n, k]` as codes `[n, 2k]`: all low nibbles, then all high ones."""
    return np.concatenate([pairs & 15, pairs >> 4], axis=-1)


def pair(codes: U8) -> U8:
    """The inverse of `nibbles`."""
    low, high = np.split(codes, 2, axis=-1)
    return low | high << np.uint8(4)


def symmetric_scale(values: F32, weights: F32, top: int) -> F32:
    """The scale of each group `[n, g]`, with codes in -top…top - 1, that has the least weighted squared error.

    Nineteen roundings around the one that puts the largest magnitude at -top; each gets its best scale by
    least squares (ggml's make_qx_quants).
    """
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[:, None], axis=-1)
    unit, weighted = inverse(largest), weights * values
    scale = np.zeros(len(values), np.float32)
    best = np.zeros(len(values), np.float32)
    codes, product = np.empty_like(values), np.empty_like(values)
    for step in range(-9, 10):
        np.multiply(values, unit * np.float32(-(top + 0.1 * step)), out=codes)
        np.clip(np.rint(codes, out=codes), -top, top - 1, out=codes)
        hit = np.einsum("ij,ij->i", weighted, codes)
        power = np.einsum("ij,ij->i", np.multiply(weights, codes, out=product), codes)
        ratio = np.divide(hit, power, out=np.zeros_like(hit), where=power > 0)
        better = ratio * hit > best
        scale[better], best[better] = ratio[better], (ratio * hit)[better]
    return scale


def affine_scale(values: F32, weights: F32, top: int) -> tuple[F32, F32]:
    """Scale s and offset m ≥ 0 of each group `[n, g]` so that s·q - m, q in 0…top, has the least weighted error.

    Thirty-seven roundings around the plain one, each measured from the best offset so far; each gets its best s
    and m by least squares (ggml's make_qkx3_quants).
    """
    high, offset = values.max(axis=-1), np.minimum(values.min(axis=-1), 0)
    scale = (high - offset) / np.float32(top)
    total, mean = weights.sum(axis=-1), np.einsum("ij,ij->i", weights, values)
    best = np.full(len(values), np.inf, np.float32)
    codes, product = np.empty_like(values), np.empty_like(values)
    for step in range(-1, 37):
        reach = np.float32(top if step < 0 else top - 0.9 + 0.05 * step)
        np.subtract(values, offset[:, None], out=codes)
        codes *= (inverse(high - offset) * reach)[:, None]
        np.clip(np.rint(codes, out=codes), 0, top, out=codes)
        np.multiply(weights, codes, out=product)
        sums = product.sum(axis=-1), np.einsum("ij,ij->i", product, codes), np.einsum("ij,ij->i", product, values)
        fit = (scale, offset) if step < 0 else _least_squares(total, mean, *sums)
        error = _affine_error(total, mean, *sums, *fit)
        better = error < best
        scale, offset = (np.where(better, new, old) for new, old in zip(fit, (scale, offset), strict=True))
        best = np.where(better, error, best)
    return scale, -offset


def _least_squares(total: F32, mean: F32, first: F32, second: F32, cross: F32) -> tuple[F32, F32]:
    """s and offset ≤ 0 from Σw, Σwx, Σwq, Σwq², Σwqx; infinite where they are not determined."""
    free = total * second - first * first
    known = free > 0
    scale = np.divide(total * cross - mean * first, free, out=np.full_like(free, np.inf), where=known)
    offset = np.divide(second * mean - first * cross, free, out=np.full_like(free, np.inf), where=known)
    through_zero = np.divide(cross, second, out=np.full_like(free, np.inf), where=second > 0)
    return np.where(offset > 0, through_zero, scale), np.minimum(offset, 0)


def _affine_error(total: F32, mean: F32, first: F32, second: F32, cross: F32, scale: F32, offset: F32) -> F32:
    """Σw(s·q + offset - x)², less Σwx²; infinite where s is."""
    s = np.where(np.isfinite(scale), scale, 0)
    error = s * (s * second + 2 * offset * first - 2 * cross) + offset * (offset * total - 2 * mean)
    return np.where(np.isfinite(scale), error, np.inf).astype(np.float32)


def block_weights(values: F32, importance: F32 | None) -> F32:
    """How much an error at each value counts: importance·√(σ² + x²), or √σ² + |x|, with σ² = 2·mean x² of the block."""
    variance = 2 * np.mean(values * values, axis=-1, keepdims=True)
    weights: F32 = np.sqrt(variance) + np.abs(values)
    if importance is not None:
        weights = importance * np.sqrt(variance + values * values)
    return weights


def scale_first(blocks: U8) -> GroupParts:
    """The codes' bytes as they are, after a float16 scale."""
    return blocks[:, 2:], np.ascontiguousarray(blocks[:, :2]).view(np.float16)[:, 0]


def cut(blocks: int, start: int, stop: int, nbytes: int = 0) -> RowLayout:
    """Bytes `start` to `stop` of each of ggml's blocks of a row, followed by zeros up to `nbytes`."""
    more = max(0, nbytes - (stop - start))

    def of(parts: Parts) -> U8:
        stored = parts[BLOCKS].view(np.uint8)
        found = stored.reshape(len(stored), blocks, -1)[:, :, start:stop]
        return np.pad(found, ((0, 0), (0, 0), (0, more))) if more else found

    return RowLayout(blocks * (stop - start + more), of)


def _fifth_bits(blocks: int, at: int) -> RowLayout:
    """The high bits of each block's codes: bit t of each byte belongs to codes 4t … 4t + 3."""
    stored = cut(blocks, at, at + 4)

    def of(parts: Parts) -> NDArray[np.uint32]:
        bits = np.ascontiguousarray(stored.of(parts)).view("<u4")[..., 0]
        spread = np.zeros_like(bits)
        for t in range(8):
            spread |= ((bits >> 4 * t & 15) * np.uint32(0x204081) & np.uint32(0x01010101)) << t
        return spread

    return RowLayout(blocks * 4, of)


def _storage(columns: int, *, five: bool, minimum: bool) -> Storage:
    """Of a block the scales, the high bits of codes of five bits, and the nibble pairs."""
    blocks, head = -(-columns // 32), 4 if minimum else 2
    pairs = head + (4 if five else 0)
    arrays = {"w_q": cut(blocks, pairs, pairs + 16), "w_scale": cut(blocks, 0, head)}
    if five:
        arrays["w_high"] = _fifth_bits(blocks, head)
    constants = {"BLOCKS": blocks, "COLUMNS": columns, "FIVE": five, "MINIMUM": minimum}
    return Storage("ggml", {**constants, "HALVES": False, "OFFSETS": minimum}, arrays, True)


def _symmetric(codes: U8, scale: F32, middle: int) -> F32:
    return scale * (codes.astype(np.float32) - np.float32(middle))


def _affine(codes: U8, scale: F32, offset: F32) -> F32:
    return scale * codes.astype(np.float32) + offset


def _five_bits(blocks: U8, at: int) -> U8:
    high = np.unpackbits(blocks[:, at : at + 4], axis=-1, bitorder="little")
    return nibbles(blocks[:, at + 4 : at + 20]) | high << np.uint8(4)


def _decode_q8_0(blocks: U8) -> F32:
    return half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _encode_symmetric(values: F32, importance: F32 | None, bits: int) -> U8:
    """q4_0 and q5_0: codes around the middle; without importance the largest magnitude gets code 0."""
    middle = 1 << bits - 1
    if importance is None:
        largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[:, None], axis=-1)[:, 0]
        scale = largest / np.float32(-middle)
    else:
        scale = symmetric_scale(values, block_weights(values, importance), middle)
    codes = np.clip(np.floor(values * inverse(scale)[:, None] + np.float32(middle + 0.5)), 0, 2 * middle - 1)
    return _with_codes([half_bytes(to_half(scale))], codes.astype(np.uint8), bits)


def _encode_affine(values: F32, importance: F32 | None, bits: int) -> U8:
    """q4_1 and q5_1: the range from the least to the greatest value in 2^bits - 1 steps, or the best there is."""
    top = (1 << bits) - 1
    low = values.min(axis=-1)
    scale = (values.max(axis=-1) - low) / np.float32(top)
    if importance is not None:
        scale, offset = affine_scale(values, block_weights(values, importance), top)
        low = -offset
    codes = np.clip(np.floor((values - low[:, None]) * inverse(scale)[:, None] + np.float32(0.5)), 0, top)
    return _with_codes([half_bytes(to_half(scale)), half_bytes(to_half(low))], codes.astype(np.uint8), bits)


def _with_codes(head: list[U8], codes: U8, bits: int) -> U8:
    high = [np.packbits(codes >> 4, axis=-1, bitorder="little")] if bits == 5 else []
    return np.concatenate([*head, *high, pair(codes & np.uint8(15))], axis=-1)


def _encode_q8_0(values: F32, importance: F32 | None) -> U8:
    """The largest magnitude gets ±127; halves round away from zero, as C's roundf does."""
    scale = np.abs(values).max(axis=-1) / np.float32(127)
    scaled = values * inverse(scale)[:, None]
    codes = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)
    return np.concatenate([half_bytes(to_half(scale)), codes.astype(np.int8).view(np.uint8)], axis=-1)


_FORMATS = {
    form.name: form
    for form in (
        BlockFormat("q4_0", 32, 18, lambda b: _symmetric(nibbles(b[:, 2:]), half(b, 0), 8),
                    lambda x, w: _encode_symmetric(x, w, 4), grouped="q4g32", group_parts=scale_first),
        BlockFormat("q4_1", 32, 20, lambda b: _affine(nibbles(b[:, 4:]), half(b, 0), half(b, 2)),
                    lambda x, w: _encode_affine(x, w, 4), partial(_storage, five=False, minimum=True)),
        BlockFormat("q5_0", 32, 22, lambda b: _symmetric(_five_bits(b, 2), half(b, 0), 16),
                    lambda x, w: _encode_symmetric(x, w, 5), partial(_storage, five=True, minimum=False)),
        BlockFormat("q5_1", 32, 24, lambda b: _affine(_five_bits(b, 4), half(b, 0), half(b, 2)),
                    lambda x, w: _encode_affine(x, w, 5), partial(_storage, five=True, minimum=True)),
        BlockFormat("q8_0", 32, 34, _decode_q8_0, _encode_q8_0, grouped="q8g32", group_parts=scale_first),
    )
}  # fmt: skip


NAMES = tuple(_FORMATS)


def parse(name: str) -> BlockFormat | None:
    """The format called `name`, if it is one of this module's."""
    return _FORMATS.get(name)
