"""Bad luck with a GPU: none, too small, lost, or wrong; and matrices in several pieces."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halfbyte import user_cache
from halfbyte.errors import DeviceError, UsageError
from halfbyte.gpu.checks import selftest
from halfbyte.gpu.device import device as device_module
from halfbyte.gpu.device.device import choose_adapter, open_device
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.capabilities import BASELINE
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.gpu.shaders.template import compose
from halfbyte.reference.executor import ReferenceExecutor
from tests.device.gpu import one, software_gpu
from tests.models.tiny import feed, tiny


def test_a_software_gpu_is_taken_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    software = [a for a in device_module.enumerate_adapters() if a.software]
    monkeypatch.setattr(device_module, "enumerate_adapters", lambda: software)
    with pytest.raises(DeviceError, match="only a software GPU was found"):
        choose_adapter()
    assert choose_adapter(software=True).software


def test_no_gpu_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "enumerate_adapters", list)
    with pytest.raises(DeviceError, match=r"no GPU was found\. Install the driver"):
        choose_adapter()


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"there is no GPU 99\. Found: 0: "):
        choose_adapter(99)


def test_a_context_too_large_for_a_buffer_is_refused_with_figures() -> None:
    device = open_device(software=True, limits=replace(BASELINE, max_binding=4096, max_buffer=4096))
    figures = r"of 128 tokens takes 8.19 kB in each layer.*allows 4.1 kB.*context of at most 64 tokens"
    with pytest.raises(DeviceError, match=figures):
        GpuExecutor(tiny("llama-3.1-8b").plan(), tiny("llama-3.1-8b"), device=device, off=(), tuning=Tuning())


def test_matrices_beyond_a_binding_are_split() -> None:
    small = open_device(software=True, limits=replace(BASELINE, max_binding=20_000, subgroup=8))
    model = replace(tiny("llama-3.2-3b"), weight_format="f32")
    gpu = GpuExecutor(model.plan(context=32, tokens=32), model, device=small, off=("int8",), tuning=Tuning())
    assert len(gpu.lowerer.context.matrix(("model.embed_tokens.weight",)).pieces) == 2
    reference = ReferenceExecutor(model.plan(context=32, tokens=32), model)
    ids = list(range(10, 30))
    for start, stop in ((0, 19), (19, 20)):
        got, expected = (feed(e, ids[start:stop], start=start) for e in (gpu, reference))
        assert np.abs(got - expected).max() < 1e-4


def test_a_lost_device_is_an_error_and_the_process_goes_on() -> None:
    model = tiny("llama-3.1-8b")
    lost = open_device(software=True)
    gpu = GpuExecutor(model.plan(), model, device=lost, off=(), tuning=Tuning())
    lost.handle.destroy()
    with pytest.raises(DeviceError, match="llvmpipe"):
        gpu.run(one(gpu.plan, 5, 0))
    again = GpuExecutor(model.plan(), model, device=software_gpu(), off=(), tuning=Tuning())
    assert np.isfinite(again.run(one(again.plan, 5, 0))).all()


def test_another_devices_loss_is_not_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    """wgpu logs a loss without the device's name."""
    lost, well = open_device(software=True), open_device(software=True)
    buffers = [device.buffer(16) for device in (lost, well)]
    lost.handle.destroy()
    with pytest.raises(DeviceError, match=r"was lost \(writing to the GPU failed\): its driver reset it"):
        lost.write(buffers[0], 0, np.ones(4, np.float32))
    logging.getLogger("wgpu").error("DEVICE LOST!")
    well.write(buffers[1], 0, np.ones(4, np.float32))
    assert well.read(buffers[1], 16).view(np.float32).tolist() == [1, 1, 1, 1]


def test_what_wgpu_only_logs_during_a_call_is_an_error() -> None:
    with pytest.raises(DeviceError, match="was lost"), software_gpu().guarded("doing nothing"):
        logging.getLogger("wgpu").error("DEVICE LOST!")
    with software_gpu().guarded("doing nothing"):
        pass


def test_memory_is_counted_until_it_is_given_back() -> None:
    device = open_device(software=True)
    kept, gone = device.buffer(1024), device.buffer(4096)
    assert device.allocated_nbytes == device.peak_nbytes == 5120
    device.free(gone)
    del gone
    assert (device.allocated_nbytes, device.peak_nbytes) == (kept.size, 5120)


