"""Files of other tools loaded as users load them: the same text as the source, or logits close to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.checkpoint.layouts.writer import write_foreign
from halfbyte.errors import ModelNotFoundError, UsageError
from halfbyte.models import build_spec
from halfbyte.quantization import quantize
from tests.unit.cli_fakes import halfbyte as command

QUESTION = "How do I extract a tar archive?"
KINDS = {"f16": 1e-4, "q8_0": 0.002, "q4_k_m": 0.04, "q4_0": 0.08}
"""Mean KL divergence from the source that each kind of GGUF may have."""


@pytest.fixture(scope="module")
def files(shell_29m: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small model as a GGUF file of each kind, each in a folder of its own."""
    source = open_checkpoint(shell_29m)
    spec = build_spec(source.config, source.generation_config, source.shapes)
    folder = tmp_path_factory.mktemp("gguf")
    paths = {kind: folder / kind / f"shell-{kind}.gguf" for kind in KINDS}
    for kind, path in paths.items():
        path.parent.mkdir()
        write_gguf(path, source, spec, source.tokenizer_files(), kind=kind)
    return paths


@pytest.fixture(scope="module")
def source(shell_29m: Path) -> halfbyte.Model:
    return halfbyte.load(shell_29m, "cpu")


@pytest.fixture(scope="module")
def text(shared: Path) -> str:
    return (shared / "data" / "books-dev.txt").read_text(encoding="utf-8")[:600]


def log_probabilities(model: halfbyte.Model, text: str) -> np.ndarray:
    ids = model.tokenizer.encode(text, add_special_tokens=False)[:128]
    logits = np.concatenate([rows.copy() for rows in model.engine.score(ids)]).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(base: halfbyte.Model, other: halfbyte.Model, text: str) -> float:
    """Mean KL divergence of next-token distributions."""
    p, q = log_probabilities(base, text), log_probabilities(other, text)
    return float(np.mean((np.exp(p) * (p - q)).sum(axis=1)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_answers_like_its_source(
    files: dict[str, Path], source: halfbyte.Model, text: str, kind: str
) -> None:
    model = halfbyte.load(files[kind], "cpu")
    assert divergence(source, model, text) < KINDS[kind]
    assert model.encode(QUESTION) == source.encode(QUESTION)
    assert model.spec.stop_token_ids == source.spec.stop_token_ids
    if kind in ("f16", "q8_0"):
        assert model.generate(QUESTION).text == source.generate(QUESTION).text


@pytest.mark.parametrize(
    ("method", "bits", "group", "zero_points"),
    [("awq", 4, 64, True), ("gptq", 4, 128, False), ("gptq_v2", 4, 32, True), ("gptq", 8, 64, False)],
)
def test_a_quantized_folder_gives_the_text_that_halfbytes_own_gives(
    tmp_path: Path, shell_29m: Path, text: str, method: str, bits: int, group: int, zero_points: bool
) -> None:
    quantize(shell_29m, tmp_path / "own", bits=bits, group_size=group, zero_points=zero_points, embed_bits=16)
    checkpoint = open_checkpoint(tmp_path / "own")
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    write_foreign(tmp_path / "other", checkpoint, spec, checkpoint.settings(), method=method)
    own, other = (halfbyte.load(tmp_path / name, "cpu") for name in ("own", "other"))
    assert divergence(own, other, text) < 1e-4
    assert other.generate(QUESTION).text == own.generate(QUESTION).text


def test_the_command_line_takes_gguf_files_and_says_what_they_run_as(files: dict[str, Path]) -> None:
    answered = command("run", "-v", "-m", str(files["q8_0"]), QUESTION)
    assert answered.exit_code == 0
    assert answered.stdout.startswith("Use `tar`")
    assert "33 matrices in q8_0 run as q8g32." in answered.stderr
    shown = command("models", "show", str(files["q4_k_m"]))
    assert "q6_k" in shown.stdout
    assert command("plan", "-m", str(files["q4_0"])).exit_code == 0


def test_a_folder_with_one_gguf_model_is_that_model(tmp_path: Path, files: dict[str, Path]) -> None:
    assert open_checkpoint(files["f16"].parent).path == files["f16"]
    for kind in ("q8_0", "q4_0"):
        shutil.copy(files[kind], tmp_path)
    with pytest.raises(ModelNotFoundError, match="has 2 GGUF files"):
        halfbyte.load(tmp_path)


def test_a_gguf_file_in_16_bits_can_be_quantized(tmp_path: Path, files: dict[str, Path], text: str) -> None:
    manifest = quantize(files["f16"], tmp_path / "small")
    assert {record.format for name, record in manifest.tensors.items() if "norm" not in name} == {"q4g32"}
    small = halfbyte.load(tmp_path / "small", "cpu")
    assert divergence(halfbyte.load(files["f16"], "cpu", weights="q4g32"), small, text) < 1e-6
    with pytest.raises(UsageError, match="is quantized already"):
        quantize(files["q4_0"], tmp_path / "again")
    with pytest.raises(UsageError, match="where the source model lies"):
        quantize(files["f16"], files["f16"].parent, overwrite=True)
