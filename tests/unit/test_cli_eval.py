"""`halfbyte eval` prints first, stores where it may, and never replaces a better figure without being told to."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halfbyte import __version__
from halfbyte.checkpoint.manifest import read_manifest
from halfbyte.evaluation import record
from halfbyte.model import POCKET
from halfbyte.quantization import quantize
from tests.unit.cli_fakes import error_lines, halfbyte


@pytest.fixture(scope="module")
def small(shell_29m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("small") / "small"
    quantize(shell_29m, target, method="rtn", group_size=64)
    return target


@pytest.fixture
def model(small: Path, tmp_path: Path) -> Path:
    """A quantized model of this test alone."""
    return Path(shutil.copytree(small, tmp_path / "model", copy_function=_link))


def _link(source: str, target: str) -> None:
    shutil.copy(source, target) if source.endswith(".json") else Path(target).hardlink_to(source)


@pytest.fixture
def text(shared: Path, tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text((shared / "data" / "books-dev.txt").read_text()[:2000])
    return file


def quality(model: Path) -> dict[str, Any]:
    return dict(read_manifest(model / "halfbyte.json").quality)


def perplexity(model: Path, text: Path, *options: str, tokens: int = 40) -> Any:
    return halfbyte("eval", "perplexity", "-m", str(model), "--text", str(text), "--max-tokens", str(tokens), *options)


def test_a_figure_is_stored_with_all_that_it_depends_on(model: Path, text: Path, shell_29m: Path) -> None:
    result = halfbyte(
        "eval", "divergence", "-m", str(model), "--base", str(shell_29m), "--text", str(text), "--max-tokens", "40",
        "--window", "32", "--json",
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert quality(model) == {"divergence": printed}
    assert printed["text"] == "text.txt"
    assert printed["text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert (printed["base"], printed["base_bits_per_weight"]) == ("shell-29m", 16.0)
    assert printed["base_sha256"] == record.weights_sha256(shell_29m)
    assert (printed["protocol"], printed["window"], printed["tokens"]) == ("windows", 32, 38)
    assert (printed["device"], printed["activations"], printed["halfbyte"]) == ("cpu", "int8", __version__)


def test_weights_are_told_apart_by_their_hash(model: Path, small: Path, shell_29m: Path) -> None:
    assert record.weights_sha256(model) == record.weights_sha256(small) != record.weights_sha256(shell_29m)
    record.store(model, "perplexity", {"ppl": 1.0})
    assert record.weights_sha256(model) == record.weights_sha256(small)
    manifest = json.loads((model / "halfbyte.json").read_text())
    next(iter(manifest["tensors"].values()))["sha256"] = "0" * 64
    (model / "halfbyte.json").write_text(json.dumps(manifest))
    assert record.weights_sha256(model) != record.weights_sha256(small)


BETTER: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "measured on more": lambda figures: figures | {"tokens": 1000},
    "another text": lambda figures: figures | {"text_sha256": "0"},
    "another window": lambda figures: figures | {"window": 512},
    "another protocol": lambda figures: figures | {"protocol": "gptq"},
    "another base": lambda figures: figures | {"base_sha256": "0"},
    "another activations": lambda figures: figures | {"activations": "f32"},
}


@pytest.mark.parametrize("reason", BETTER)
def test_a_figure_that_is_better_founded_is_only_replaced_when_asked(model: Path, text: Path, reason: str) -> None:
    assert perplexity(model, text).exit_code == 0
    first = quality(model)["perplexity"]
    better = BETTER[reason](first)
    record.store(model, "perplexity", better)
    result = perplexity(model, text)
    assert (result.exit_code, quality(model)) == (0, {"perplexity": better})
    assert reason in result.stderr
    assert "--store does it anyway" in result.stderr
    assert f"{first['ppl']:.6g}" in result.stdout
    assert perplexity(model, text, "--store").exit_code == 0
    assert quality(model) == {"perplexity": first}


def test_the_same_on_more_tokens_replaces_silently(model: Path, text: Path) -> None:
    assert perplexity(model, text, tokens=30).stderr == ""
    assert perplexity(model, text, tokens=40).stderr == ""
    assert quality(model)["perplexity"]["tokens"] == 39
    assert perplexity(model, text, "--no-store", tokens=50).stderr == ""
    assert quality(model)["perplexity"]["tokens"] == 39


def test_fewer_questions_do_not_replace_more(model: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "What does ls do?", "answer": "List directory contents."}\n')
    asked = ("eval", "answers", "-m", str(model), "--questions", str(questions))
    assert halfbyte(*asked).exit_code == 0
    known = quality(model)["answers"]
    assert known["questions_sha256"] == hashlib.sha256(questions.read_bytes()).hexdigest()
    record.store(model, "answers", known | {"total": 150, "right": 145})
    assert "150 questions of q.jsonl" in halfbyte(*asked).stderr
    assert quality(model)["answers"]["right"] == 145


def test_the_installed_package_is_never_written(text: Path) -> None:
    before = (POCKET / "halfbyte.json").read_bytes()
    for options, code in (((), 0), (("--store",), 1)):
        result = halfbyte("eval", "perplexity", "--text", str(text), "--max-tokens", "20", *options)
        assert result.exit_code == code
        assert "perplexity" in result.stdout
        assert "the pocket model belongs to the installed package" in result.stderr
    assert (POCKET / "halfbyte.json").read_bytes() == before


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--store",), 1)])
def test_a_result_that_cannot_be_stored_is_printed(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("halfbyte.evaluation.record.atomic.write", refused)
    result = perplexity(model, text, *options)
    assert result.exit_code == code
    assert "perplexity" in result.stdout
    assert "Permission denied" in result.stderr
    assert ("--no-store" in result.stderr) == (code == 0)
    assert quality(model) == {}


def test_a_folder_that_halfbyte_did_not_write_is_left_alone(shell_29m: Path, text: Path) -> None:
    before = sorted(path.name for path in shell_29m.iterdir())
    result = perplexity(shell_29m, text, tokens=20)
    assert result.exit_code == 0
    assert "was not written by Halfbyte" in result.stderr
    assert sorted(path.name for path in shell_29m.iterdir()) == before


def test_a_single_token_has_no_standard_error(model: Path, text: Path) -> None:
    printed = json.loads(perplexity(model, text, "--json", "--no-store", tokens=2).stdout)
    assert (printed["tokens"], printed["stderr"]) == (1, None)


def test_only_how_a_model_runs_by_default_is_stored(model: Path, text: Path) -> None:
    assert perplexity(model, text, "--activations", "f32").exit_code == 0
    assert quality(model) == {}
    refused = perplexity(model, text, "--activations", "f32", "--store")
    assert refused.exit_code == 2
    assert "--store cannot be combined with --activations" in error_lines(refused)[0]


def test_tables_ask_before_they_replace_a_file(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "table.svg"
    out.write_text("mine")
    arguments = ("eval", "table", "--text", str(text), "--calibration", str(text), "--out", str(out))
    result = halfbyte(*arguments)
    assert (result.exit_code, result.stdout, out.read_text()) == (2, "", "mine")
    assert f"{out} already exists" in error_lines(result)[0]
    assert halfbyte(*arguments[:-1], str(tmp_path / "none" / "t.svg")).exit_code == 74
    assert "does not name a kind of file" in error_lines(halfbyte(*arguments[:-1], "t.gif"))[0]
