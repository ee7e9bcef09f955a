"""What a machine could do at most is measured once and remembered; a driver's failures are told, and asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halfbyte.cpu import machine
from halfbyte.report.limits import cpu_limits, gpu_limits, known_read_bandwidth

GPU = {"name": "Test GPU", "driver": "1", "type": "DiscreteGPU", "backend": "Vulkan"}
SOFTWARE = {"name": "llvmpipe", "driver": "2", "type": "CPU", "backend": "Vulkan"}
LIMITS = {"read_bandwidth": 1e12}


def test_a_processors_limits_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def told(name: str) -> Any:
        return lambda threads: asked.append((name, threads)) or 1e9 * threads + len(asked)

    for name in ("read_bandwidth", "copy_bandwidth", "int8_rate"):
        monkeypatch.setattr(machine, name, told(name))
    first = cpu_limits(path=tmp_path / "limits.json")
    assert len(asked) == 6
    assert first.threads == machine.describe().threads
    assert cpu_limits(path=tmp_path / "limits.json") == first
    assert len(asked) == 6
    assert cpu_limits(path=tmp_path / "limits.json", again=True) != first
    (tmp_path / "limits.json").write_text("{")
    assert cpu_limits(path=tmp_path / "limits.json") != first


def test_the_core_measures_rates_that_a_processor_can_have() -> None:
    assert 1e8 < machine.copy_bandwidth(1) < 1e13
    kernels = machine.describe().kernels
    rates = {isa: machine.int8_rate(1, isa) for isa in kernels}
    assert all(1e7 < rate < 1e14 for rate in rates.values())
    assert rates[kernels[-1]] >= rates["generic"]
    with pytest.raises(ValueError, match="nothing"):
        machine.int8_rate(1, "nothing")


def test_a_gpus_limits_are_measured_once_and_failures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[list[dict[str, Any]]] = [
        [],
        [{"name": "Test GPU", "driver": "1", "error": "no room"}],
        [{"name": "Test GPU", "driver": "1", "limits": LIMITS}],
    ]
    monkeypatch.setattr("halfbyte.gpu.checks.limits.measure_apart", lambda: answers.pop(0))
    path = tmp_path / "limits.json"
    assert gpu_limits([SOFTWARE], path=path) == []
    assert gpu_limits([GPU, SOFTWARE], path=path) == []
    assert [found["error"] for found in gpu_limits([GPU, SOFTWARE], path=path)] == ["no room"]
    (found,) = gpu_limits([GPU, GPU, SOFTWARE], path=path)
    assert found["limits"] == LIMITS
    assert not answers
    assert gpu_limits([GPU], path=path) == [found]
    assert known_read_bandwidth("Test GPU", "1", path=path) == 1e12
    assert known_read_bandwidth("Test GPU", "2", path=path) is None
