"""The safetensors reader against the `safetensors` library, and against files that lie."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.errors import InvalidModelError, ModelNotFoundError, UnsupportedModelError

Header = dict[str, Any]


def write(path: Path, header: Header | str, body: bytes = b"", length: int | None = None) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(dtype: str, shape: list[Any], start: Any, stop: Any) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_reads_what_the_library_wrote(path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "f32": torch.randn(3, 5), "f16": torch.randn(7).half(), "bf16": torch.randn(2, 3, 4).bfloat16(),
        "f64": torch.randn(2).double(), "i8": torch.tensor([-3, 4], dtype=torch.int8),
        "u8": torch.tensor([200], dtype=torch.uint8), "i64": torch.tensor([2**40]), "bool": torch.tensor([True, False]),
        "i16": torch.tensor([-300], dtype=torch.int16), "i32": torch.tensor([[70000]], dtype=torch.int32),
        "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5),
    }  # fmt: skip
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert set(file.entries) == set(tensors)
    for name, expected in tensors.items():
        view = file.tensor(name)
        if name == "bf16":
            assert view.dtype == np.uint16
            expected = expected.view(torch.int16)
            view = view.view(np.int16)
        np.testing.assert_array_equal(view, expected.numpy())
        assert view.shape == tuple(expected.shape)
        assert file.entries[name].nbytes == view.nbytes


def test_reads_the_trained_checkpoint(shell_29m: Path) -> None:
    file = SafetensorsFile(shell_29m / "model.safetensors")
    with safetensors.safe_open(shell_29m / "model.safetensors", "pt") as theirs:
        assert set(file.entries) == set(theirs.keys())
        name = "model.layers.3.self_attn.qkv_proj.weight"
        expected = theirs.get_tensor(name).view(torch.int16).numpy()
    np.testing.assert_array_equal(file.tensor(name).view(np.int16), expected)


def test_views_are_read_only_and_take_no_memory(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1 << 21)}, path)
    tracemalloc.start()
    view = SafetensorsFile(path).tensor("x")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_a_tensor_may_lie_at_any_byte(path: Path) -> None:
    header = {"a": entry("U8", [3], 0, 3), "b": entry("F32", [2], 3, 11)}
    file = SafetensorsFile(write(path, header, b"abc" + struct.pack("<ff", 1.5, -2)))
    assert file.tensor("b").tolist() == [1.5, -2]


def resident_pages(path: Path) -> int:
    """Bytes of this file that the process holds, as Linux counts them."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_release_gives_memory_back_and_keeps_the_values(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.arange(1 << 21)}, path)
    file = SafetensorsFile(path)
    before = int(file.tensor("x").sum())
    held = resident_pages(path)
    file.release("x")
    assert held > 16 << 20
    assert resident_pages(path) < 1 << 20
    assert int(file.tensor("x").sum()) == before


def test_release_of_a_tensor_within_a_page_does_nothing(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(4)}, path)
    file = SafetensorsFile(path)
    file.release("x")
    assert file.tensor("x").tolist() == [1, 1, 1, 1]


def test_a_dtype_without_numpy_counterpart_is_an_error_only_when_asked_for(path: Path) -> None:
    header = {"x": entry("F8_E4M3", [2, 2], 0, 4), "y": entry("F4", [3, 2], 4, 7)}
    file = SafetensorsFile(write(path, header, bytes(7)))
    assert file.entries["x"].shape == (2, 2)
    with pytest.raises(UnsupportedModelError, match=r"'x' is stored as F8_E4M3"):
        file.tensor("x")


