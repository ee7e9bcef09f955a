"""`halfbyte bench` on a GPU: what it counts there, and the memory's rate beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from halfbyte.report import tables
from halfbyte.report.bench import bench
from halfbyte.report.schema import Case, Record
from halfbyte.report.subject import Settings, Subject
from halfbyte.webgpu import bandwidth
from tests.device.gpu import software_gpu, software_index
from tests.models.tiny import tiny

ONCE = Settings("gpu", repeat=1, warm_up=0, gpu=software_index())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.webgpu.executor._faulty", lambda _: frozenset())
    monkeypatch.setattr(bandwidth, "WARM_UP_S", 0.0)
    monkeypatch.setattr(bandwidth, "MEASURED_S", 0.01)
    monkeypatch.setattr(bandwidth, "MOST_NBYTES", 1)


def subject() -> Subject:
    model = replace(tiny("llama-3.2-3b"), weight_format="q4g32")
    return Subject("tiny", model.spec, model, {"name": "tiny", "synthetic": True, "config": {}}, None, 0.0)


def measured(settings: Settings, *cases: Case) -> list[Record]:
    return list(bench(subject(), settings, list(cases), lambda _: None))


def test_every_column_has_a_figure_on_a_gpu_and_counts_are_those_of_decoding() -> None:
    short, long, together = measured(ONCE, Case(4, 5), Case(30, 9), Case(8, 5, batch=2))
    for record in (short, long, together):
        assert tables.NONE not in {column.cell(record) for column in tables.COLUMNS}
        assert (record.gpu_s or 0) > 0
        assert 0 < (record.device_bytes or 0) < 16 << 20
    assert short.machine["gpu"] == software_gpu().name
    assert "each token read back" not in tables.heading(short)
    counted = [record.samples[0].counters for record in (short, long, together)]
    assert [c["submits"] for c in counted] == [4 / 2, 8 / 2, 4], "two tokens a submit; one of both sequences"
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
