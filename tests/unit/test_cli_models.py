"""`halfbyte list`, `show`, `verify`, `plan` and `quantize` on a real small checkpoint and an empty cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from halfbyte.checkpoint.hub import CachedModel, Removable
from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.errors import DownloadError, InvalidModelError, ModelNotFoundError, UsageError
from halfbyte.model import POCKET
from tests.unit.cli_fakes import error_lines, halfbyte

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def one_installed(monkeypatch: pytest.MonkeyPatch, shell_29m: Path) -> None:
    model = CachedModel("org/name", COMMIT, shell_29m)
    monkeypatch.setattr("halfbyte.checkpoint.hub.installed", lambda: [model])
    monkeypatch.setattr("halfbyte.checkpoint.hub.commit_of", lambda path: COMMIT if path == shell_29m else None)


@pytest.mark.usefixtures("one_installed")
@pytest.mark.parametrize("command", [["list"], ["models", "list"]], ids=" ".join)
def test_list_shows_the_pocket_model_and_what_is_downloaded(command: list[str]) -> None:
    header, pocket, row = halfbyte(*command).stdout.splitlines()
    assert header.split() == ["ID", "REVISION", "SIZE", "BITS", "ARCHITECTURE"]
    assert pocket.split() == ["pocket", "16.9", "MB", "4.59", "phi3"]
    assert row.split() == ["org/name", COMMIT[:8], "58.7", "MB", "16", "phi3"]


@pytest.mark.usefixtures("one_installed")
def test_list_and_show_tell_the_same(shell_29m: Path) -> None:
    pocket, downloaded = json.loads(halfbyte("list", "--json").stdout)
    assert pocket == json.loads(halfbyte("show", "--json").stdout)
    assert downloaded == json.loads(halfbyte("show", str(shell_29m), "--json").stdout) | {"id": "org/name"}
    assert downloaded["revision"] == COMMIT


def test_pull_prints_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def pull(repo: str, *, revision: str | None = None, pick: object) -> Path:
        asked.append((repo, revision))
        return tmp_path

    monkeypatch.setattr("halfbyte.checkpoint.hub.pull", pull)
    assert halfbyte("pull", "org/name", "--revision", "v2").stdout == f"{tmp_path}\n"
    assert asked == [("org/name", "v2")]


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "removed"),
    [(["--yes"], "", 0, True), ([], "y\n", 0, True), ([], "n\n", 1, False), ([], "", 2, False)],
)
def test_remove_asks_first(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: str, code: int, removed: bool
) -> None:
    gone: list[Removable] = []
    found = Removable("org/name", Path("/cache"), (Path("/cache"),), 2, 17_000_000)
    monkeypatch.setattr("halfbyte.checkpoint.hub.removable", lambda model: found)
    monkeypatch.setattr("halfbyte.checkpoint.hub.remove", gone.append)
    result = halfbyte("models", "remove", "org/name", *arguments, stdin=answer)
    assert (result.exit_code, gone) == (code, [found] if removed else [])
    assert ("17 MB freed" in result.stderr) == removed
    assert ("Delete org/name (2 revisions, 17 MB)?" in result.stderr) == (not arguments)


def test_show_tells_what_a_folder_holds(shell_29m: Path) -> None:
    facts = json.loads(halfbyte("show", str(shell_29m), "--json").stdout)
    assert facts == {
        "id": str(shell_29m), "revision": None, "path": str(shell_29m),
        "architecture": "phi3", "parameters": 29_368_832, "layers": 8, "hidden_size": 512,
        "heads": 8, "kv_heads": 4, "head_dim": 64, "vocabulary": 8192, "context": 2048, "bytes": 58_737_664,
        "bits_per_weight": 16.0, "formats": {"bf16": 50}, "quality": {}, "license": None,
    }  # fmt: skip
    text = halfbyte("show", str(shell_29m)).stdout
    assert "29,368,832" in text
    assert "58.7 MB, 16 bits per weight" in text


def test_show_never_downloads() -> None:
    result = halfbyte("show", "nobody/nothing-of-this-name")
    assert result.exit_code == DownloadError.exit_code
    assert "nobody/nothing-of-this-name at main is not in the local cache." in error_lines(result)[0]


def test_verify_names_the_tensor_that_changed(tmp_path: Path) -> None:
    copy = shutil.copytree(POCKET, tmp_path / "copy")
    assert "is intact: 50 tensors have the right checksums (16.9 MB)" in halfbyte("verify", str(copy)).stdout
    entry = SafetensorsFile(copy / "model.safetensors").entries["model.norm.weight"]
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(entry.start)
        file.write(b"\x01\x02\x03")
    result = halfbyte("verify", str(copy))
    assert result.exit_code == InvalidModelError.exit_code
    assert "the bytes of the tensor 'model.norm.weight'" in error_lines(result)[0]


def test_verify_says_where_there_is_nothing_to_compare_with(shell_29m: Path) -> None:
    assert halfbyte("verify", str(shell_29m)).stdout == (
        f"{shell_29m} has no checksums to compare with. Its headers are in order.\n"
    )


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
    facts = json.loads(halfbyte("show", str(target), "--json").stdout)
    assert facts["formats"] == {"q4g64z": 33, "bf16": 17}
    assert f"{facts['bits_per_weight']:.3f} bits per weight" in result.stdout
    assert "already exists" in error_lines(halfbyte("quantize", str(shell_29m), str(target)))[0]
    assert halfbyte("quantize", str(shell_29m), str(target), "--overwrite").exit_code == 0
    assert json.loads(halfbyte("show", str(target), "--json").stdout)["formats"] == {"q4g32": 33, "bf16": 17}


def test_quantize_refuses_what_is_packed_or_missing(shell_29m: Path, tmp_path: Path) -> None:
    result = halfbyte("quantize", str(shell_29m), str(tmp_path / "t"), "--group-size", "48")
    assert result.exit_code == UsageError.exit_code
    assert "48" in error_lines(result)[0]
    assert halfbyte("quantize", str(tmp_path / "none"), str(tmp_path / "t")).exit_code == ModelNotFoundError.exit_code
    assert not (tmp_path / "t").exists()
