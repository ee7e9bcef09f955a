"""ggml's formats: decoders against the gguf package and blocks written by hand, encoders against llama.cpp's errors."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from halfbyte.checkpoint.runnable import regrouped, ungrouped
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Weight, get_format
from halfbyte.formats.ggml import BLOCKS
from tests.blocks import BLOCK_FORMATS, HALVES, RUN_AS_THEY_ARE, block_format, random_blocks

LLAMA_CPP_ERRORS = {
    "q4_0": (0.0177075, 0.0221447),
    "q4_1": (0.0127007, 0.0138061),
    "q5_0": (0.0105126, 0.0133744),
    "q5_1": (0.00607528, 0.00667799),
    "q8_0": (0.0013344, 0.00172641),
    "q4_k": (0.0115083, 0.0143205),
    "q5_k": (0.00585481, 0.0071895),
    "q6_k": (0.00386024, 0.00478639),
}
"""Root mean squared errors of llama.cpp's ggml_quantize_chunk (ggml 0.25.3) on `sample()`: plain, and with
`importance()` given and weighing the errors."""

ENCODED = [name for name in BLOCK_FORMATS if block_format(name).encode_blocks]
GROUPED = {"q4_0": "q4g32", "q8_0": "q8g32", "mxfp4": "q8g32"}
"""Those that become Halfbyte's groups while loading."""


def blocks_of(name: str, count: int) -> np.ndarray:
    return random_blocks(name, count, np.random.default_rng(5))


def sample() -> np.ndarray:
    values = np.random.default_rng(11).standard_normal((32, 1024)).astype(np.float32) * np.float32(0.05)
    values[:, ::97] *= 20
    return values


def importance() -> np.ndarray:
    return np.random.default_rng(12).lognormal(sigma=1.0, size=1024).astype(np.float32)


def decoded(name: str, *block: bytes | int) -> list[float]:
    """The values of one block, given as bytes and single byte values."""
    data = b"".join(bytes([part]) if isinstance(part, int) else part for part in block)
    form = block_format(name)
    values: list[float] = form.decode({BLOCKS: np.frombuffer(data, np.uint8)[None]}, (1, form.values))[0].tolist()
    return values


def f16(value: float) -> bytes:
    return np.float16(value).tobytes()


@pytest.mark.parametrize("name", sorted(HALVES))
def test_decodes_as_the_gguf_package_does(name: str) -> None:
    form = block_format(name)
    blocks = blocks_of(name, 300).reshape(100, -1)
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name.upper()])
    np.testing.assert_array_equal(form.decode({BLOCKS: blocks}, (100, 3 * form.values)), theirs)


@pytest.mark.parametrize("name", sorted(HALVES))
def test_sizes_are_those_of_the_gguf_package(name: str) -> None:
    values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    form = block_format(name)
    assert (form.values, form.block_bytes) == (values, nbytes)
    assert form.nbytes((3, 2 * values)) == 6 * nbytes
    assert form.layout((3, values + 1)) == {BLOCKS: ("U8", (3, 2 * nbytes))}


def test_q4_0_by_hand() -> None:
    assert decoded("q4_0", f16(0.5), bytes(range(16))) == [(i - 8) / 2 for i in range(16)] + [-4.0] * 16


def test_q5_0_by_hand() -> None:
    """Only code 1 and code 17 have their high bit."""
    values = decoded("q5_0", f16(2), (1 << 1 | 1 << 17).to_bytes(4, "little"), bytes([0x21] * 16))
    assert values == [-30, 2] + [-30] * 14 + [-28, 4] + [-28] * 14


def test_q4_k_by_hand() -> None:
    """Group 0 has scale 3 and offset 5, group 7 scale 33 and offset 18, whose high bits lie in bytes 3 and 7."""
    scales = [3, 0, 0, 0b10 << 6, 5, 0, 0, 0b01 << 6, 0, 0, 0, 0x21]
    codes = bytes([0x0A]) + bytes(95) + bytes([0x70]) + bytes(31)
    values = decoded("q4_k", f16(2), f16(0.5), bytes(scales), codes)
    assert values[:2] == [2 * 3 * 10 - 0.5 * 5, -0.5 * 5]
    assert values[32 * 7 : 32 * 7 + 2] == [2 * 33 * 7 - 0.5 * 18, -0.5 * 18]
    assert not any(values[32 : 32 * 7])


