"""`halfbyte models`, `plan` and `quantize` on a real small checkpoint and an empty cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.checkpoint.hub import InstalledModel
from halfbyte.errors import DownloadError, ModelNotFoundError, UsageError
from tests.unit.cli_fakes import error_lines, halfbyte

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def one_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = InstalledModel("org/name", COMMIT, tmp_path, 1_234_000_000, "llama", ("bf16",))
    monkeypatch.setattr("halfbyte.checkpoint.hub.installed", lambda: [model])


@pytest.mark.usefixtures("one_installed")
def test_list_shows_what_is_downloaded(tmp_path: Path) -> None:
    header, row = halfbyte("models", "list").stdout.splitlines()
    assert header.split() == ["ID", "REVISION", "SIZE", "ARCHITECTURE", "FORMATS"]
    assert row.split() == ["org/name", COMMIT[:12], "1.23", "GB", "llama", "bf16"]
    assert json.loads(halfbyte("models", "list", "--json").stdout) == [
        {
            "repo": "org/name", "revision": COMMIT, "path": str(tmp_path), "nbytes": 1_234_000_000,
            "model_type": "llama", "formats": ["bf16"],
        }
    ]  # fmt: skip


@pytest.mark.usefixtures("one_installed")
def test_models_are_completed_by_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_HALFBYTE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "halfbyte run -m or")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert halfbyte().stdout.split() == ["org/name"]


def test_an_empty_list_is_empty_json_and_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.checkpoint.hub.installed", list)
    assert json.loads(halfbyte("models", "list", "--json").stdout) == []
    result = halfbyte("models", "list")
    assert result.stdout == ""
    assert "no models are downloaded" in result.stderr


def test_pull_prints_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def pull(repo: str, *, revision: str | None = None) -> Path:
        asked.append((repo, revision))
        return tmp_path

    monkeypatch.setattr("halfbyte.checkpoint.hub.pull", pull)
    assert halfbyte("models", "pull", "org/name", "--revision", "v2").stdout == f"{tmp_path}\n"
    assert asked == [("org/name", "v2")]


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "removed"),
    [(["--yes"], "", 0, True), ([], "y\n", 0, True), ([], "n\n", 1, False), ([], "", 2, False)],
)
def test_remove_asks_first(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: str, code: int, removed: bool
) -> None:
    gone: list[str] = []
    monkeypatch.setattr("halfbyte.checkpoint.hub.cached", Path)
    monkeypatch.setattr("halfbyte.checkpoint.hub.remove", lambda repo: gone.append(repo) or 17_000_000)
    result = halfbyte("models", "remove", "org/name", *arguments, stdin=answer)
    assert (result.exit_code, bool(gone)) == (code, removed)
    assert ("17 MB freed" in result.stderr) == removed
    assert ("Delete all downloaded revisions of org/name?" in result.stderr) == (not arguments)


def test_show_tells_what_a_folder_holds(shell_29m: Path) -> None:
    facts = json.loads(halfbyte("models", "show", str(shell_29m), "--json").stdout)
    assert facts == {
        "path": str(shell_29m), "architecture": "phi3", "parameters": 29_368_832, "layers": 8, "hidden_size": 512,
        "heads": 8, "kv_heads": 4, "head_dim": 64, "vocabulary": 8192, "context": 2048, "bytes": 58_737_664,
        "bits_per_weight": 16.0, "formats": {"bf16": 50}, "quality": {}, "license": None,
    }  # fmt: skip
    text = halfbyte("models", "show", str(shell_29m)).stdout
    assert "29,368,832" in text
    assert "58.7 MB, 16 bits per weight" in text


def test_show_never_downloads() -> None:
    result = halfbyte("models", "show", "nobody/nothing-of-this-name")
    assert result.exit_code == DownloadError.exit_code
    assert "nobody/nothing-of-this-name at main is not in the local cache." in error_lines(result)[0]


def test_plan_prints_every_step_and_totals(shell_29m: Path) -> None:
    lines = halfbyte("plan", "-m", str(shell_29m), "--tokens", "4", "--context", "64").stdout.splitlines()
    steps = json.loads(halfbyte("plan", "-m", str(shell_29m), "--tokens", "4", "--context", "64", "--json").stdout)
    assert (steps["tokens"], steps["context"]) == (4, 64)
    assert [line.split()[1] for line in lines[1:-1]] == [step["op"] for step in steps["steps"]]
    assert lines[-1].startswith(f"{len(steps['steps'])} steps for 4 tokens")


def test_an_unfused_plan_has_more_steps(shell_29m: Path) -> None:
    fused, unfused = (
        json.loads(halfbyte("plan", "-m", str(shell_29m), flag, "--json").stdout) for flag in ("--fused", "--unfused")
    )
    assert len(unfused["steps"]) > len(fused["steps"])


def test_a_context_beyond_the_models_is_refused(shell_29m: Path) -> None:
    result = halfbyte("plan", "-m", str(shell_29m), "--context", "4096")
    assert result.exit_code == UsageError.exit_code
    assert "context 4096" in error_lines(result)[0]


def test_quantize_writes_a_folder_that_show_understands(shell_29m: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    result = halfbyte("quantize", str(shell_29m), str(target), "--group-size", "64", "--zero-points")
    assert result.exit_code == 0
    facts = json.loads(halfbyte("models", "show", str(target), "--json").stdout)
    assert facts["formats"] == {"q4g64z": 33, "bf16": 17}
    assert f"{facts['bits_per_weight']:.3f} bits per weight" in result.stdout
    assert "already exists" in error_lines(halfbyte("quantize", str(shell_29m), str(target)))[0]
    assert halfbyte("quantize", str(shell_29m), str(target), "--overwrite").exit_code == 0
    assert json.loads(halfbyte("models", "show", str(target), "--json").stdout)["formats"] == {"q4g32": 33, "bf16": 17}


def test_quantize_refuses_what_is_packed_or_missing(shell_29m: Path, tmp_path: Path) -> None:
    result = halfbyte("quantize", str(shell_29m), str(tmp_path / "t"), "--group-size", "48")
    assert result.exit_code == UsageError.exit_code
    assert "48" in error_lines(result)[0]
    assert halfbyte("quantize", str(tmp_path / "none"), str(tmp_path / "t")).exit_code == ModelNotFoundError.exit_code
    assert not (tmp_path / "t").exists()
