"""ggml's 4-bit formats whose codes point into a table: `iq4_nl`, `iq4_xs`, `mxfp4`.

    iq4_nl  18 bytes, 32 values    d (float16), 16 nibble pairs                             d·table[q]
    iq4_xs  136 bytes, 256 values  d, 2 high bits of 8 s, 4 pairs of low 4, 8 of 16 pairs   d·(s - 32)·table[q]
    mxfp4   17 bytes, 32 values    an exponent e, 16 nibble pairs                           2^(e - 127)·float4[q]

Byte i of a group's 16 holds codes i (low nibble) and i + 16. mxfp4 is the OCP microscaling format (E2M1 with an
E8M0 scale) and only read; iq4's table is ggml's kvalues_iq4nl. Encoding searches for the scale of the least error.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np

from halfbyte.formats import Storage
from halfbyte.formats.ggml import (
    F32,
    U8,
    BlockFormat,
    GroupParts,
    block_weights,
    cut,
    half,
    half_bytes,
    inverse,
    nibbles,
    pair,
    to_half,
)

IQ4_TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
FP4_TABLE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""E2M1 values, doubled."""


def _decode_iq4_nl(blocks: U8) -> F32:
    values: F32 = half(blocks, 0) * IQ4_TABLE[nibbles(blocks[:, 2:])]
    return values


def _decode_iq4_xs(blocks: U8) -> F32:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    codes = nibbles(blocks[:, 8:].reshape(-1, 8, 16))
    values: F32 = (half(blocks, 0) * scales)[..., None] * IQ4_TABLE[codes]
    return values


def _decode_mxfp4(blocks: U8) -> F32:
    """The table is doubled, so the scale is halved."""
    scale: F32 = np.ldexp(np.float32(0.5), blocks[:, :1].astype(np.int32) - 127)
    return scale * FP4_TABLE[nibbles(blocks[:, 1:])].astype(np.float32)


def _parts_mxfp4(blocks: U8) -> GroupParts:
    """Scales beyond float16 saturate; those below 2^-24 become 0."""
    exponent = np.minimum(blocks[:, 0].astype(np.int32) - 128, 15)
    return FP4_TABLE.view(np.uint8)[nibbles(blocks[:, 1:])], np.ldexp(np.float32(1), exponent).astype(np.float16)


def _nearest(values: F32) -> U8:
    """The codes whose entries of iq4's table are nearest."""
    entries = IQ4_TABLE.astype(np.float32)
    codes: U8 = np.searchsorted((entries[1:] + entries[:-1]) / 2, values).astype(np.uint8)
    return codes


def _table_scale(values: F32, weights: F32) -> F32:
    """The scale of each group `[n, 32]` that has the least weighted squared error.

    Fifteen roundings around each of those that put the largest magnitude at either end of the table; each gets its
    best scale by least squares (ggml's quantize_row_iq4_nl_impl).
    """
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[:, None], axis=-1)
    unit, scale, best = inverse(largest), *np.zeros((2, len(values)), np.float32)
    for end, step in itertools.product((int(IQ4_TABLE[0]), int(IQ4_TABLE[-1])), range(-7, 8)):
        entries = IQ4_TABLE[_nearest(values * unit * np.float32(end + step))].astype(np.float32)
        hit, power = ((weights * entries * other).sum(axis=-1) for other in (values, entries))
        ratio = hit * inverse(power)
        better = ratio * hit > best
        scale[better], best[better] = ratio[better], (ratio * hit)[better]
    return scale


def _encode_iq4_nl(values: F32, importance: F32 | None) -> U8:
    d = half_bytes(to_half(_table_scale(values, block_weights(values, importance))))
    return np.concatenate([d, pair(_nearest(values * inverse(half(d, 0))))], axis=-1)


def _encode_iq4_xs(values: F32, importance: F32 | None) -> U8:
    groups = values.reshape(-1, 32)
    scale = _table_scale(groups, block_weights(values, importance).reshape(-1, 32)).reshape(-1, 8)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=-1)[:, None], axis=-1)
    d = half_bytes(to_half(largest[:, 0] / np.float32(-32)))
    s = np.clip(np.rint(scale * inverse(half(d, 0))), -32, 31)
    codes = _nearest(groups * inverse((half(d, 0) * s).reshape(-1, 1)))
    six = (s + 32).astype(np.uint16)
    high = np.bitwise_or.reduce((six >> 4) << np.arange(0, 16, 2, dtype=np.uint16), axis=-1)
    low = (six[:, 0::2] & 15 | (six[:, 1::2] & 15) << 4).astype(np.uint8)
    return np.concatenate([d, half_bytes(high.view(np.float16)), low, pair(codes).reshape(len(values), -1)], axis=-1)


def _storage(columns: int, *, super_blocks: bool) -> Storage:
    """Of a block the nibble pairs, and what is before them."""
    values, head, nbytes = (256, 8, 136) if super_blocks else (32, 2, 18)
    blocks = -(-columns // values)
    arrays = {"w_q": cut(blocks, head, nbytes), "w_scale": cut(blocks, 0, head)}
    constants = {"BLOCKS": blocks * values // 32, "COLUMNS": columns, "SUPER": super_blocks}
    return Storage("ggml_table", {**constants, "HALVES": False, "OFFSETS": False}, arrays, True)


_FORMATS = {
    form.name: form
    for form in (
        BlockFormat("iq4_nl", 32, 18, _decode_iq4_nl, _encode_iq4_nl, partial(_storage, super_blocks=False)),
        BlockFormat("iq4_xs", 256, 136, _decode_iq4_xs, _encode_iq4_xs, partial(_storage, super_blocks=True)),
        BlockFormat("mxfp4", 32, 17, _decode_mxfp4, grouped="q8g32", group_parts=_parts_mxfp4),
    )
}
NAMES = tuple(_FORMATS)


def parse(name: str) -> BlockFormat | None:
    """The format called `name`, if it is one of this module's."""
    return _FORMATS.get(name)
