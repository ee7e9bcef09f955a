"""AWQ: channels whose inputs are large get finer steps, by scales that the layer before undoes.

Lin et al., "AWQ" (2023). A pair (see `halfbyte.models.spec.ScalePair`) is searched over
s = max(x̄ʳ / (w̄¹⁻ʳ + 1e-4), 1e-4) and s = x̄ʳ for r = k/20, both divided by √(max s · min s), and s = 1; x̄ is the
mean magnitude of each input, w̄ that of the weights relative to their group's largest. The error is that of the
matrices' own outputs, which the Hessian Σ x·xᵀ gives without the inputs: Δ·H·Δᵀ. Then each group's range is clipped
by up to 45%, where that helps its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.models.spec import Layer, ModelSpec, ScalePair, SelfAttention
from halfbyte.quantization.grid import PLAIN, Array, Grid, GroupFormat, chunks, covering, fit, nearest, pad, stacked

SCALE_CLIPS = tuple(1 - i / 20 for i in range(10))
_RATIOS = tuple(k / 20 for k in range(20))
_SEARCH_ROWS = 1024


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of a matrix: Σ x·xᵀ and mean |x|, over calibration tokens."""

    hessian: Array
    mean: Array

    def scaled(self, factors: Array) -> Inputs:
        """The same for inputs divided by `factors`."""
        hessian = self.hessian / factors
        hessian /= factors[:, None]
        return Inputs(hessian, self.mean / factors)


def scale_layer(
    spec: ModelSpec, layer: Layer, weights: dict[str, Array], inputs: dict[str, Inputs], forms: dict[str, GroupFormat]
) -> None:
    """Find the factors of each of a layer's pairs and fold them in; `weights` and `inputs` change in place.

    Args:
        weights: The layer's tensors by name, norms included.
        inputs: Those of each matrix, by its name.
        forms: The formats of matrices that will be quantized; a pair that has none is left alone.
    """
    for pair in layer.scale_pairs:
        readers, before = _readers(layer, pair), _before(layer, pair)
        if any(name not in forms for name in (*readers, *before)):
            continue
        share = layer.mixer.spec if pair == "v_o" and isinstance(layer.mixer, SelfAttention) else None
        tie = _tied_heads(share.heads, share.kv_heads, share.head_dim) if share else None
        factors = _search([weights[n] for n in readers], inputs[readers[0]], forms[readers[0]], tie)
        _undo(spec, layer, pair, weights, factors if tie is None else factors[np.unique(tie, return_index=True)[1]])
        for name in readers:
            weights[name] = weights[name] * factors
            inputs[name] = inputs[name].scaled(factors)


def _readers(layer: Layer, pair: ScalePair) -> tuple[str, ...]:
    mixer, mlp = layer.mixer, layer.mlp
    found = {"norm_qkv": mixer.into, "v_o": mixer.o, "norm_gate_up": mlp.gate_up, "up_down": mlp.down}[pair]
    return found.weights


def _before(layer: Layer, pair: ScalePair) -> tuple[str, ...]:
    """The matrix that undoes a pair's factors, where that is no norm."""
    projection = {"v_o": layer.mixer.into, "up_down": layer.mlp.gate_up}.get(pair)
    return () if projection is None else projection.weights[-1:]


def scaled_vectors(layer: Layer) -> tuple[str, ...]:
    """Norms and biases of a layer that the factors of its pairs change: they come before the pairs' readers."""
    changed = {
        "norm_qkv": (layer.input_norm,),
        "v_o": layer.mixer.into.bias[-1:],
        "norm_gate_up": (layer.mlp_norm,),
        "up_down": layer.mlp.gate_up.bias[-1:],
    }
    return tuple(name for pair in layer.scale_pairs for name in changed[pair] if name is not None)


def _tied_heads(heads: int, kv_heads: int, head_dim: int) -> NDArray[np.intp]:
    """For each input of the output projection, the row of v it comes from."""
    head = np.arange(heads) // (heads // kv_heads)
    return (head[:, None] * head_dim + np.arange(head_dim)).reshape(-1)


