"""GPTQ: rounding errors of one input channel are made good by the channels that are rounded after it.

Frantar et al., "GPTQ" (2022), in the form of LDLQ (Chee et al., "QuIP", 2023, theorem 6: the same result). With
H = R·Rᵀ, R upper triangular, and M = R / diag(R), channel k is rounded to the grid value nearest to

    w[k] + Σ_{j<k} (w[j] - ŵ[j]) · M[j, k]

Grids are fixed beforehand (static groups), so that channels may be taken in any order and stored in their own.
Then some channels at a time are improved given all others: the scales of their groups are refitted to the codes by
least squares, and each channel is rounded again. A round of that costs one product with the Hessian.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.quantization.grid import Array, Grid, GroupFormat, chunks, fit, nearest, stacked, to_f16
from halfbyte.quantization.linalg import cholesky

BLOCK = 128
"""Channels taken together: whole groups, whose sizes divide it."""

DAMPING = 0.01
PASSES = 4


def gptq(
    weight: Array, hessian: Array, form: GroupFormat, *, passes: int = PASSES, damping: float = DAMPING
) -> tuple[NDArray[np.uint8], Grid]:
    """Codes and grid of a matrix `[rows, columns]` that make Σ (w - ŵ)·H·(w - ŵ)ᵀ small.

    Takes the memory of two copies of the Hessian, and ten of at most 2²⁴ weights.

    Args:
        hessian: `[columns, columns]`, Σ x·xᵀ over calibration inputs, on any scale.
        passes: Rounds of improving scales and codes; 0 is GPTQ as published.
        damping: What is added to the diagonal, as a share of its mean.
    """
    hessian = damped(hessian, damping)
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    factor = feedback(hessian, order)
    done = []
    for rows in chunks(weight.shape):
        problem = _Problem(weight[rows], hessian, fit(weight[rows], form, np.diagonal(hessian)))
        problem.feed_forward(factor, order)
        for _ in range(passes):
            problem.improve()
        done.append((np.ascontiguousarray(problem.codes.T), problem.grid))
    codes, grids = zip(*done, strict=True)
    return np.concatenate(codes), stacked(grids)


def damped(hessian: Array, damping: float = DAMPING) -> Array:
    """A positive definite Hessian of mean diagonal about 1; channels that were never active count as 1."""
    diagonal = np.diagonal(hessian)
    dead = diagonal <= 0
    mean = float(diagonal[~dead].mean(dtype=np.float64)) if not dead.all() else 1.0
    result = hessian / np.float32(mean)
    result[np.diag_indices_from(result)] += np.where(dead, 1, 0) + np.float32(damping)
    return result


def feedback(hessian: Array, order: NDArray[np.intp]) -> Array:
    """M, unit upper triangular, of H = M·D·Mᵀ with the channels in an order."""
    reverse = order[::-1]
    root = cholesky(hessian[np.ix_(reverse, reverse)])
    root /= np.diagonal(root).copy()
    return root[::-1, ::-1]


class _Problem:
    """Some rows of a matrix being rounded; arrays are `[columns, rows]`, those of groups `[groups, rows]`."""

    def __init__(self, weight: Array, hessian: Array, grid: Grid) -> None:
        self.hessian = hessian
        self.weight = np.ascontiguousarray(weight.T)
        self.error = np.zeros_like(self.weight)
        self.codes = np.zeros(self.weight.shape, np.uint8)
        self._grid = grid
        self._scale = np.ascontiguousarray(grid.scale.T)
        self._zero = np.ascontiguousarray(grid.zero.T)

    @property
    def grid(self) -> Grid:
        """The grid with the scales as they are now."""
        return replace(self._grid, scale=np.ascontiguousarray(self._scale.T))

    def feed_forward(self, factor: Array, order: NDArray[np.intp]) -> None:
        """Round every channel once, in an order, correcting for the errors before it."""
        errors = np.zeros_like(self.error)
        for start, stop in self._blocks():
            target = self.weight[order[start:stop]] + factor[:start, start:stop].T @ errors[:start]
            for k in range(start, stop):
                self._round(order[k], target[k - start] + factor[start:k, k] @ errors[start:k])
                errors[k] = self.error[order[k]]

    def improve(self) -> None:
        """Refit every group's scales and round every channel again, each to the best value given all others."""
        for start, stop in self._blocks():
            among = self.hessian[start:stop]
            inner = np.ascontiguousarray(among[:, start:stop])
            error = self.error[start:stop]
            outside = among @ self.error - inner @ error
            for group in range(start // self._grid.group, -(-stop // self._grid.group)):
                self._refit(group, start, stop, inner, outside)
            for k in range(stop - start):
                pull = outside[k] + inner[k] @ error - inner[k, k] * error[k]
                self._round(start + k, self.weight[start + k] + pull / inner[k, k])

    def _refit(self, group: int, start: int, stop: int, inner: Array, outside: Array) -> None:
        """The scale of each row that fits a group's codes best, all else as it is."""
        first, last = group * self._grid.group, min((group + 1) * self._grid.group, stop)
        own = slice(first - start, last - start)
        steps = self.codes[first:last] - self._zero[group]
        pull = (steps * (outside[own] + inner[own] @ self.error[start:stop])).sum(axis=0)
        stiffness = (steps * (inner[own, own] @ steps)).sum(axis=0)
        change = np.divide(pull, stiffness, out=np.zeros_like(pull), where=stiffness > 0)
        self._scale[group] = to_f16(self._scale[group] + change)
        self.error[first:last] = self.weight[first:last] - steps * self._scale[group]

    def _blocks(self) -> list[tuple[int, int]]:
        count = len(self.weight)
        return [(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]

    def _round(self, k: int, target: Array) -> None:
        scale, zero = self._scale[k // self._grid.group], self._zero[k // self._grid.group]
        codes = nearest(target, scale, zero, self._grid.top)
        self.codes[k] = codes
        self.error[k] = self.weight[k] - (codes - zero) * scale
