"""Weights in ggml's blocks that no encoder would make: random bits, whose scales are negative, zero or outliers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Weight, format_names, get_format
from halfbyte.formats.ggml import BLOCKS, BlockFormat

HALVES = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0], "q2_k": [80, 82], "q3_k": [108],
    "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "iq4_nl": [0], "iq4_xs": [0], "mxfp4": [],
}  # fmt: skip
"""Every format of ggml's that is read, and where the float16 values of its blocks are."""


def block_format(name: str) -> BlockFormat:
    form = get_format(name)
    assert isinstance(form, BlockFormat)
    return form


BLOCK_FORMATS = [name for name in format_names() if isinstance(get_format(name), BlockFormat)]
RUN_AS_THEY_ARE = [name for name in BLOCK_FORMATS if not block_format(name).grouped]
"""Those that executors compute with as they are stored."""


def random_blocks(name: str, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of random bits, with scales that are ordinary numbers."""
    blocks = rng.integers(0, 256, (count, block_format(name).block_bytes), dtype=np.uint8)
    put_halves(name, blocks, rng.standard_normal((count, len(HALVES[name]))))
    if name == "mxfp4":
        blocks[:, 0] = rng.integers(0, 248, count)
    return blocks


def put_halves(name: str, blocks: NDArray[np.uint8], values: NDArray[np.floating]) -> None:
    """Store the float16 values `[n, …]` of blocks `[n, bytes]`."""
    for at, column in zip(HALVES[name], values.astype(np.float16).T, strict=True):
        blocks[:, at : at + 2] = np.ascontiguousarray(column).view(np.uint8).reshape(-1, 2)


def hostile_blocks(name: str, shape: tuple[int, int], size: float, rng: np.random.Generator) -> Weight:
    """A matrix of about some size, all bits random, beyond its columns too; some scales zero, some 20 times larger."""
    form, (rows, columns) = block_format(name), shape
    count = rows * form.row_bytes(columns) // form.block_bytes
    blocks = random_blocks(name, count, rng)
    scales = rng.standard_normal((count, len(HALVES[name])))
    put_halves(name, blocks, scales)
    unit = float(form.decode({BLOCKS: blocks}, (count, form.values)).std())
    factors = rng.choice([0.0, 20.0, *[1.0] * 14], scales.shape)
    put_halves(name, blocks, scales * factors * (size / unit))
    return Weight(form, shape, {BLOCKS: blocks.reshape(rows, -1)})


def stored(name: str, values: NDArray[np.float32], rng: np.random.Generator) -> Weight:
    """Values in a format; of ggml's formats blocks that are hostile, of about the same size."""
    form = get_format(name)
    if isinstance(form, BlockFormat) and values.ndim == 2:
        return hostile_blocks(name, values.shape, float(values.std()), rng)
    return Weight(form, values.shape, form.encode(values))
