"""Evaluation on the trained checkpoint, against figures that others measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.writer import Outgoing, write_folder
from halfbyte.cli import main
from halfbyte.evaluation.divergence import divergence, divergences
from halfbyte.evaluation.perplexity import perplexity
from halfbyte.evaluation.scorer import Scorer
from halfbyte.evaluation.texts import read_text, tokens_of
from halfbyte.evaluation.windows import Ids, Protocol
from halfbyte.formats import get_format
from halfbyte.plan import cache
from halfbyte.quantization import quantize

MOST_OF_A_CACHE = {"q8": 0.001, "q4": 0.02}
"""What a rounded KV cache may cost, in nats of KL divergence per token."""


@pytest.fixture(scope="module")
def ids(shared: Path, shell_29m: Path) -> Ids:
    """The first 8 windows of 2048 tokens."""
    scorer = Scorer(shell_29m, 16)
    return tokens_of(scorer.model.tokenizer, read_text(str(shared / "data" / "books-dev.txt")), 8 * 2048)


def test_perplexity_is_what_llama_cpp_measures(shell_29m: Path, ids: Ids) -> None:
    """llama.cpp's f16 of this checkpoint on these windows, no BOS: 32.343."""
    found = perplexity(Scorer(shell_29m, 2048), ids, Protocol())
    assert found.ppl == pytest.approx(32.343, rel=2e-4)
    assert found.tokens == 8 * 2047
    assert 0.2 < found.stderr < 2


def test_short_windows_run_together_and_agree_with_single_ones(shell_29m: Path, ids: Ids) -> None:
    scorer = Scorer(shell_29m, 16)
    together = perplexity(scorer, ids[:320], Protocol(window=16))
    alone = [perplexity(scorer, ids[i : i + 16], Protocol(window=16)) for i in range(0, 320, 16)]
    product = 1.0
    for found in alone:
        product *= found.ppl ** (1 / len(alone))
    assert together.ppl == pytest.approx(product, rel=1e-4)


def test_divergence_of_rounding_to_nearest(shell_29m: Path, ids: Ids) -> None:
    base = Scorer(shell_29m, 512)
    same = divergence(base, Scorer(shell_29m, 512), ids[:1024], Protocol(window=512))
    assert (same.kl_max, same.top1, same.ppl_ratio) == (0.0, 1.0, 1.0)
    rounded = divergence(Scorer(shell_29m, 512, weights="q4g32"), base, ids[:2048], Protocol(window=512))
    assert 0.035 < rounded.kl_mean < 0.065
    assert 0.80 < rounded.top1 < 0.90
    assert rounded.kl_mean < rounded.kl_p99 < rounded.kl_max


