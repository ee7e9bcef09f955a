"""`halfbyte bench` on a GPU: what it counts there, and the memory's rate beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from halfbyte.formats import Weight
from halfbyte.gpu.checks import bandwidth
from halfbyte.gpu.device.device import Device, open_device
from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.run.weights import WeightStore
from halfbyte.gpu.shaders.capabilities import BASELINE
from halfbyte.gpu.shaders.shader import ShaderSet
from halfbyte.gpu.shaders.variants import choose
from halfbyte.options import RunOptions
from halfbyte.plan import Plan
from halfbyte.plan.plan import Tensor
from halfbyte.report import bench as report
from halfbyte.report import tables
from halfbyte.report.schema import Case, Record
from halfbyte.report.subject import Settings, Subject
from halfbyte.synthetic import DISTINCT_ROWS, SyntheticWeights
from tests.device.gpu import software_gpu, software_index
from tests.models.tiny import tiny

ONCE = Settings(RunOptions("gpu", gpu=software_index()), repeat=1, warm_up=0)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.gpu.checks.selftest.faulty_variants", lambda _: frozenset())
    monkeypatch.setattr(bandwidth, "WARM_UP_S", 0.0)
    monkeypatch.setattr(bandwidth, "MEASURED_S", 0.01)
    monkeypatch.setattr(bandwidth, "MOST_NBYTES", 1)
    monkeypatch.setattr("halfbyte.runtime.pace.SUBMIT_S", 1e-9)


def subject() -> Subject:
    model = replace(tiny("llama-3.2-3b"), weight_format="q4g32")
    return Subject("tiny", model.spec, model, {"name": "tiny", "synthetic": True, "config": {}}, None, 0.0)


def measured(settings: Settings, *cases: Case) -> list[Record]:
    return list(report.bench(subject(), settings, list(cases), lambda _: None))


def test_every_column_has_a_figure_on_a_gpu_and_counts_are_those_of_decoding() -> None:
    short, long, together = measured(ONCE, Case(4, 5), Case(30, 9), Case(8, 5, batch=2))
    for record in (short, long, together):
        assert tables.NONE not in {column.cell(record) for column in tables.COLUMNS}
        assert (record.gpu_s or 0) > 0
        assert 0 < (record.device_bytes or 0) < 16 << 20
    assert short.machine["gpu"] == software_gpu().name
    assert "each token read back" not in tables.heading(short)
    counted = [record.samples[0].counters for record in (short, long, together)]
    assert [c["submits"] for c in counted] == [4, 8, 4], "a token a submit; one of both sequences"
    assert 2 * counted[0]["dispatches"] == counted[1]["dispatches"]


def test_one_token_at_a_time_is_a_submit_a_token() -> None:
    (record,) = measured(replace(ONCE, each_token=True), Case(8, 5))
    assert record.samples[0].counters["submits"] == 4
    assert "each token read back" in tables.heading(record)


def test_the_memorys_rate_is_measured_by_reading_all_of_it() -> None:
    device = software_gpu()
    before = device.allocated_nbytes
    assert 1e8 < bandwidth.read_bandwidth(device) < 1e12
    assert device.allocated_nbytes == before


class FromHost:
    """The same weights, every row of them made on the host."""

    def __init__(self, source: SyntheticWeights) -> None:
        self._source = source

    def weight(self, name: str) -> Weight:
        """The `WeightSource` protocol."""
        return self._source.weight(name)

    def release(self, name: str) -> None:
        """Nothing is kept."""


@pytest.mark.parametrize("stored", ["q4g32", "q3g32z", "q6_k", "bf16"])
def test_random_weights_are_repeated_by_the_gpu(monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    """In pieces and stacked, the last matrix ragged: the bytes are those that the reference would read."""
    device = open_device(software=True, limits=replace(BASELINE, max_binding=150_000))
    shapes = {"a": (192, 256), "b": (2 * DISTINCT_ROWS + 320, 256), "c": (100, 256)}
    source = SyntheticWeights(replace(tiny("llama-3.2-3b").spec, shapes=shapes), stored)
    tensors = {name: Tensor(name, shape, stored, "weight", 0) for name, shape in shapes.items()}
    plan = Plan(1, 1, 1, 1, 32, tensors, (), (), {})
    written: list[int] = []
    write = Device.write
    monkeypatch.setattr(Device, "write", lambda *a: written.append(a[3].nbytes) or write(*a))
    contents, sent, told = [], [], []
    context = LoweringContext(plan, device.capabilities, choose(device.capabilities), StateLayout.of(plan), ShaderSet())
    matrix = context.matrix(tuple(shapes))
    assert len(matrix.pieces) > 1
    for each in (source, FromHost(source)):
        buffers = WeightStore(device, each, progress=told.append).matrix(matrix)
        sizes = [
            (buffer, piece.rows * piece.pitch[n])
            for piece, arrays in zip(matrix.pieces, buffers, strict=True)
            for n, buffer in arrays.items()
        ]
        contents.append([device.read(buffer.handle, nbytes) for buffer, nbytes in sizes])
        sent.append(sum(written))
        assert told[-1] == sum(nbytes for _, nbytes in sizes)
        written.clear()
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(*contents, strict=True))
    assert sent[0] < 0.6 * sent[1]
    device.close()