def _undo(spec: ModelSpec, layer: Layer, pair: ScalePair, weights: dict[str, Array], factors: Array) -> None:
    """Divide what comes before a pair's readers."""
    if pair in ("norm_qkv", "norm_gate_up"):
        name = layer.input_norm if pair == "norm_qkv" else layer.mlp_norm
        if name is None:
            raise ValueError(f"the pair {pair} is of a layer without that norm")
        offset = np.float32(spec.norm_offset)
        weights[name] = (offset + weights[name]) / factors - offset
        return
    projection = layer.mixer.into if pair == "v_o" else layer.mlp.gate_up
    for name in (*projection.weights[-1:], *projection.bias[-1:]):
        weights[name] = weights[name].copy()
        rows = weights[name][-len(factors) :]
        rows /= factors.reshape(-1, *[1] * (rows.ndim - 1))


def _search(matrices: list[Array], inputs: Inputs, form: GroupFormat, tie: NDArray[np.intp] | None) -> Array:
    """The factors with the least output error after rounding to nearest."""
    rows = sum(len(matrix) for matrix in matrices)
    some = np.concatenate([matrix[:: max(1, rows // _SEARCH_ROWS)] for matrix in matrices])
    best, least = np.ones(some.shape[1], np.float32), np.inf
    for factors in _candidates(_relative_means(matrices, form), inputs.mean, tie):
        difference = fit(some * factors, form, clips=PLAIN).round(some * factors) / factors - some
        error = float(np.einsum("rk,rk->", difference @ inputs.hessian, difference))
        if error < least:
            best, least = factors, error
    return best


def _relative_means(matrices: list[Array], form: GroupFormat) -> Array:
    """Of each column, the mean magnitude relative to the largest of its group."""
    total = np.zeros(matrices[0].shape[1], np.float64)
    for matrix in matrices:
        for rows in chunks(matrix.shape):
            grouped = np.abs(pad(matrix[rows], form.group))
            grouped /= np.maximum(grouped.max(axis=-1, keepdims=True), np.float32(1e-12))
            total += grouped.reshape(len(grouped), -1).sum(axis=0, dtype=np.float64)[: len(total)]
    return (total / sum(len(matrix) for matrix in matrices)).astype(np.float32)


def _candidates(weight_mean: Array, mean: Array, tie: NDArray[np.intp] | None) -> Iterator[Array]:
    """The factors to try, the neutral ones first."""
    x, w = _together(mean, tie), _together(weight_mean, tie)
    yield np.ones_like(x)
    for ratio in _RATIOS:
        for factors in (x**ratio / (w ** (1 - ratio) + 1e-4), x**ratio):
            bounded = np.maximum(factors, 1e-4)
            yield (bounded / np.sqrt(bounded.max() * bounded.min())).astype(np.float32)


def _together(values: Array, tie: NDArray[np.intp] | None) -> Array:
    """Values with those of tied channels replaced by their mean."""
    if tie is None:
        return values
    sums, counts = np.bincount(tie, values), np.bincount(tie)
    return (sums / counts)[tie].astype(np.float32)


def clip(weight: Array, hessian: Array, form: GroupFormat) -> Grid:
    """Round-to-nearest grids with each group's range cut to the share that serves its own output best."""
    blocks = _diagonal_blocks(hessian, form.group)
    return stacked([_clip(weight[rows], blocks, form) for rows in chunks(weight.shape)])


def _clip(weight: Array, blocks: Array, form: GroupFormat) -> Grid:
    grouped = pad(weight, form.group)
    scale, zero = covering(grouped, form, 1.0)
    least = np.full(scale.shape, np.inf, np.float32)
    for share in SCALE_CLIPS:
        tried = covering(grouped, form, share)
        difference = nearest(grouped, tried[0][..., None], tried[1][..., None], 2**form.bits - 1) - tried[1][..., None]
        difference = (difference * tried[0][..., None] - grouped).transpose(1, 0, 2)
        error = ((difference @ blocks) * difference).sum(axis=-1).T
        better = error < least
        scale[better], zero[better], least[better] = tried[0][better], tried[1][better], error[better]
    return Grid(scale, zero, 2**form.bits - 1, form.group)


def _diagonal_blocks(hessian: Array, group: int) -> Array:
    """The Hessians of each group alone, `[groups, group, group]`, zeros where the last one ends early."""
    blocks = np.zeros((-(-len(hessian) // group), group, group), np.float32)
    for index, block in enumerate(blocks):
        own = hessian[index * group : (index + 1) * group, index * group : (index + 1) * group]
        block[: len(own), : len(own)] = own
    return blocks
