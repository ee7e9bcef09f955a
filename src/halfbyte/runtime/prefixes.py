"""What names the content of a cache block: a hash of all tokens up to its end, chained from block to block.

A chain begins with the hash of whatever else the values depend on. Entry n names the first n blocks together, so equal
entries mean equal blocks before them too.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Many
from hashlib import blake2b

DIGEST_NBYTES = 16


def root(scope: bytes, rope_set: int, adapter: int = 0) -> bytes:
    """The first entry of a chain.

    Args:
        scope: Sequences of one scope share blocks.
        rope_set: The set of RoPE frequencies that keys are rotated with.
        adapter: The number of the adapter that tokens are computed with.
    """
    return _digest(b"%d:%d:%b" % (rope_set, adapter, scope))


def extend(chain: list[bytes], tokens: Many[int], block_size: int) -> None:
    """Append to a chain, which has its root, an entry for every full block of `tokens`."""
    while (stop := len(chain) * block_size) <= len(tokens):
        chain.append(_digest(chain[-1] + array("i", tokens[stop - block_size : stop]).tobytes()))


def num_common(first: Many[bytes], second: Many[bytes]) -> int:
    """How many blocks two chains have in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high) // 2
        if first[middle] == second[middle]:
            low = middle + 1
        else:
            high = middle
    return max(0, low - 1)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=DIGEST_NBYTES).digest()
