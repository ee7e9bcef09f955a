"""3- and 8-bit groups: exact bytes of blocks written by hand, error bounds on hostile values, sizes."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import get_format
from halfbyte.formats.q3g import pack, unpack

Q3 = [f"q3g{group}{z}" for group in (32, 64, 128) for z in ("", "z")]
Q8 = [f"q8g{group}" for group in (32, 64, 128)]


def hostile(rows: int, columns: int) -> np.ndarray:
    """Normal values, every seventh twenty times larger."""
    values = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    values[:, ::7] *= 20
    return values


def test_three_bit_codes_have_these_bytes() -> None:
    """Codes 0…7, four times over: byte j of the low plane holds j & 3 four times, the high plane codes 4 to 7."""
    packed = pack((np.arange(32, dtype=np.uint8) % 8)[None])
    assert packed.tobytes() == bytes([0x00, 0x55, 0xAA, 0xFF] * 2 + [0b10101010] * 4)


def test_three_bit_codes_unpack_four_at_a_time_as_the_kernels_do() -> None:
    codes = np.random.default_rng(1).integers(0, 8, (3, 96), dtype=np.uint8)
    words = pack(codes).reshape(9, 12).view("<u4")
    low, high = words[:, :2], words[:, 2]
    for t in range(8):
        four = low[:, t & 1] >> 2 * (t >> 1) & 0x03030303 | (high >> t & 0x01010101) << 2
        np.testing.assert_array_equal(four[:, None].view(np.uint8), codes.reshape(9, 32)[:, 4 * t : 4 * t + 4])
    np.testing.assert_array_equal(unpack(pack(codes)), codes)


def test_symmetric_three_bits() -> None:
    """s = -(-4)/4 = 1 puts value v at code v + 4."""
    values = np.tile(np.arange(-4, 4, dtype=np.float32), 4)[None]
    form = get_format("q3g32")
    parts = form.encode(values)
    assert list(parts) == [".q", ".scale"]
    assert parts[".scale"].tolist() == [[1.0]]
    np.testing.assert_array_equal(unpack(parts[".q"])[0], np.arange(32) % 8)
    np.testing.assert_array_equal(form.decode(parts, values.shape), values)


def test_zero_points_are_nibbles_low_first() -> None:
    ramp = np.tile(np.arange(8, dtype=np.float32), 4)
    form = get_format("q3g32z")
    values = np.concatenate([ramp, ramp - 7, ramp - 5])[None]
    parts = form.encode(values)
    assert parts[".zero"].tobytes() == bytes([0x70, 0x05])
    np.testing.assert_array_equal(form.decode(parts, values.shape), values)


def test_eight_bits_are_twos_complement_in_order() -> None:
    values = np.zeros((1, 64), np.float32)
    values[0, :3] = 127, -127, 1
    parts = get_format("q8g64").encode(values)
    assert parts[".q"].tobytes() == bytes([127, 129, 1]) + bytes(61)
    assert parts[".scale"].tolist() == [[1.0]]


def test_eight_bit_codes_reach_down_to_minus_128() -> None:
    parts = {".q": np.full((1, 32), 128, np.uint8), ".scale": np.array([[0.5]], np.float16)}
    assert get_format("q8g32").decode(parts, (1, 2)).tolist() == [[-64.0, -64.0]]


@pytest.mark.parametrize("columns", [32, 40, 100, 1152])
@pytest.mark.parametrize("name", Q3 + Q8)
def test_errors_stay_within_a_step(name: str, columns: int) -> None:
    form, values = get_format(name), hostile(5, columns)
    parts = form.encode(values)
    error = np.abs(form.decode(parts, values.shape) - values)
    group: int = form.group  # type: ignore[attr-defined]
    step = np.abs(parts[".scale"].astype(np.float32)).repeat(group, axis=1)[:, :columns]
    # A symmetric range of 3 bits reaches 3 steps to one side and 4 to the other; float16 rounds the step by 1/2048.
    bound = 1 + 8 / 2048 if name in ("q3g32", "q3g64", "q3g128") else 0.5 + 128 / 2048
    assert (error <= bound * step).all()
    assert np.count_nonzero(error <= (0.5 + 128 / 2048) * step) >= 0.97 * error.size


@pytest.mark.parametrize("name", Q3 + Q8)
def test_parts_are_what_the_layout_says(name: str) -> None:
    form = get_format(name)
    parts = form.encode(hostile(3, 200))
    layout = form.layout((3, 200))
    assert [(suffix, parts[suffix].shape) for suffix in parts] == [(s, shape) for s, (_, shape) in layout.items()]
    assert sum(part.nbytes for part in parts.values()) == form.nbytes((3, 200))
    assert all(part.dtype == {"U8": np.uint8, "F16": np.float16}[layout[s][0]] for s, part in parts.items())


def test_bits_per_weight() -> None:
    bits = {name: 8 * get_format(name).nbytes((64, 1024)) / (64 * 1024) for name in Q3 + Q8}
    assert bits == {
        "q3g32": 3.5, "q3g32z": 3.625, "q3g64": 3.25, "q3g64z": 3.3125, "q3g128": 3.125, "q3g128z": 3.15625,
        "q8g32": 8.5, "q8g64": 8.25, "q8g128": 8.125,
    }  # fmt: skip


@pytest.mark.parametrize("name", Q3 + Q8)
def test_zeros_stay_zeros_and_giants_saturate(name: str) -> None:
    values = np.zeros((1, 256), np.float32)
    values[0, 128:130] = 3e38, -3e38
    form = get_format(name)
    back = form.decode(form.encode(values), values.shape)
    assert not back[0, :128].any()
    assert np.isfinite(back).all()
    assert np.abs(back).max() > 65504


def test_other_names_are_unknown() -> None:
    for name in ("q3g16", "q8g32z", "q3g", "q5_k_m", "Q4_K"):
        with pytest.raises(UnsupportedModelError, match=repr(name)):
            get_format(name)
