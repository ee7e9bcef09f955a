"""Model folders: what opens, what is refused and how, and Halfbyte's own folder written and read back."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from halfbyte.checkpoint import Checkpoint, RepackedWeights, open_checkpoint
from halfbyte.checkpoint.writer import Outgoing, write_folder
from halfbyte.errors import HalfbyteError, InvalidModelError, ModelNotFoundError, UnsupportedModelError, UsageError
from halfbyte.formats import Parts, get_format
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 128,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (96, 64), "model.norm.weight": (64,)}
    for i in range(2):
        shapes |= {
            f"model.layers.{i}.input_layernorm.weight": (64,),
            f"model.layers.{i}.post_attention_layernorm.weight": (64,),
            f"model.layers.{i}.self_attn.q_proj.weight": (64, 64),
            f"model.layers.{i}.self_attn.k_proj.weight": (32, 64),
            f"model.layers.{i}.self_attn.v_proj.weight": (32, 64),
            f"model.layers.{i}.self_attn.o_proj.weight": (64, 64),
            f"model.layers.{i}.mlp.gate_proj.weight": (72, 64),
            f"model.layers.{i}.mlp.up_proj.weight": (72, 64),
            f"model.layers.{i}.mlp.down_proj.weight": (64, 72),
        }
    return {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}


def make(folder: Path, tensors: dict[str, torch.Tensor] | None = None, config: Any = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(llama_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def make_sharded(folder: Path, change: Callable[[dict[str, str]], None] = lambda weight_map: None) -> Path:
    make(folder)
    (folder / "model.safetensors").unlink()
    tensors, weight_map = llama_tensors(), {}
    for number, names in enumerate((list(tensors)[:9], list(tensors)[9:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    change(weight_map)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def spec_of(checkpoint: Checkpoint) -> ModelSpec:
    return build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def check_values(checkpoint: Checkpoint) -> None:
    for name, tensor in llama_tensors().items():
        weight = checkpoint.weight(name)
        assert weight.format.name == "bf16"
        np.testing.assert_array_equal(weight.decode(), tensor.float().numpy())


def test_a_single_file_opens(folder: Path) -> None:
    checkpoint = open_checkpoint(make(folder))
    check_values(checkpoint)
    checkpoint.check(spec_of(checkpoint))
    assert checkpoint.manifest is None
    assert checkpoint.generation_config == {}
    assert checkpoint.nbytes == sum(t.nbytes for t in llama_tensors().values())
    assert dict(checkpoint.shapes) == {name: tuple(t.shape) for name, t in llama_tensors().items()}
    with pytest.raises(InvalidModelError, match="lacks the tensor 'nothing'"):
        checkpoint.weight("nothing")


def test_shards_open(folder: Path) -> None:
    checkpoint = open_checkpoint(make_sharded(folder))
    check_values(checkpoint)
    checkpoint.check(spec_of(checkpoint))
    assert checkpoint.nbytes == sum(t.nbytes for t in llama_tensors().values())


def test_one_file_of_another_name_opens(folder: Path) -> None:
    make(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    check_values(open_checkpoint(folder))


def test_the_trained_checkpoint_fits_its_configuration(shell_29m: Path) -> None:
    checkpoint = open_checkpoint(shell_29m)
    spec = spec_of(checkpoint)
    checkpoint.check(spec)
    assert spec.parameters == 29_368_832 == checkpoint.nbytes // 2
    assert checkpoint.generation_config["eos_token_id"] == [0, 4]


@pytest.mark.parametrize("size", ["f32", "f16", "i64", "f64"])
def test_formats_follow_dtypes(folder: Path, size: str) -> None:
    dtype = {"f32": torch.float32, "f16": torch.float16, "i64": torch.int64, "f64": torch.float64}[size]
    tensors = {name: tensor.to(dtype) for name, tensor in llama_tensors().items()}
    checkpoint = open_checkpoint(make(folder, tensors))
    if size in ("f32", "f16"):
        assert {checkpoint.format(name).name for name in checkpoint.shapes} == {size}
        return
    with pytest.raises(UnsupportedModelError, match=f"is stored as {size.upper()}"):
        checkpoint.check(spec_of(checkpoint))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        open_checkpoint(tmp_path / "file")
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 10**5, "JSON"),
    ],
)
def test_a_broken_config(folder: Path, text: str, message: str) -> None:
    (make(folder) / "config.json").write_text(text)
    with pytest.raises(InvalidModelError, match=message):
        open_checkpoint(folder)


def test_an_oversized_config_is_not_read(folder: Path) -> None:
    with (make(folder) / "config.json").open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(InvalidModelError, match="1,073,741,824 bytes"):
        open_checkpoint(folder)


def test_pickles_are_never_read(folder: Path) -> None:
    make(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedModelError, match=r"only as pickles \(pytorch_model\.bin\)") as caught:
        open_checkpoint(folder)
    assert "never read" in caught.value.hint


def test_no_weights(folder: Path) -> None:
    make(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"has no model\.safetensors"):
        open_checkpoint(folder)


def test_several_files_need_an_index(folder: Path) -> None:
    (make_sharded(folder) / "model.safetensors.index.json").unlink()
    with pytest.raises(InvalidModelError, match="2 safetensors files and no"):
        open_checkpoint(folder)


def test_another_quantization_is_named(folder: Path) -> None:
    make(folder, config=CONFIG | {"quantization_config": {"quant_method": "exl3", "bits": 4}})
    with pytest.raises(UnsupportedModelError, match="quantized with 'exl3'"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (make_sharded(folder) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="lacks the shard model-00002-of-00002"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["../other.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "C:x.safetensors",
     "pytorch_model.bin", "", 3, None, "x\0.safetensors", ".safetensors"],
)  # fmt: skip
def test_shards_outside_the_folder_are_refused(folder: Path, name: Any) -> None:
    make_sharded(folder, lambda weight_map: weight_map.update({"model.norm.weight": name}))
    with pytest.raises(InvalidModelError, match=r"not a \*\.safetensors file of the same folder"):
        open_checkpoint(folder)


def test_an_index_that_misplaces_a_tensor(folder: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    make_sharded(folder, lambda weight_map: weight_map.update({"model.norm.weight": second}))
    note = f"{first} holds the tensor 'model.norm.weight', which model.safetensors.index.json does not place there."
    checkpoint = open_checkpoint(folder)
    check_values(checkpoint)
    assert checkpoint.notes == (note,)
    shutil.rmtree(folder)
    make_sharded(folder, lambda weight_map: weight_map.pop("model.norm.weight") and None)
    checkpoint = open_checkpoint(folder)
    check_values(checkpoint)
    assert checkpoint.notes == (note,)


def test_an_index_that_promises_what_no_shard_holds(folder: Path) -> None:
    first = "model-00001-of-00002.safetensors"
    make_sharded(folder, lambda weight_map: weight_map.update({"model.extra.weight": first}))
    checkpoint = open_checkpoint(folder)
    checkpoint.check(spec_of(checkpoint))
    tensors = llama_tensors()
    safetensors.torch.save_file({name: tensors[name] for name in list(tensors)[:1]}, folder / first)
    with pytest.raises(
        InvalidModelError, match=rf"lacks the tensor '[\w.]+', which model\.safetensors\.index\.json places in {first}"
    ):
        open_checkpoint(folder).check(spec_of(checkpoint))


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_a_map(folder: Path, text: str) -> None:
    (make_sharded(folder) / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InvalidModelError, match="no weight_map"):
        open_checkpoint(folder)


def test_check_names_the_first_difference_and_counts_the_others(folder: Path) -> None:
    tensors = llama_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    spec = spec_of(open_checkpoint(make(folder)))
    with pytest.raises(InvalidModelError, match=r"lacks the tensor '[\w.]+' \(and 1 more like it\)"):
        open_checkpoint(make(folder, tensors)).check(spec)


def test_check_of_extra_tensors_follows_the_spec(folder: Path) -> None:
    tensors = llama_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    checkpoint = open_checkpoint(make(folder, tensors))
    checkpoint.check(spec_of(checkpoint))
    tensors |= {"model.layers.0.surprise.weight": torch.ones(8)}
    checkpoint = open_checkpoint(make(folder, tensors))
    checkpoint.check(spec_of(checkpoint))
    assert checkpoint.notes == (
        "It holds 1 tensor that is not part of a llama model and not used: 'model.layers.0.surprise.weight'.",
    )


def test_check_of_shapes_names_both(folder: Path) -> None:
    tensors = llama_tensors() | {"model.layers.1.mlp.down_proj.weight": torch.ones(64, 73)}
    checkpoint = open_checkpoint(make(folder, tensors))
    with pytest.raises(InvalidModelError, match=r"has the shape \[64, 73\]; config\.json asks for \[64, 72\]"):
        checkpoint.check(spec_of(checkpoint))


def test_packed_encodes_matrices_and_leaves_vectors(folder: Path) -> None:
    checkpoint = open_checkpoint(make(folder))
    packed = RepackedWeights(checkpoint, "q4g32z")
    for name, tensor in llama_tensors().items():
        weight = packed.weight(name)
        assert weight.format == packed.format(name)
        if tensor.ndim == 1:
            assert weight.format.name == "bf16"
            continue
        expected = get_format("q4g32z").encode(tensor.float().numpy())
        assert {suffix: part.tobytes() for suffix, part in weight.parts.items()} == {
            suffix: part.tobytes() for suffix, part in expected.items()
        }
        packed.release(name)


def test_packed_works_in_pieces(shell_29m: Path) -> None:
    """A tensor larger than one piece equals its encoding in one go."""
    name = "model.embed_tokens.weight"
    packed = RepackedWeights(open_checkpoint(shell_29m), "q4g64")
    expected = get_format("q4g64").encode(packed.checkpoint.weight(name).decode())
    for suffix, part in packed.weight(name).parts.items():
        np.testing.assert_array_equal(part, expected[suffix])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_packed_refuses_what_is_not_finite(folder: Path, value: float) -> None:
    tensors = llama_tensors()
    tensors["model.layers.1.mlp.down_proj.weight"][5, 7] = value
    packed = RepackedWeights(open_checkpoint(make(folder, tensors)), "q4g32")
    with pytest.raises(InvalidModelError, match=r"'model\.layers\.1\.mlp\.down_proj\.weight' holds NaN or infinity"):
        packed.weight("model.layers.1.mlp.down_proj.weight")


def test_packed_refuses_an_unknown_format(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="'q5'"):
        RepackedWeights(open_checkpoint(make(folder)), "q5")


def write(source: Path, target: Path, **options: Any) -> Checkpoint:
    """The model of `source` in q4g32, written to `target` and opened."""
    packed = RepackedWeights(open_checkpoint(source), "q4g32")
    outgoing = [Outgoing(name, shape, packed.format(name), "rtn") for name, shape in packed.shapes.items()]

    def parts(name: str) -> Parts:
        return packed.weight(name).parts

    options.setdefault("parts", parts)
    write_folder(target, outgoing, settings=open_checkpoint(source).settings(), origin=source, source="test", **options)
    return open_checkpoint(target)


def left_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("max_shard_bytes", [4_000_000_000, 6_000])
def test_own_folder_comes_back(folder: Path, tmp_path: Path, max_shard_bytes: int) -> None:
    make(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    (folder / "tokenizer.json").write_text("{}")
    checkpoint = write(folder, tmp_path / "own", max_shard_bytes=max_shard_bytes, quality={"ratio": 1.02})
    source = RepackedWeights(open_checkpoint(folder), "q4g32")
    for name in source.shapes:
        np.testing.assert_array_equal(checkpoint.weight(name).decode(), source.weight(name).decode())
        assert checkpoint.format(name) == source.format(name)
        checkpoint.release(name)
    checkpoint.check(spec_of(checkpoint))
    checkpoint.verify()
    assert checkpoint.manifest is not None
    assert checkpoint.manifest.quality == {"ratio": 1.02}
    assert checkpoint.manifest.source == "test"
    assert checkpoint.config == CONFIG
    assert checkpoint.generation_config == {"eos_token_id": [2, 3]}
    assert (tmp_path / "own" / "tokenizer.json").read_text() == "{}"
    shards = list((tmp_path / "own").glob("*.safetensors"))
    assert (len(shards) > 3) == (max_shard_bytes == 6_000)
    assert left_in(tmp_path) == ["model", "own"]


def test_own_folder_is_readable_by_the_library(folder: Path, tmp_path: Path) -> None:
    """The `safetensors` library reads the same bytes, and each SHA-256 is that of the parts in their order."""
    checkpoint = write(make(folder), tmp_path / "own")
    theirs = safetensors.torch.load_file(tmp_path / "own" / "model.safetensors")
    manifest = json.loads((tmp_path / "own" / "halfbyte.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("halfbyte", 1)
    stored_bits = 8 * sum(tensor.nbytes for tensor in theirs.values())
    assert manifest["bits_per_weight"] == round(stored_bits / sum(t.numel() for t in llama_tensors().values()), 4)
    for name, record in manifest["tensors"].items():
        suffixes = [".q", ".scale"] if record["format"] == "q4g32" else [""]
        digest = hashlib.sha256()
        for suffix in suffixes:
            tensor = theirs.pop(name + suffix)
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            assert list(tensor.shape) == list(checkpoint.weight(name).parts[suffix].shape)
        assert record["sha256"] == digest.hexdigest()
    assert not theirs


def test_own_folder_lies_at_natural_alignment(folder: Path, tmp_path: Path) -> None:
    checkpoint = write(make(folder), tmp_path / "own")
    parts = [part for name in checkpoint.shapes for part in checkpoint.weight(name).parts.values()]
    assert all(part.flags.aligned for part in parts)


def test_verify_finds_one_flipped_bit(folder: Path, tmp_path: Path) -> None:
    checkpoint = write(make(folder), tmp_path / "own")
    seen: list[tuple[str, int, int]] = []
    checkpoint.verify(lambda *report: seen.append(report))
    assert seen[-1][1:] == (checkpoint.nbytes, checkpoint.nbytes)
    file = tmp_path / "own" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidModelError, match="SHA-256"):
        open_checkpoint(tmp_path / "own").verify()


def test_a_packed_folder_stays_as_it_is_under_packed(folder: Path, tmp_path: Path) -> None:
    packed = RepackedWeights(write(make(folder), tmp_path / "own"), "q4g128")
    assert packed.weight("model.embed_tokens.weight").format.name == "q4g32"


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one entry of a manifest, by dotted path below its embedding's record, or of the top (`/key`)."""

    def apply(manifest: dict[str, Any]) -> None:
        target = manifest if path.startswith("/") else manifest["tensors"]["model.embed_tokens.weight"]
        target[path.lstrip("/")] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (change("/version", 2), UnsupportedModelError, "has version 2"),
        (change("/version", "1"), InvalidModelError, "does not say"),
        (change("/format", "other"), InvalidModelError, "does not say"),
        (change("/tensors", []), InvalidModelError, "must be objects"),
        (change("/quality", 3), InvalidModelError, "must be objects"),
        (change("/bits_per_weight", float("nan")), InvalidModelError, "bits_per_weight is nan"),
        (change("format", "q9"), UnsupportedModelError, "'q9'"),
        (change("format", "q4g64"), InvalidModelError, "q4g64 needs"),
        (change("format", "bf16"), InvalidModelError, "is not stored"),
        (change("shape", [96, 96]), InvalidModelError, "needs"),
        (change("shape", [96]), InvalidModelError, "cannot be stored as q4g32"),
        (change("shape", [96, -64]), InvalidModelError, "impossible shape"),
        (change("shape", [2**60, 2**60]), InvalidModelError, "impossible shape"),
        (change("sha256", "abc"), InvalidModelError, "SHA-256"),
        (change("method", None), InvalidModelError, "needs names"),
        (change("more", 1), InvalidModelError, "does not have just"),
        (lambda m: m["tensors"].pop("model.norm.weight"), InvalidModelError, "belongs to 0 of its tensors"),
        (lambda m: m["tensors"].update(ghost=m["tensors"]["model.norm.weight"]), InvalidModelError, "'ghost'"),
    ],
)
def test_a_lying_manifest_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], None], error: type[HalfbyteError], message: str
) -> None:
    write(make(folder), tmp_path / "own")
    file = tmp_path / "own" / "halfbyte.json"
    manifest = json.loads(file.read_text())
    damage(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path / "own")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), InvalidModelError("broken weights.")])
