"""Large symmetric matrices in place, a block at a time: what a Hessian needs without a second copy of it.

NumPy's own functions copy their arguments, and have no triangular solver. Here LAPACK sees blocks of 512 columns,
and all else is matrix products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_BLOCK = 512


def add_gram(total: Array, x: Array) -> None:
    """Add xᵀ·x to `total`, on and above the diagonal blocks; `mirror` fills the rest when all is added."""
    for start, stop in _blocks(len(total)):
        total[start:stop, start:] += x[:, start:stop].T @ x[:, start:]


def mirror(total: Array) -> Array:
    """Copy what lies above the diagonal blocks to below them; returns the matrix."""
    for start, stop in _blocks(len(total)):
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total


def add_product(total: Array, x: Array, y: Array) -> None:
    """Add xᵀ·y to `total`."""
    for start, stop in _blocks(len(total)):
        total[start:stop] += x[:, start:stop].T @ y


def cholesky(matrix: Array) -> Array:
    """Replace a positive definite matrix by its factor L, lower triangular, matrix = L·Lᵀ; returns it.

    Raises:
        numpy.linalg.LinAlgError: It is not positive definite.
    """
    for start, stop in _blocks(len(matrix)):
        panel = matrix[start:, start:stop]
        panel -= matrix[start:, :start] @ matrix[start:stop, :start].T
        root = np.linalg.cholesky(panel[: stop - start])
        panel[: stop - start] = root
        panel[stop - start :] = panel[stop - start :] @ np.linalg.inv(root).T
        matrix[start:stop, stop:] = 0
    return matrix


def solve(right: Array, factor: Array) -> Array:
    """Replace B `[rows, n]` by B·(L·Lᵀ)⁻¹; returns it."""
    blocks = _blocks(len(factor))
    for start, stop in blocks:
        rest = right[:, start:stop] - right[:, :start] @ factor[start:stop, :start].T
        right[:, start:stop] = rest @ np.linalg.inv(factor[start:stop, start:stop]).T
    for start, stop in reversed(blocks):
        rest = right[:, start:stop] - right[:, stop:] @ factor[stop:, start:stop]
        right[:, start:stop] = rest @ np.linalg.inv(factor[start:stop, start:stop])
    return right


def _blocks(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)]
