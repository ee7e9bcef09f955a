"""Weight formats: exact bytes of hand-written blocks, error bounds on hostile values, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import get_format
from halfbyte.formats.dense import bf16_to_f32, f32_to_bf16
from halfbyte.formats.q4g import Q4G, pack, unpack

ITEM_BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
PACKED = [f"q4g{group}{z}" for group in (32, 64, 128) for z in ("", "z")]


def hostile(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Normal values, every seventh twenty times larger."""
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    values[:, ::7] *= 20
    return values


def f16(value: float) -> bytes:
    return np.float16(value).tobytes()


def test_bf16_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = np.arange(0x3F800000, 0x3F900000, 0x8000, dtype=np.uint32)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[~np.isnan(values)]
    theirs = torch.from_numpy(values.copy()).to(torch.bfloat16)
    np.testing.assert_array_equal(f32_to_bf16(values), theirs.view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(bf16_to_f32(f32_to_bf16(values)), theirs.float().numpy())


def test_bf16_keeps_nan_and_infinity() -> None:
    payload = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    values = np.concatenate([payload, np.array([np.inf, -np.inf], np.float32)])
    back = bf16_to_f32(f32_to_bf16(values))
    assert np.isnan(back[:2]).all()
    assert list(back[2:]) == [np.inf, -np.inf]


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_a_dense_format_keeps_what_it_can_represent(name: str) -> None:
    values = np.array([[0.0, -1.5, 2.0], [0.25, 96.0, -0.0625]], np.float32)
    form = get_format(name)
    np.testing.assert_array_equal(form.decode(form.encode(values), values.shape), values)
    assert form.encode(values)[""].nbytes == form.nbytes(values.shape)


def test_f16_saturates() -> None:
    form = get_format("f16")
    np.testing.assert_array_equal(
        form.decode(form.encode(np.array([1e6, -1e6], np.float32)), (2,)), np.array([65504, -65504], np.float32)
    )


def test_symmetric_block_has_these_bytes() -> None:
    """32 values 0, -1, … : s = -(-8)/8 = 1 puts value v at code v + 8; byte i holds codes i and i + 16."""
    low = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7]
    high = [7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8]
    parts = get_format("q4g32").encode(np.array([low + high], np.float32))
    assert list(parts) == [".q", ".scale"]
    assert parts[".q"].tobytes() == bytes.fromhex("f0e1d2c3b4a5968778695a4b3c2d1e0f")
    assert parts[".scale"].tobytes() == f16(1)


def test_a_positive_largest_value_makes_the_scale_negative() -> None:
    """s = 4/-8 = -0.5: the value 4 is code 0, the value -3.5 code 15."""
    values = np.zeros((1, 32), np.float32)
    values[0, 0], values[0, 16] = 4, -3.5
    parts = get_format("q4g32").encode(values)
    assert parts[".scale"].tobytes() == f16(-0.5)
    assert parts[".q"].tobytes() == bytes([0xF0] + [0x88] * 15)


def test_zero_point_blocks_have_these_bytes() -> None:
    """Three groups, 0…15, -15…0 and -5…10: s = 1 each, zero points 0, 15, 5, low nibble first."""
    ramp = np.arange(32, dtype=np.float32) % 16
    parts = get_format("q4g32z").encode(np.concatenate([ramp, ramp - 15, ramp - 5])[None])
    block = bytes(0x11 * code for code in range(16))
    assert list(parts) == [".q", ".scale", ".zero"]
    assert parts[".q"].tobytes() == block * 3
    assert parts[".scale"].tobytes() == f16(1) * 3
    assert parts[".zero"].tobytes() == bytes([0xF0, 0x05])


def test_hand_written_block_decodes() -> None:
    """q4g64z, one group: codes 0…15 twice in each block of 32, s = 0.5, z = 3."""
    block = np.frombuffer(bytes(0x11 * code for code in range(16)) * 2, np.uint8)[None]
    parts = {".q": block, ".scale": np.array([[0.5]], np.float16), ".zero": np.array([[3]], np.uint8)}
    expected = (np.tile(np.arange(16), 4) - 3) * 0.5
    np.testing.assert_array_equal(get_format("q4g64z").decode(parts, (1, 64))[0], expected)


