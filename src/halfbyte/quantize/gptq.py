"""GPTQ: rounding errors of one input channel are made good by the channels that are rounded after it.

Frantar et al., "GPTQ" (2022), in the form of LDLQ (Chee et al., "QuIP", 2023, theorem 6: the same result). With
H = R·Rᵀ, R upper triangular, and M = R / diag(R), channel k is rounded to the grid value nearest to

    w[k] + Σ_{j<k} (w[j] - ŵ[j]) · M[j, k]

Grids are fixed beforehand (static groups), so that channels may be taken in any order and stored in their own.
Then, in turns, scales are refitted to the codes by least squares and each channel is rounded again given all others.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.quantize.grid import Array, Grid, GroupFormat, chunks, fit, nearest, stacked, to_f16
from halfbyte.quantize.linalg import cholesky

BLOCK = 128
DAMPING = 0.01
PASSES = 2
_SYSTEM_VALUES = 1 << 25


def gptq(
    weight: Array, hessian: Array, form: GroupFormat, *, passes: int = PASSES, damping: float = DAMPING
) -> tuple[NDArray[np.uint8], Grid]:
    """Codes and grid of a matrix `[rows, columns]` that make Σ (w - ŵ)·H·(w - ŵ)ᵀ small.

    Takes the memory of two copies of the Hessian, and ten of at most 2²⁴ weights.

    Args:
        hessian: `[columns, columns]`, Σ x·xᵀ over calibration inputs, on any scale.
        passes: Rounds of refitting scales and rounding again; 0 is GPTQ as published.
        damping: What is added to the diagonal, as a share of its mean.
    """
    hessian = damped(hessian, damping)
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    factor = feedback(hessian, order)
    done = []
    for rows in chunks(weight.shape):
        problem = _Problem(weight[rows], hessian, fit(weight[rows], form, np.diagonal(hessian)), order)
        problem.feed_forward(factor)
        for _ in range(passes):
            problem.refit()
            problem.descend()
        done.append((problem.codes, problem.grid))
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
    """Some rows of a matrix being rounded; arrays are `[columns, rows]`, in the order in which channels are taken."""

    def __init__(self, weight: Array, hessian: Array, grid: Grid, order: NDArray[np.intp]) -> None:
        self.hessian = hessian
        self.order = order
        self.grid = grid
        self.weight = weight.T[order]
        self.error = np.zeros_like(self.weight)
        self.groups = order // grid.group
        self.scale = np.ascontiguousarray(grid.scale.T)
        self.zero = np.ascontiguousarray(grid.zero.T)
        self._codes = np.zeros(self.weight.shape, np.uint8)

    @property
    def codes(self) -> NDArray[np.uint8]:
        """The codes `[rows, columns]`, channels in their own order."""
        return np.ascontiguousarray(self._natural(self._codes).T)

    def feed_forward(self, factor: Array) -> None:
        """Round every channel once, correcting for the errors before it."""
        for start, stop in self._blocks():
            target = self.weight[start:stop] + factor[:start, start:stop].T @ self.error[:start]
            for k in range(start, stop):
                self._round(k, target[k - start] + factor[start:k, k] @ self.error[start:k])

    def descend(self) -> None:
        """Round every channel again, to the best value given all others."""
        for start, stop in self._blocks():
            among = self.hessian[np.ix_(self.order[start:stop], self.order)]
            inner = among[:, start:stop]
            outside = among @ self.error - inner @ self.error[start:stop]
            for k in range(start, stop):
                own = inner[k - start, k - start]
                pull = outside[k - start] + inner[k - start] @ self.error[start:stop] - own * self.error[k]
                self._round(k, self.weight[k] + pull / own)

    def refit(self) -> None:
        """The scales of each row that fit its codes best: a small linear system a row, one unknown a group."""
        steps = self._codes - self.zero[self.groups]
        natural = self._natural(steps)
        wanted = self._by_group(natural * (self.hessian @ self._natural(self.weight)))
        some = max(1, _SYSTEM_VALUES // len(self.scale) ** 2)
        for start in range(0, steps.shape[1], some):
            rows = slice(start, start + some)
            system = self._system(np.ascontiguousarray(natural[:, rows]))
            self.scale[:, rows] = to_f16(np.linalg.solve(system, wanted[:, rows].T[..., None])[..., 0].T)
        self.grid = replace(self.grid, scale=np.ascontiguousarray(self.scale.T))
        self.error = self.weight - steps * self.scale[self.groups]

    def _system(self, steps: Array) -> Array:
        """For each row the matrix `[groups, groups]` that its scales are solved from; steps in natural order."""
        groups = len(self.scale)
        system = np.empty((steps.shape[1], groups, groups), np.float32)
        for group in range(groups):
            members = slice(group * self.grid.group, (group + 1) * self.grid.group)
            products = self.hessian[members, members.start :].T @ steps[members]
            products *= steps[members.start :]
            system[:, group, group:] = self._by_group(products).T
            system[:, group:, group] = system[:, group, group:]
        diagonal = np.arange(groups)
        means = system[:, diagonal, diagonal].mean(axis=1, keepdims=True)
        system[:, diagonal, diagonal] += np.float32(1e-6) * means + np.float32(1e-12)
        return system

    def _natural(self, values: NDArray[Any]) -> NDArray[Any]:
        """Channels in their own order."""
        natural = np.empty_like(values)
        natural[self.order] = values
        return natural

    def _by_group(self, values: Array) -> Array:
        """Sums `[groups, rows]` of values `[columns, rows]` in natural order, from a group's first column on."""
        return np.add.reduceat(values, np.arange(0, len(values), self.grid.group), axis=0)

    def _blocks(self) -> list[tuple[int, int]]:
        count = len(self.order)
        return [(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]

    def _round(self, k: int, target: Array) -> None:
        scale, zero = self.scale[self.groups[k]], self.zero[self.groups[k]]
        codes = nearest(target, scale, zero, self.grid.top)
        self._codes[k] = codes
        self.error[k] = self.weight[k] - (codes - zero) * scale
