"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.scale import THOUSAND

settings.register_profile("thousand", THOUSAND)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Test material that lies beside the repository: a trained model, texts, tokenizers."""
    return ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shell_29m(shared: Path) -> Path:
    """The small trained checkpoint, bf16."""
    return shared / "models" / "shell-29m"


def pytest_configure(config: pytest.Config) -> None:
    """Keep the developer's own settings away, and give each of several test processes a processor of its own.

    Their threads would wait for each other.
    """
    for name in [name for name in os.environ if name.startswith("HALFBYTE_")]:
        del os.environ[name]
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ["HALFBYTE_CONFIG"] = os.devnull
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    if worker and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})