def test_nothing_is_left_of_an_interrupted_write(folder: Path, tmp_path: Path, failure: BaseException) -> None:
    packed = RepackedWeights(open_checkpoint(make(folder)), "q4g32")

    def parts(name: str) -> Parts:
        if "layers.1.mlp" in name:
            raise failure
        return packed.weight(name).parts

    with pytest.raises(type(failure)):
        write(folder, tmp_path / "own", parts=parts)
    assert left_in(tmp_path) == ["model"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_how_much_is_needed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    make(folder)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HalfbyteError, match=r"is full: about 35\.2 kB are needed, .* free"):
        write(folder, tmp_path / "own")
    assert left_in(tmp_path) == ["model"]


def test_too_little_space_is_known_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))

    def never(name: str) -> Parts:
        raise AssertionError(name)

    with pytest.raises(HalfbyteError, match="is full"):
        write(folder, tmp_path / "own", parts=never)
    assert left_in(tmp_path) == ["model"]


def test_a_taken_target_is_refused(folder: Path, tmp_path: Path) -> None:
    make(folder)
    target = tmp_path / "own"
    target.mkdir()
    write(folder, target)
    with pytest.raises(UsageError, match="already exists"):
        write(folder, target)
    before = (target / "halfbyte.json").stat().st_ino
    write(folder, target, overwrite=True)
    assert (target / "halfbyte.json").stat().st_ino != before
    (target / "halfbyte.json").unlink()
    with pytest.raises(UsageError, match="not a model folder written by Halfbyte"):
        write(folder, target, overwrite=True)
    for place in (folder, tmp_path):
        with pytest.raises(UsageError, match="where the source model lies"):
            write(folder, place, overwrite=True)
    assert left_in(tmp_path) == ["model", "own"]


def test_a_failed_overwrite_keeps_the_old_folder(folder: Path, tmp_path: Path) -> None:
    write(make(folder), tmp_path / "own")

    def parts(name: str) -> Parts:
        raise InvalidModelError("broken weights.")

    with pytest.raises(InvalidModelError):
        write(folder, tmp_path / "own", parts=parts, overwrite=True)
    open_checkpoint(tmp_path / "own").verify()
    assert left_in(tmp_path) == ["model", "own"]


def test_a_target_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HalfbyteError, match="cannot be written"):
        write(make(folder), tmp_path / "file" / "own")
