"""What is in the distributions: all that a build or a run needs, nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Sizes of the files of the source distribution, by path."""
    folder = tmp_path_factory.mktemp("sdist")
    build = f"from scikit_build_core.build import build_sdist; print(build_sdist({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True, timeout=120)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        return {member.name.split("/", 1)[1]: member.size for member in archive if member.isfile()}


def tracked() -> list[str]:
    """Files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return listed.stdout.split("\0")[:-1]


def test_the_source_distribution_holds_what_a_build_needs(source: dict[str, int]) -> None:
    needed = {name for name in tracked() if name.startswith("src/") and (ROOT / name).is_file()}
    assert needed | {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"} <= source.keys()


def test_the_source_distribution_holds_nothing_else(source: dict[str, int]) -> None:
    outside = {name for name in source if not name.startswith("src/")}
    kept = {"CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert outside <= kept | {".gitignore"}
    assert not [name for name in source if name.endswith((".so", ".pyc", ".jsonl"))]
    large = {name: size for name, size in source.items() if size > 1 << 20}
    assert list(large) == ["src/halfbyte/pocket/model.safetensors"]


def test_every_dependency_is_imported() -> None:
    modules = {
        name.removesuffix("-py").replace("-", "_")
        for name in (line.split(">")[0] for line in PROJECT["project"]["dependencies"])
    }
    text = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert {name for name in modules if f"import {name}" not in text and f"from {name}" not in text} == set()


def test_the_version_of_wgpu_is_bounded_above() -> None:
    """Some of its private names are used."""
    (line,) = [line for line in PROJECT["project"]["dependencies"] if line.startswith("wgpu")]
    assert "<" in line
