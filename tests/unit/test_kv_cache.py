"""Number formats of the KV cache: what they take and keep; blocks are judged by the gguf package's decoders."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.errors import UsageError
from halfbyte.options import KV_DTYPES
from halfbyte.plan import cache, make_plan
from halfbyte.plan.ops import Rope, RopeKvWrite
from halfbyte.reference.ops import mixed
from tests.models.tiny import tiny

ROUNDED = {"q8": 8, "q4": 4}


def values(*shape: int) -> NDArray[np.float32]:
    """Normal values, some of them outliers of either sign."""
    made = np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    made[..., ::13] *= 30
    return made


def kept(x: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """What a cache gives back."""
    items = cache.empty(dtype, x.shape)
    items[:] = cache.encode(x, items.dtype)
    return cache.decode(items, x.shape[-1])


@pytest.mark.parametrize("dtype", KV_DTYPES)
@pytest.mark.parametrize("head_dim", [1, 20, 64, 80, 96, 128, 256])
def test_a_position_takes_what_its_array_does(dtype: str, head_dim: int) -> None:
    assert cache.empty(dtype, (3, 2, 8, head_dim)).nbytes == 3 * 2 * 8 * cache.head_nbytes(dtype, head_dim)
    assert kept(values(5, 2, head_dim), dtype).shape == (5, 2, head_dim)


@pytest.mark.parametrize(("dtype", "nbytes"), [("f32", 512), ("f16", 256), ("q8", 136), ("q4", 72)])
def test_a_plan_tells_the_bytes_of_its_caches(dtype: str, nbytes: int) -> None:
    """Of heads of 128 values: 8.5 and 4.5 bits each."""
    assert cache.head_nbytes(dtype, 128) == nbytes
    model = tiny("llama-3.2-3b")
    plan = make_plan(model.spec, model.format, context=96, kv_dtype=dtype)
    heads = list(model.spec.attentions)
    expected = sum(2 * 96 * a.kv_heads * cache.head_nbytes(dtype, a.head_dim) for a in heads)
    assert sum(tensor.nbytes for tensor in plan.of_kind("cache")) == expected


@pytest.mark.parametrize(("dtype", "theirs"), [("q8", "Q8_0"), ("q4", "Q4_0")])
def test_blocks_are_those_that_the_gguf_package_decodes(dtype: str, theirs: str) -> None:
    x = values(40, 128)
    items = cache.encode(x, cache.empty(dtype, x.shape).dtype)
    expected = gguf.quants.dequantize(items.view(np.uint8), gguf.GGMLQuantizationType[theirs])
    np.testing.assert_array_equal(cache.decode(items, 128), expected)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_rounding_is_to_the_nearest_code_in_blocks_of_32(dtype: str) -> None:
    """Half a step at most, but for values near the largest one's opposite, which have no code."""
    x, half = values(60, 96), 2 ** (ROUNDED[dtype] - 1)
    blocks, got = x.reshape(60, 3, 32), kept(x, dtype).reshape(60, 3, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], 2)
    step = np.abs(largest) / half
    reached = blocks * np.sign(largest) > -(half - 1) * step
    assert np.all(np.abs(got - blocks)[reached] <= 0.502 * np.broadcast_to(step, blocks.shape)[reached])
    assert np.all(np.abs(got - blocks) <= 1.01 * step)
    assert reached.mean() > 0.95
    np.testing.assert_allclose(np.take_along_axis(got, np.abs(blocks).argmax(axis=2)[..., None], 2), largest, rtol=5e-4)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_what_is_not_finite_makes_its_block_so_and_no_other(dtype: str, value: float) -> None:
    x = values(2, 70)
    x[1, 40] = value
    got = kept(x, dtype)
    assert np.isnan(got[1, 32:64]).all()
    assert np.isfinite(got[0]).all()
    assert np.isfinite(got[1, :32]).all()
    assert np.isfinite(got[1, 64:]).all()


@pytest.mark.parametrize("dtype", ROUNDED)
def test_zeros_and_values_too_small_for_a_scale_are_zeros(dtype: str) -> None:
    assert np.array_equal(kept(np.zeros((2, 40), np.float32), dtype), np.zeros((2, 40)))
    assert np.array_equal(kept(np.full((2, 40), 1e-9, np.float32), dtype), np.zeros((2, 40)))


def test_a_format_that_is_unknown_is_refused() -> None:
    with pytest.raises(UsageError, match="KV cache type 'q5' is unknown"):
        cache.check("q5")


@pytest.mark.parametrize(("head_dim", "size"), [(64, 64), (96, 32), (128, 128), (80, 16), (256, 256), (33, 1)])
def test_only_4_bits_rotate_and_by_the_largest_power_of_two_of_the_head(head_dim: int, size: int) -> None:
    assert cache.rotation("q4", head_dim) == size
    assert [cache.rotation(dtype, head_dim) for dtype in ("f32", "f16", "q8")] == [1, 1, 1]


@pytest.mark.parametrize("fused", [True, False])
def test_a_plan_shows_the_rotation(fused: bool) -> None:
    model = tiny("llama-3.2-3b")
    for dtype, size in (("q8", 1), ("q4", 32)):
        steps = make_plan(model.spec, model.format, kv_dtype=dtype, fused=fused).steps
        assert {step.hadamard for step in steps if isinstance(step, Rope | RopeKvWrite)} == {size}


def test_mixing_leaves_products_and_spreads_an_outlier() -> None:
    q, k = values(7, 3, 96), values(7, 3, 96)
    assert np.allclose((mixed(q, 32) * mixed(k, 32)).sum(-1), (q * k).sum(-1), rtol=1e-4, atol=1e-2)
    spike = np.zeros((1, 64), np.float32)
    spike[0, 5] = 8
    assert np.array_equal(np.abs(mixed(spike, 64)), np.ones((1, 64)))
    assert np.allclose(mixed(np.array([[3, 1]], np.float32), 2), np.array([[4, 2]]) / np.sqrt(2))
