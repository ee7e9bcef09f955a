"""What a GPU's executor is made with: variants that failed the self-test stay off, remembered sizes are used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from halfbyte.errors import UsageError
from halfbyte.gpu.factory import FACTORY, OpenGpu
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.options import RunOptions


@pytest.mark.parametrize(("kernels", "off"), [(None, {"subgroup"}), ("no read_ahead", {"subgroup", "read_ahead"})])
def test_the_executor_gets_what_is_known_of_the_device(
    monkeypatch: pytest.MonkeyPatch, kernels: str | None, off: set[str]
) -> None:
    made: dict[str, Any] = {}

    class Recorded:
        def __init__(self, *_: object, **options: Any) -> None:
            made.update(options)

        def warm_up(self, progress: Any) -> None:
            progress(1, 2)

    tuning = Tuning({"gemv q4g32": {"WG": 64}})
    monkeypatch.setattr("halfbyte.gpu.run.executor.GpuExecutor", Recorded)
    monkeypatch.setattr("halfbyte.gpu.checks.selftest.faulty_variants", lambda _: frozenset({"subgroup"}))
    monkeypatch.setattr("halfbyte.gpu.tuning.store.remembered_tuning", lambda _: tuning)
    monkeypatch.setattr("halfbyte.gpu.run.budget.needs", lambda _: SimpleNamespace(weights=100))
    monkeypatch.setattr("halfbyte.gpu.run.budget.free_memory", lambda *_: 1000)
    told: list[tuple[str, int, int]] = []
    opened = OpenGpu(SimpleNamespace())  # type: ignore[arg-type]
    opened.build(None, None, RunOptions("gpu", kernels=kernels), lambda *now: told.append(now))  # type: ignore[arg-type]
    made["progress"](250)
    assert (made["off"], made["tuning"], made["free_memory"], made["activations"]) == (off, tuning, 1000, "int8")
    assert told == [("kernels", 1, 2), ("weights", 100, 100)]


def test_kernels_of_a_processor_are_refused() -> None:
    with pytest.raises(UsageError, match="a GPU has no kernels 'avx2'"):
        FACTORY.open(RunOptions("gpu", kernels="avx2"))