LIES: dict[str, tuple[Header | str, bytes, str]] = {
    "offsets beyond the file": ({"x": entry("F32", [4], 0, 16)}, bytes(8), r"'x' claims the bytes \[0, 16\] of 8"),
    "offsets backwards": ({"x": entry("F32", [0], 4, 0)}, bytes(4), "claims the bytes"),
    "offset negative": ({"x": entry("F32", [2], -4, 4)}, bytes(4), "claims the bytes"),
    "offset not whole": ({"x": entry("F32", [1], 0, 4.0)}, bytes(4), "claims the bytes"),
    "three offsets": ({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"a", "claims the bytes"),
    "shape too large": ({"x": entry("F32", [3], 0, 8)}, bytes(8), "needs 12 bytes and has 8"),
    "shape too small": ({"x": entry("F32", [1], 0, 8)}, bytes(8), "needs 4 bytes and has 8"),
    "shape absurd": ({"x": entry("F32", [2**62, 4], 0, 16)}, bytes(16), "impossible shape"),
    "shape wraps around to 0 bytes": ({"x": entry("F32", [2**32, 2**32], 0, 0)}, b"", "impossible shape"),
    "shape absurd beside 0": ({"x": entry("F32", [0, 2**60], 0, 0)}, b"", "impossible shape"),
    "shape negative": ({"x": entry("F32", [-1, -1], 0, 4)}, bytes(4), "impossible shape"),
    "shape of truth values": ({"x": entry("U8", [True], 0, 1)}, b"a", "impossible shape"),
    "shape not a list": ({"x": entry("U8", "12", 0, 1)}, b"a", "impossible shape"),  # type: ignore[arg-type]
    "too many dimensions": ({"x": entry("U8", [1] * 100, 0, 1)}, b"a", "impossible shape"),
    "overlap": (
        {"x": entry("U8", [4], 0, 4), "y": entry("U8", [4], 2, 6)}, bytes(6), "'y' overlaps the one before it"
    ),
    "same bytes twice": ({"x": entry("U8", [4], 0, 4), "y": entry("U8", [4], 0, 4)}, bytes(4), "overlaps"),
    "hole": ({"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 4, 6)}, bytes(6), "'y' leaves a hole before it"),
    "hole at the start": ({"x": entry("U8", [2], 1, 3)}, bytes(3), "leaves a hole"),
    "bytes after the last tensor": ({"x": entry("U8", [2], 0, 2)}, bytes(9), "its tensors end at byte"),
    "unknown dtype": ({"x": entry("F7", [2], 0, 2)}, bytes(2), "unknown dtype 'F7'"),
    "dtype not a string": ({"x": entry(["U8"], [2], 0, 2)}, bytes(2), "unknown dtype"),  # type: ignore[arg-type]
    "half a byte": ({"x": entry("F4", [3], 0, 1)}, bytes(1), "needs 1 bytes and has 1"),
    "missing field": ({"x": {"dtype": "U8", "shape": [1]}}, b"a", "does not have just"),
    "entry not an object": ({"x": 3}, b"", "does not have just"),
    "metadata not strings": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "same name twice": (
        '{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"a",
        "the key 'x' comes twice",
    ),
    "not JSON": ("{", b"", "not valid JSON"),
    "not an object": ("[]", b"", "not a JSON object"),
    "nested without end": ("[" * 200_000, b"", "not valid JSON"),
    "a number of a million digits": ('{"x":' + "9" * 1_000_000 + "}", b"", "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(path: Path, lie: str) -> None:
    header, body, message = LIES[lie]
    with pytest.raises(InvalidModelError, match=message) as caught:
        SafetensorsFile(write(path, header, body))
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "download" in caught.value.hint


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, 3])
def test_a_lying_header_length_is_refused(path: Path, length: int) -> None:
    with pytest.raises(InvalidModelError, match="header"):
        SafetensorsFile(write(path, {"x": entry("U8", [1], 0, 1)}, b"a", length=length))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_even_a_header_length_is_refused(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))
    with pytest.raises(InvalidModelError, match=f"it has {size} bytes"):
        SafetensorsFile(path)


def test_a_header_that_is_not_utf8_is_refused(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 4) + b'{"\xff"')
    with pytest.raises(InvalidModelError, match="not valid JSON"):
        SafetensorsFile(path)


def test_a_missing_file_says_so(path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no file"):
        SafetensorsFile(path)


def valid_file() -> bytes:
    tensors = {
        "a.weight": torch.arange(24).float().reshape(4, 6),
        "b": torch.ones(5).bfloat16(),
        "c": torch.ones(3).half(),
    }
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


VALID = valid_file()


def refusal(path: Path) -> str | None:
    """What the reader has against a file; None where it opens it."""
    try:
        SafetensorsFile(path)
    except InvalidModelError as error:
        return str(error)
    return None


def opens_or_refuses(path: Path, data: bytes) -> None:
    """Whatever opens must be readable in full; whatever does not must say so in one line."""
    path.write_bytes(data)
    message = refusal(path)
    if message is not None:
        assert "\n" not in message
        return
    file = SafetensorsFile(path)
    usable = [name for name, entry in file.entries.items() if entry.dtype in ("F32", "BF16", "F16")]
    assert sum(file.tensor(name).copy().nbytes for name in usable) <= len(data)


fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bits_never_escape(path: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for position, mask in flips:
        data[position] ^= mask
    opens_or_refuses(path, bytes(data))


@fuzz
@given(cut=st.integers(0, len(VALID) - 1))
def test_truncated_files_are_refused(path: Path, cut: int) -> None:
    path.write_bytes(VALID[:cut])
    with pytest.raises(InvalidModelError):
        SafetensorsFile(path)


sizes = st.one_of(st.integers(-2, 8), st.sampled_from([2**31, 2**32, 2**62, 2**64, 10**30]), st.none(), st.booleans())
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "BOOL", "", "X"]),
        "shape": st.lists(sizes, max_size=4),
        "data_offsets": st.lists(sizes, min_size=1, max_size=3),
    }
)


@fuzz
@given(
    header=st.dictionaries(st.text(max_size=3), st.one_of(entries, st.integers(), st.none()), max_size=4),
    body=st.binary(max_size=32),
)
def test_invented_headers_never_escape(path: Path, header: Header, body: bytes) -> None:
    text = json.dumps(header).encode()
    opens_or_refuses(path, struct.pack("<Q", len(text)) + text + body)


def test_tensors_far_into_a_large_file_are_found(path: Path) -> None:
    """The file is sparse: 1 GB in name only."""
    half = 1 << 29
    header = {"a": entry("U8", [half], 0, half), "b": entry("U8", [half], half, 2 * half)}
    write(path, header)
    os.truncate(path, path.stat().st_size + 2 * half)
    assert SafetensorsFile(path).tensor("b").shape == (half,)
