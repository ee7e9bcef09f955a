"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Test material that lies beside the repository: a trained model, texts, tokenizers."""
    return ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shell_29m(shared: Path) -> Path:
    """The small trained checkpoint, bf16."""
    return shared / "models" / "shell-29m"
