"""ggml's k-quants: `q2_k`, `q3_k`, `q4_k`, `q5_k`, `q6_k`; blocks of 256 values whose groups have small integer scales.

Codes q, group scales s and offsets m are integers, d and e are float16 (ggml-common.h). Bytes in order:

    q2_k  84   16 of s | m « 4 , 64 of q's 2 bits, d, e            d·s·q - e·m       groups of 16
    q3_k  110  32 of q's high bit, 64 of its 2 low bits, 12, d     d·(s - 32)·(q - 4)   groups of 16, s of 6 bits
    q4_k  144  d, e, 12, 128 nibble pairs                          d·s·q - e·m       groups of 32, s and m of 6 bits
    q5_k  176  d, e, 12, 32 of q's high bit, 128 nibble pairs      d·s·q - e·m       groups of 32
    q6_k  210  128 nibble pairs, 64 of q's 2 high bits, 16 s, d    d·s·(q - 32)      groups of 16, s of 8 signed bits

The reader has all five, the writer q4_k, q5_k and q6_k: ggml's search for scales and offsets, many blocks at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Parts, RowLayout, Storage, stored_part
from halfbyte.formats.ggml import (
    BLOCKS,
    F32,
    U8,
    BlockFormat,
    affine_scale,
    block_weights,
    half,
    half_bytes,
    inverse,
    nibbles,
    symmetric_scale,
    to_half,
)

Floats = NDArray[np.floating[Any]]

_SIX_BITS = 63


def _fields(packed: U8, bits: int) -> U8:
    """Bytes `[n, k, w]` as codes `[n, k, 8/bits, w]`: the lowest bits of all w bytes, then the next, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return packed[:, :, None, :] >> shifts & np.uint8((1 << bits) - 1)


def _grouped(codes: U8, size: int) -> F32:
    return codes.reshape(len(codes), -1, size).astype(np.float32)


def _affine(scale: F32, codes: F32, offset: F32) -> F32:
    values: F32 = scale[..., None] * codes - offset[..., None]
    return values


def _decode_q2(blocks: U8) -> F32:
    scales = blocks[:, :16]
    codes = _grouped(_fields(blocks[:, 16:80].reshape(-1, 2, 32), 2), 16)
    scale, offset = half(blocks, 80) * (scales & 15), half(blocks, 82) * (scales >> 4)
    return _affine(scale, codes, offset)


def _decode_q3(blocks: U8) -> F32:
    high = _fields(blocks[:, None, :32], 1).reshape(len(blocks), -1)
    low = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(len(blocks), -1)
    codes = _grouped(low | high << np.uint8(2), 16) - np.float32(4)
    scales = nibbles(blocks[:, 96:104]) | _fields(blocks[:, None, 104:108], 2).reshape(-1, 16) << np.uint8(4)
    scale = half(blocks, 108) * (scales.astype(np.float32) - np.float32(32))
    return _affine(scale, codes, np.zeros_like(scale))


def _unpack_scales(packed: U8) -> tuple[U8, U8]:
    """Eight 6-bit scales and eight 6-bit offsets `[n, 8]` of q4_k and q5_k from their 12 bytes."""
    first, second, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, mixed & 15 | first >> 6 << np.uint8(4)], axis=-1)
    offsets = np.concatenate([second & 63, mixed >> 4 | second >> 6 << np.uint8(4)], axis=-1)
    return scales, offsets


def _pack_scales(scales: U8, offsets: U8) -> U8:
    """The inverse of `_unpack_scales`."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << np.uint8(6)
    second = offsets[:, :4] | offsets[:, 4:] >> 4 << np.uint8(6)
    mixed = scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << np.uint8(4)
    return np.concatenate([first, second, mixed], axis=-1)


def _steps(blocks: U8) -> tuple[F32, F32]:
    """What a code's unit and offset are worth in each group of q4_k and q5_k, `[n, 8]`."""
    scales, offsets = _unpack_scales(blocks[:, 4:16])
    return half(blocks, 0) * scales, half(blocks, 2) * offsets


