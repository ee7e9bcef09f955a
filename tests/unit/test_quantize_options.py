"""`halfbyte quantize` with every combination of options: it works, or says why not before any work."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.checkpoint import open_checkpoint
from halfbyte.cli.quantize import quantize as command
from halfbyte.errors import UsageError
from halfbyte.quantization.options import METHODS, Method
from tests.models.tiny import VOCABULARY, tiny
from tests.unit.cli_fakes import error_lines, halfbyte
from tests.unit.test_quantize_layerwise import folder
from tests.unit.vocab import byte_level_definition, write_folder

LETTERS = [chr(code) for code in range(ord("!"), ord("!") + VOCABULARY - 3)]


def quantizable(name: str, path: Path) -> Path:
    """A tiny model with a tokenizer of single letters."""
    model = tiny(name)
    kept = {n: t for n, t in model.tensors.items() if ".layers." not in n or ".layers.0." in n}
    config = {**model.config, "num_hidden_layers": 1}
    folder(dataclasses.replace(model, tensors=kept, config=config), path)
    return write_folder(path, byte_level_definition(["<unk>", "<s>", "</s>", *LETTERS], [], ["<s>", "</s>"]))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantizable("llama-3.2-1b", tmp_path_factory.mktemp("tied") / "model")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantizable("mistral-7b-v0.3", tmp_path_factory.mktemp("untied") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(np.random.default_rng(4).choice(LETTERS, 700)))
    return file


def run(source: Path, target: Path, text: Path, *options: str) -> dict[str, str]:
    """The formats that the command line gave each tensor; nothing lies beside the folder."""
    result = halfbyte("quantize", str(source), str(target), *options, *calibrated(text, *options))
    assert result.exit_code == 0, result.output
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return formats_in(target)


def calibrated(text: Path, *options: str) -> list[str]:
    """The options that name the calibration text, where the others need one."""
    needed = "--budget" in options or {"awq", "awq+", "gptq"} & set(options)
    return ["--calibration", str(text), "--calibration-tokens", "512"] if needed else []


def formats_in(target: Path) -> dict[str, str]:
    """The format of each tensor of a folder, which must be whole and of finite numbers."""
    checkpoint = open_checkpoint(target)
    checkpoint.verify()
    assert all(np.isfinite(checkpoint.weight(name).decode()).all() for name in checkpoint.shapes)
    assert checkpoint.manifest is not None
    return {name: record.format for name, record in checkpoint.manifest.tensors.items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_every_format(untied: Path, text: Path, tmp_path: Path, method: Method) -> None:
    for bits, group, zero_points in itertools.product((3, 4, 8), (32, 64, 128), (True, False)):
        if zero_points and bits == 8 and method != "awq+":
            continue  # 8 bits have no zero points; the ends of awq+ have 4
        target = tmp_path / f"{bits}-{group}-{zero_points}"
        options: dict[str, Any] = {"bits": bits, "group_size": group, "zero_points": zero_points}
        if method != "rtn":
            options |= {"calibration": text, "calibration_tokens": 512}
        command(str(untied), target, method=method, **options)  # type: ignore[arg-type]
        formats = formats_in(target)
        body = f"q{bits}g{group}{'z' if zero_points and bits < 8 else ''}"
        ends = {"awq": "f32", "awq+": f"q4g32{'z' if zero_points else ''}"}.get(method, body)
        assert {form for name, form in formats.items() if "proj" in name} == {body}
        assert (formats["model.embed_tokens.weight"], formats["lm_head.weight"]) == (ends, ends)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("embed", "head"), [(3, 8), (4, 16), (8, 3), (16, 4)])
def test_both_ends_have_bits_and_groups_of_their_own(
    untied: Path, text: Path, tmp_path: Path, method: str, embed: int, head: int
) -> None:
    options = ["--method", method, "--symmetric", "--embed-bits", str(embed), "--head-bits", str(head)]
    options += [] if embed == 16 else ["--embed-group-size", "64"]
    options += [] if head == 16 else ["--head-group-size", "128"]
    formats = run(untied, tmp_path / "q", text, *options)
    assert formats["model.embed_tokens.weight"] == ("f32" if embed == 16 else f"q{embed}g64")
    assert formats["lm_head.weight"] == ("f32" if head == 16 else f"q{head}g128")


@pytest.mark.parametrize(
    ("options", "form"),
    [
        (["--head-bits", "8"], "q8g32"),
        (["--head-group-size", "64"], "q4g64"),
        (["--embed-bits", "3", "--head-bits", "3", "--head-group-size", "128"], "q3g128"),
        (["--method", "awq", "--symmetric", "--head-bits", "4", "--head-group-size", "64"], "q4g64"),
    ],
)
def test_a_table_that_is_also_the_output_matrix_takes_what_either_is_given(
    tied: Path, text: Path, tmp_path: Path, options: list[str], form: str
) -> None:
    assert run(tied, tmp_path / "q", text, *options)["model.embed_tokens.weight"] == form


@pytest.mark.parametrize(
    "options",
    [
        ["--clip"],
        ["--clip", "--bits", "3", "--zero-points"],
        ["--method", "gptq", "--awq-scales"],
        ["--method", "gptq", "--awq-scales", "--refine", "2", "--bits", "3", "--group-size", "128"],
        ["--method", "awq", "--refine", "2"],
        ["--method", "awq+", "--refine", "2", "--bits", "8"],
        ["--method", "rtn", "--budget", "9"],
        ["--method", "rtn", "--budget", "9", "--clip"],
        ["--method", "gptq", "--budget", "9"],
        ["--method", "gptq", "--budget", "11", "--awq-scales", "--refine", "1"],
    ],
)
def test_what_a_method_can_do_besides(tied: Path, text: Path, tmp_path: Path, options: list[str]) -> None:
    formats = run(tied, tmp_path / "new" / "q", text, *options)
    assert {form[0] for name, form in formats.items() if "proj" in name} == {"q"}


GPTQ = ["--method", "gptq"]
REFUSED: list[tuple[list[str], str]] = [
    (["--bits", "5"], "5 bits"),
    (["--bits", "0"], "0 bits"),
    (["--bits", "16"], "16 bits"),
    (["--group-size", "48"], "Groups of 48"),
    (["--group-size", "0"], "Groups of 0"),
    (["--embed-bits", "0"], "0 bits"),
    (["--head-bits", "2"], "2 bits"),
    (["--embed-group-size", "0"], "Groups of 0"),
    (["--head-group-size", "256"], "Groups of 256"),
    (["--embed-bits", "4", "--head-bits", "8"], "cannot have 4 and 8"),
    (["--embed-group-size", "32", "--head-group-size", "64"], "cannot have 32 and 64"),
    (["--embed-bits", "16", "--embed-group-size", "64"], "16 bits, without groups"),
    (["--method", "awq", "--head-group-size", "64"], "16 bits, without groups"),
    ([*GPTQ, "--clip"], "--clip only applies to rtn; gptq"),
    (["--method", "awq+", "--clip"], "--clip only applies to rtn; awq+"),
    (["--awq-scales"], "only applies to gptq, not to rtn"),
    (["--method", "awq", "--awq-scales"], "only applies to gptq, not to awq"),
    (["--refine", "4"], "--refine only applies to awq and gptq"),
    (["--method", "awq", "--budget", "4.5"], "only applies to rtn and gptq, not to awq"),
    ([*GPTQ, "--budget", "2"], "2.0 bits per weight is out of range"),
    ([*GPTQ, "--budget", "nan"], "nan bits per weight is out of range"),
    ([*GPTQ, "--budget", "3"], "too small even for 3 bits"),
    ([*GPTQ, "--budget", "9", "--bits", "4"], "--budget chooses"),
    ([*GPTQ, "--budget", "9", "--group-size", "64"], "--budget chooses"),
    ([*GPTQ, "--budget", "9", "--symmetric"], "--budget chooses"),
    ([*GPTQ, "--budget", "9", "--head-bits", "8"], "--budget chooses"),
    (["--calibration", __file__], "rtn does not use calibration text"),
    (["--calibration-tokens", "512"], "--calibration-tokens has no effect without --calibration"),
]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail as soon as a step of work is reported."""
    monkeypatch.setattr("halfbyte.cli.progress._lines", lambda: lambda *step: pytest.fail(f"work has begun: {step}"))


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_what_cannot_be_meant_is_refused_before_any_work(
    tied: Path, text: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = halfbyte("quantize", str(tied), str(tmp_path / "q"), *options, *calibrated(text, *options))
    assert result.exit_code == UsageError.exit_code
    assert words in error_lines(result)[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("options", [*(["--method", name] for name in METHODS[1:]), ["--budget", "9"]])
def test_calibration_is_asked_for_before_a_model_is_looked_for(tmp_path: Path, options: list[str]) -> None:
    for more, words in (
        ([], "needs calibration text"),
        (["--calibration", str(tmp_path / "none")], "There is no file"),
    ):
        result = halfbyte("quantize", "no/such-model", str(tmp_path / "q"), *options, *more)
        assert result.exit_code == UsageError.exit_code
        assert words in error_lines(result)[0]


@pytest.mark.usefixtures("no_work")
def test_a_taken_target_and_too_little_memory_are_seen_before_any_work(
    tied: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "note").touch()
    asked = ["quantize", str(tied), str(tmp_path / "q"), *GPTQ, "--calibration", str(text)]
    assert "already exists" in error_lines(halfbyte(*asked))[0]
    assert "not a model folder written by Halfbyte" in error_lines(halfbyte(*asked, "--overwrite"))[0]
    monkeypatch.setattr("halfbyte.system.available_memory", lambda: 1000)
    asked[2] = str(tmp_path / "new")
    assert "Refining this model takes" in error_lines(halfbyte(*asked, "--refine", "2"))[0]
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
