"""Models written as GGUF, AutoAWQ or GPTQ and read again give the same logits; the gguf package reads our files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.gguf.model import GgufCheckpoint, open_gguf
from halfbyte.checkpoint.gguf.writer import KINDS, write_gguf
from halfbyte.checkpoint.layouts.writer import write_foreign
from halfbyte.checkpoint.packed import RepackedWeights
from halfbyte.checkpoint.runnable import ExecutableWeights
from halfbyte.errors import HalfbyteError, InvalidModelError, UnsupportedModelError, UsageError
from halfbyte.formats import get_format
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import make_plan
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.text import Tokenizer
from halfbyte.text.files import TokenizerFiles, read_tokenizer_files
from tests.models.tiny import FAMILIES, VOCABULARY, feed, tiny

IDS = [1, 5, 80, 33, 7, 7, 60, 12, 90, 41, 3, 3, 28, 77, 54, 19, 8, 66, 2, 31, 49, 13, 71, 88, 24, 37, 91, 10]
NOT_IN_GGUF = {
    "qwen-3.5", "qwen-3.5-text", "qwen-3.5-equal-heads", "qwen-2-windows", "qwen-3-windows", "smollm-3-windows",
    "gemma-2-scaled", "gemma-4-e2b", "gemma-4-12b", "gemma-4",
}  # fmt: skip
"""Qwen3.5 and Gemma 4 are only read. GGUF has no sliding window for Qwen, turns all but each fourth layer of
SmolLM3, and scales Gemma 2 by its heads."""

IN_GGUF = sorted(set(FAMILIES) - NOT_IN_GGUF)

SHELL_KINDS = {"q8_0": 8.59, "q4_0": 4.88, "q4_k_m": 5.25}
"""Bits a weight of the whole file, at most."""


def small_tokenizer() -> TokenizerFiles:
    """A token for each of the tiny models' rows."""
    tokens = [f"t{index}" for index in range(VOCABULARY)]
    added = [{"id": 2, "content": "t2", "special": True}]
    definition = {
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": []},
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }
    return TokenizerFiles(Path("tokenizer.json"), json.dumps(definition).encode(), {"eos_token": "t2"}, None)


def spec_of(checkpoint: Checkpoint) -> ModelSpec:
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    return spec


def logits(source: Any, spec: ModelSpec, ids: list[int], rope_set: int = 0, *, context: int = 64) -> np.ndarray:
    plan = make_plan(spec, source.format, rows=len(ids), tokens=len(ids), kv_dtype="f32", context=context)
    return feed(ReferenceExecutor(plan, source), ids, rope_set=rope_set)


def divergence(base: np.ndarray, other: np.ndarray) -> float:
    """Mean KL divergence of two models' next-token distributions."""
    logs = [x.astype(np.float64) - x.max(axis=-1, keepdims=True) for x in (base, other)]
    p, q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in logs)
    return float(np.mean((np.exp(p) * (p - q)).sum(axis=-1)))


