"""Which device `auto` means: the GPU where there is a real one that works, found out without slowing a start."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import halfbyte
from halfbyte import system, user_cache
from halfbyte.errors import DeviceError, UsageError
from halfbyte.gpu.device import adapters
from halfbyte.gpu.device.adapters import Adapter, Adapters, best_gpu, counted
from halfbyte.options import RunOptions
from halfbyte.placement import choose_device, part

DISCRETE = Adapter("Real GPU", "DiscreteGPU", "Vulkan", "driver 1", ("subgroup",), {"max-buffer-size": 1 << 30})
SOFTWARE = Adapter("llvmpipe", "CPU", "Vulkan", "driver 2")
OPENGL = Adapter("Real GPU", "DiscreteGPU", "OpenGL", "driver 3")
INTEGRATED = Adapter("Small GPU", "IntegratedGPU", "Vulkan", "driver 4")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with a device file of a GPU; what it has is for the test to say, and how often it was asked."""

    class Machine:
        has: Adapters = Adapters((DISCRETE,))
        nodes: tuple[str, ...] = ("/dev/dri/renderD128",)
        asked = 0

        def answer(self) -> Adapters:
            self.asked += 1
            return self.has

    made = Machine()
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(adapters, "_nodes", lambda: iter(made.nodes))
    monkeypatch.setattr(adapters, "find_adapters", made.answer)
    return made


def test_gpus_are_counted_the_real_ones_first() -> None:
    assert counted([SOFTWARE, OPENGL, INTEGRATED, DISCRETE]) == [DISCRETE, INTEGRATED, SOFTWARE]


def test_a_real_gpu_is_taken_and_its_driver_asked_once(machine: Any) -> None:
    machine.has = Adapters((DISCRETE, SOFTWARE))
    assert best_gpu() == best_gpu() == (DISCRETE, "")
    assert machine.asked == 1
    assert choose_device(RunOptions()) == ("gpu", "Real GPU was found")


def test_a_software_gpu_is_never_taken(machine: Any) -> None:
    machine.has = Adapters((SOFTWARE,))
    assert choose_device(RunOptions()) == ("cpu", "only a software GPU was found (llvmpipe).")


def test_why_there_is_none_is_remembered_for_a_day(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has = Adapters((), "the GPU driver crashed (signal 11).")
    assert best_gpu() == best_gpu() == (None, "the GPU driver crashed (signal 11).")
    assert machine.asked == 1
    later = adapters.time.time() + adapters.REMEMBERED_S + 1
    monkeypatch.setattr(adapters.time, "time", lambda: later)
    best_gpu()
    assert machine.asked == 2


def test_another_driver_or_device_is_asked_anew(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    best_gpu()
    monkeypatch.setenv("VK_DRIVER_FILES", "/elsewhere/icd.json")
    best_gpu()
    assert machine.asked == 2
    machine.nodes = (*machine.nodes, "/dev/dri/renderD129")
    best_gpu()
    assert machine.asked == 3


@pytest.mark.parametrize("values", [{}, {"mark": 1}, {"mark": "", "found": [{}], "reason": ""}])
def test_what_is_remembered_wrongly_is_asked_over(machine: Any, values: dict[str, Any]) -> None:
    user_cache.store(user_cache.folder() / "gpu-adapters.json", adapters.SCHEMA, values)
    assert best_gpu() == (DISCRETE, "")


def test_without_a_device_file_linux_asks_no_driver(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.sys, "platform", "linux")
    machine.nodes = ()
    assert best_gpu() == (None, "there is no GPU: /dev has no device of one.")
    assert machine.asked == 0


def test_options_of_one_device_decide() -> None:
    assert choose_device(RunOptions(gpu=1)) == ("gpu", "gpu=1 was given")
    assert choose_device(RunOptions(threads=2)) == ("cpu", "threads=2 was given")
    assert choose_device(RunOptions("reference")) == ("reference", "you asked for it")


def test_a_gpu_that_fails_leaves_the_cpu_and_says_why(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DeviceError("Real GPU computes wrong results (driver 1).", "Update its driver.")

    monkeypatch.setattr("halfbyte.gpu.device.device.open_device", refuse)
    model = halfbyte.load()
    assert model.device == "cpu"
    assert model.why_device == "Real GPU was found, but Real GPU computes wrong results (driver 1)."
    with pytest.raises(DeviceError, match="computes wrong results"):
        halfbyte.load(device="gpu")


def test_a_start_without_a_gpu_never_imports_wgpu() -> None:
    code = (
        "import sys; from halfbyte.gpu.device import adapters; adapters._nodes = lambda: iter(())\n"
        "sys.platform = 'linux'\n"
        "from halfbyte.options import RunOptions; from halfbyte.placement import choose_device, part\n"
        "assert choose_device(RunOptions())[0] == 'cpu'\n"
        "print(*[m for m in ('wgpu', 'halfbyte.gpu.device.device') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_each_replica_takes_a_real_gpu_of_its_own(machine: Any) -> None:
    twin = replace(DISCRETE, backend="D3D12")
    machine.has = Adapters((DISCRETE, DISCRETE, twin, twin, SOFTWARE))
    assert [part(RunOptions(), place, 2) for place in (0, 1)] == [RunOptions("gpu", gpu=0), RunOptions("gpu", gpu=1)]
    with pytest.raises(UsageError, match="3 replicas need a GPU each, and there are 2"):
        part(RunOptions(), 0, 3)
    with pytest.raises(UsageError, match="gpu=1 is one GPU, and there are 2 replicas"):
        part(RunOptions("gpu", gpu=1), 0, 2)


def test_without_a_gpu_replicas_divide_the_threads(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has = Adapters((SOFTWARE,))
    monkeypatch.setattr("halfbyte.cpu.machine.default_threads", lambda: 8)
    assert part(RunOptions(), 1, 3) == RunOptions("cpu", threads=2)
    assert part(RunOptions(), 1, 16) == RunOptions("cpu", threads=1)
    assert part(RunOptions(threads=5), 1, 3) == RunOptions("cpu", threads=5)
    with pytest.raises(UsageError, match="only a software GPU was found"):
        part(RunOptions("gpu"), 0, 2)


def test_replicas_count_on_their_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_parts", 1)
    monkeypatch.setattr(system, "_meminfo", lambda: {"MemAvailable": 1000})
    monkeypatch.setattr(system, "_memory_limits", lambda *names: [])
    system.divide_memory(4)
    assert system.available_memory() == 250