def _decode_q4(blocks: U8) -> F32:
    scale, offset = _steps(blocks)
    return _affine(scale, _grouped(_fields(blocks[:, 16:].reshape(-1, 4, 32), 4), 32), offset)


def _decode_q5(blocks: U8) -> F32:
    scale, offset = _steps(blocks)
    low = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(len(blocks), -1)
    high = _fields(blocks[:, None, 16:48], 1).reshape(len(blocks), -1)
    return _affine(scale, _grouped(low | high << np.uint8(4), 32), offset)


def _decode_q6(blocks: U8) -> F32:
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(len(blocks), -1)
    high = _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(len(blocks), -1)
    scale = half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return scale[..., None] * (_grouped(low | high << np.uint8(4), 16) - np.float32(32))


def _six_bit(values: Floats, weights: Floats) -> tuple[U8, F32]:
    """Codes 0…63 for non-negative values `[n, 8]`, and the scale of each row, by weighted least squares.

    Nine roundings, then five sweeps that move one code at a time (ggml's make_qp_quants).
    """
    values, weights = values.astype(np.float64), weights.astype(np.float64)
    unit = inverse(values.max(axis=-1).astype(np.float32))[:, None]
    best, codes = np.full(len(values), np.inf), np.zeros_like(values)
    for step in (0, -4, -3, -2, -1, 1, 2, 3, 4):
        reach = np.float32(_SIX_BITS + 0.1 * step)
        tried = np.minimum(np.rint(values * (unit * reach)), _SIX_BITS)
        error = (weights * (values - tried * inverse(unit * reach)) ** 2).sum(axis=-1)
        better = error < best
        codes[better], best[better] = tried[better], error[better]
    cross, power = (weights * values * codes).sum(axis=-1), (weights * codes * codes).sum(axis=-1)
    for column in [*range(values.shape[1])] * 5:
        cross, power = _move_code(values[:, column], weights[:, column], codes[:, column], cross, power)
    scale = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    return codes.astype(np.uint8), scale.astype(np.float32)


def _move_code(values: Floats, weights: Floats, codes: Floats, cross: Floats, power: Floats) -> tuple[Floats, Floats]:
    """Give one column of codes (changed in place) its best value under the others' scale; returns the new sums."""
    others, rest = cross - weights * values * codes, power - weights * codes * codes
    usable = (others > 0) & (rest > 0)
    ratio = np.divide(rest, others, out=np.zeros_like(rest), where=usable)
    moved = np.minimum(np.rint(values * ratio), _SIX_BITS)
    new_cross, new_power = others + weights * values * moved, rest + weights * moved * moved
    better = usable & (moved != codes) & (new_cross * new_cross * power > cross * cross * new_power)
    codes[better] = moved[better]
    return np.where(better, new_cross, cross), np.where(better, new_power, power)


def _affine_codes(values: F32, importance: F32 | None, top: int) -> tuple[U8, U8]:
    """Of q4_k and q5_k: the first 16 bytes, and codes `[n, 8, 32]`."""
    groups = values.reshape(-1, 32)
    weights = block_weights(values, importance).reshape(-1, 32)
    scale, offset = affine_scale(groups, weights, top)
    share = weights.sum(axis=-1).reshape(-1, 8)
    scales, d = _six_bit(scale.reshape(-1, 8), share)
    offsets, e = _six_bit(offset.reshape(-1, 8), share)
    head = np.concatenate([half_bytes(to_half(d)), half_bytes(to_half(e)), _pack_scales(scales, offsets)], axis=-1)
    unit, least = (part.reshape(-1, 1) for part in _steps(head))
    codes = np.clip(np.rint((groups + least) * inverse(unit)), 0, top).astype(np.uint8)
    return head, codes.reshape(-1, 8, 32)


