"""Number formats of the KV cache: what a position of a head takes there, and how it is rounded.

`q8` and `q4` keep a head in blocks of 32 values, the last one filled up with zeros: signed codes of 8 or 4 bits with
one float16 scale, value = code · scale. The scale is the block's value of largest magnitude, with its sign, over the
lowest code, -128 or -8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UsageError
from halfbyte.options import KV_DTYPES

BLOCK = 32
"""Values that share a scale."""

_PLAIN: dict[str, np.dtype[Any]] = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
_LOWEST = {"q8": -128, "q4": -8}
"""The lowest code."""
_ITEMS: dict[str, np.dtype[Any]] = {
    **_PLAIN,
    "q8": np.dtype([("scale", "<f2"), ("codes", "i1", BLOCK)]),
    "q4": np.dtype([("scale", "<f2"), ("codes", "u1", BLOCK // 2)]),
}
"""What a cache is an array of: values, or blocks. A byte of `q4` holds codes i and i + 16, each plus 8."""


def check(dtype: str) -> None:
    """Refuse a format that is unknown.

    Raises:
        UsageError: It is.
    """
    if dtype not in _ITEMS:
        raise UsageError(f"KV cache type {dtype!r} is unknown.", f"It is one of {', '.join(KV_DTYPES)}.")


def is_rounded(dtype: str) -> bool:
    """Whether values are kept as codes with a scale."""
    return dtype in _LOWEST


def rotation(dtype: str, head_dim: int) -> int:
    """Values that a Hadamard rotation of q and k mixes before the cache rounds k; 1 for none.

    The largest power of two that divides the head's size.
    """
    return head_dim & -head_dim if dtype == "q4" else 1


def head_nbytes(dtype: str, head_dim: int) -> int:
    """Bytes of one position of one head, of k or of v."""
    return _items(dtype, head_dim) * _ITEMS[dtype].itemsize


def empty(dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A cache of zeros for values of `shape`, whose last axis is the head's."""
    return np.zeros((*shape[:-1], _items(dtype, shape[-1])), _ITEMS[dtype])


def _items(dtype: str, head_dim: int) -> int:
    return -(-head_dim // BLOCK) if is_rounded(dtype) else head_dim


def encode(values: NDArray[np.float32], item: np.dtype[Any]) -> NDArray[Any]:
    """Values `[…, head_dim]` as a cache of such items holds them. What is not finite makes its block NaN."""
    if item in _PLAIN.values():
        return values.astype(item)
    dtype = next(name for name, known in _ITEMS.items() if known == item)
    missing = -values.shape[-1] % BLOCK
    blocks = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)]).reshape(*values.shape[:-1], -1, BLOCK)
    lowest = np.float32(_LOWEST[dtype])
    made = np.empty(blocks.shape[:-1], item)
    with np.errstate(over="ignore", invalid="ignore"):
        top, bottom = blocks.max(axis=-1), blocks.min(axis=-1)
        made["scale"] = np.where(top > -bottom, top, bottom) / lowest
        scale = made["scale"].astype(np.float32)[..., None]
        codes = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0)
        codes = np.clip(np.rint(codes), lowest, -lowest - 1).astype(np.int8)
    if dtype == "q4":
        low, high = np.split((codes + 8).astype(np.uint8), 2, axis=-1)
        made["codes"] = low | high << 4
    else:
        made["codes"] = codes
    return made


def decode(items: NDArray[Any], head_dim: int) -> NDArray[np.float32]:
    """The values `[…, head_dim]` that a cache holds as `items`."""
    if items.dtype in _PLAIN.values():
        return items.astype(np.float32)
    codes = items["codes"]
    if items.dtype == _ITEMS["q4"]:
        codes = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.int8) - 8
    with np.errstate(invalid="ignore"):
        values = codes.astype(np.float32) * items["scale"].astype(np.float32)[..., None]
    return values.reshape(*items.shape[:-1], -1)[..., :head_dim]
