"""What shells complete, asked as their scripts ask it."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.checkpoint.hub import CachedModel
from halfbyte.formats import format_names
from halfbyte.models.catalog import CATALOG
from tests.unit.cli_fakes import halfbyte

DOWNLOADED = ["acme/tiny", "acme/tiny:Q4_K_M"]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [CachedModel(name, "0" * 40, Path("/nowhere")) for name in DOWNLOADED]
    monkeypatch.setattr("halfbyte.checkpoint.hub.installed", lambda: models)


def completed(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is told for the last word of a line."""
    monkeypatch.setenv("_HALFBYTE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    result = halfbyte()
    assert (result.exit_code, result.stderr) == (0, "")
    return list(result.stdout.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("halfbyte run -m ", ["pocket", *CATALOG, *DOWNLOADED]),
        ("halfbyte run -m phi-4", ["phi-4-mini", "phi-4"]),
        ("halfbyte run --model=acme/tiny:", ["acme/tiny:Q4_K_M"]),
        ("halfbyte chat -m poc", ["pocket"]),
        ("halfbyte serve pocket acme", DOWNLOADED),
        ("halfbyte show phi-3", ["phi-3.5-mini"]),
        ("halfbyte rm ", DOWNLOADED),
        ("halfbyte pull gemma-3-1", ["gemma-3-1b"]),
        ("halfbyte quantize poc", ["pocket"]),
        ("halfbyte run --weights q4g1", [name for name in format_names() if name.startswith("q4g1")]),
        ("halfbyte run --device ", ["auto", "cpu", "gpu", "reference"]),
        ("halfbyte quantize --method aw", ["awq", "awq+"]),
        ("halfbyte export --kind q4_k", ["q4_k", "q4_k_m"]),
        ("halfbyte export --to gp", ["gptq", "gptq_v2"]),
        ("halfbyte bench --synthetic phi-4-", ["phi-4-mini"]),
        ("halfbyte config set top", ["top-n-sigma", "top-k", "top-p"]),
        ("halfbyte config unset serve.max", ["serve.max-concurrent", "serve.max-queue"]),
        ("halfbyte ver", ["verify"]),
    ],
)
def test_bash(monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]) -> None:
    assert completed(monkeypatch, line) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_HALFBYTE_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "halfbyte chat -m phi-4-")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert "phi-4-mini" in halfbyte().stdout


def test_a_broken_configuration_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("nonsense")
    monkeypatch.setenv("HALFBYTE_CONFIG", str(tmp_path / "config.toml"))
    assert completed(monkeypatch, "halfbyte run -m phi-4-") == ["phi-4-mini"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    monkeypatch.setenv("_HALFBYTE_COMPLETE", f"source_{shell}")
    assert f"_HALFBYTE_COMPLETE=complete_{shell}" in halfbyte().stdout
