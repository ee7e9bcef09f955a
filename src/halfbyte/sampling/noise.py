"""The random numbers that tokens are drawn with: a function of the seed, the token's position and its id, no state.

So a seed gives the same text wherever a token is drawn: by the host or by a GPU (`sample_pick.wgsl` computes the same),
alone or beside other sequences, begun anew or continued.

The hash is pcg3d (Jarzynski and Olano, "Hash functions for GPU rendering", JCGT 9(3), 2020). Of the token scores plus
Gumbel noise, the largest is a draw from their softmax (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt32 = NDArray[np.uint32]

BITS = 23
"""Bits of a uniform number: with one half added, it is exact in float32."""
MOST = 16.65
"""More than the largest noise, -log(2⁻²⁴) = 16.64."""
_WORD = 0xFFFFFFFF


def noise(seed: int, position: int, ids: NDArray[np.integer]) -> Float32:
    """Gumbel noise for the tokens `ids` as the token at `position` of a sequence, in float32.

    Args:
        seed: 0 to 2⁶⁴ - 1.
        position: Tokens before it, those of the prompt included.
    """
    tail = (uniform_bits(seed, position, ids).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-BITS)
    result: Float32 = -np.log(_exponential(tail))
    return result


def coin(seed: int, position: int, stream: int) -> float:
    """A uniform number between 0 and 1 for a decision about the token at `position`, other than the draw itself.

    Args:
        stream: Tells one kind of decision from another, and from the draw; less than 2⁶⁴, and not 0.
    """
    bits = int(uniform_bits(seed ^ stream, position, np.zeros(1, np.int64))[0])
    return (bits + 0.5) * 2.0**-BITS


def coins_below(probability: float) -> int:
    """How many of the 2 to the power of `BITS` numbers that `coin` can give are below a probability, bit by bit."""
    return math.ceil(probability * 2.0**BITS - 0.5)


def uniform_bits(seed: int, position: int, ids: NDArray[np.integer]) -> UInt32:
    """`BITS` random bits for each of the tokens `ids`."""
    x = np.uint32(_mixed((seed & _WORD) ^ (position * 0x9E3779B9 & _WORD)))
    y = np.uint32(_mixed((seed >> 32) + position & _WORD))
    with np.errstate(over="ignore"):
        z: UInt32 = ids.astype(np.uint32) * np.uint32(1664525) + np.uint32(1013904223)
        first = x + y * z
        second = y + z * first
        z = z + first * second
        first, second, z = (word ^ (word >> np.uint32(16)) for word in (first, second, z))
        first = first + second * z
        second = second + z * first
        z = z + first * second
    return z >> np.uint32(32 - BITS)


def _mixed(word: int) -> int:
    return (word * 1664525 + 1013904223) & _WORD


def _exponential(tail: Float32) -> Float32:
    """-log(1 - tail); by its series up to 1/16, where 1 - tail loses digits and a GPU's logarithm is coarse."""
    result: Float32 = -np.log(np.float32(1) - tail)
    small = np.flatnonzero(tail < np.float32(0.0625))
    x = tail[small]
    series = np.full(x.shape, 1 / 6, np.float32)
    for divisor in (5, 4, 3, 2, 1):
        series = series * x + np.float32(1 / divisor)
    result[small] = x * series
    return result
