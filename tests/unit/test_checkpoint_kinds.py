"""Model folders and files as people have them: what others go on with, and what is refused by its right name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.gguf.file import GgufFile
from halfbyte.checkpoint.open import is_gguf
from halfbyte.errors import InvalidModelError, ModelNotFoundError, UnsupportedModelError
from halfbyte.models import build_spec
from halfbyte.models.catalog import CATALOG, catalog_spec
from tests.unit.test_checkpoint import CONFIG, llama_tensors, make, spec_of
from tests.unit.test_foreign import GPTQ, Matrix, awq, compressed, compressed_settings, gptq, opened
from tests.unit.test_gguf import MATRIX, one_tensor, write, write_llama

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.mark.parametrize("text", ["", " \n", "null", "{}"])
def test_an_empty_generation_config_says_nothing(folder: Path, text: str) -> None:
    (make(folder) / "generation_config.json").write_text(text)
    assert open_checkpoint(folder).generation_config == {}


def test_of_a_key_that_comes_twice_the_last_value_counts(folder: Path) -> None:
    text = json.dumps(CONFIG)
    make(folder)
    (folder / "config.json").write_text(text[:-1] + ', "eos_token_id": 7}')
    assert open_checkpoint(folder).config["eos_token_id"] == 7


def test_safetensors_metadata_may_be_null(folder: Path) -> None:
    file = make(folder) / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8 : 8 + length]), "__metadata__": None}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert len(open_checkpoint(folder).shapes) == len(llama_tensors())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_git_lfs_pointer_is_told_from_damage(folder: Path, name: str) -> None:
    (make(folder) / name).write_bytes(LFS)
    with pytest.raises(InvalidModelError, match=f"{name} is a Git LFS pointer") as caught:
        open_checkpoint(folder)
    assert "git lfs pull" in caught.value.hint


def test_a_gguf_file_that_is_a_git_lfs_pointer(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="Git LFS pointer"):
        open_checkpoint(write(tmp_path, LFS))


def test_a_gguf_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    """As Ollama and the cache of the hub keep them."""
    path = write_llama(tmp_path / "sha256-8eeb52dfb3bb9aefdf9d1ef24b3bdbcfbe82238798c4b918278320b6fcef18fe")
    assert is_gguf(path)
    checkpoint = open_checkpoint(path)
    checkpoint.check(spec_of(checkpoint))
    assert not is_gguf(write(tmp_path, b"GGU", "short"))
    with pytest.raises(ModelNotFoundError, match="is a file, not a model folder"):
        open_checkpoint(tmp_path / "short")


@pytest.mark.parametrize(("kind", "name"), [(16, "iq2_xxs"), (19, "iq1_s"), (34, "tq1_0"), (28, "f64"), (40, "nvfp4")])
def test_types_of_ggml_that_are_not_read_are_named(tmp_path: Path, kind: int, name: str) -> None:
    """Numbers and names as in ggml.h."""
    with pytest.raises(UnsupportedModelError, match=f"stored as {name}, which"):
        GgufFile(write(tmp_path, one_tensor(kind=kind, body=MATRIX.tobytes())))


def without(*endings: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in llama_tensors().items() if not name.endswith(endings)}


UNTIED = {**CONFIG, "tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("config", "tensors", "what"),
    [
        ({**UNTIED, "architectures": ["LlamaModel"]}, llama_tensors(), r"a base model .* \(LlamaModel\)"),
        (UNTIED, llama_tensors(), r"it has no lm_head\.weight"),
        (CONFIG, {name.removeprefix("model."): t for name, t in llama_tensors().items()}, "a base model"),
        (
            {**UNTIED, "architectures": ["LlamaForSequenceClassification"]},
            {**llama_tensors(), "score.weight": torch.ones(2, 64)},
            r"a classifier \(LlamaForSequenceClassification\)",
        ),
        (UNTIED, {**llama_tensors(), "score.weight": torch.ones(2, 64)}, "a classifier"),
    ],
)
def test_models_of_another_kind_are_called_by_it(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], what: str
) -> None:
    checkpoint = open_checkpoint(make(folder, tensors, config))
    with pytest.raises(UnsupportedModelError, match=what) as caught:
        checkpoint.check(spec_of(checkpoint))
    assert "download" not in caught.value.hint


def test_many_tensors_that_are_not_needed_are_counted(folder: Path) -> None:
    extra = {f"visual.{i}.weight": torch.ones(3) for i in range(5)}
    checkpoint = open_checkpoint(make(folder, {**llama_tensors(), **extra}))
    checkpoint.check(spec_of(checkpoint))
    (note,) = checkpoint.notes
    assert note.startswith("It holds 5 tensors that are not part of a llama model and not used: 'visual.0.weight',")


def test_weights_of_mlx_are_called_so(folder: Path) -> None:
    settings = {"group_size": 64, "bits": 4}
    for config in ({"quantization": settings}, {"quantization": settings, "quantization_config": settings}):
        make(folder, config={**CONFIG, **config})
        with pytest.raises(UnsupportedModelError, match="quantized by MLX to 4 bits"):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "settings", "tensors"),
    [
        (
            "quant_config.json",
            {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"},
            awq(Matrix(4, 64)),
        ),
        (
            "quantize_config.json",
            {"bits": 4, "group_size": 64, "desc_act": False, "sym": False, "checkpoint_format": "gptq_v2"},
            gptq(Matrix(4, 64), 2),
        ),
    ],
)
def test_settings_in_a_file_of_their_own(
    tmp_path: Path, name: str, settings: dict[str, Any], tensors: dict[str, np.ndarray]
) -> None:
    """Where AutoAWQ and AutoGPTQ kept them before transformers knew them."""
    (tmp_path / name).write_text(json.dumps(settings))
    checkpoint = opened(tmp_path, None, tensors)
    assert [checkpoint.format(tensor).name for tensor in checkpoint.shapes] == ["q4g64z"]


def test_packed_weights_that_nothing_describes(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="nothing in it says how to read them"):
        opened(tmp_path, None, awq(Matrix(4, 64)))


def test_gptq_with_rules_for_single_modules(tmp_path: Path) -> None:
    """GPTQModel's `dynamic`: modules that are left as they are need no rule to be read."""
    settings = {**GPTQ, "checkpoint_format": "gptq_v2"}
    skipping = {**settings, "dynamic": {r"-:.*lm_head.*": {}}}
    assert opened(tmp_path, skipping, gptq(Matrix(4, 64), 2)).shapes
    with pytest.raises(UnsupportedModelError, match=r"`dynamic`: '\+:\.\*down"):
        opened(tmp_path, {**settings, "dynamic": {"+:.*down_proj": {"bits": 8}}}, gptq(Matrix(4, 64), 2))


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("stored", [7, 8])
def test_symmetric_gptq_has_the_middle_as_zero_point_however_it_is_stored(
    tmp_path: Path, layout: str, stored: int
) -> None:
    matrix = Matrix(4, 64, symmetric=True)
    tensors = gptq(matrix, 2) | {"qzeros": np.full((4, 8), stored * 0x11111111, np.uint32).view(np.int32)}
    checkpoint = opened(tmp_path, {**GPTQ, "sym": True, "checkpoint_format": layout}, tensors)
    np.testing.assert_array_equal(checkpoint.weight(next(iter(checkpoint.shapes))).decode(), matrix.values)