def _pairs_of_groups(codes: U8) -> U8:
    """Nibbles of groups 2i (low) and 2i + 1 (high) `[n, 8, 32]` in bytes `[n, 128]`."""
    low, high = codes[:, 0::2] & np.uint8(15), codes[:, 1::2] & np.uint8(15)
    pairs = low | high << np.uint8(4)
    return pairs.reshape(len(codes), -1)


def _encode_q4(values: F32, importance: F32 | None) -> U8:
    head, codes = _affine_codes(values, importance, 15)
    return np.concatenate([head, _pairs_of_groups(codes)], axis=-1)


def _encode_q5(values: F32, importance: F32 | None) -> U8:
    head, codes = _affine_codes(values, importance, 31)
    high = np.packbits(codes >> 4, axis=1, bitorder="little").reshape(len(codes), 32)
    return np.concatenate([head, high, _pairs_of_groups(codes)], axis=-1)


def _encode_q6(values: F32, importance: F32 | None) -> U8:
    groups = values.reshape(-1, 16)
    weights = groups * groups if importance is None else importance.reshape(-1, 16)
    scale = symmetric_scale(groups, weights, 32).reshape(-1, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=-1)[:, None], axis=-1)
    d = to_half(largest[:, 0] / np.float32(-128))
    scales = np.clip(np.rint(scale * inverse(largest / np.float32(-128))), -128, 127).astype(np.int8)
    unit = (d.astype(np.float32)[:, None] * scales).reshape(-1, 1)
    codes = (np.clip(np.rint(groups * inverse(unit)), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << np.uint8(4)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce(codes >> 4 << shifts, axis=2)
    n = len(values)
    return np.concatenate([low.reshape(n, -1), high.reshape(n, -1), scales.view(np.uint8), half_bytes(d)], axis=-1)


def _storage_q4(columns: int) -> Storage:
    blocks = -(-columns // 256)
    return _storage("q4_k", columns, {"w": stored_part(BLOCKS, blocks * 144)})


def _storage_q6(columns: int) -> Storage:
    """Each of ggml's blocks in three: 210 bytes are no whole number of words."""
    blocks = -(-columns // 256)

    def cut(start: int, stop: int, nbytes: int) -> RowLayout:
        def of(parts: Parts) -> U8:
            stored = parts[BLOCKS].view(np.uint8).reshape(-1, blocks, 210)
            out = np.zeros((len(stored), blocks, nbytes), np.uint8)
            out[:, :, : stop - start] = stored[:, :, start:stop]
            return out

        return RowLayout(blocks * nbytes, of)

    return _storage(
        "q6_k", columns, {"w_low": cut(0, 128, 128), "w_high": cut(128, 192, 64), "w_scale": cut(192, 210, 20)}
    )


def _storage(kind: str, columns: int, arrays: dict[str, RowLayout]) -> Storage:
    constants = {"KIND": kind, "COLUMNS": columns, "BLOCKS": -(-columns // 256)}
    return Storage("ggml_k", {**constants, "HALVES": kind == "q6_k", "OFFSETS": kind == "q4_k"}, arrays, True)


_FORMATS = {
    form.name: form
    for form in (
        BlockFormat("q2_k", 256, 84, _decode_q2),
        BlockFormat("q3_k", 256, 110, _decode_q3),
        BlockFormat("q4_k", 256, 144, _decode_q4, _encode_q4, "q4_k", gpu_storage=_storage_q4),
        BlockFormat("q5_k", 256, 176, _decode_q5, _encode_q5),
        BlockFormat("q6_k", 256, 210, _decode_q6, _encode_q6, "q6_k", gpu_storage=_storage_q6),
    )
}
NAMES = tuple(_FORMATS)


def parse(name: str) -> BlockFormat | None:
    """The k-quant called `name`, if it is one."""
    return _FORMATS.get(name)