def test_q6_k_by_hand() -> None:
    """Value 96 has its low bits in the high nibble of byte 32, its high ones at the top of byte 128."""
    low, high, scales = bytearray(128), bytearray([0xAA] * 64), bytearray([1] * 16)
    low[32], high[0], scales[6] = 0x50, 0b11_10_10_10, 0xFE
    values = decoded("q6_k", bytes(low), bytes(high), bytes(scales), f16(0.25))
    assert values[96] == 0.25 * -2 * (0x35 - 32)
    assert values[:96] == [0.0] * 96


def test_mxfp4_by_hand() -> None:
    values = decoded("mxfp4", 128, bytes([0x71] * 16))
    assert values == [1.0] * 16 + [12.0] * 16
    assert decoded("mxfp4", 0, bytes([0x02] * 16))[0] == 2.0**-127


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_old_formats_are_written_as_the_gguf_package_does(name: str) -> None:
    values = sample()
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name.upper()])
    np.testing.assert_array_equal(block_format(name).encode(values)[BLOCKS], theirs)


@pytest.mark.parametrize("name", sorted(LLAMA_CPP_ERRORS))
def test_errors_are_within_a_hundredth_of_llama_cpps(name: str) -> None:
    form, values = block_format(name), sample()
    for weights, theirs in zip((None, importance()), LLAMA_CPP_ERRORS[name], strict=True):
        error = form.decode(form.encode(values, weights), values.shape) - values
        ours = np.sqrt(np.mean(error**2 * (1 if weights is None else weights)))
        assert ours <= 1.01 * theirs


@pytest.mark.parametrize("name", sorted(set(ENCODED) - {"q4_1", "q5_0", "q5_1", "q8_0"}))
def test_importance_moves_the_error_to_where_it_matters_less(name: str) -> None:
    form, values, weights = block_format(name), sample(), importance()
    errors = [form.decode(form.encode(values, w), values.shape) - values for w in (None, weights)]
    plain, informed = (float(np.mean(weights * error**2)) for error in errors)
    assert informed < plain


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-7, 1e8, 3e38])
def test_extreme_values_are_stored_without_a_warning(name: str, scale: float) -> None:
    values = np.clip(sample()[:2, :512], -1, 1) * np.float32(scale)
    form = block_format(name)
    back = form.decode(form.encode(values), values.shape)
    assert np.isfinite(back).all()
    assert np.abs(back).max() / 1.2 <= np.abs(values).max()


@pytest.mark.parametrize("name", sorted(set(ENCODED) - {"q4_1", "q5_0", "q5_1", "q8_0"}))
def test_channels_that_never_matter_do_no_harm(name: str) -> None:
    form, values = block_format(name), sample()
    back = form.decode(form.encode(values, np.zeros(1024, np.float32)), values.shape)
    assert np.abs(back - values).max() <= np.abs(values).max()


@pytest.mark.parametrize("name", ENCODED)
def test_rows_that_fill_no_block_are_padded(name: str) -> None:
    form, values = block_format(name), sample()[:, :400]
    error = form.decode(form.encode(values, importance()[:400]), values.shape) - values
    assert error.shape == values.shape
    assert np.sqrt(np.mean(error**2)) < {"q2_k": 0.3, "q3_k": 0.2}.get(name, 0.15) * np.sqrt(np.mean(values**2))


def test_a_format_that_is_only_read_says_so() -> None:
    with pytest.raises(UnsupportedModelError, match="mxfp4 can be read, not written"):
        get_format("mxfp4").encode(sample())


def test_every_format_is_among_the_tested() -> None:
    assert sorted(HALVES) == sorted(BLOCK_FORMATS)
    assert sorted({*GROUPED, *RUN_AS_THEY_ARE}) == sorted(BLOCK_FORMATS)


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_formats_that_are_groups_already_become_halfbytes(name: str) -> None:
    form = block_format(name)
    blocks = blocks_of(name, 24)
    if name == "mxfp4":
        blocks[:, 0] = np.random.default_rng(0).integers(104, 144, len(blocks))
    weight = Weight(form, (3, 256), {BLOCKS: blocks.reshape(3, -1)})
    turned = regrouped(weight)
    assert turned is not None
    assert turned.format.name == form.grouped == GROUPED[name]
    np.testing.assert_array_equal(turned.decode(), weight.decode())
    back = ungrouped(turned, form)
    assert (back is not None) == (name != "mxfp4")
    if back is not None:
        np.testing.assert_array_equal(back[0].parts[BLOCKS], weight.parts[BLOCKS])
        assert back[1] == 0


@pytest.mark.parametrize("name", RUN_AS_THEY_ARE)
def test_other_formats_stay_as_they_are(name: str) -> None:
    weight = Weight(get_format(name), (1, 256), {BLOCKS: blocks_of(name, 256 // block_format(name).values)})
    assert regrouped(weight) is None
