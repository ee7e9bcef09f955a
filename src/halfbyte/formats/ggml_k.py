"""ggml's k-quants: `q2_k`, `q3_k`, `q4_k`, `q5_k`, `q6_k`; blocks of 256 values whose groups have small integer scales.

Codes q, group scales s and offsets m are integers, d and e are float16 (ggml-common.h). Bytes in order:

    q2_k  84   16 of s | m « 4 , 64 of q's 2 bits, d, e            d·s·q - e·m       groups of 16
    q3_k  110  32 of q's high bit, 64 of its 2 low bits, 12, d     d·(s - 32)·(q - 4)   groups of 16, s of 6 bits
    q4_k  144  d, e, 12, 128 nibble pairs                          d·s·q - e·m       groups of 32, s and m of 6 bits
    q5_k  176  d, e, 12, 32 of q's high bit, 128 nibble pairs      d·s·q - e·m       groups of 32
    q6_k  210  128 nibble pairs, 64 of q's 2 high bits, 16 s, d    d·s·(q - 32)      groups of 16, s of 8 signed bits

Encoding is ggml's search for scales and offsets, many blocks at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Storage
from halfbyte.formats.ggml import (
    F32,
    U8,
    BlockFormat,
    affine_scale,
    block_weights,
    cut,
    half,
    half_bytes,
    inverse,
    nibbles,
    pair,
    symmetric_scale,
    to_half,
)

Floats = NDArray[np.floating[Any]]


def _fields(packed: U8, bits: int) -> U8:
    """Bytes `[n, k, w]` as codes `[n, k, 8/bits, w]`: the lowest bits of all w bytes, then the next, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return packed[:, :, None, :] >> shifts & np.uint8((1 << bits) - 1)


def _joined(codes: U8, bits: int) -> U8:
    """The inverse of `_fields`, as `[n, k·w]`, of the lowest `bits` of codes."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = (codes & np.uint8((1 << bits) - 1)) << shifts
    joined: U8 = np.bitwise_or.reduce(fields, axis=2)
    return joined.reshape(len(codes), -1)


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


def _whole(values: Floats, weights: Floats, top: int) -> tuple[U8, F32]:
    """Codes 0…top for non-negative values `[n, groups]`, and the scale of each row, by weighted least squares.

    Nine roundings, then five sweeps that move one code at a time (ggml's make_qp_quants).
    """
    values, weights = values.astype(np.float64), weights.astype(np.float64)
    unit = inverse(values.max(axis=-1).astype(np.float32))[:, None]
    best, codes = np.full(len(values), np.inf), np.zeros_like(values)
    for step in (0, -4, -3, -2, -1, 1, 2, 3, 4):
        reach = np.float32(top + 0.1 * step)
        tried = np.minimum(np.rint(values * (unit * reach)), top)
        error = (weights * (values - tried * inverse(unit * reach)) ** 2).sum(axis=-1)
        better = error < best
        codes[better], best[better] = tried[better], error[better]
    cross, power = (weights * values * codes).sum(axis=-1), (weights * codes * codes).sum(axis=-1)
    for column in [*range(values.shape[1])] * 5:
        cross, power = _move_code(values[:, column], weights[:, column], codes[:, column], cross, power, top)
    scale = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    return codes.astype(np.uint8), scale.astype(np.float32)


def _move_code(
    values: Floats, weights: Floats, codes: Floats, cross: Floats, power: Floats, top: int
) -> tuple[Floats, Floats]:
    """Give one column of codes (changed in place) its best value under the others' scale; returns the new sums."""
    others, rest = cross - weights * values * codes, power - weights * codes * codes
    usable = (others > 0) & (rest > 0)
    ratio = np.divide(rest, others, out=np.zeros_like(rest), where=usable)
    moved = np.minimum(np.rint(values * ratio), top)
    new_cross, new_power = others + weights * values * moved, rest + weights * moved * moved
    better = usable & (moved != codes) & (new_cross * new_cross * power > cross * cross * new_power)
    codes[better] = moved[better]
    return np.where(better, new_cross, cross), np.where(better, new_power, power)


def _affine_scales(values: F32, importance: F32 | None, size: int, top: int, most: int) -> tuple[U8, F32, U8, F32]:
    """s, d, m and e for groups of `size` values with codes 0…top; s and m `[n, groups]` in 0…most, d and e `[n]`."""
    weights = block_weights(values, importance).reshape(-1, size)
    scale, offset = affine_scale(values.reshape(-1, size), weights, top)
    groups = values.shape[1] // size
    share = weights.sum(axis=-1).reshape(-1, groups)
    return *_whole(scale.reshape(-1, groups), share, most), *_whole(offset.reshape(-1, groups), share, most)


def _affine_codes(values: F32, unit: F32, least: F32, top: int) -> U8:
    """Codes `[n, groups, size]` from what their unit and offset are worth in each group `[n, groups]`."""
    grouped = values.reshape(*unit.shape, -1)
    codes: U8 = np.clip(np.rint((grouped + least[..., None]) * inverse(unit)[..., None]), 0, top).astype(np.uint8)
    return codes


def _encode_q2(values: F32, importance: F32 | None) -> U8:
    scales, d, offsets, e = _affine_scales(values, importance, 16, 3, 15)
    halves = [half_bytes(to_half(part)) for part in (d, e)]
    codes = _affine_codes(values, half(halves[0], 0) * scales, half(halves[1], 0) * offsets, 3)
    return np.concatenate([scales | offsets << np.uint8(4), _joined(codes.reshape(-1, 2, 4, 32), 2), *halves], axis=-1)


def _symmetric_codes(values: F32, importance: F32 | None, middle: int, most: int) -> tuple[NDArray[np.int8], U8, U8]:
    """Of groups of 16 s `[n, 16]` in -most…most - 1, the bytes of d, and codes `[n, 256]` in 0…2·middle - 1."""
    groups = values.reshape(-1, 16)
    weights = groups * groups if importance is None else importance.reshape(-1, 16)
    scale = symmetric_scale(groups, weights, middle).reshape(-1, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=-1)[:, None], axis=-1)
    d = half_bytes(to_half(largest[:, 0] / np.float32(-most)))
    scales = np.clip(np.rint(scale * inverse(largest / np.float32(-most))), -most, most - 1).astype(np.int8)
    unit = (half(d, 0) * scales).reshape(-1, 1)
    codes = (np.clip(np.rint(groups * inverse(unit)), -middle, middle - 1) + middle).astype(np.uint8)
    return scales, d, codes.reshape(len(values), -1)


