"""ggml's 4-bit formats whose codes point into a table: `iq4_nl`, `iq4_xs`, `mxfp4`; read only.

    iq4_nl  18 bytes, 32 values    d (float16), 16 nibble pairs                             d·table[q]
    iq4_xs  136 bytes, 256 values  d, 2 high bits of 8 s, 4 pairs of low 4, 8 of 16 pairs   d·(s - 32)·table[q]
    mxfp4   17 bytes, 32 values    an exponent e, 16 nibble pairs                           2^(e - 127)·float4[q]

Byte i of a group's 16 holds codes i (low nibble) and i + 16. mxfp4 is the OCP microscaling format (E2M1 with an
E8M0 scale); iq4's table is ggml's kvalues_iq4nl.
"""

from __future__ import annotations

import numpy as np

from halfbyte.formats.ggml import F32, U8, BlockFormat, GroupParts, half, nibbles, scale_first

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


def _parts_iq4_nl(blocks: U8) -> GroupParts:
    pairs, scales = scale_first(blocks)
    return IQ4_TABLE.view(np.uint8)[nibbles(pairs)], scales


def _parts_mxfp4(blocks: U8) -> GroupParts:
    """Scales beyond float16 saturate; those below 2^-24 become 0."""
    exponent = np.minimum(blocks[:, 0].astype(np.int32) - 128, 15)
    return FP4_TABLE.view(np.uint8)[nibbles(blocks[:, 1:])], np.ldexp(np.float32(1), exponent).astype(np.float16)


_FORMATS = {
    form.name: form
    for form in (
        BlockFormat("iq4_nl", 32, 18, _decode_iq4_nl, group_parts=_parts_iq4_nl),
        BlockFormat("iq4_xs", 256, 136, _decode_iq4_xs),
        BlockFormat("mxfp4", 32, 17, _decode_mxfp4, group_parts=_parts_mxfp4),
    )
}
NAMES = tuple(_FORMATS)


def parse(name: str) -> BlockFormat | None:
    """The format called `name`, if it is one of this module's."""
    return _FORMATS.get(name)
