"""What takes too much memory on a GPU is refused before it is loaded, with figures and what would fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import halfbyte
from halfbyte.errors import DeviceError
from halfbyte.gpu.device import device as device_module
from halfbyte.gpu.device.device import open_device
from halfbyte.gpu.device.memory import free_vulkan_memory
from halfbyte.gpu.run import budget
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.capabilities import BASELINE
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.models.catalog import catalog_spec
from halfbyte.options import RunOptions
from halfbyte.placement import place
from halfbyte.plan import Plan, make_plan
from halfbyte.synthetic import SyntheticWeights
from tests.device.gpu import software_gpu, software_index
from tests.models.tiny import Tiny, tiny


@pytest.fixture(autouse=True)
def _tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.gpu.checks.selftest.faulty_variants", lambda _: frozenset())


def shapes_of(name: str) -> Plan:
    spec = catalog_spec(name)
    return make_plan(spec, SyntheticWeights(spec).format, tokens=1024, context=8192)


def have(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda *_: nbytes)


def planned(model: Tiny, monkeypatch: pytest.MonkeyPatch, *, context: int | None) -> Plan:
    """The plan that `load` makes for the software GPU."""
    monkeypatch.setattr("halfbyte.gpu.factory.OpenGpu.build", lambda *_: None)
    return place(RunOptions("gpu", gpu=software_index(), context=context), model.spec, model)[0]


def test_a_model_too_large_is_refused_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError) as raised:
        budget.check(shapes_of("phi-4"), software_gpu(), 6_000_000_000)
    assert re.search(
        r"the model takes 8\.2\d GB of weights and .* MB to compute; llvmpipe .* has 6 GB free", str(raised.value)
    )
    assert "weights='q4g32'" in raised.value.hint
    have(monkeypatch, 10_000_000)
    with pytest.raises(DeviceError, match=r"the model takes 16\.9 MB of weights .* has 10 MB free"):
        halfbyte.load(device="gpu", gpu=software_index())


def test_a_context_too_large_is_refused_with_one_that_fits() -> None:
    plan = shapes_of("llama-3.2-1b")
    free = budget.needs(plan).nbytes - budget.needs(plan).cache // 2
    with pytest.raises(DeviceError, match=r"a context of 8,192 tokens takes 268 MB beside 695 MB of weights") as raised:
        budget.check(plan, replace_limits(1 << 31), free)
    assert raised.value.hint == "Use a context of at most 4,096 tokens."
    spec = catalog_spec("llama-3.2-1b")
    smaller = make_plan(spec, SyntheticWeights(spec).format, tokens=1024, context=4096)
    budget.check(smaller, replace_limits(1 << 31), free)


def replace_limits(nbytes: int) -> device_module.Device:
    """The software GPU as if buffers could be so large; nothing may run on it."""
    gpu = software_gpu()
    limits = replace(gpu.capabilities, max_binding=nbytes, max_buffer=nbytes)
    return device_module.Device(gpu.adapter, gpu.handle, limits)


def test_without_a_context_the_model_gets_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama-3.1-8b")
    whole = planned(model, monkeypatch, context=None)
    assert whole.context == 128
    needed = budget.needs(whole)
    have(monkeypatch, needed.weights + needed.scratch + needed.cache)
    assert planned(model, monkeypatch, context=None).context == 64, "half of what weights and scratch leave"
    assert planned(model, monkeypatch, context=128).context == 128, "all of it, when asked for"


def test_more_sequences_than_blocks_are_refused_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.gpu.factory.OpenGpu.build", lambda *_: None)
    model = tiny("llama-3.1-8b")
    needed = budget.needs(model.plan(sequences=50, context=64))
    have(monkeypatch, needed.weights + needed.scratch + needed.cache // 4)
    options = RunOptions("gpu", gpu=software_index(), context=64, sequences=50)
    with pytest.raises(
        DeviceError, match=r"^50 conversations at once need at least .*B of cache, .* 32 tokens .* room for \d+ blocks"
    ) as raised:
        place(options, model.spec, model)
    assert re.fullmatch(r"Use sequences=\d+ or fewer\.", raised.value.hint)


def test_a_binding_too_small_for_a_batch_makes_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(BASELINE, max_binding=40_000, max_buffer=1 << 20)
    monkeypatch.setattr(device_module, "open_device", lambda _: open_device(software=True, limits=small))
    plan = planned(tiny("llama-3.1-8b"), monkeypatch, context=128)
    assert plan.tokens == 64, "gate and up together are 112 values of 4 bytes a token"


def test_scratch_is_not_underestimated() -> None:
    gpu = open_device(software=True)
    for family in ("phi-4-mini", "gemma-3-1b", "mistral-7b-v0.3"):
        model = replace(tiny(family), weight_format="q4g32")
        before = gpu.allocated_nbytes
        executor = GpuExecutor(model.plan(sequences=4), model, device=gpu, off=(), tuning=Tuning())
        executor.warm_up()
        needed = budget.needs(executor.plan)
        assert gpu.allocated_nbytes - before <= needed.nbytes
    gpu.close()


def test_vulkan_tells_what_is_free() -> None:
    adapter = software_gpu().adapter
    assert (free_vulkan_memory(adapter.vendor, adapter.device) or 0) > 1 << 28
    assert free_vulkan_memory(0xFFFF, 0xFFFF) is None


def test_a_gpu_that_shares_the_hosts_memory_has_what_the_host_has() -> None:
    assert budget.free_memory(software_gpu(), 1_000_000) == 950_000
    discrete = replace(software_gpu().adapter, type="DiscreteGPU")
    asked = device_module.Device(discrete, software_gpu().handle, software_gpu().capabilities)
    assert (budget.free_memory(asked, 1) or 0) > 1 << 28, "Vulkan is asked"
    other = device_module.Device(replace(discrete, backend="D3D12"), software_gpu().handle, software_gpu().capabilities)
    assert budget.free_memory(other, 1) is None