@pytest.fixture(scope="module")
def short(shell_29m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint's first layer: a model of its own, small enough to quantize in several ways."""
    folder = tmp_path_factory.mktemp("short") / "model"
    whole = open_checkpoint(shell_29m)
    settings = dict(whole.settings())
    settings["config.json"] = json.dumps(json.loads(settings["config.json"]) | {"num_hidden_layers": 1}).encode()
    kept = [name for name in whole.shapes if not re.search(r"layers\.[1-7]\.", name)]
    tensors = [Outgoing(name, whole.shapes[name], whole.format(name), "copy") for name in kept]
    write_folder(
        folder, tensors, lambda name: whole.weight(name).parts, settings=settings, origin=shell_29m, source="shell-29m"
    )
    return folder


@pytest.fixture(scope="module")
def halves(short: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """That model with its layers in 4 bits, groups of 128 and zero points, by each method."""
    keep = tmp_path_factory.mktemp("halves")
    for method in ("rtn", "awq", "awq+", "gptq"):
        ends = {} if method == "awq+" else {"embed_bits": 16, "head_bits": 16}
        text = {"calibration_tokens": 16_384, "calibration": shared / "data" / "calibration.txt"}
        more = ends if method == "rtn" else ends | text
        quantize(short, keep / method, method=method, group_size=128, zero_points=True, **more)
    return {folder.name: folder for folder in keep.iterdir()}


def test_each_method_moves_a_model_less_than_the_one_before(short: Path, halves: dict[str, Path], ids: Ids) -> None:
    models = [Scorer(halves[method], 512) for method in ("gptq", "awq", "rtn")]
    found = divergences(models, Scorer(short, 512), ids[:4096], Protocol(window=512))
    gptq, awq, rtn = (figures.kl_mean for figures in found)
    assert gptq < awq
    assert awq < rtn


def test_awq_plus_is_awq_but_for_the_head(short: Path, halves: dict[str, Path]) -> None:
    plain, plus = (open_checkpoint(halves[method]).manifest for method in ("awq", "awq+"))
    assert plain is not None
    assert plus is not None
    head = plus.tensors["model.embed_tokens.weight"]
    assert {name for name in plus.tensors if plus.tensors[name] != replace(plain.tensors[name], method="awq+")} == {
        "model.embed_tokens.weight", "model.norm.weight",
    }  # fmt: skip
    assert (head.format, plain.tensors["model.embed_tokens.weight"].format) == ("q4g32z", "bf16")
    table = open_checkpoint(short).weight("model.embed_tokens.weight").decode()
    rounded = get_format("q4g32z").encode(table)
    for suffix, part in open_checkpoint(halves["awq+"]).weight("model.embed_tokens.weight").parts.items():
        np.testing.assert_array_equal(part, rounded[suffix])


def test_rounding_to_nearest_agrees_with_the_card(shell_29m: Path, shared: Path, tmp_path: Path) -> None:
    """The card of shell-29m: 36.944 at windows of 512, with the layers in 4 bits, groups of 32 and zero points."""
    quantize(shell_29m, tmp_path / "q", group_size=32, zero_points=True, embed_bits=16, head_bits=16)
    scorer = Scorer(tmp_path / "q", 512)
    text = tokens_of(scorer.model.tokenizer, read_text(str(shared / "data" / "books-dev.txt")), 131_072)
    assert perplexity(scorer, text, Protocol(window=512)).ppl == pytest.approx(36.944, rel=0.005)


def test_a_budget_is_kept_with_refined_norms_in_f32(short: Path, shared: Path, tmp_path: Path) -> None:
    manifest = quantize(
        short, tmp_path / "q", method="gptq", budget=4.6, refine=2, calibration_tokens=512,
        calibration=shared / "data" / "calibration.txt",
    )  # fmt: skip
    assert 4.5 < manifest.bits_per_weight <= 4.6
    assert manifest.tensors["model.norm.weight"].format == "f32"
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_one_command_makes_the_table(
    short: Path, shared: Path, halves: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join((shared / "data" / "questions-dev.jsonl").read_text().splitlines(keepends=True)[:2]))
    files = [str(tmp_path / f"table{suffix}") for suffix in (".md", ".csv", ".json", ".svg")]
    arguments = (
        f"eval table -m {short} --text {shared}/data/books-dev.txt --max-tokens 600 --windows 16,300 --group-size 64 "
        f"--methods bf16,rtn,{halves['gptq']} --calibration {shared}/data/calibration.txt --questions {questions} "
        f"--keep {tmp_path}/kept --overwrite"
    ).split()
    for _ in range(2):
        run(monkeypatch, *arguments, *(word for file in files for word in ("--out", file)))
    assert [folder.name for folder in (tmp_path / "kept").iterdir()] == ["model-rtn-g64"]
    assert capsys.readouterr().out == 2 * Path(files[0]).read_text()
    table = json.loads(Path(files[2]).read_text())
    assert [row["name"] for row in table["rows"]] == ["bf16", "rtn", "gptq"]
    assert table["rows"][1]["divergence"]["ppl"] == pytest.approx(table["rows"][1]["ppl"][1], rel=1e-5)
    assert table["rows"][2]["answers"]["total"] == 2
    assert Path(files[1]).read_text().count("\n") == 4
    assert "<svg" in Path(files[3]).read_text()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """A command line that must succeed."""
    monkeypatch.setattr("sys.argv", ["halfbyte", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 0


def test_figures_are_kept_beside_the_weights(
    shell_29m: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(shell_29m, tmp_path / "q", method="rtn", clip=True, group_size=64, zero_points=True)
    text, questions = shared / "data" / "books-dev.txt", tmp_path / "questions.jsonl"
    questions.write_text('{"question": "What does grep do?", "answer": "Find patterns."}\n')
    model, few = ["-m", str(tmp_path / "q")], ["--text", str(text), "--max-tokens", "600", "--window", "300"]
    printed = {}
    for name, arguments in (
        ("perplexity", few),
        ("divergence", ["--base", str(shell_29m), *few]),
        ("answers", ["--base", str(shell_29m), "--questions", str(questions)]),
    ):
        run(monkeypatch, "eval", name, *model, *arguments, "--json")
        printed[name] = json.loads(capsys.readouterr().out)
    wanted = {"kl_mean", "kl_p99", "kl_max", "top1", "ppl", "ppl_base", "ppl_ratio", "tokens"}
    assert wanted <= printed["divergence"].keys()
    assert printed["divergence"]["text"] == "books-dev.txt"
    assert [figures["activations"] for figures in printed.values()] == ["int8"] * 3
    assert printed["answers"]["total"] == printed["answers"]["base_right"] + 1 == 1
    run(monkeypatch, "eval", "divergence", "--base", str(shell_29m), *model, *few, "--activations", "f32", "--json")
    exact = json.loads(capsys.readouterr().out)
    assert (exact["activations"], exact["kl_mean"] == printed["divergence"]["kl_mean"]) == ("f32", False)
    manifest = open_checkpoint(tmp_path / "q").manifest
    assert manifest is not None
    assert manifest.quality == printed
    open_checkpoint(tmp_path / "q").verify()
    run(monkeypatch, "show", str(tmp_path / "q"))
    assert f"mean KL divergence, in nats per token: {printed['divergence']['kl_mean']:.6g}" in capsys.readouterr().out


def test_what_a_rounded_cache_costs(shell_29m: Path, ids: Ids) -> None:
    """Against the same weights with a cache in float32, in windows of the whole context."""
    base = Scorer(shell_29m, 2048, device="cpu", kv_dtype="f32")
    rounded = [Scorer(shell_29m, 2048, device="cpu", kv_dtype=dtype) for dtype in MOST_OF_A_CACHE]
    found = dict(zip(MOST_OF_A_CACHE, divergences(rounded, base, ids[:4096], Protocol()), strict=True))
    for dtype, most in MOST_OF_A_CACHE.items():
        assert 0 < found[dtype].kl_mean < most
    assert found["q8"].kl_mean < found["q4"].kl_mean / 20
    assert found["q8"].top1 > 0.99
    assert found["q4"].top1 > 0.90


def test_a_4_bit_cache_needs_its_rotation(shell_29m: Path, ids: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Scorer(shell_29m, 512, device="cpu")
    rotated = Scorer(shell_29m, 512, device="cpu", kv_dtype="q4")
    monkeypatch.setattr(cache, "rotation", lambda dtype, head_dim: 1)
    plain = Scorer(shell_29m, 512, device="cpu", kv_dtype="q4")
    with_it, without = divergences([rotated, plain], base, ids[:1024], Protocol(window=512))
    assert with_it.kl_mean < MOST_OF_A_CACHE["q4"] < without.kl_mean


@pytest.mark.parametrize("dtype", MOST_OF_A_CACHE)
def test_what_a_cache_costs_is_kept_beside_the_figures_of_the_weights(
    dtype: str, shell_29m: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The base of a cache's figure is the model itself, which runs with the usual cache."""
    model = str(tmp_path / "q")
    quantize(shell_29m, tmp_path / "q", method="rtn", group_size=64)
    text = ["--text", str(shared / "data" / "books-dev.txt"), "--max-tokens", "600", "--window", "300", "--json"]
    run(monkeypatch, "eval", "divergence", "-m", model, "--base", str(shell_29m), *text)
    of_weights = json.loads(capsys.readouterr().out)
    run(monkeypatch, "eval", "divergence", "-m", model, "--base", model, "--kv-cache", dtype, *text)
    of_cache = json.loads(capsys.readouterr().out)
    assert (of_weights["kv_cache"], of_cache["kv_cache"]) == ("f16", dtype)
    assert 0 < of_cache["kl_mean"] < 1.5 * MOST_OF_A_CACHE[dtype]
    manifest = open_checkpoint(tmp_path / "q").manifest
    assert manifest is not None
    assert manifest.quality == {"divergence": of_weights, f"divergence_{dtype}_cache": of_cache}
    run(monkeypatch, "show", model)
    shown = capsys.readouterr().out.partition("cache")[2]
    assert f"mean KL divergence, in nats per token: {of_cache['kl_mean']:.6g}" in shown