@pytest.mark.parametrize("family", IN_GGUF)
def test_every_family_survives_a_trip_through_gguf(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    target = tmp_path / "tiny.gguf"
    write_gguf(target, model, model.spec, small_tokenizer(), kind="stored")
    checkpoint = open_gguf(target)
    spec = spec_of(checkpoint)
    assert spec.context == model.spec.context
    assert spec.stop_token_ids == (2,)
    for rope_set in range(len(model.spec.ropes[model.spec.attentions[0].rope].inv_freq())):
        expected = logits(model, model.spec, IDS, rope_set)
        np.testing.assert_allclose(logits(checkpoint, spec, IDS, rope_set), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", sorted(NOT_IN_GGUF))
def test_what_gguf_cannot_say_is_refused(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    with pytest.raises(UnsupportedModelError, match="GGUF files"):
        write_gguf(tmp_path / "tiny.gguf", model, model.spec, small_tokenizer(), kind="stored")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", IN_GGUF)
def test_the_gguf_package_reads_the_same_weights(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    target = tmp_path / "tiny.gguf"
    write_gguf(target, model, model.spec, small_tokenizer(), kind="stored", name="Tiny")
    theirs, ours = gguf.GGUFReader(target), open_gguf(target)
    tensors = {tensor.name: tensor.data for tensor in theirs.tensors}
    prefix = "" if model.spec.embed.startswith("model.embed") else model.spec.embed.removesuffix("embed_tokens.weight")
    np.testing.assert_array_equal(tensors["token_embd.weight"], model.tensors[model.spec.embed])
    norm = model.tensors[model.spec.final_norm] + np.float32(1 if family.startswith("gemma") else 0)
    final = "token_embd_norm.weight" if family.startswith("lfm") else "output_norm.weight"
    np.testing.assert_array_equal(tensors[final], norm)
    assert theirs.fields["general.name"].contents() == "Tiny"
    for name in ours.shapes:
        if "norm" not in name:
            expected = model.tensors[name.replace("model.", prefix, 1) if prefix else name]
            np.testing.assert_array_equal(ours.weight(name).decode(), expected)


@pytest.fixture(scope="module")
def shell(shell_29m: Path) -> tuple[Checkpoint, ModelSpec, TokenizerFiles]:
    checkpoint = open_checkpoint(shell_29m)
    return checkpoint, spec_of(checkpoint), read_tokenizer_files(shell_29m)


@pytest.fixture(scope="module")
def prompt(shell_29m: Path, shared: Path) -> list[int]:
    text = (shared / "data" / "books-dev.txt").read_text(encoding="utf-8")[:300]
    return Tokenizer.from_folder(shell_29m).encode(text)[:60]


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, shell: tuple[Checkpoint, ModelSpec, TokenizerFiles]
) -> dict[str, Path]:
    """The small model as a GGUF file of each kind."""
    source, spec, tokenizer = shell
    folder = tmp_path_factory.mktemp("kinds")
    paths = {kind: folder / f"{kind}.gguf" for kind in SHELL_KINDS}
    for kind, path in paths.items():
        seen: list[tuple[str, int, int]] = []
        write_gguf(path, source, spec, tokenizer, kind=kind, progress=lambda *step, seen=seen: seen.append(step))
        assert [step[1] for step in seen] == sorted({step[1] for step in seen})
        assert seen[-1][1] == seen[-1][2]
    return paths


@pytest.mark.parametrize("kind", sorted(SHELL_KINDS))
def test_packed_files_run_and_stay_close(
    files: dict[str, Path], shell: tuple[Checkpoint, ModelSpec, TokenizerFiles], prompt: list[int], kind: str
) -> None:
    source, spec, _ = shell
    assert files[kind].stat().st_size * 8 / spec.parameters < SHELL_KINDS[kind]
    checkpoint = open_gguf(files[kind])
    packed = logits(checkpoint, spec_of(checkpoint), prompt)
    assert divergence(logits(source, spec, prompt), packed) < {"q8_0": 0.001, "q4_0": 0.08, "q4_k_m": 0.04}[kind]
    run = ExecutableWeights(checkpoint)
    np.testing.assert_allclose(logits(run, spec, prompt), packed, rtol=1e-4, atol=1e-4)
    turned = {"q8_0": "33 matrices in q8_0 run as q8g32.", "q4_0": "32 matrices in q4_0 run as q4g32."}
    assert run.notes == ((turned[kind],) if kind in turned else ())


def test_matrices_in_halfbytes_own_groups_are_copied_bit_for_bit(
    tmp_path: Path, shell: tuple[Checkpoint, ModelSpec, TokenizerFiles]
) -> None:
    source, spec, tokenizer = shell
    packed = RepackedWeights(source, "q4g32")
    write_gguf(tmp_path / "first.gguf", packed, spec, tokenizer, kind="stored")
    first = open_gguf(tmp_path / "first.gguf")
    run = ExecutableWeights(first)
    for name in ("model.embed_tokens.weight", "model.layers.3.mlp.down_proj.weight"):
        assert first.format(name).name == "q4_0"
        for suffix, part in packed.weight(name).parts.items():
            np.testing.assert_array_equal(run.weight(name).parts[suffix], part)
    write_gguf(tmp_path / "second.gguf", first, spec, first.tokenizer_files(), kind="stored")
    second = open_gguf(tmp_path / "second.gguf")
    for name in first.shapes:
        for suffix, part in first.weight(name).parts.items():
            np.testing.assert_array_equal(second.weight(name).parts[suffix], part)


@pytest.mark.parametrize(("stored", "kind"), [("q4g32z", "q4_1"), ("q4g128z", "q4_1"), ("q4g64", "q4_0")])
def test_other_groups_keep_their_codes_and_only_offsets_are_rounded(
    tmp_path: Path, shell: tuple[Checkpoint, ModelSpec, TokenizerFiles], stored: str, kind: str
) -> None:
    source, spec, tokenizer = shell
    packed = RepackedWeights(source, stored)
    rounded = write_gguf(tmp_path / "stored.gguf", packed, spec, tokenizer, kind="stored")
    assert (rounded > 0) == (kind == "q4_1")
    (theirs,) = (t for t in gguf.GGUFReader(tmp_path / "stored.gguf").tensors if t.name == "blk.3.ffn_down.weight")
    assert theirs.tensor_type.name == kind.upper()
    weight = packed.weight("model.layers.3.mlp.down_proj.weight")
    exact, read = weight.decode(), gguf.quants.dequantize(theirs.data, theirs.tensor_type)
    groups = np.repeat(weight.parts[".scale"].astype(np.float32), int(stored[3:].strip("z")), axis=1)
    offsets = 15 * np.abs(groups[:, : exact.shape[1]]) * 2.0**-11 if rounded else 0
    assert (np.abs(read - exact) <= offsets).all()


def test_mixes_give_more_bits_to_the_layers_that_llama_cpp_gives_them(files: dict[str, Path]) -> None:
    """The types of a Q4_K_M file of this model that llama.cpp 0.5.0 quantized."""
    checkpoint = open_gguf(files["q4_k_m"])
    kinds = {name: checkpoint.format(name).name for name in checkpoint.shapes}
    for part in ("mlp.down_proj", "self_attn.qkv_proj"):
        more = [i for i in range(8) if kinds[f"model.layers.{i}.{part}.weight"] == "q6_k"]
        assert more == [0, 3, 6, 7]
    assert kinds["model.embed_tokens.weight"] == "q6_k"
    assert kinds["model.layers.0.mlp.gate_up_proj.weight"] == kinds["model.layers.1.mlp.down_proj.weight"] == "q4_k"
    assert kinds["model.norm.weight"] == "f32"


def test_rows_that_fill_no_block_of_256_fall_back(tmp_path: Path) -> None:
    """Gemma 3's 1152-like rows: Q4_K becomes Q5_0, Q6_K becomes Q8_0, and rows no multiple of 32 stay f16."""
    model = tiny("llama-3.2-1b")
    write_gguf(tmp_path / "tiny.gguf", model, model.spec, small_tokenizer(), kind="q4_k_m")
    checkpoint = open_gguf(tmp_path / "tiny.gguf")
    assert checkpoint.format("model.layers.0.self_attn.q_proj.weight").name == "q5_0"
    assert checkpoint.format("model.embed_tokens.weight").name == "q8_0"
    assert checkpoint.format("model.layers.0.mlp.down_proj.weight").name == "f16"
    assert divergence(logits(model, model.spec, IDS), logits(checkpoint, spec_of(checkpoint), IDS)) < 0.05


def test_importance_is_used(tmp_path: Path, shell: tuple[Checkpoint, ModelSpec, TokenizerFiles]) -> None:
    source, spec, tokenizer = shell
    name = "model.layers.1.mlp.down_proj.weight"
    weights = np.random.default_rng(0).lognormal(sigma=2, size=1536).astype(np.float32)
    write_gguf(tmp_path / "a.gguf", source, spec, tokenizer, kind="q4_0")
    write_gguf(tmp_path / "b.gguf", source, spec, tokenizer, kind="q4_0", importance={name: weights})
    exact = source.weight(name).decode()
    plain, informed = (open_gguf(tmp_path / f"{file}.gguf").weight(name).decode() for file in "ab")
    assert np.mean(weights * (informed - exact) ** 2) < 0.9 * np.mean(weights * (plain - exact) ** 2)
    other = "model.layers.2.mlp.down_proj.weight"
    first, second = (open_gguf(tmp_path / f"{file}.gguf").weight(other).decode() for file in "ab")
    np.testing.assert_array_equal(first, second)


def test_a_gguf_says_what_a_folder_would(
    tmp_path: Path, files: dict[str, Path], shell: tuple[Checkpoint, ModelSpec, TokenizerFiles]
) -> None:
    _, spec, tokenizer = shell
    for name, data in open_gguf(files["q8_0"]).settings().items():
        (tmp_path / name).write_bytes(data)
    again = Tokenizer.from_folder(tmp_path)
    text = "Hello there, it's 12345\n\nfine <|end|>"
    assert again.encode(text) == Tokenizer(tokenizer).encode(text)
    config = json.loads((tmp_path / "config.json").read_text())
    rebuilt = build_spec(config, {}, spec.shapes)
    assert (rebuilt.layers, rebuilt.norm_eps, rebuilt.context) == (spec.layers, spec.norm_eps, spec.context)
    assert 0 in rebuilt.stop_token_ids


def test_what_cannot_be_written_is_refused_and_nothing_is_left(
    tmp_path: Path, shell: tuple[Checkpoint, ModelSpec, TokenizerFiles]
) -> None:
    source, spec, tokenizer = shell
    target = tmp_path / "shell.gguf"
    with pytest.raises(UsageError, match="no kind of GGUF"):
        write_gguf(target, source, spec, tokenizer, kind="q9")
    windows = tiny("qwen-2-windows")
    with pytest.raises(UnsupportedModelError, match=r"sliding window.* architecture qwen2"):
        write_gguf(target, windows, windows.spec, small_tokenizer(), kind="f16")
    with pytest.raises(UnsupportedModelError, match=r"no format for .* in q3g64z"):
        write_gguf(target, RepackedWeights(source, "q3g64z"), spec, tokenizer, kind="stored")
    broken = tiny("phi-4")
    bad = {**broken.tensors, "model.layers.1.mlp.down_proj.weight": np.full((80, 136), np.nan, np.float32)}
    with pytest.raises(InvalidModelError, match=r"layers\.1\.mlp\.down_proj.*NaN"):
        write_gguf(target, type(broken)(broken.model, broken.config, bad), broken.spec, small_tokenizer(), kind="q8_0")
    assert list(tmp_path.iterdir()) == []
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="already exists"):
        write_gguf(target, source, spec, tokenizer, kind="f16")
    assert target.read_bytes() == b"mine"
    write_gguf(target, source, spec, tokenizer, kind="f16", overwrite=True)
    assert isinstance(open_gguf(target), GgufCheckpoint)
    assert set(KINDS) >= {"f16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "q4_k_m"}


@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("awq", "q4g128z"),
        ("awq", "q4g64"),
        ("gptq", "q4g128"),
        ("gptq_v2", "q4g128z"),
        ("gptq", "q3g64z"),
        ("gptq", "q8g128"),
    ],
)
def test_quantized_folders_survive_the_trip_bit_for_bit(
    tmp_path: Path, shell_29m: Path, shell: tuple[Checkpoint, ModelSpec, TokenizerFiles], method: str, form: str
) -> None:
    source, spec, _ = shell
    packed = RepackedWeights(source, lambda name, shape: form if len(shape) == 2 and name != spec.embed else None)
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    settings = {name: (shell_29m / name).read_bytes() for name in names}
    target = tmp_path / "model"
    write_foreign(target, packed, spec, settings, method=method)
    read = open_checkpoint(target)
    assert spec_of(read).shapes == spec.shapes
    assert read.notes == ()
    for name in spec.shapes:
        ours, theirs = packed.weight(name), read.weight(name)
        if ours.format == get_format(form):
            assert {suffix: part.tobytes() for suffix, part in ours.parts.items()} == {
                suffix: part.tobytes() for suffix, part in theirs.parts.items()
            }
            assert theirs.format == ours.format
        else:
            np.testing.assert_allclose(theirs.decode(), ours.decode(), rtol=1e-3, atol=1e-7)
    Tokenizer.from_folder(target)


def test_a_model_that_is_not_quantized_has_no_such_layout(
    tmp_path: Path, shell: tuple[Checkpoint, ModelSpec, TokenizerFiles]
) -> None:
    source, spec, _ = shell
    with pytest.raises(HalfbyteError, match="bf16, which awq has no layout for"):
        write_foreign(tmp_path / "x", source, spec, {}, method="awq")
    with pytest.raises(UsageError, match="no layout"):
        write_foreign(tmp_path / "x", source, spec, {}, method="exl3")
