"""The tutorial runs from top to bottom, offline, with what comes with the package."""

from __future__ import annotations

from typing import Any

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT

PATH = ROOT / "docs" / "tutorial.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after it was run."""
    found = nbformat.read(PATH, as_version=4)
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    nbclient.NotebookClient(found, timeout=300, kernel_name="python3", resources=folder).execute()
    return found


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_it_is_kept_without_results() -> None:
    kept = nbformat.read(PATH, as_version=4)
    nbformat.validate(kept)
    assert outputs(kept) == []
    assert {cell.get("execution_count") for cell in kept.cells} == {None}


@pytest.mark.timeout(600)
def test_it_runs_without_errors_or_warnings(notebook: Any) -> None:
    assert [output for output in outputs(notebook) if output.output_type == "error"] == []
    assert [output.text for output in outputs(notebook) if output.get("name") == "stderr"] == []


@pytest.mark.timeout(600)
def test_it_shows_what_it_says(notebook: Any) -> None:
    shown = [output.get("text") or "".join(output.data.values()) for output in outputs(notebook)]
    text = "\n".join(shown)
    for expected in (
        "<Model 'pocket' on", "tar xf path/to/archive.tar.gz", "'command': 'tar'", "List directory contents",
        "33 tensors in q4g64", "mean KL divergence", "Answers(right=1", ">tokens/s<", "Did you mean temperature?",
        "ContextFullError", "ModelNotFoundError", "halfbyte.model: opening", ", closed>",
    ):  # fmt: skip
        assert expected in text, expected
