"""`halfbyte.quantize`, `export`, `evaluate` and `bench`: what the commands do, with results that show themselves."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

import halfbyte
from halfbyte.errors import ModelNotFoundError, UsageError
from tests.unit import cli_fakes


@pytest.fixture(scope="module")
def quantized(shell_29m: Path, tmp_path_factory: pytest.TempPathFactory) -> halfbyte.Quantized:
    return halfbyte.quantize(shell_29m, tmp_path_factory.mktemp("quantized") / "<small>", bits=8, group_size=64)


@pytest.fixture
def text(shared: Path, tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text((shared / "data" / "books-dev.txt").read_text()[:1000])
    return file


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    asked = [("How do I extract a tar archive?", "Use `tar`:\n`tar xf path/to/archive.tar.gz`"), ("What is 1?", "2")]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in asked))
    return file


def test_a_quantized_model_can_be_loaded_and_says_what_it_is(quantized: halfbyte.Quantized, shell_29m: Path) -> None:
    assert (quantized.source, quantized.method) == (shell_29m.name, "rtn")
    assert 8 < quantized.bits_per_weight < 8.5
    assert quantized.nbytes == sum(file.stat().st_size for file in quantized.path.iterdir())
    assert set(quantized.formats) == {"q8g64", "bf16"}
    with halfbyte.load(quantized.path, threads=1, context=64) as model:
        assert "List" in model.generate("What does ls do?").text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exists"),
        ({"method": "gptq"}, "needs calibration text"),
        ({"calibration_tokens": 600}, "has no effect"),
        ({"budget": 4.5, "bits": 4}, "chooses the formats itself"),
    ],
)
def test_what_cannot_be_quantized_is_refused(options: Any, words: str, shell_29m: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UsageError, match=words) as refused:
        halfbyte.quantize(shell_29m, tmp_path / "taken", **options)
    assert "--" not in str(refused.value), "options are named as in Python"
    assert list((tmp_path / "taken").iterdir()) == [tmp_path / "taken" / "file"]


def test_what_is_quantized_already_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantized already"):
        halfbyte.quantize("pocket", tmp_path / "again")


def test_an_exported_model_can_be_quantized_and_compared(tmp_path: Path, text: Path) -> None:
    """As far as one comes with nothing but the package."""
    exported = halfbyte.export("pocket", tmp_path / "pocket.gguf", kind="f16")
    assert exported.nbytes == exported.path.stat().st_size
    assert exported.notes == ()
    made = halfbyte.quantize(exported.path, tmp_path / "small", bits=3)
    found = halfbyte.evaluate(made.path, text, base=exported.path, window=64, max_tokens=64, threads=1)
    assert found.divergence is not None
    assert found.divergence.kl_mean > 0.05
    assert found.perplexity is None
    assert found.answers is None
    assert found.conditions["base"] == "pocket.gguf"


def test_questions_are_asked_of_both_models(quantized: halfbyte.Quantized, questions: Path, shell_29m: Path) -> None:
    found = halfbyte.evaluate(quantized.path, questions=questions, base=shell_29m, options="cpu")
    assert found.answers is not None
    assert (found.answers.right, found.answers.total, found.answers.base_right) == (1, 2, 1)
    assert found.figures["kept"] == 1
    assert ("right answers", "1") in found.labelled


def test_the_command_prints_what_the_function_returns(text: Path) -> None:
    found = halfbyte.evaluate(None, text, protocol="sliding", window=64, max_tokens=100, device="cpu")
    result = cli_fakes.halfbyte(
        "eval", "perplexity", "--text", str(text), "--protocol", "sliding", "--window", "64", "--max-tokens", "100",
        "--device", "cpu", "--json", "--no-store",
    )  # fmt: skip
    assert json.loads(result.stdout) == found.figures
    assert found.figures["stride"] == 16


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "nothing to measure"),
        ({"text": "no.txt"}, "cannot read 'no.txt'"),
        ({"text": "no.txt", "stride": 5}, "`stride` has no effect"),
        ({"text": "no.txt", "base": "pocket", "protocol": "gptq"}, "only applies to the perplexity"),
        ({"text": "no.txt", "contxt": 5}, "Did you mean context"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        halfbyte.evaluate(**given)


def test_a_benchmark_has_figures_and_a_table(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "halfbyte"):
        found = halfbyte.bench(prompt_tokens=[4, 8], new_tokens=2, repeat=1, warm_up=0, threads=1)
    assert [(record.case.prompt_tokens, len(record.samples)) for record in found.records] == [(4, 1), (8, 1)]
    assert found.figures[1]["prompt tokens"] == 8
    assert found.figures[1]["tokens/s"] == pytest.approx(1 / found.records[1].samples[0].step_s[0])
    assert found.figures[1]["device MB"] is None
    assert "pocket on cpu, 1 thread" in str(found)
    assert repr(found).startswith("<Benchmark of pocket on cpu, 1 thread")
    assert repr(found).endswith(": 4+2, 8+2>")
    assert "tokens/s" in found._repr_html_()
    assert "device MB" not in found._repr_html_()
    assert "checking against the reference" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"repeat": 0}, "0 repetitions"),
        ({"new_tokens": 0}, "cannot be measured"),
        ({"layers": 2}, "only applies to synthetic"),
        ({"synthetic": "llama-3.2-1b", "model": "pocket"}, "cannot be combined"),
        ({"synthetic": "no-such"}, "no-such"),
    ],
)
def test_what_cannot_be_benchmarked_is_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        halfbyte.bench(**given)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    for call in (
        lambda name: halfbyte.quantize(name, tmp_path / "q"), lambda name: halfbyte.export(name, tmp_path / "e.gguf"),
        lambda name: halfbyte.evaluate(name, tmp_path / "t"), lambda name: halfbyte.bench(name),
    ):  # fmt: skip
        with pytest.raises(ModelNotFoundError, match="nowhere"):
            call(str(tmp_path / "nowhere"))


def test_a_loaded_model_is_no_name_but_has_one(tmp_path: Path) -> None:
    with halfbyte.load(threads=1, context=32) as model:
        with pytest.raises(UsageError, match=r"<Model 'pocket' .*, not a name\. Give its `path`"):
            halfbyte.bench(model)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"not a name\. Give its `path`"):
            halfbyte.evaluate(model, tmp_path / "text")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the model is 5, not a name"):
        halfbyte.load(5)  # type: ignore[arg-type]


def test_results_are_frozen_and_their_tables_are_escaped(quantized: halfbyte.Quantized) -> None:
    html = quantized._repr_html_()
    assert "&lt;small&gt;" in html
    assert "<small>" not in html
    assert "8." in html
    for result in (halfbyte.Quantized, halfbyte.Exported, halfbyte.Evaluation, halfbyte.Benchmark, halfbyte.Generation):
        assert dataclasses.fields(result)
        assert result.__dataclass_params__.frozen  # type: ignore[attr-defined]
