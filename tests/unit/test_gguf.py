"""The GGUF reader: files of the gguf package are read as it reads them, and no damaged file does more than say so."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.checkpoint.gguf.file import GgufFile, open_files
from halfbyte.checkpoint.gguf.model import open_gguf
from halfbyte.errors import HalfbyteError, InvalidModelError, ModelNotFoundError, UnsupportedModelError
from halfbyte.formats.ggml import BLOCKS
from halfbyte.models import build_spec

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((4, 64)).astype(np.float32)


def metadata_value(kind: int, data: bytes) -> bytes:
    return struct.pack("<I", kind) + data


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def one_tensor(
    *, name: str = "x", sizes: tuple[int, ...] = (64, 4), kind: int = 0, offset: int = 0, pairs: bytes = b"",
    count: int = 0, version: int = 3, tensors: int = 1, body: bytes = MATRIX.tobytes(),
) -> bytes:  # fmt: skip
    """A file of one tensor, written out by hand."""
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, count) + pairs
    header += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return header.ljust(-(-len(header) // 32) * 32, b"\0") + body


def write(folder: Path, data: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def llama_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab"])
    writer.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0])
    writer.add_token_types([2, 3, 3, 1, 1, 1])
    writer.add_array("test.numbers", [1, 2, 3])


def llama_tensors() -> dict[str, np.ndarray]:
    """A llama of one layer, in GGUF's names and row order."""
    shapes = {
        "token_embd": (6, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32), "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }  # fmt: skip
    rng = np.random.default_rng(3)
    return {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_llama(path: Path, *, arch: str = "llama", quantize: bool = False, **options: Any) -> Path:
    writer = gguf.GGUFWriter(path, arch, **options)
    llama_metadata(writer)
    for name, values in llama_tensors().items():
        if quantize and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("gguf") / "llama.gguf", quantize=True)


def test_reads_what_the_gguf_package_wrote(llama: Path) -> None:
    ours, theirs = GgufFile(llama), gguf.GGUFReader(llama)
    for name, value in ours.metadata.items():
        expected = theirs.fields[name].contents()
        assert value.tolist() if isinstance(value, np.ndarray) else value == pytest.approx(expected)
    assert list(ours.entries) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        weight = ours.weight(tensor.name)
        assert weight.shape == tuple(tensor.shape.tolist()[::-1])
        np.testing.assert_array_equal(weight.decode(), gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def test_weights_are_read_only_views(llama: Path) -> None:
    blocks = GgufFile(llama).weight("token_embd.weight").parts[BLOCKS]
    assert not blocks.flags.owndata
    assert not blocks.flags.writeable


def test_float32_metadata_are_the_numbers_that_were_meant(llama: Path) -> None:
    assert GgufFile(llama).metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-5


def test_version_2_and_hand_written_files_are_read(tmp_path: Path) -> None:
    flag = text("flag") + metadata_value(7, b"\1")
    file = GgufFile(write(tmp_path, one_tensor(version=2, pairs=flag, count=1)))
    assert file.metadata == {"flag": True}
    np.testing.assert_array_equal(file.weight("x").decode(), MATRIX)


def test_alignment_is_taken_from_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("a", np.ones(3, np.float32))
    writer.add_tensor("b", MATRIX)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.entries["b"].start - file.entries["a"].start == 256
    np.testing.assert_array_equal(file.weight("b").decode(), MATRIX)


def test_a_llama_becomes_a_hugging_face_checkpoint(llama: Path) -> None:
    checkpoint = open_gguf(llama)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    assert (spec.model_type, spec.vocab_size, spec.attentions[0].head_dim) == ("llama", 6, 8)
    assert spec.lm_head == spec.embed == "model.embed_tokens.weight"
    assert spec.stop_token_ids == (2,)
    assert checkpoint.format("model.layers.0.self_attn.q_proj.weight").name == "q8_0"
    assert checkpoint.nbytes == sum(checkpoint.weight(name).nbytes for name in checkpoint.shapes)


@pytest.mark.parametrize(("name", "heads"), [("q", 4), ("k", 2)])
def test_rows_of_q_and_k_are_put_back_in_hugging_faces_order(llama: Path, name: str, heads: int) -> None:
    """The forward permutation as convert_hf_to_gguf.py has it (LlamaModel.permute)."""
    weight = open_gguf(llama).weight(f"model.layers.0.self_attn.{name}_proj.weight").decode()
    permuted = weight.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(weight.shape)
    np.testing.assert_array_equal(permuted, GgufFile(llama).weight(f"blk.0.attn_{name}.weight").decode())
    assert not np.array_equal(permuted, weight)


def test_split_models_are_read_from_any_part(tmp_path: Path) -> None:
    whole = write_llama(tmp_path / "whole.gguf")
    write_llama(tmp_path / "part.gguf", split_max_tensors=4)
    parts = sorted(tmp_path.glob("part-*.gguf"))
    assert len(parts) == 3
    expected = open_gguf(whole)
    for part in parts[:1]:
        checkpoint = open_gguf(part)
        assert checkpoint.shapes == expected.shapes
        for name in expected.shapes:
            np.testing.assert_array_equal(checkpoint.weight(name).decode(), expected.weight(name).decode())
    assert [file.path for file in open_files(parts[2])] == parts


def test_a_missing_or_foreign_part_is_named(tmp_path: Path) -> None:
    write_llama(tmp_path / "part.gguf", split_max_tensors=4)
    first, second, third = sorted(tmp_path.glob("part-*.gguf"))
    third.rename(tmp_path / "gone")
    with pytest.raises(ModelNotFoundError, match="lacks part-00003-of-00003"):
        open_files(first)
    third.write_bytes(second.read_bytes())
    with pytest.raises(InvalidModelError, match="does not say that it is part 3 of 3"):
        open_files(first)
    first.rename(tmp_path / "odd.gguf")
    with pytest.raises(InvalidModelError, match="is not called"):
        open_files(tmp_path / "odd.gguf")


STRING = metadata_value(8, text("v"))
DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"GGUF", "fewer than the 24"),
    "another kind of file": (lambda: b"PK\3\4" + bytes(60), "does not begin with GGUF"),
    "more tensors than fit": (lambda: one_tensor(tensors=2**40), "claims 1,099,511,627,776 tensors"),
    "more metadata than fit": (lambda: one_tensor(count=2**63), "metadata entries"),
    "a key beyond the end": (lambda: one_tensor(pairs=struct.pack("<Q", 60_000), count=1), "needs 60,000 bytes"),
    "a giant key": (lambda: one_tensor(pairs=struct.pack("<Q", 2**62), count=1), "a metadata key claims"),
    "an unknown type": (lambda: one_tensor(pairs=text("k") + metadata_value(99, b""), count=1), "unknown type 99"),
    "a key twice": (lambda: one_tensor(pairs=(text("k") + STRING) * 2, count=2), "'k' comes twice"),
    "neither true nor false": (lambda: one_tensor(pairs=text("k") + metadata_value(7, b"\7"), count=1), "value of 7"),
    "a giant array": (
        lambda: one_tensor(pairs=text("k") + metadata_value(9, struct.pack("<IQ", 4, 2**60)), count=1), "needs",
    ),
    "a giant array of strings": (
        lambda: one_tensor(pairs=text("k") + metadata_value(9, struct.pack("<IQ", 8, 2**60)), count=1), "strings in",
    ),
    "an array of arrays": (
        lambda: one_tensor(pairs=text("k") + metadata_value(9, struct.pack("<IQ", 9, 1)), count=1), "array of the type",
    ),
    "an alignment of 3": (
        lambda: one_tensor(pairs=text("general.alignment") + metadata_value(4, struct.pack("<I", 3)), count=1),
        "general.alignment is 3",
    ),
    "an alignment of text": (lambda: one_tensor(pairs=text("general.alignment") + STRING, count=1), "alignment is 'v'"),
    "a thousand dimensions": (lambda: one_tensor(sizes=(1,) * 1000), "1,000 dimensions"),
    "no dimension": (lambda: one_tensor(sizes=()), "0 dimensions"),
    "an empty dimension": (lambda: one_tensor(sizes=(64, 0)), "impossible shape"),
    "a giant shape": (lambda: one_tensor(sizes=(2**40, 2**40)), "impossible shape"),
    "tensors beyond the end": (lambda: one_tensor(sizes=(64, 5)), "claims 1,280 bytes"),
    "an offset beyond the end": (lambda: one_tensor(offset=2**63), "claims 1,024 bytes"),
    "a crooked offset": (lambda: one_tensor(offset=4, sizes=(64, 1)), "claims 256 bytes"),
    "half a block": (lambda: one_tensor(kind=8, sizes=(40, 1)), "no multiple of q8_0's 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(DAMAGED))
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    make, what = DAMAGED[case]
    with pytest.raises(InvalidModelError, match=what) as caught:
        GgufFile(write(tmp_path, make()))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_overlapping_and_repeated_tensors_are_refused(tmp_path: Path) -> None:
    def two(names: tuple[str, str], offset: int) -> bytes:
        header = b"GGUF" + struct.pack("<IQQ", 3, 2, 0)
        header += text(names[0]) + struct.pack("<I2QIQ", 2, 64, 2, 0, 0)
        header += text(names[1]) + struct.pack("<I2QIQ", 2, 64, 2, 0, offset)
        return header.ljust(-(-len(header) // 32) * 32, b"\0") + MATRIX.tobytes()

    assert len(GgufFile(write(tmp_path, two(("a", "b"), 512))).entries) == 2
    with pytest.raises(InvalidModelError, match="'a' and 'b' overlap"):
        GgufFile(write(tmp_path, two(("a", "b"), 480)))
    with pytest.raises(InvalidModelError, match="'a' comes twice"):
        GgufFile(write(tmp_path, two(("a", "a"), 512)))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (one_tensor(version=1), "of version 1"),
        (one_tensor(version=3 << 24), "big-endian"),
        (one_tensor(kind=16), "stored as iq2_xxs"),
        (one_tensor(kind=8, sizes=(32, 2, 2)), "quantized and has 3 dimensions"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        GgufFile(write(tmp_path, data))


def test_architectures_and_missing_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'mamba' is not supported"):
        open_gguf(write_llama(tmp_path / "mamba.gguf", arch="mamba"))
    pairs = text("general.architecture") + metadata_value(8, text("llama"))
    with pytest.raises(InvalidModelError, match="no tensor token_embd"):
        open_gguf(write(tmp_path, one_tensor(pairs=pairs, count=1)))


def changes(size: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Places and new byte values, mostly in the first two kilobytes, where the figures are."""
    place = st.one_of(st.integers(0, min(size, 2048) - 1), st.integers(0, size - 1))
    return st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6)


def use(path: Path) -> Iterator[None]:
    """Everything a load does."""
    checkpoint = open_gguf(path)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    checkpoint.tokenizer_files()
    for name in checkpoint.shapes:
        checkpoint.weight(name)
        yield


@settings(max_examples=300, deadline=2000)
@given(data=st.data())
def test_no_change_of_bytes_does_more_than_raise(
    llama: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    original = bytearray(llama.read_bytes())
    for at, value in data.draw(changes(len(original))):
        original[at] = value
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(original))))
    path = write(tmp_path_factory.getbasetemp(), bytes(original[:cut]), "fuzzed.gguf")
    message = ""
    try:
        for _ in use(path):
            pass
    except HalfbyteError as error:
        message = error.message
    assert "\n" not in message
