"""`halfbyte doctor` and the GPU adapters it lists: complete, and unmoved by whatever a driver does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from halfbyte.cli.doctor import examine, thread_limits
from halfbyte.gpu.device.adapters import NO_ADAPTER, Adapter, Adapters, SelfTest, find_adapters
from tests.unit.cli_fakes import halfbyte

GPU = Adapter("Test GPU", "DiscreteGPU", "Vulkan", "driver 1", ("shader-f16", "subgroup"), {"max-buffer-size": 1 << 30})


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def fake_wgpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A module called wgpu that comes before the real one; its text is for the test to write."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "wgpu.py"


def test_adapters_are_listed_with_features_and_limits(fake_wgpu: Path) -> None:
    fake_wgpu.write_text(
        "class Found:\n"
        "    info = {'device': 'Test GPU', 'adapter_type': 'DiscreteGPU', 'backend_type': 'Vulkan',"
        " 'description': 'driver 1'}\n"
        "    features = {'subgroup', 'shader-f16'}\n"
        "    limits = {'max-buffer-size': 1 << 30}\n"
        "class gpu:\n"
        "    enumerate_adapters_sync = staticmethod(lambda: [Found()])\n"
    )
    assert find_adapters() == Adapters((GPU,))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("class gpu:\n    enumerate_adapters_sync = staticmethod(list)", NO_ADAPTER),
        ("raise ImportError('no libwgpu_native.so')", "wgpu does not work here: ImportError: no libwgpu_native.so"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the GPU driver crashed (signal 11)."),
        ("print('not JSON'); raise SystemExit(0)", "wgpu does not work here: it printed no list of adapters."),
        ("raise SystemExit(3)", "wgpu does not work here: exit code 3"),
    ],
)
def test_a_broken_wgpu_is_a_reason(fake_wgpu: Path, module: str, reason: str) -> None:
    fake_wgpu.write_text(module)
    assert find_adapters() == Adapters((), reason)


def test_a_driver_that_hangs_is_a_reason(fake_wgpu: Path) -> None:
    fake_wgpu.write_text("import time; time.sleep(60)")
    assert find_adapters(timeout_s=0.5) == Adapters((), "the GPU driver did not answer within 0.5 s.")


def test_a_containers_quota_is_among_the_limits() -> None:
    assert thread_limits(1.5)["container_quota"] == 1.5
    assert "container_quota" not in thread_limits(None)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real GPU, on which a kernel variant is wrong, and one in software."""
    found = Adapters((GPU, replace(GPU, name="Soft GPU", type="CPU")))
    monkeypatch.setattr("halfbyte.gpu.device.adapters.find_adapters", lambda: found)
    monkeypatch.setattr("halfbyte.gpu.device.adapters.best_gpu", lambda: (GPU, ""))
    monkeypatch.setattr("halfbyte.gpu.device.adapters.self_test", lambda _: SelfTest(("subgroups",), 0.4))


def test_doctor_numbers_gpus_as_load_does_and_says_what_is_switched_off(two_gpus: None) -> None:
    lines = halfbyte("doctor").stdout.splitlines()
    first, second = (next(i for i, line in enumerate(lines) if line.startswith(f"gpu {n}")) for n in (0, 1))
    assert "Test GPU (DiscreteGPU, Vulkan, driver 1)" in lines[first]
    assert lines[first + 2].strip() == "self-test: switched off: subgroups (took 0.40 s, once for this driver)"
    assert lines[second + 2].strip() == "a software GPU: only used with --gpu 1"
    assert "gpu: Test GPU was found" in lines[-1]


def test_doctor_says_when_a_gpu_is_wrong_throughout(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SelfTest(reason="it computes wrong results.")
    monkeypatch.setattr("halfbyte.gpu.device.adapters.self_test", lambda _: wrong)
    findings = examine()
    assert findings["gpu"]["found"][0]["self_test"] == {"off": (), "seconds": 0.0, "reason": wrong.reason}
    assert findings["device"]["name"] == "cpu"
    assert findings["device"]["why"].startswith("Test GPU was found, but it computes wrong results")


def test_doctor_tells_all_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.gpu.device.adapters.find_adapters", lambda: Adapters((replace(GPU, type="CPU"),)))
    monkeypatch.setattr("halfbyte.gpu.device.adapters.best_gpu", lambda: (None, "there is no GPU."))
    findings = json.loads(halfbyte("doctor", "--json").stdout)
    assert findings.keys() == examine().keys()
    assert findings["processor"]["used"] in findings["processor"]["kernels"]
    assert 1 <= findings["processor"]["threads"] <= (os.cpu_count() or 1)
    assert 0 < findings["memory"]["available_bytes"] <= findings["memory"]["bytes"]
    limits = findings["limits"]["cpu"]
    assert all(limits[name] > 1e8 for name in limits if name.endswith(("bandwidth", "rate")))
    assert limits["threads"] == findings["processor"]["threads"]
    assert findings["gpu"]["found"][0]["features"] == ["shader-f16", "subgroup"]
    assert findings["device"]["name"] == "cpu"
    assert set(findings["packages"]) >= {"numpy", "wgpu", "tokenizers"}


def test_doctor_prints_it_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.gpu.device.adapters.find_adapters", lambda: Adapters((), NO_ADAPTER))
    result = halfbyte("doctor")
    assert result.exit_code == 0
    labels = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert [label for label in labels if label] == [
        "halfbyte", "system", "processor", "instructions", "threads", "memory", "limits", "gpu", "python",
        "packages", "device",
    ]  # fmt: skip
    assert f"none: {NO_ADAPTER}" in result.stdout


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, halfbyte.cli.app; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "rich", "jinja2", "wgpu", "huggingface_hub", "tokenizers"} & set(modules)