def test_the_cache_grows_with_the_blocks_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.gpu.run.caches.FIRST_POSITIONS", 16)
    model = tiny("llama-3.1-8b")
    gpu = GpuExecutor(model.plan(block_size=8), model, device=software_gpu(), off=("int8",), tuning=Tuning())
    reference = ReferenceExecutor(model.plan(block_size=8), model)
    ids, small = list(range(10, 50)), gpu.cache_nbytes
    tables = {g.blocks: np.arange(g.columns, dtype=np.int32)[None] for g in gpu.plan.groups}
    for position, token in enumerate(ids):
        used = {name: np.where(np.arange(t.shape[1]) <= position // 8, t, -1) for name, t in tables.items()}
        batch = replace(one(gpu.plan, token, position), block_tables=used)
        got, expected = gpu.run(batch), reference.run(batch)
        assert np.abs(got - expected).max() < 1e-4
    assert small < gpu.cache_nbytes < sum(t.nbytes for t in gpu.plan.of_kind("cache"))


def test_a_wrong_kernel_is_switched_off_by_name_and_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[str, ...]] = []

    def broken_subgroups(_: object, off: tuple[str, ...]) -> float:
        asked.append(off)
        return 0.0 if "subgroups" in off else 1.0

    monkeypatch.setattr(selftest, "error", broken_subgroups)
    file = tmp_path / "cache" / "selftest.json"
    with caplog.at_level(logging.WARNING):
        assert selftest.faulty_variants(software_gpu(), cache=file) == {"subgroups"}
    assert "computes wrong results with subgroups kernels" in caplog.text
    first = len(asked)
    assert selftest.faulty_variants(software_gpu(), cache=file) == {"subgroups"}
    assert len(asked) == first


def test_a_gpu_that_is_wrong_throughout_is_refused_and_tried_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[tuple[str, ...]] = []
    monkeypatch.setattr(selftest, "error", lambda _, off: tried.append(off) or 1.0)
    file = tmp_path / "selftest.json"
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"computes wrong results.*or use device='cpu'"):
            selftest.faulty_variants(software_gpu(), cache=file)
    assert len(tried) == len(set(tried))
    assert () in tried
    assert selftest.examined(software_gpu(), cache=file).off is None


@pytest.mark.parametrize("verdict", [None, {}, {"off": 1, "seconds": 1.0}, {"off": ["no such kernel"], "seconds": 1.0}])
def test_a_damaged_memory_of_the_self_test_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdict: object
) -> None:
    monkeypatch.setattr(selftest, "error", lambda *_: 0.0)
    file = tmp_path / "selftest.json"
    user_cache.store(file, selftest.SCHEMA, {selftest.device_key(software_gpu()): verdict})
    assert selftest.faulty_variants(software_gpu(), cache=file) == frozenset()


def test_an_adapter_with_no_optional_feature_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither f16 nor subgroups nor timestamps."""
    monkeypatch.setattr(device_module, "FEATURES", ())
    bare = open_device(software=True, limits=BASELINE)
    assert not {"shader-f16", "subgroup", "timestamp-query"} & set(bare.handle.features)
    assert selftest.error(bare, ()) < selftest.TOLERANCE[True]


def test_the_self_test_passes_here() -> None:
    assert selftest.error(software_gpu(), ()) < selftest.TOLERANCE[True]


@pytest.mark.parametrize(
    ("kernel", "right", "wrong"),
    [
        ("gemv", "inverseSqrt(", "1.3 * inverseSqrt("),
        ("attend_tiled", "let first = u32(state[1u]) +", "let first = 2u * u32(state[1u]) +"),
    ],
)
def test_the_self_test_sees_a_wrong_kernel(
    monkeypatch: pytest.MonkeyPatch, kernel: str, right: str, wrong: str
) -> None:
    """The second one leaves out the first token of a prompt that follows a decode."""

    def sabotaged(made: str, constants: dict[str, object]) -> str:
        source = compose(made, constants)
        return source.replace(right, wrong) if made == kernel else source

    monkeypatch.setattr("halfbyte.gpu.shaders.template.compose", sabotaged)
    assert selftest.error(software_gpu(), ()) > selftest.TOLERANCE[True]


@pytest.mark.parametrize(
    ("variant", "right", "wrong"),
    [
        ("fused-merge", "exp(fact0_1.x", "2.0 * exp(fact0_1.x"),
        ("read-ahead", "index - 1u;", "index;"),
        ("sliced-k", "sum0_0 += other[0];", "sum0_0 += 2.0 * other[0];"),
    ],
)
def test_the_self_test_names_a_wrong_variant(
    monkeypatch: pytest.MonkeyPatch, variant: str, right: str, wrong: str
) -> None:
    def sabotaged(kernel: str, constants: dict[str, object]) -> str:
        return compose(kernel, constants).replace(right, wrong)

    monkeypatch.setattr("halfbyte.gpu.shaders.template.compose", sabotaged)
    assert selftest.error(software_gpu(), ()) > selftest.TOLERANCE[True]
    assert selftest.error(software_gpu(), (variant,)) < selftest.TOLERANCE[True]