def _encode_q3(values: F32, importance: F32 | None) -> U8:
    scales, d, codes = _symmetric_codes(values, importance, 4, 32)
    six = (scales + np.int8(32)).view(np.uint8)
    low, high = _joined(codes.reshape(-1, 2, 4, 32), 2), _joined(codes.reshape(-1, 1, 8, 32) >> np.uint8(2), 1)
    return np.concatenate(
        [high, low, pair(six & np.uint8(15)), _joined(six.reshape(-1, 1, 4, 4) >> np.uint8(4), 2), d], axis=-1
    )


def _affine_head(values: F32, importance: F32 | None, top: int) -> tuple[U8, U8]:
    """Of q4_k and q5_k: the first 16 bytes, and codes `[n, 8, 32]`."""
    scales, d, offsets, e = _affine_scales(values, importance, 32, top, 63)
    head = np.concatenate([half_bytes(to_half(d)), half_bytes(to_half(e)), _pack_scales(scales, offsets)], axis=-1)
    return head, _affine_codes(values, *_steps(head), top)


def _pairs_of_groups(codes: U8) -> U8:
    """Nibbles of groups 2i (low) and 2i + 1 (high) `[n, 8, 32]` in bytes `[n, 128]`."""
    low, high = codes[:, 0::2] & np.uint8(15), codes[:, 1::2] & np.uint8(15)
    pairs = low | high << np.uint8(4)
    return pairs.reshape(len(codes), -1)


def _encode_q4(values: F32, importance: F32 | None) -> U8:
    head, codes = _affine_head(values, importance, 15)
    return np.concatenate([head, _pairs_of_groups(codes)], axis=-1)


def _encode_q5(values: F32, importance: F32 | None) -> U8:
    head, codes = _affine_head(values, importance, 31)
    high = np.packbits(codes >> 4, axis=1, bitorder="little").reshape(len(codes), 32)
    return np.concatenate([head, high, _pairs_of_groups(codes)], axis=-1)


def _encode_q6(values: F32, importance: F32 | None) -> U8:
    scales, d, codes = _symmetric_codes(values, importance, 32, 128)
    low, high = _joined(codes.reshape(-1, 2, 2, 64), 4), _joined(codes.reshape(-1, 2, 4, 32) >> np.uint8(4), 2)
    return np.concatenate([low, high, scales.view(np.uint8), d], axis=-1)


def _arrays(kind: str, **arrays: tuple[int, int]) -> Callable[[int], Storage]:
    """Of a format's blocks the bytes from one number to the other in each array, filled up to whole words."""
    halves, offsets = kind in ("q2_k", "q3_k", "q6_k"), kind in ("q2_k", "q4_k", "q5_k")

    def storage(columns: int) -> Storage:
        blocks = -(-columns // 256)
        cuts = {name: cut(blocks, start, stop, -((start - stop) // 4) * 4) for name, (start, stop) in arrays.items()}
        constants = {"KIND": kind, "COLUMNS": columns, "BLOCKS": blocks, "HALVES": halves, "OFFSETS": offsets}
        return Storage("ggml_k", constants, cuts, True)

    return storage


_FORMATS = {
    form.name: form
    for form in (
        BlockFormat("q2_k", 256, 84, _decode_q2, _encode_q2, _arrays("q2_k", w=(0, 80), w_scale=(80, 84))),
        BlockFormat("q3_k", 256, 110, _decode_q3, _encode_q3, _arrays("q3_k", w=(0, 110))),
        BlockFormat("q4_k", 256, 144, _decode_q4, _encode_q4, _arrays("q4_k", w=(0, 144))),
        BlockFormat("q5_k", 256, 176, _decode_q5, _encode_q5, _arrays("q5_k", w=(0, 176))),
        BlockFormat("q6_k", 256, 210, _decode_q6, _encode_q6,
                    _arrays("q6_k", w_low=(0, 128), w_high=(128, 192), w_scale=(192, 210))),
    )
}  # fmt: skip
NAMES = tuple(_FORMATS)


def parse(name: str) -> BlockFormat | None:
    """The k-quant called `name`, if it is one."""
    return _FORMATS.get(name)
