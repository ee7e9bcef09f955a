"""Pages of the cache as kernels see them: what one head of a block of positions takes, or the state of a sequence."""

from __future__ import annotations

import math

from halfbyte.plan import Tensor
from halfbyte.plan.cache import is_rounded

BITS = {"f32": 32, "f16": 16, "q8": 8, "q4": 4}
"""Of a value, by the cache's number format."""

_WORDS = 4
"""A page is a multiple of so many words, so that eights of codes are aligned."""


def page_nbytes(cache: Tensor) -> int:
    """Bytes of a page: a position's values take a whole number of eights, and its scales a whole number of words."""
    _, _, block_size, head_dim = cache.shape
    words = -(-head_dim // 8) * BITS[cache.dtype] // 4
    if is_rounded(cache.dtype):
        words += -(-head_dim // 64)
    return -(-block_size * words // _WORDS) * _WORDS * 4


def state_nbytes(states: Tensor) -> int:
    """Bytes of a state; of a matrix for each head, its columns lie one after another, each in whole fours."""
    shape = states.shape[1:]
    if len(shape) == 3:
        heads, rows, columns = shape
        shape = heads, columns, -(-rows // 4) * 4
    return math.prod(shape) * 4