@pytest.mark.parametrize("columns", [32, 40, 100, 1152])
@pytest.mark.parametrize("name", PACKED)
def test_errors_stay_within_half_a_step(name: str, columns: int) -> None:
    form = get_format(name)
    values = hostile(5, columns)
    parts = form.encode(values)
    error = np.abs(form.decode(parts, values.shape) - values)
    step = np.abs(parts[".scale"].astype(np.float32)).repeat(form.group, axis=1)[:, :columns]  # type: ignore[attr-defined]
    # The symmetric range reaches 7 steps to one side only; a step in float16 is off by at most 1 part in 2048.
    bound = 0.5 + 15 / 2048 if name.endswith("z") else 1 + 8 / 2048
    assert (error <= bound * step).all()
    within = np.count_nonzero(error <= (0.5 + 15 / 2048) * step)
    assert within >= 0.99 * error.size


@pytest.mark.parametrize("name", PACKED)
def test_zero_points_never_do_worse_than_their_own_range(name: str) -> None:
    """Groups of one sign use the whole range of codes with zero points, half of it without."""
    values = -np.abs(hostile(4, 256, seed=1))
    form = get_format(name)
    error = np.abs(form.decode(form.encode(values), values.shape) - values).max(axis=1)
    assert (error <= np.abs(values).max(axis=1) / (29 if name.endswith("z") else 15)).all()


@pytest.mark.parametrize("columns", [32, 40, 1152])
@pytest.mark.parametrize("name", [*PACKED, "f32", "f16", "bf16"])
def test_parts_are_what_the_layout_says(name: str, columns: int) -> None:
    form = get_format(name)
    parts = form.encode(hostile(3, columns))
    layout = form.layout((3, columns))
    assert list(parts) == list(layout)
    for suffix, (dtype, shape) in layout.items():
        assert parts[suffix].shape == shape
        assert parts[suffix].itemsize == ITEM_BYTES[dtype]
    assert sum(part.nbytes for part in parts.values()) == form.nbytes((3, columns))


def test_bits_per_weight() -> None:
    bits = {name: 8 * get_format(name).nbytes((64, 1024)) / (64 * 1024) for name in PACKED}
    assert bits == {
        "q4g32": 4.5, "q4g32z": 4.625, "q4g64": 4.25, "q4g64z": 4.3125, "q4g128": 4.125, "q4g128z": 4.15625
    }  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_zeros_stay_zeros(name: str) -> None:
    values = np.zeros((2, 256), np.float32)
    values[0, 128:] = hostile(1, 128)[0]
    form = get_format(name)
    back = form.decode(form.encode(values), values.shape)
    assert not back[1].any()
    assert not back[0, :128].any()
    assert back[0, 128:].any()


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("largest", [6e5, 1e6, 3e38])
def test_groups_beyond_the_range_of_f16_saturate(name: str, largest: float) -> None:
    values = np.zeros((1, 128), np.float32)
    values[0, :2] = largest, -largest
    form = get_format(name)
    parts = form.encode(values)
    back = form.decode(parts, values.shape)
    reach = 65504.0 * 7
    assert np.isfinite(parts[".scale"]).all()
    assert np.isfinite(back).all()
    assert np.abs(back[0, :2]).max() >= min(largest, reach) * 0.9
    assert np.abs(back).max() <= largest


@pytest.mark.parametrize("name", PACKED)
def test_values_below_the_range_of_f16_become_zero(name: str) -> None:
    form = get_format(name)
    values = np.full((1, 128), 1e-9, np.float32)
    assert not form.decode(form.encode(values), values.shape).any()


def test_zero_points_are_measured_by_the_stored_scale() -> None:
    """A range that only float32 can express: min and max must survive the float16 scale within one step."""
    values = np.linspace(-0.1003, 0.0517, 32, dtype=np.float32)[None]
    parts = get_format("q4g32z").encode(values)
    scale, zero = float(parts[".scale"][0, 0]), int(parts[".zero"][0, 0])
    assert zero == round(0.1003 / scale)


def test_pack_and_unpack_are_inverse() -> None:
    codes = np.random.default_rng(0).integers(0, 16, (3, 96), dtype=np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes)), codes)


def test_encoding_leaves_its_input_alone() -> None:
    values = hostile(2, 64)
    before = values.copy()
    get_format("q4g32z").encode(values)
    np.testing.assert_array_equal(values, before)


def test_formats_are_found_by_name() -> None:
    assert get_format("q4g64z") == Q4G(64, True)
    assert get_format("q4g64z").name == "q4g64z"
    for name in ("q4g16", "q4g32x", "q8", "", "F32", "q4g320"):
        with pytest.raises(UnsupportedModelError, match=repr(name)):
            get_format(name)