def test_symmetric_gptq_with_other_zero_points_contradicts_itself(tmp_path: Path) -> None:
    settings = {**GPTQ, "sym": True, "checkpoint_format": "gptq_v2"}
    checkpoint = opened(tmp_path, settings, gptq(Matrix(4, 64), 2))
    with pytest.raises(InvalidModelError, match="sym is true, but zero points other than 8 are stored"):
        checkpoint.weight(next(iter(checkpoint.shapes)))


def group(bits: int, kind: str = "int", **more: Any) -> dict[str, Any]:
    return {"weights": {"num_bits": bits, "type": kind}, "targets": ["Linear"], **more}


@pytest.mark.parametrize(
    ("layout", "groups", "what"),
    [
        ("float-quantized", [group(8, "float", input_activations={"num_bits": 8})], "to FP8 "),
        ("naive-quantized", [group(8, "float")], "to FP8 "),
        ("int-quantized", [group(8, input_activations={"num_bits": 8})], "to W8A8 "),
        ("nvfp4-pack-quantized", [group(4, "float", input_activations={"num_bits": 4})], "to NVFP4 "),
        ("mxfp4-pack-quantized", [group(4, "float")], "to MXFP4 "),
        ("pack-quantized", [group(4), group(8)], "to integers of 4 bits and integers of 8 bits "),
        ("pack-quantized", [group(2)], "to integers of 2 bits "),
    ],
)
def test_what_compressed_tensors_has_and_halfbyte_has_not_is_called_by_its_name(
    tmp_path: Path, layout: str, groups: list[dict[str, Any]], what: str
) -> None:
    settings = {"quant_method": "compressed-tensors", "format": layout}
    settings["config_groups"] = {f"group_{i}": found for i, found in enumerate(groups)}  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match=what):
        opened(tmp_path, settings, compressed(Matrix(4, 64), symmetric=True))


def test_older_names_of_compressed_tensors_settings(tmp_path: Path) -> None:
    opened(tmp_path, compressed_settings(4), compressed(Matrix(4, 32), symmetric=True))
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps({"compression_config": settings}))
    assert [open_checkpoint(tmp_path).format(name).name for name in open_checkpoint(tmp_path).shapes] == ["q4g32"]


@pytest.mark.parametrize("name", CATALOG)
def test_a_models_cut_has_one_layer_of_each_kind_and_two_at_least(name: str) -> None:
    spec = catalog_spec(name)
    kinds = {layer.kind for layer in spec.layers}
    cut = spec.one_of_each()
    kept_for_others = {layer.shares for layer in cut.layers} - {None}
    assert all(not cut.layers[index].shares for index in kept_for_others)
    assert max(2, len(kinds)) <= len(cut.layers) <= max(2, len(kinds)) + len(kept_for_others)
    assert {layer.kind for layer in cut.layers} == kinds
    assert cut.layers[0] is spec.layers[0]
    assert len(replace(spec, layers=spec.layers[:1]).one_of_each().layers) == 1


def test_a_qwen_with_windows_has_two_kinds_of_layers() -> None:
    config = {**CONFIG, "model_type": "qwen2", "num_hidden_layers": 6, "use_sliding_window": True, "sliding_window": 8}
    cut = build_spec({**config, "max_window_layers": 4}, {}, []).one_of_each()
    assert [attention.window for attention in cut.attentions] == [None, 8]
