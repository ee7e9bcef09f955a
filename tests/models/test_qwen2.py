"""Qwen2's biases on query, key and value, through every way into and out of Halfbyte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from halfbyte.checkpoint import Checkpoint, RepackedWeights
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.checkpoint.layouts.writer import write_foreign
from halfbyte.checkpoint.runnable import ExecutableWeights
from halfbyte.models import build_spec
from halfbyte.models.catalog import catalog_config
from halfbyte.models.spec import ModelSpec
from halfbyte.quantization import quantize
from tests.models.test_config_variants import QWEN, logits_of_transformers, opened, save, tensors_for
from tests.models.test_interchange import IDS, logits

CONFIG = {**QWEN, "vocab_size": 8192, "intermediate_size": 96, "rope_theta": 1e6}
IDS_OF_SHELL = [id_ * 80 for id_ in IDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shell_29m: Path) -> Path:
    """A small model whose biases are large, with a real tokenizer."""
    tensors = tensors_for(CONFIG)
    assert sum(name.endswith("_proj.bias") for name in tensors) == 9
    made = save(tmp_path_factory.mktemp("qwen") / "model", CONFIG, tensors)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shell_29m / name, made)
    return made


def error(source: Any, spec: ModelSpec, expected: np.ndarray) -> float:
    return float(np.square(logits(source, spec, IDS_OF_SHELL) - expected).mean() / np.square(expected).mean())


def grouped(checkpoint: Checkpoint, spec: ModelSpec) -> RepackedWeights:
    """Every layer's matrices in groups, as the layouts of other tools can have them."""
    return RepackedWeights(
        checkpoint,
        lambda name, shape: "q4g32z" if len(shape) == 2 and name not in (spec.embed, spec.lm_head) else None,
    )


def test_the_folder_computes_what_transformers_computes(folder: Path) -> None:
    checkpoint, spec = opened(folder)
    assert np.abs(logits(checkpoint, spec, IDS_OF_SHELL) - logits_of_transformers(folder, IDS_OF_SHELL)).max() < 1e-4


@pytest.mark.parametrize("method", ["awq", "gptq", "gptq_v2"])
def test_biases_go_through_the_layouts_of_other_tools(tmp_path: Path, folder: Path, method: str) -> None:
    checkpoint, spec = opened(folder)
    packed = grouped(checkpoint, spec)
    write_foreign(tmp_path / "out", packed, spec, checkpoint.settings(), method=method)
    again, same = opened(tmp_path / "out")
    assert again.notes == ()
    assert again.format("model.layers.1.self_attn.v_proj.weight").name == "q4g32z"
    np.testing.assert_allclose(
        again.weight("model.layers.1.self_attn.v_proj.bias").decode(),
        checkpoint.weight("model.layers.1.self_attn.v_proj.bias").decode(),
        rtol=1e-3,
        atol=1e-6,
    )
    assert error(again, same, logits(packed, spec, IDS_OF_SHELL)) < 1e-4


def test_biases_are_read_beside_compressed_tensors(tmp_path: Path, folder: Path) -> None:
    """Symmetric groups of 4 bits: codes plus 8 in words of 32 bits, lowest first (`pack-quantized`)."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    expected = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight, base = tensors.pop(name), name.removesuffix(".weight")
        scale = (weight.reshape(len(weight), -1, 32).abs().amax(-1) / 7).half().float()
        codes = torch.clamp(torch.round(weight / scale.repeat_interleave(32, 1)), -8, 7).int()
        expected[name] = codes * scale.repeat_interleave(32, 1)
        nibbles = (codes + 8).reshape(len(weight), -1, 8).long() << (4 * torch.arange(8))
        words = torch.from_numpy(nibbles.sum(-1).numpy().astype(np.uint32).view(np.int32))
        tensors |= {f"{base}.weight_packed": words, f"{base}.weight_scale": scale.half()}
        tensors[f"{base}.weight_shape"] = torch.tensor(weight.shape)
    groups = {"group_0": {"weights": {"num_bits": 4, "type": "int"}, "targets": ["Linear"]}}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    checkpoint, spec = opened(save(packed, {**CONFIG, "quantization_config": settings}, tensors))
    assert checkpoint.format("model.layers.0.self_attn.q_proj.weight").name == "q4g32"
    theirs = logits_of_transformers(save(plain, CONFIG, expected), IDS_OF_SHELL)
    assert np.abs(logits(checkpoint, spec, IDS_OF_SHELL) - theirs).max() < 1e-4


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_biases_go_through_gguf(tmp_path: Path, folder: Path, kind: str) -> None:
    checkpoint, spec = opened(folder)
    write_gguf(tmp_path / "m.gguf", checkpoint, spec, checkpoint.tokenizer_files(), kind=kind)
    again, same = opened(tmp_path / "m.gguf")
    assert again.config["model_type"] == "qwen2"
    assert error(ExecutableWeights(again), same, logits(checkpoint, spec, IDS_OF_SHELL)) < (
        1e-5 if kind == "f16" else 1e-3
    )


@pytest.mark.parametrize("options", [{"method": "awq"}, {"method": "gptq", "awq_scales": True}, {"method": "gptq"}])
def test_calibrated_quantizing_keeps_the_biases_right(
    tmp_path: Path, folder: Path, shared: Path, options: dict[str, Any]
) -> None:
    """AWQ divides the bias of the values with their rows: a bias left as it was would show as a large error."""
    text = tmp_path / "text.txt"
    text.write_text((shared / "data" / "calibration.txt").read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    checkpoint, spec = opened(folder)
    expected = logits(checkpoint, spec, IDS_OF_SHELL)
    body = {"bits": 4, "group_size": 32, "zero_points": True, "embed_bits": 16, "head_bits": 16}
    quantize(folder, tmp_path / "out", calibration=text, calibration_tokens=1024, refine=2, **body, **options)
    again, same = opened(tmp_path / "out")
    records = json.loads((tmp_path / "out" / "halfbyte.json").read_text())["tensors"]
    assert records["model.layers.0.self_attn.v_proj.bias"]["format"] == "f32"
    assert error(again, same, expected) < 1.3 * error(grouped(checkpoint, spec), spec, expected)


def test_the_catalog_has_the_published_shapes() -> None:
    """Qwen2.5-0.5B, its config.json: 14 heads of 64 values, 2 of them with keys; 494 million weights by its card."""
    spec = build_spec(catalog_config("qwen-2.5-0.5b"), {}, [])
    assert spec.shapes["model.layers.0.self_attn.q_proj.bias"] == (896,)
    assert spec.shapes["model.layers.23.self_attn.k_proj.bias"] == (128,)
    assert spec.parameters == 494_032_768
