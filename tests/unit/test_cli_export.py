"""`halfbyte export` writes what can be read again, and nothing that was not asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.checkpoint.gguf.writer import KINDS
from tests.unit.cli_fakes import error_lines, halfbyte
from tests.unit.test_quantize_options import quantizable


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantizable("llama-3.2-1b", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def packed(shell_29m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packed") / "packed"
    assert halfbyte("quantize", str(shell_29m), str(target)).exit_code == 0
    return target


@pytest.mark.parametrize("kind", ["q8_0", "Q8_0", "Q4_0", "F16"])
def test_kinds_are_named_in_any_case(model: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "t.gguf"
    assert halfbyte("export", str(model), str(target), "--kind", kind).exit_code == 0
    assert target.read_bytes()[:4] == b"GGUF"


def test_an_unknown_kind_is_told_the_others(model: Path, tmp_path: Path) -> None:
    result = halfbyte("export", str(model), str(tmp_path / "t.gguf"), "--kind", "q9")
    assert result.exit_code == 2
    message, hint = error_lines(result)
    assert "'q9'" in message
    assert all(kind in hint for kind in KINDS)


def test_a_quantized_model_is_not_rounded_again_unless_asked(packed: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.gguf"
    assert halfbyte("export", str(packed), str(first)).exit_code == 0
    for source in (packed, first):
        for kind in ("q8_0", "q4_1"):
            result = halfbyte("export", str(source), str(tmp_path / "t.gguf"), "--kind", kind)
            assert result.exit_code == 2
            message, hint = error_lines(result)
            assert f"{kind} would round it a second time" in message
            assert "--allow-requantize" in hint
    again = ("export", str(first), str(tmp_path / "again.gguf"), "--kind", "q8_0", "--allow-requantize")
    assert halfbyte(*again).exit_code == 0
    assert halfbyte("export", str(first), str(tmp_path / "f16.gguf"), "--kind", "f16").exit_code == 0
    assert halfbyte("export", str(first), str(tmp_path / "same.gguf"), "--kind", "stored").exit_code == 0
    assert first.read_bytes()[-1_000_000:] == (tmp_path / "same.gguf").read_bytes()[-1_000_000:]


def test_what_cannot_be_written_is_refused_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfbyte.cli.progress._lines", lambda: lambda *step: pytest.fail(f"work has begun: {step}"))
    (tmp_path / "taken.gguf").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name, options, code, words in (
        ("none/t.gguf", [], 74, "No such file or directory"),
        ("t", [], 2, "does not end in .gguf"),
        ("taken.gguf", [], 2, "already exists"),
        ("folder", [], 2, "is a folder; a file cannot replace it"),
        ("folder", ["--overwrite"], 2, "is a folder; a file cannot replace it"),
        ("folder", ["--to", "awq"], 2, "folder"),
        ("t.gguf", ["--kind", "f16", "--calibration", __file__], 2, "--calibration has no effect on --kind f16"),
        ("new", ["--to", "awq", "--kind", "q8_0"], 2, "--to awq keeps the quantized values"),
    ):
        result = halfbyte("export", str(model), str(tmp_path / name), *options)
        assert result.exit_code == code, name
        assert words in error_lines(result)[0]
        assert not any("emove" in line for line in error_lines(result))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "taken.gguf"]
    assert (tmp_path / "taken.gguf").read_text() == "mine"
    monkeypatch.undo()
    assert halfbyte("export", str(model), str(tmp_path / "taken.gguf"), "--overwrite").exit_code == 0
    assert (tmp_path / "taken.gguf").read_bytes()[:4] == b"GGUF"


def test_a_folder_that_halfbyte_did_not_write_is_never_to_be_removed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").touch()
    result = halfbyte("quantize", str(model), str(tmp_path / "mine"), "--overwrite")
    message, hint = error_lines(result)
    assert (result.exit_code, hint) == (2, "Choose another name.")
    assert "is not a model folder written by Halfbyte" in message
