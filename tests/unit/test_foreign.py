"""AutoAWQ, GPTQ and compressed-tensors folders, packed bit by bit as the layouts are described, read by Halfbyte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from halfbyte.checkpoint.foreign import QuantizedCheckpoint
from halfbyte.checkpoint.layouts.grouped import join_groups, pack_words, split_groups, unpack_words
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.errors import HalfbyteError, InvalidModelError, UnsupportedModelError
from halfbyte.formats import Weight, get_format
from halfbyte.formats.q4g import Q4G

ROWS, COLUMNS = 64, 256
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "GEMM"}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
NAME = "model.layers.0.mlp.down_proj"


class Matrix:
    """A random quantized matrix, and the values it stands for."""

    def __init__(self, bits: int, group: int, *, symmetric: bool = False, order: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(bits * group)
        self.bits, self.groups = bits, COLUMNS // group
        self.codes = rng.integers(0, 1 << bits, (ROWS, COLUMNS))
        self.zeros = rng.integers(0, 1 << bits, (ROWS, self.groups))
        if symmetric:
            self.zeros[:] = 1 << bits - 1
        self.scales = rng.uniform(0.001, 0.1, (ROWS, self.groups)).astype(np.float16)
        self.order = np.arange(COLUMNS) // group if order is None else order
        spread = self.zeros[:, self.order], self.scales.astype(np.float32)[:, self.order]
        self.values = (self.codes - spread[0]).astype(np.float32) * spread[1]


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """The last axis as a stream of bits, lowest first, cut into words of 32: by Python's own large integers."""
    flat = codes.reshape(-1, codes.shape[-1])
    numbers = [sum(int(code) << bits * i for i, code in enumerate(row)) for row in flat]
    nbytes = -(-codes.shape[-1] * bits // 32) * 4
    packed = [np.frombuffer(number.to_bytes(nbytes, "little"), "<i4") for number in numbers]
    return np.array(packed).reshape(*codes.shape[:-1], -1)


def awq(matrix: Matrix) -> dict[str, np.ndarray]:
    def packed(codes: np.ndarray) -> np.ndarray:
        return words(codes.reshape(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(codes), -1), 4)

    return {"qweight": packed(matrix.codes.T), "qzeros": packed(matrix.zeros.T), "scales": matrix.scales.T.copy()}


def gptq(matrix: Matrix, version: int) -> dict[str, np.ndarray]:
    return {
        "qweight": words(matrix.codes, matrix.bits).T.copy(),
        "qzeros": words(matrix.zeros.T - (version == 1), matrix.bits),
        "scales": matrix.scales.T.copy(),
        "g_idx": matrix.order.astype(np.int32),
    }


def compressed(matrix: Matrix, *, symmetric: bool) -> dict[str, np.ndarray]:
    tensors = {
        "weight_packed": words(matrix.codes, matrix.bits),
        "weight_scale": matrix.scales,
        "weight_shape": np.array([ROWS, COLUMNS]),
    }
    return tensors if symmetric else {**tensors, "weight_zero_point": words(matrix.zeros.T, matrix.bits).T.copy()}


def compressed_settings(bits: int, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": "group"}
    groups = {"group_0": {"weights": weights, "targets": ["Linear"], **more}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


def opened(folder: Path, settings: Any, tensors: dict[str, np.ndarray], **plain: np.ndarray) -> QuantizedCheckpoint:
    """A folder with one quantized matrix and other tensors."""
    stored = {f"{NAME}.{suffix}": np.ascontiguousarray(tensor) for suffix, tensor in tensors.items()}
    stored |= {name.replace("__", "."): tensor for name, tensor in plain.items()}
    save_file(stored, folder / "m.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, QuantizedCheckpoint)
    return checkpoint


def check(checkpoint: QuantizedCheckpoint, matrix: Matrix, form: str) -> Weight:
    weight = checkpoint.weight(f"{NAME}.weight")
    assert checkpoint.shapes[f"{NAME}.weight"] == weight.shape == (ROWS, COLUMNS)
    assert checkpoint.format(f"{NAME}.weight") == weight.format == get_format(form)
    np.testing.assert_array_equal(weight.decode(), matrix.values)
    checkpoint.release(f"{NAME}.weight")
    return weight


@pytest.mark.parametrize(("group", "form"), [(32, "q4g32z"), (64, "q4g64z"), (128, "q4g128z"), (256, "q4g128z")])
def test_awq_is_read_without_loss(tmp_path: Path, group: int, form: str) -> None:
    matrix = Matrix(4, group)
    check(opened(tmp_path, {**AWQ, "group_size": group}, awq(matrix)), matrix, form)


def test_one_group_a_row_is_cut_into_several(tmp_path: Path) -> None:
    matrix = Matrix(4, COLUMNS)
    check(opened(tmp_path, {**AWQ, "group_size": -1}, awq(matrix)), matrix, "q4g128z")


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq_is_read_without_loss(tmp_path: Path, bits: int, symmetric: bool, version: int) -> None:
    """Zero points of version 1 here are 1 and more, so that nothing borrows."""
    matrix = Matrix(bits, 64, symmetric=symmetric)
    matrix.zeros = np.maximum(matrix.zeros, 1)
    matrix.values = (matrix.codes - matrix.zeros[:, matrix.order]).astype(np.float32)
    matrix.values *= matrix.scales.astype(np.float32)[:, matrix.order]
    layout = {1: "gptq", 2: "gptq_v2"}[version]
    checkpoint = opened(tmp_path, {**GPTQ, "bits": bits, "checkpoint_format": layout}, gptq(matrix, version))
    check(checkpoint, matrix, f"q{bits}g64{'' if symmetric else 'z'}")
    assert checkpoint.notes == ()


def test_version_1_undoes_the_borrow_of_a_zero_point_of_zero(tmp_path: Path) -> None:
    """GPTQModel subtracts 0x11111111 from whole words: 0x…30 becomes 0x…1F, and the 3 must not be read as a 2."""
    matrix = Matrix(4, 64)
    matrix.zeros[0], matrix.zeros[1] = 0, 3
    matrix.values = (matrix.codes - matrix.zeros[:, matrix.order]).astype(np.float32)
    matrix.values *= matrix.scales.astype(np.float32)[:, matrix.order]
    tensors = gptq(matrix, 2)
    tensors["qzeros"] = (tensors["qzeros"].view(np.uint32) - np.uint32(0x11111111)).view(np.int32)
    check(opened(tmp_path, GPTQ, tensors), matrix, "q4g64z")


def test_eight_bits_keep_their_codes_where_they_are_symmetric(tmp_path: Path) -> None:
    matrix = Matrix(8, 128, symmetric=True)
    check(opened(tmp_path, {**GPTQ, "bits": 8, "group_size": 128}, gptq(matrix, 1)), matrix, "q8g128")


@pytest.mark.parametrize("case", ["act-order", "eight bits with zero points", "groups of 16"])
def test_what_has_no_format_is_held_in_f16_and_noted(tmp_path: Path, case: str) -> None:
    order = np.random.default_rng(1).permutation(np.arange(COLUMNS) // 64)
    matrix, settings = {
        "act-order": (Matrix(4, 64, order=order), GPTQ),
        "eight bits with zero points": (Matrix(8, 64), {**GPTQ, "bits": 8}),
        "groups of 16": (Matrix(4, 16), {**GPTQ, "group_size": 16}),
    }[case]
    checkpoint = opened(tmp_path, {**settings, "checkpoint_format": "gptq_v2"}, gptq(matrix, 2))
    assert checkpoint.format(f"{NAME}.weight").name == "f16"
    np.testing.assert_array_equal(checkpoint.weight(f"{NAME}.weight").parts[""], matrix.values.astype(np.float16))
    assert checkpoint.notes == ("1 quantized matrices fit none of Halfbyte's formats and are held in f16.",)


@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_are_read_without_loss(tmp_path: Path, symmetric: bool) -> None:
    matrix = Matrix(4, 32, symmetric=symmetric)
    tensors = compressed(matrix, symmetric=symmetric)
    check(opened(tmp_path, compressed_settings(4), tensors), matrix, "q4g32" if symmetric else "q4g32z")


def test_compressed_tensors_in_eight_bits_and_with_unused_group_indices(tmp_path: Path) -> None:
    matrix = Matrix(8, 64, symmetric=True)
    tensors = compressed(matrix, symmetric=True) | {"weight_g_idx": np.full(COLUMNS, -1, np.int32)}
    check(opened(tmp_path, compressed_settings(8), tensors), matrix, "q8g64")


def test_scales_that_are_no_float16_numbers_are_not_rounded_silently(tmp_path: Path) -> None:
    matrix = Matrix(4, 64, symmetric=True)
    tensors = compressed(matrix, symmetric=True)
    tensors["weight_scale"] = tensors["weight_scale"].astype(np.float32) * np.float32(1.0001)
    assert opened(tmp_path, compressed_settings(4), tensors).format(f"{NAME}.weight").name == "f16"


def test_plain_tensors_are_there_too(tmp_path: Path) -> None:
    norm, bias = np.ones(8, np.float16), np.zeros(ROWS, np.float16)
    tensors = awq(Matrix(4, 64))
    checkpoint = opened(tmp_path, AWQ, {**tensors, "bias": bias}, model__norm__weight=norm)
    assert set(checkpoint.shapes) == {f"{NAME}.weight", f"{NAME}.bias", "model.norm.weight"}
    np.testing.assert_array_equal(checkpoint.weight("model.norm.weight").decode(), norm)
    with pytest.raises(InvalidModelError, match="lacks the tensor 'nothing'"):
        checkpoint.weight("nothing")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"qzeros": None}, "lacks qzeros"),
        ({"scales": np.ones((3, ROWS), np.float16)}, "contradictory shapes"),
        ({"qzeros": np.ones((4, 7), np.int32)}, "contradictory shapes"),
        ({"qweight": np.ones((32, 2, 32), np.int32)}, "contradictory shapes"),
        ({"g_idx": np.zeros(9, np.int32)}, "contradictory shapes"),
        ({"g_idx": np.full(COLUMNS, 4, np.int32)}, r"outside 0 … 3"),
        ({"g_idx": np.full(COLUMNS, -2, np.int32)}, r"outside 0 … 3"),
        ({"qweight": np.ones((32, ROWS), np.int64)}, "not 32 bits wide"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: dict[str, np.ndarray | None], what: str) -> None:
    tensors = {key: value for key, value in (gptq(Matrix(4, 64), 2) | change).items() if value is not None}
    with pytest.raises(InvalidModelError, match=what):
        opened(tmp_path, GPTQ, tensors).weight(f"{NAME}.weight")


@pytest.mark.parametrize(
    ("settings", "error", "what"),
    [
        ("awq", InvalidModelError, "quantization_config is 'awq'"),
        ({"quant_method": "bitsandbytes"}, UnsupportedModelError, "'bitsandbytes', which Halfbyte cannot read"),
        ({}, UnsupportedModelError, "nothing in it says how to read them"),
        ({"bits": 4}, UnsupportedModelError, "None, which Halfbyte cannot read"),
        ({**AWQ, "version": "gemv"}, UnsupportedModelError, "layout 'gemv'"),
        ({**AWQ, "bits": "4"}, InvalidModelError, "bits of quantization_config is '4'"),
        ({**AWQ, "group_size": 0}, UnsupportedModelError, "groups of 0"),
        ({**GPTQ, "bits": 2}, UnsupportedModelError, "2 bits"),
        ({**GPTQ, "checkpoint_format": "marlin"}, UnsupportedModelError, "'marlin'"),
        ({**GPTQ, "group_size": None}, InvalidModelError, "group_size"),
        (compressed_settings(4) | {"format": "float-quantized"}, UnsupportedModelError, "'float-quantized'"),
        (compressed_settings(4) | {"config_groups": {}}, InvalidModelError, "no config_groups"),
        (compressed_settings(4, input_activations={"num_bits": 8}), UnsupportedModelError, "to W4A8 "),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path: Path, settings: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        opened(tmp_path, settings, gptq(Matrix(4, 64), 2))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_words_hold_codes_as_one_stream_of_bits(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, 96), dtype=np.uint8)
    np.testing.assert_array_equal(pack_words(codes, bits), words(codes, bits))
    np.testing.assert_array_equal(unpack_words(words(codes, bits), bits), codes)


@pytest.mark.parametrize("name", ["q3g64", "q3g32z", "q4g128", "q4g32z", "q8g64"])
def test_taking_apart_and_assembling_are_inverse(name: str) -> None:
    form, values = get_format(name), np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)
    weight = Weight(form, values.shape, form.encode(values))
    again = join_groups(form, *split_groups(weight))  # type: ignore[arg-type]
    assert {key: part.tobytes() for key, part in again.items()} == {k: p.tobytes() for k, p in weight.parts.items()}
    assert isinstance(get_format("q4g32"), Q4G)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.integers(), st.floats(), st.text(max_size=6),
    st.lists(st.integers(0, 4), max_size=3), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 70), min_size=0, max_size=3)
DTYPES = st.sampled_from([np.int32, np.int64, np.uint8, np.float16, np.float32])
VALID = {
    "awq": (AWQ, awq(Matrix(4, 64))),
    "gptq": ({**GPTQ, "checkpoint_format": "gptq_v2"}, gptq(Matrix(4, 64), 2)),
    "gptq, 3 bits": ({**GPTQ, "bits": 3, "checkpoint_format": "gptq_v2"}, gptq(Matrix(3, 64), 2)),
    "compressed-tensors": (compressed_settings(4), compressed(Matrix(4, 64), symmetric=False)),
}


def altered(settings: Any, data: st.DataObject) -> Any:
    """Settings with one value, at any depth, replaced or left out."""
    key = data.draw(st.sampled_from(sorted(settings)))
    if isinstance(settings[key], dict) and settings[key] and data.draw(st.booleans()):
        return {**settings, key: altered(settings[key], data)}
    if data.draw(st.booleans()):
        return {name: value for name, value in settings.items() if name != key}
    return {**settings, key: data.draw(VALUES)}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", sorted(VALID))
def test_no_change_of_settings_or_tensors_does_more_than_raise(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    config, tensors = VALID[kind]
    changed = dict(tensors)
    for _ in range(data.draw(st.integers(0, 2))):
        config = altered(config, data)
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2)):
        kept = data.draw(st.booleans())
        shape, dtype = data.draw(SHAPES), data.draw(DTYPES)
        changed = {key: value for key, value in changed.items() if key != name}
        if kept:
            with np.errstate(all="ignore"):
                changed[name] = np.resize(tensors[name], shape).astype(dtype)
    message = ""
    try:
        checkpoint = opened(tmp_path_factory.getbasetemp(), config, changed)
        for name in checkpoint.shapes:
            checkpoint.weight(name).decode()
    except HalfbyteError as error:
        message = error.message
    assert "\n" not in message
