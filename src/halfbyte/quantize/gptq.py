"""GPTQ: rounding errors of one input channel are made good by the channels that are rounded after it.

Frantar et al., "GPTQ" (2022), in the form of LDLQ (Chee et al., "QuIP", 2023, theorem 6: the same result). With
H = R·Rᵀ, R upper triangular, and M = R / diag(R), channel k is rounded to the grid value nearest to

    w[k] + Σ_{j<k} (w[j] - ŵ[j]) · M[j, k]

Grids are fixed beforehand (static groups), so that channels may be taken in any order and stored in their own.
Then, in turns, scales are refitted to the codes by least squares and each channel is rounded again given all others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.quantize.grid import Array, Grid, GroupFormat, fit, nearest, to_f16

BLOCK = 128
DAMPING = 0.01
PASSES = 2


def gptq(
    weight: Array, hessian: Array, form: GroupFormat, *, passes: int = PASSES, damping: float = DAMPING
) -> tuple[NDArray[np.uint8], Grid]:
    """Codes and grid of a matrix `[rows, columns]` that make Σ (w - ŵ)·H·(w - ŵ)ᵀ small.

    Args:
        hessian: `[columns, columns]`, Σ x·xᵀ over calibration inputs, on any scale.
        passes: Rounds of refitting scales and rounding again; 0 is GPTQ as published.
        damping: What is added to the diagonal, as a share of its mean.
    """
    hessian = damped(hessian, damping)
    grid = fit(weight, form, np.diagonal(hessian))
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    problem = _Problem(weight, hessian[np.ix_(order, order)], grid, order)
    problem.feed_forward()
    for _ in range(passes):
        problem.refit()
        problem.descend()
    return problem.codes, problem.grid


def damped(hessian: Array, damping: float = DAMPING) -> Array:
    """A positive definite Hessian of mean diagonal about 1; channels that were never active count as 1."""
    diagonal = np.diagonal(hessian)
    dead = diagonal <= 0
    mean = float(diagonal[~dead].mean(dtype=np.float64)) if not dead.all() else 1.0
    result = hessian / np.float32(mean)
    result[np.diag_indices_from(result)] += np.where(dead, 1, 0) + np.float32(damping)
    return result


def feedback(hessian: Array) -> Array:
    """M, unit upper triangular, of H = M·D·Mᵀ."""
    root = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    return np.ascontiguousarray(root / np.diagonal(root))


class _Problem:
    """One matrix being rounded; arrays are `[columns, rows]`, in the order in which channels are taken."""

    def __init__(self, weight: Array, hessian: Array, grid: Grid, order: NDArray[np.intp]) -> None:
        self.hessian = hessian
        self.order = order
        self.grid = grid
        self.weight = np.ascontiguousarray(weight.T[order])
        self.error = np.zeros_like(self.weight)
        self.groups = order // grid.group
        self.scale = np.ascontiguousarray(grid.scale.T)
        self.zero = np.ascontiguousarray(grid.zero.T)
        self._codes = np.zeros(self.weight.shape, np.uint8)

    @property
    def codes(self) -> NDArray[np.uint8]:
        """The codes `[rows, columns]`, channels in their own order."""
        codes = np.empty_like(self._codes)
        codes[self.order] = self._codes
        return np.ascontiguousarray(codes.T)

    def feed_forward(self) -> None:
        """Round every channel once, correcting for the errors before it."""
        factor = feedback(self.hessian)
        for start, stop in self._blocks():
            target = self.weight[start:stop] + factor[:start, start:stop].T @ self.error[:start]
            for k in range(start, stop):
                self._round(k, target[k - start] + factor[start:k, k] @ self.error[start:k])

    def descend(self) -> None:
        """Round every channel again, to the best value given all others."""
        for start, stop in self._blocks():
            inner = self.hessian[start:stop, start:stop]
            outside = self.hessian[start:stop] @ self.error - inner @ self.error[start:stop]
            for k in range(start, stop):
                own = inner[k - start, k - start]
                pull = outside[k - start] + inner[k - start] @ self.error[start:stop] - own * self.error[k]
                self._round(k, self.weight[k] + pull / own)

    def refit(self) -> None:
        """The scales of each row that fit its codes best: a small linear system a row, one unknown a group."""
        steps = self._codes - self.zero[self.groups]
        wanted = self._by_group(steps * (self.hessian @ self.weight))
        system = np.empty((steps.shape[1], len(self.scale), len(self.scale)), np.float32)
        for group in range(len(self.scale)):
            members = np.flatnonzero(self.groups == group)
            system[:, group] = self._by_group(steps * (self.hessian[:, members] @ steps[members])).T
        diagonal = np.arange(len(self.scale))
        system[:, diagonal, diagonal] += np.float32(1e-6) * system[:, diagonal, diagonal].mean() + np.float32(1e-12)
        self.scale = to_f16(np.linalg.solve(system, wanted.T[..., None])[..., 0].T)
        self.grid = replace(self.grid, scale=np.ascontiguousarray(self.scale.T))
        self.error = self.weight - steps * self.scale[self.groups]

    def _by_group(self, values: Array) -> Array:
        """Sums `[groups, rows]` of values `[columns, rows]`."""
        together = np.argsort(self.groups, kind="stable")
        starts = np.searchsorted(self.groups[together], np.arange(len(self.scale)))
        return np.add.reduceat(values[together], starts, axis=0)

    def _blocks(self) -> list[tuple[int, int]]:
        count = len(self.order)
        return [(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]

    def _round(self, k: int, target: Array) -> None:
        scale, zero = self.scale[self.groups[k]], self.zero[self.groups[k]]
        codes = nearest(target, scale, zero, self.grid.top)
        self._codes[k] = codes
        self.error[k] = self.weight[k] - (codes - zero) * scale
